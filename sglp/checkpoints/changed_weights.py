"""Weights that change while they are in memory: the changed tensors wait in files."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from sglp.checkpoints.lazy_weights import LazyWeights
from sglp.checkpoints.open_folder import OpenFolder
from sglp.checkpoints.tensor_files import tensors_of
from sglp.distributed import processes
from sglp.hugging_face.equality import equal_bits


class ChangedWeights(LazyWeights):
    """Lazy weights that `store` replaces where they have changed.

    Args:
        opened: the model and its files.
        directory: for the files with changed tensors, which process 0 writes and all processes read.
        stack: closes these files.
    """

    def __init__(self, opened: OpenFolder, directory: Path, stack: ExitStack):
        super().__init__(opened)
        self._directory = directory
        self._stack = stack
        self._count = 0

    def store(self, modules: Sequence[nn.Module]) -> None:
        """Write the tensors of modules that have changed to a file, in the data types of the folder."""
        changed = {}
        for name, tensor in self.contents(modules).items():
            before = self.stored[name]
            # What the data type of the model can't represent has not changed for that reason.
            if not equal_bits(tensor, before.read().to(tensor.dtype)):
                changed[name] = tensor.to(before.meta.dtype, copy=True, memory_format=torch.contiguous_format)
        super().store(modules)
        if changed:
            path = self._directory / f"{self._count}.safetensors"
            self._count += 1
            processes.from_rank_zero(lambda: save_file(changed, path))
            self.stored |= self._stack.enter_context(tensors_of(path))
