"""Work shared between the processes of torch.distributed."""
