"""Block influence: layers that turn their input least go.

BI = 1 - mean cosine of a layer's input and output; the layers of the smallest BI go. The cosine is that of every
token's states [samples, tokens, channels], or of a sample's whole activation.

Source: ShortGPT (arXiv 2403.03853).
Cost: forward `B`, backward `0`.
Use: as the first try for a transformer with residual connections: one pass, no labels. It sees what a layer does to its
own input, not what the layers after it make of that: a small turn can matter much, and a large one little. After a ReLU
cosines are of positive numbers and lie close together.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sglp.batches import at_least_one, inputs_of, to_device
from sglp.layer import Layer
from sglp.plan import Plan
from sglp.running import call, device_of, first_tensor, watched
from sglp.scores import LayerScore
from sglp.scoring.ranking import check_keep, keep_best


def block_influence(
    network, layers, segments, similarity, batches, keep: int, seed: int
) -> tuple[Plan, list[LayerScore]]:
    """Remove the layers of the smallest BI; the score of one that can't go is 0.

    The arguments are those of every method; see `sglp.scoring.methods`.

    Raises:
        ScoringError: there is no batch, or a score is not finite.
    """
    check_keep(layers, keep)
    return keep_best(layers, influences(network, layers, batches), keep, "block influence")


def influences(network: nn.Module, layers: Sequence[Layer], batches) -> list[float]:
    """The block influence of every layer; 0 for one that can't go, which stays whatever its score."""
    sums = torch.zeros(len(layers), dtype=torch.float64)
    counts, entering = [0] * len(layers), {}
    handles = []
    for i, layer in enumerate(layers):
        if not layer.removable:
            continue

        def before(module, args, kwargs, i=i):
            entering[i] = first_tensor(args if args else kwargs).clone()  # a layer may work in place

        def after(module, args, output, i=i):
            cosines = _cosines(entering.pop(i), first_tensor(output))
            sums[i] += cosines.sum().cpu()
            counts[i] += cosines.numel()

        handles.append(network.get_submodule(layer.modules[0]).register_forward_pre_hook(before, with_kwargs=True))
        handles.append(network.get_submodule(layer.modules[-1]).register_forward_hook(after))
    device = device_of(network)
    with watched(network, handles):
        for batch in at_least_one(batches):
            call(network, to_device(inputs_of(batch), device))
    return [1 - float(total) / count if count else 0.0 for total, count in zip(sums, counts, strict=True)]


def _cosines(before: Tensor, after: Tensor) -> Tensor:
    """One cosine a token, or a sample where there are no tokens."""
    if before.ndim != 3:
        before, after = before.flatten(1), after.flatten(1)
    return F.cosine_similarity(before.double(), after.double(), dim=-1)
