"""Several processes of torch.distributed share the work."""
