"""Networks on disk: save, load, read weights safely, and prune from file to file."""
