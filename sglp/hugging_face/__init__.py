"""Hugging Face models: their layers, their configs, their folders."""
