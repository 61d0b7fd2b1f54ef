"""What removing layers is for: the pruned network's forward pass against the dense one's."""

import torch

import sglp
from benchmarks.side_by_side import Row, in_turn
from sglp.cost import count_macs

TITLE = "Latency"
ROUNDS = 15
FACTORY = "sglp.networks.cifar_resnet:resnet"


def measure(small: bool) -> list[Row]:
    """Every second block of a ResNet-56 gone, CIFAR images, one at a time and 64 at once."""
    depth, side, sizes, rounds = (20, 8, (2,), 1) if small else (56, 32, (1, 64), ROUNDS)
    torch.manual_seed(0)
    dense = sglp.build(FACTORY, {"depth": depth}, seed=0).eval()
    image = torch.randn(1, 3, side, side)
    layers = sglp.find_layers(dense, image)
    gone = [layer.name for layer in layers if layer.removable][::2]
    pruned = sglp.prune(dense, sglp.Plan([layer.name for layer in layers if layer.name not in gone], gone)).eval()
    macs = count_macs(pruned, image) / count_macs(dense, image)
    what = f"ResNet-{depth}, {side}x{side}, {len(gone)} of {len(layers)} layers gone, {100 * macs:.0f} % of the MACs"
    return [_row(pruned, dense, image.expand(size, -1, -1, -1).contiguous(), rounds, what) for size in sizes]


@torch.inference_mode()
def _row(pruned, dense, inputs, rounds: int, what: str) -> Row:
    if pruned(inputs).shape != dense(inputs).shape:
        raise AssertionError("the pruned network's output has another shape")
    timing = in_turn(lambda: pruned(inputs), lambda: dense(inputs), rounds)
    return Row(f"{what}, batches of {len(inputs)}", "the dense network", timing)
