"""The documents' examples as cases, with the values that the documents print."""
