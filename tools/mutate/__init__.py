"""Seeing which mistakes in the backends' source nobody notices: `python -m tools.mutate --help`."""
