"""Seeing that the suite catches every wrong implementation: `python -m tools.mutants --help`."""
