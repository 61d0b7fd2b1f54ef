"""SGLP: remove whole layers from a trained network, guided by similarity.

Names are imported on first use, so that ``import sglp`` is fast and code without torch does not import it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sglp.activations import gram_matrices
    from sglp.architecture import build
    from sglp.budget import allocate_budget
    from sglp.checkpoints.checkpoint import load, save
    from sglp.checkpoints.prune_folder import prune_folder
    from sglp.checkpoints.reconstruct_folder import reconstruct_folder
    from sglp.checkpoints.weights import load_weights
    from sglp.cka import cka_matrix
    from sglp.compression import compress
    from sglp.discovery.find_layers import find_layers
    from sglp.discovery.inspection import inspect
    from sglp.errors import SGLPError
    from sglp.exporting.export import export
    from sglp.layer import Layer
    from sglp.plan import Plan
    from sglp.reconstruction.error_matrix import reconstruction_errors
    from sglp.reconstruction.reconstruct import reconstruct
    from sglp.record import Architecture
    from sglp.scores import LayerScore, SetScore
    from sglp.scoring.combinations import best_plan, score_combinations
    from sglp.scoring.methods import find_criterion
    from sglp.segmentation import fisher_segmentation
    from sglp.surgery.batchnorm import recalibrate
    from sglp.surgery.prune import prune

_MODULES = {
    "Architecture": "record",
    "Layer": "layer",
    "LayerScore": "scores",
    "Plan": "plan",
    "SGLPError": "errors",
    "SetScore": "scores",
    "allocate_budget": "budget",
    "best_plan": "scoring.combinations",
    "build": "architecture",
    "cka_matrix": "cka",
    "compress": "compression",
    "export": "exporting.export",
    "find_criterion": "scoring.methods",
    "find_layers": "discovery.find_layers",
    "fisher_segmentation": "segmentation",
    "gram_matrices": "activations",
    "inspect": "discovery.inspection",
    "load": "checkpoints.checkpoint",
    "load_weights": "checkpoints.weights",
    "prune": "surgery.prune",
    "prune_folder": "checkpoints.prune_folder",
    "recalibrate": "surgery.batchnorm",
    "reconstruct": "reconstruction.reconstruct",
    "reconstruction_errors": "reconstruction.error_matrix",
    "reconstruct_folder": "checkpoints.reconstruct_folder",
    "save": "checkpoints.checkpoint",
    "score_combinations": "scoring.combinations",
}

__all__ = [
    "Architecture",
    "Layer",
    "LayerScore",
    "Plan",
    "SGLPError",
    "SetScore",
    "allocate_budget",
    "best_plan",
    "build",
    "cka_matrix",
    "compress",
    "export",
    "find_criterion",
    "find_layers",
    "fisher_segmentation",
    "gram_matrices",
    "inspect",
    "load",
    "load_weights",
    "prune",
    "prune_folder",
    "recalibrate",
    "reconstruct",
    "reconstruct_folder",
    "reconstruction_errors",
    "save",
    "score_combinations",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'sglp' has no attribute {name!r}")
    return getattr(import_module(f"sglp.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
