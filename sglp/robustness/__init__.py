"""Attacks and image corruptions for testing the robustness of networks."""
