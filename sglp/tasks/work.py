"""What is timed."""

from collections.abc import Callable
from typing import NamedTuple


class Work(NamedTuple):
    """A piece of work of a network.

    Attributes:
        name: as "forward".
        run: does it once.
        units: how many samples or tokens that is.
        unit: "samples" or "tokens".
        inputs: what the network is called with, where that is all of it.
    """

    name: str
    run: Callable[[], object]
    units: int
    unit: str
    inputs: object = None
