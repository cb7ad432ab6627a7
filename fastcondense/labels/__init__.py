"""The stage that makes soft labels."""
