"""The contract of masked attention, and the suite that checks implementations."""
