"""Teachers without labels: MoCo on one's own images, published checkpoints, linear probes."""
