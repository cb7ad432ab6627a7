"""Moments of layers: targets from real images, and how far those of condensed images are from them."""
