"""Exceptions, each with one sentence that says what is wrong and what would be right."""


class SGLPError(Exception):
    """Base class of all errors that this package raises deliberately."""


class LayerError(SGLPError):
    """A network has no distinguishable layers, or none that can be removed."""


class SimilarityError(SGLPError):
    """Similarities can't be computed from these inputs."""


class SegmentationError(SGLPError):
    """The requested segmentation does not exist."""


class BudgetError(SGLPError):
    """The layers can't meet the requested budget or target."""


class ScoringError(SGLPError):
    """Plans can't be scored as requested."""


class PlanError(SGLPError):
    """A plan does not fit the network."""


class ArchitectureError(SGLPError):
    """A network can't be built from its factory."""


class CheckpointError(SGLPError):
    """Weights can't be read or written, or do not fit the network."""


class DataError(SGLPError):
    """Data can't be read, or is not what the task needs."""


class NotPlainWarning(UserWarning):
    """A Hugging Face model can't be saved for plain `from_pretrained`, only for `sglp.load`."""


class DeadLayerWarning(UserWarning):
    """A layer returns the same output for every sample, so it counts as similar to no other layer."""


def first_line(error: Exception) -> str:
    """Return the first line of another library's error message."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
