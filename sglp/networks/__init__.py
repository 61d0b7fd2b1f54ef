"""Networks that no library ships."""
