"""Find the layers of a network, and which of them can be removed."""
