"""Criteria: scores for a set of layers that a segment could keep, one per file; see `sglp.scoring.methods`."""
