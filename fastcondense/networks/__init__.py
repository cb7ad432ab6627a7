"""Networks by name, the loop that trains any of them, their scores."""
