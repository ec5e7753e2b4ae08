"""Paired measurements against what the frameworks ship."""
