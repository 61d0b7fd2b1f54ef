"""The task of causal language modelling."""
