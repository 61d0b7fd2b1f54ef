"""Choose the layers to keep: methods, criteria and searches."""
