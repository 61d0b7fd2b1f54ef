"""Build a dense image classifier; see `sglp.tasks.building`."""

import sys
from pathlib import Path

from torch import nn

import sglp
from sglp.architecture import remember
from sglp.checkpoints.warm_start import warm_start
from sglp.hugging_face.pretrained import CONFIG
from sglp.record import ARCHITECTURE, saved_architecture
from sglp.tasks.schemas.workload import Architecture, Weights


def build(architecture: Architecture, weights: Weights, path: str | None, seed: int) -> nn.Module:
    """Build the network, with the weights of its factory, of a file or of a saved network, or with random weights.

    A saved network may be pruned. A folder for `from_pretrained` brings its configuration if the workload has none.
    """
    if path is not None and (Path(path) / CONFIG).is_file() and not architecture.kwargs:
        network = sglp.build(architecture.factory, seed=seed, weights={"pretrained": path})
        if (Path(path) / ARCHITECTURE).is_file():  # layers keep their names in the dense network
            remember(network, saved_architecture(path))
        return network
    network = sglp.build(architecture.factory, architecture.kwargs, seed=seed, weights=weights.kwargs)
    if path is not None and Path(path).is_dir():
        network, fresh = warm_start(network, path)
        if fresh:
            print(f"{path} has other shapes for {', '.join(fresh)}: these start from random weights", file=sys.stderr)
    elif path is not None:
        sglp.load_weights(network, path)
    return network


def first_processor(architecture: Architecture, weights: Weights, path: str | None, prepare: dict) -> None:
    """Return None: images need no processor."""
