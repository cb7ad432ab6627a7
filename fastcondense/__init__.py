"""Dataset condensation at ImageNet scale: squeeze, recover, relabel by replay, train and evaluate."""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import Condensation, load, recipe, recipes, run, views

__version__ = "0.1.0"
__all__ = ["Condensation", "load", "recipe", "recipes", "run", "views"]


def __getattr__(name: str) -> Any:
    """The Python API (api.py), which is imported when it is asked for: torch takes seconds."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.api"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """A package whose functions keep their names: importing the module fastcondense.run does not bind it to `run`."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in __all__ and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
