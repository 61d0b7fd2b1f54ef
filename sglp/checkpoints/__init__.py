"""Networks on disk: saved, loaded, read safely, pruned from file to file."""
