"""Bypass layers of a network temporarily, or remove them."""
