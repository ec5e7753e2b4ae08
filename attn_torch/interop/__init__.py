"""Attention in the places that other libraries have for it; nothing here is imported unasked."""
