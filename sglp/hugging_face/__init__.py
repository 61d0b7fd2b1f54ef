"""Hugging Face models: their layers, configs and folders."""
