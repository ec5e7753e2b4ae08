"""The contract of masked attention, and the suite that holds implementations against it."""
