"""Tasks: the data, the training and the evaluation that a network is for."""
