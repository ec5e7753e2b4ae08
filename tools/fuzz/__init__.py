"""Random calls of attention, at the sizes where the way to compute it changes."""
