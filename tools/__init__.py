"""What only maintainers run. No wheel holds it."""
