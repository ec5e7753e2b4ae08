"""What the suite asks: named calls, arrays to make them of, wrong calls, and comparisons."""
