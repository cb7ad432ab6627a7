"""Readers of real images. Imported as ``fastcondense.loaders``; imports nothing from above."""
