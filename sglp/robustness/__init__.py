"""Attacks and corruptions that networks are tested under."""
