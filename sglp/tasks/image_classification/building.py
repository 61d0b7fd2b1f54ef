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
    """The network, with weights of its factory or of a file, or without; of a saved network also without its layers.

    A folder for `from_pretrained` brings its configuration where the workload has none.
    """
    if path is not None and (Path(path) / CONFIG).is_file() and not architecture.kwargs:
        network = sglp.build(architecture.factory, seed=seed, weights={"pretrained": path})
        if (Path(path) / ARCHITECTURE).is_file():  # its layers go by their dense names still
            remember(network, saved_architecture(path))
        return network
    network = sglp.build(architecture.factory, architecture.kwargs, seed=seed, weights=weights.kwargs)
    if path is not None and Path(path).is_dir():
        network, fresh = warm_start(network, path)
        if fresh:
            print(f"{path} has other shapes of {', '.join(fresh)}, which begin at random", file=sys.stderr)
    elif path is not None:
        sglp.load_weights(network, path)
    return network


def first_processor(architecture: Architecture, weights: Weights, path: str | None, prepare: dict) -> None:
    """Images need none."""
