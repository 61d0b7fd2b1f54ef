"""The program measured: how its cost grows with depth."""
