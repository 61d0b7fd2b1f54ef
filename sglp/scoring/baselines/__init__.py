"""The other ways to a plan, one a file."""
