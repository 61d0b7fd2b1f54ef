"""Training with transformers' Trainer, resumable to the bit on a CPU."""
