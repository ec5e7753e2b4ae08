"""The suite inside somebody else's pytest session: a decorator, and a plugin."""
