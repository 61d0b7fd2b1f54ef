"""Build a dense language model; see `sglp.tasks.building`."""

from pathlib import Path
from typing import Any

from torch import nn

import sglp
from sglp.architecture import remember
from sglp.errors import SGLPError
from sglp.record import ARCHITECTURE, saved_architecture
from sglp.tasks import language_models
from sglp.tasks.local_files import CODE
from sglp.tasks.schemas.workload import Architecture, Weights


def build(architecture: Architecture, weights: Weights, path: str | None, seed: int) -> nn.Module:
    """Build the network from the hub, from a file or folder, or from a configuration."""
    weights_kwargs = {"pretrained": path} if path is not None else weights.kwargs
    network = sglp.build(architecture.factory, architecture.kwargs, seed=seed, weights=weights_kwargs)
    if path is not None and (Path(path) / ARCHITECTURE).is_file():  # saved by SGLP: its layers keep their dense names
        remember(network, saved_architecture(path))
    return network


def first_processor(architecture: Architecture, weights: Weights, path: str | None, prepare: dict) -> Any:
    """Load the tokenizer that comes with the weights, or make one of bytes.

    Raises:
        SGLPError: the tokenizer of the weights is wanted, but the weights come without one.
    """
    if prepare["tokenizer"] == "bytes":
        return language_models.byte_tokenizer()
    name = path or weights.kwargs.get("pretrained")
    if name is None:
        raise SGLPError(
            "data.prepare.tokenizer=null needs weights that come with a tokenizer, from a file, a folder or the hub: "
            "without them it must be bytes"
        )
    trust = architecture.kwargs.get(CODE, False)
    return language_models.tokenizer(name, weights.kwargs.get("revision"), trust)
