"""Freezing the vectors: `python -m tools.vectors --help`."""
