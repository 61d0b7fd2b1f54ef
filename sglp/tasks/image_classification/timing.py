"""The work that image classifiers are timed on; see `sglp.tasks.timing`."""

from torch import nn

from sglp.running import device_of
from sglp.tasks.image_classification.data import example
from sglp.tasks.image_classification.images import Images
from sglp.tasks.timing import BenchmarkTask


def work(network: nn.Module, images: Images, settings: dict, size: int) -> list[BenchmarkTask]:
    """Return the forward pass of a batch."""
    image = example(images).to(device_of(network))
    inputs = image.expand(size, *image.shape[1:]).contiguous()
    return [BenchmarkTask("forward", lambda: network(inputs), size, "samples", inputs)]
