"""Prune&Comp: scale what is written to the residual stream before a gap to the size that it has after the gap.

In a pre-norm transformer every layer reads the residual stream x through a norm, and adds to it. If embeddings and the
last maps of attention and feed-forward parts are scaled by alpha, the stream is alpha x, and the layers compute the
same as before. For each gap, alpha is the `Scale` of the dense network's activations. If the output embedding is tied
to the input embedding, the weight of the final norm is divided by the embedding's scale.

Source: Prune&Comp (arXiv 2507.18212), which removes one layer, compensates, and scores the others again. Here the plan
is given, and all scales are computed from activations of the dense network.
"""

import math
from collections.abc import Mapping, Sequence

from torch import nn

from sglp.cutting import first_sample
from sglp.reconstruction.gap_scales import gaps_of, scales_of
from sglp.reconstruction.refit import Fit
from sglp.reconstruction.stream import find_parts, multiply


def prune_comp(
    dense: nn.Module,
    pruned: nn.Module,
    order: Sequence[str],
    kept: Mapping[str, list[nn.Module]],
    inputs: list,
    fitting: int,
) -> list[tuple[str, str, Fit]]:
    """Scale a pruned network in place.

    Args:
        dense, pruned: see `reconstruct`.
        order: names of the dense network's layers in the order in which they run.
        kept: the modules in the pruned network of each kept layer.
        inputs: of all batches, on the device of the networks.
        fitting: how many of them the scales are computed from; the others measure errors.

    Returns:
        For each gap the layer before it ("" if there is none), the last removed layer, and the errors of `Scale`.

    Raises:
        ScoringError: the pruned network is not such a transformer, or a scale is not finite; nothing is changed.
    """
    parts = find_parts(pruned, {name: kept[name] for name in order if name in kept}, first_sample(inputs[0]))
    gaps = gaps_of(order, set(order) - set(kept))
    scales = scales_of(dense, gaps, inputs, fitting)
    for name, maps in parts.layers.items():
        after = [order.index(gap.first) > order.index(name) for gap in gaps]
        multiply(maps, math.prod(scale.value for scale, later in zip(scales, after, strict=True) if later))
    everything = math.prod(scale.value for scale in scales)
    multiply(parts.embeddings, everything)
    multiply([parts.norm] if parts.norm is not None else [], 1 / everything)
    fits = [Fit("prune_comp", scale.before, scale.after, True) for scale in scales]
    return [(gap.before, gap.last, fit) for gap, fit in zip(gaps, fits, strict=True)]
