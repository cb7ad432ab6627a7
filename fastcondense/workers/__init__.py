"""Processes that share a run: claims, launch, status, process groups."""
