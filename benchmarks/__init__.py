"""Benchmarks of the program: its speed against peers, and how its cost grows with depth."""
