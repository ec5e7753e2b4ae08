"""A translation model from start to end: trained, saved, and decoded on all three backends."""
