"""Layer-wise reconstruction: kept layers are refitted to the activations of the dense network."""
