"""Which layers are kept: methods, criteria, searches."""
