"""Views of images: which part of which image is seen, and how it is changed."""
