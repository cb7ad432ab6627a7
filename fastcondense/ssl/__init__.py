"""Teachers without labels: MoCo and DINO on one's own images, published checkpoints, linear probes."""
