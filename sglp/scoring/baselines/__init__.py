"""Baselines: the other pruning methods, one per file; see `sglp.scoring.methods`."""
