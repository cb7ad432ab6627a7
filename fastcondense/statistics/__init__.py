"""What the moments of a layer should be, from real images, and how far those of condensed images are from it."""
