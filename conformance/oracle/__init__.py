"""What the suite trusts: the loop oracle, the naive formula, and how large an error may be."""
