"""The stage that makes teachers."""
