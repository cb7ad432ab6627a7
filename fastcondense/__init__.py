"""Dataset condensation at ImageNet scale: squeeze, recover, relabel by replay, train and evaluate."""

__version__ = "0.1.0"
