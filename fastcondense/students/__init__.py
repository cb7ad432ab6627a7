"""The stages that train students and score them."""
