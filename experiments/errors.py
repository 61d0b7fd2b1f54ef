"""The error of pipeline runs."""

from sglp.errors import SGLPError


class RunError(SGLPError):
    """A pipeline run that cannot start, or in which a stage failed."""
