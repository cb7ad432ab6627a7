"""Recover: jobs, their initial images, and the descent through frozen teachers."""
