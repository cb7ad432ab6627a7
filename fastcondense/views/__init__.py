"""Which part of which image is seen, and how it is changed."""
