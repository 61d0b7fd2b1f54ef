"""What ``sglp compress`` needs of the user's texts or images: samples to compress with, and some that are held out."""

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

from sglp.choices import Pooling

HELD_OUT = 0.1  # share of the samples that measure the networks
FEWEST = 4  # samples that CKA needs


class Sizes(NamedTuple):
    """Numbers of samples and batch sizes for `sglp.compress`."""

    calibration: tuple[int, int]
    scoring: tuple[int, int]
    reconstruction: tuple[int, int]
    pooling: Pooling

    def within(self, available: int) -> "Sizes":
        """Return sizes for which there are enough samples."""
        calibration, scoring, reconstruction = ((min(count, available), batch) for count, batch in self[:3])
        return Sizes(calibration, scoring, reconstruction, self.pooling)


class Samples(Protocol):
    """What the command needs of texts or images.

    Attributes:
        name: of the file or folder.
        task: the hub's name of the task.
        quality: name of what is measured.
        unit: what the MACs of a forward pass are counted for.
        sizes: for `sglp.compress`.
    """

    name: str
    task: str
    quality: str
    unit: str
    sizes: Sizes

    def example(self) -> Any:
        """Return the inputs of one sample."""

    def batches(self, seed: int) -> Iterator[tuple[Any, Tensor]]:
        """Yield samples in random order, without those that are held out, with their targets."""

    def measure(self, network: nn.Module) -> float:
        """Measure the quality of a network on the held-out samples."""

    def macs(self, network: nn.Module) -> int:
        """Count the multiply-accumulates of one unit."""
