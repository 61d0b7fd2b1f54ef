"""A network without some of its layers, for a while or for good."""
