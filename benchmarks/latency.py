"""Latency of the pruned network's forward pass against the dense network's."""

import torch
from torch import Tensor, nn

import sglp
from benchmarks.side_by_side import Row, in_turn
from sglp.cost import count_macs

TITLE = "Latency"
ROUNDS = 15
FACTORY = "sglp.networks.cifar_resnet:resnet"


def measure(small: bool) -> list[Row]:
    """Time a ResNet-56 without every second removable block, on CIFAR images, one at a time and 64 at once."""
    depth, side, sizes, rounds = (20, 8, (2,), 1) if small else (56, 32, (1, 64), ROUNDS)
    torch.manual_seed(0)
    dense = sglp.build(FACTORY, {"depth": depth}, seed=0).eval()
    image = torch.randn(1, 3, side, side)
    layers = sglp.find_layers(dense, image)
    removed = [layer.name for layer in layers if layer.removable][::2]
    pruned = sglp.prune(dense, sglp.Plan([layer.name for layer in layers if layer.name not in removed], removed)).eval()
    macs = count_macs(pruned, image) / count_macs(dense, image)
    removal = f"{len(removed)} of {len(layers)} layers removed, {100 * macs:.0f} % of the MACs kept"
    work = f"ResNet-{depth}, {side}x{side}, {removal}"
    return [_row(pruned, dense, image.expand(size, -1, -1, -1).contiguous(), rounds, work) for size in sizes]


@torch.inference_mode()
def _row(pruned: nn.Module, dense: nn.Module, inputs: Tensor, rounds: int, work: str) -> Row:
    if pruned(inputs).shape != dense(inputs).shape:
        raise AssertionError("the outputs of the pruned and the dense network have different shapes")
    timing = in_turn(lambda: pruned(inputs), lambda: dense(inputs), rounds)
    return Row(f"{work}, batches of {len(inputs)}", "the dense network", timing)
