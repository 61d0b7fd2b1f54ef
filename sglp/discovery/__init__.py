"""What the layers of a network are, and which of them can be removed."""
