"""Build a dense language model; see `sglp.tasks.building`."""

from pathlib import Path

from torch import nn

import sglp
from sglp.architecture import remember
from sglp.errors import SGLPError
from sglp.record import ARCHITECTURE, saved_architecture
from sglp.tasks import language_models
from sglp.tasks.local_files import CODE
from sglp.tasks.schemas.workload import Architecture, Weights


def build(architecture: Architecture, weights: Weights, path: str | None, seed: int) -> nn.Module:
    """The network from the hub, a file or folder, or a configuration."""
    fetched = {"pretrained": path} if path is not None else weights.kwargs
    network = sglp.build(architecture.factory, architecture.kwargs, seed=seed, weights=fetched)
    if path is not None and (Path(path) / ARCHITECTURE).is_file():  # its layers go by their dense names still
        remember(network, saved_architecture(path))
    return network


def first_processor(architecture: Architecture, weights: Weights, path: str | None, prepare: dict):
    """The tokenizer that comes with the weights, or one of bytes."""
    if prepare["tokenizer"] == "bytes":
        return language_models.byte_tokenizer()
    name = path or weights.kwargs.get("pretrained")
    if name is None:
        raise SGLPError("data.prepare.tokenizer=null is wrong without weights that bring one: bytes would be right")
    trust = architecture.kwargs.get(CODE, False)
    return language_models.tokenizer(name, weights.kwargs.get("revision"), trust)
