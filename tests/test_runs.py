"""A run of the pipeline: its name, its files, and that it leaves the workspace alone."""
