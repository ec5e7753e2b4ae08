"""Doctests are collected from every module, but a peer's needs its library: none is collected."""

collect_ignore_glob = ["*.py"]
