"""Criteria: how good is a set of layers that a segment keeps? One a file; see `sglp.scoring.methods`."""
