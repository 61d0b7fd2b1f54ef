"""What can go wrong, as exceptions that say in one sentence what is wrong and what would be right."""


class SGLPError(Exception):
    """Base of every error that this package raises on purpose."""


class LayerError(SGLPError):
    """The network has no layers that could be told apart, or none that can go."""


class SimilarityError(SGLPError):
    """Similarities can't be computed from what was given."""


class SegmentationError(SGLPError):
    """A segmentation that does not exist was asked for."""


class BudgetError(SGLPError):
    """A budget that the layers can't meet was asked for."""


class ScoringError(SGLPError):
    """Combinations can't be scored as asked."""


class PlanError(SGLPError):
    """A plan does not fit the network."""


class ArchitectureError(SGLPError):
    """A network can't be built from its factory."""


class CheckpointError(SGLPError):
    """Weights can't be read, written, or do not fit the network."""


class DataError(SGLPError):
    """Data can't be read or is not what the task needs."""


class NotPlainWarning(UserWarning):
    """A network of transformers can't be saved for plain `from_pretrained`, only for `sglp.load`."""


class DeadLayerWarning(UserWarning):
    """A layer gives the same output for every sample: it has no similarity to any other."""


def first_line(error: Exception) -> str:
    """What another library's error says, in one line."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
