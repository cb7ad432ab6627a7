"""Operators of the recover and replay loops. Imported as ``fastcondense.kernels``; imports nothing from above."""
