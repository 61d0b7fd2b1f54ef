"""SGLP: remove whole layers from a trained network, guided by similarity.

Names are imported on first use, so that ``import sglp`` costs nothing and what needs no torch imports none.
"""

from importlib import import_module

_WHERE = {
    "Architecture": "architecture",
    "Layer": "layers",
    "Plan": "plan",
    "SGLPError": "errors",
    "allocate_budget": "budget",
    "best_plan": "scoring",
    "build": "architecture",
    "cka_matrix": "cka",
    "compress": "compression",
    "export": "exporting.export",
    "export_gguf": "gguf_export",
    "find_criterion": "methods",
    "find_layers": "layers",
    "fisher_segmentation": "segmentation",
    "gram_matrices": "activations",
    "inspect": "inspection",
    "load": "checkpoint",
    "load_weights": "weights",
    "prune": "surgery",
    "prune_folder": "sharded",
    "recalibrate": "batchnorm",
    "save": "checkpoint",
    "score_combinations": "scoring",
}

__all__ = list(_WHERE)


def __getattr__(name: str):
    if name not in _WHERE:
        raise AttributeError(f"module 'sglp' has no attribute {name!r}")
    return getattr(import_module(f"sglp.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return __all__
