"""The stage that makes condensed images."""
