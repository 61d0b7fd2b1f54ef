"""Criteria: how good is it that a segment keeps these of its layers? One a file; `sglp.methods` has their interface."""
