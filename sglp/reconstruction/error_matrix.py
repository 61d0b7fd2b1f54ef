"""How well each layer, refitted, produces the activations after later layers: all pairs from one dense pass."""

from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from tqdm import tqdm

from sglp.batches import at_least_one, inputs_of, padding_mask, to_device
from sglp.errors import ScoringError
from sglp.layer import Layer, branch_ends
from sglp.reconstruction.beside import beside
from sglp.reconstruction.holdout import own_part, split
from sglp.reconstruction.lockstep import advance_to, in_lockstep, pause_after, pause_before
from sglp.reconstruction.one_layer import LayerCalls, errors_of_layer
from sglp.reconstruction.safeguards import shared_parameters, without_cache
from sglp.running import device_of, first_tensor


def reconstruction_errors(
    network: nn.Module,
    layers: Sequence[Layer],
    batches: Iterable,
    *,
    longest: int = 7,
    ridge: float = 0.1,
    steps: int = 8,
) -> np.ndarray:
    """Measure how well each layer, refitted, produces the activation after the layers that follow it.

    x_j is the dense activation after layer j. Entry [i, j] is the mean over held-out tokens (or positions) of
    ||x_j - y||^2 / ||x_j||^2, where y is the output of layer i, refitted to x_j on its own dense input. Where layer i
    is affine in its last linear map, y = x_i + dW h, and dW is the solution of `least_squares` with the row weights
    1 / ||x_i||^2. Elsewhere a copy of the layer is fitted by a few steps of Adam. As in `reconstruct`, new weights
    count only if they lower the held-out error.

    The forward passes of all batches advance together, once. Inputs and activations of at most `longest` + 1 layers are
    held at a time.

    Args:
        network: the dense network; left as it was.
        layers: as returned by `find_layers`.
        batches: inputs, or pairs (inputs, target) whose target is not used. An eighth is held out. Padding tokens do
            not count where the inputs have an attention mask.
        longest: the largest number of removed layers, at least 1.
        ridge: see `least_squares`.
        steps: of Adam, for each pair of layers of which the first is fitted by gradient.

    Returns:
        [layers, layers] float64. 0 on the diagonal, as nothing is removed. Infinite where j < i or j - i > `longest`,
        where one of the layers i+1..j can't be removed or does not follow the layer before it (see `beside`), and where
        the activations after i and j differ in shape.

    Raises:
        ScoringError: there is no batch, a layer does not run for every batch, or activations are not finite.
    """
    errors = np.full((len(layers), len(layers)), np.inf)
    np.fill_diagonal(errors, 0)
    fitting, held = split([inputs_of(batch) for batch in at_least_one(batches)])
    apart = beside(network, [layer.name for layer in layers], fitting[0])
    ends = _ends([layer.removable and layer.name not in apart for layer in layers], longest)
    device = device_of(network)
    inputs = [to_device(own_part(one), device) for one in (*fitting, *held)]
    masks = [padding_mask(one) for one in inputs]
    modules = [[network.get_submodule(path) for path in layer.modules] for layer in layers]
    fixed = {network.get_parameter(path) for path in shared_parameters(network)}
    begun: deque[int] = deque()  # layers with a target that is still to come
    given: dict[int, list[tuple[tuple, dict]]] = {}
    outputs: dict[int, list[Tensor]] = {}
    with ExitStack() as stack:
        stack.enter_context(without_cache(network))
        for layer, inside in zip(layers, modules, strict=True):
            stack.callback(pause_before(inside[0], f"before {layer.name}"))
            stack.callback(pause_after(network, layer.name, layer.name))
        passes = stack.enter_context(in_lockstep(network, inputs))
        for j, layer in enumerate(tqdm(layers, desc="reconstruction errors", unit="layer", disable=None)):
            arguments = advance_to(passes, f"before {layer.name}")
            if ends[j] > j:
                begun.append(j)
                given[j] = [_copied(one) for one in arguments]
            results = advance_to(passes, layer.name)
            if begun:
                outputs[j] = [_copied(first_tensor(one)) for one in results]
                if not all(one.isfinite().all() for one in outputs[j]):
                    raise ScoringError(f"activations after {layer.name} are not finite: no layer can be fitted to them")
            while begun and ends[begun[0]] == j:
                i = begun.popleft()
                calls = LayerCalls(
                    modules[i], branch_ends(layers[i].name), given.pop(i), outputs[i], masks, len(fitting)
                )
                alike = [t for t in range(i + 1, j + 1) if _shapes(outputs[t]) == _shapes(outputs[i])]
                if alike:
                    targets = [outputs[t] for t in alike]
                    errors[i, alike] = errors_of_layer(calls, targets, fixed, ridge=ridge, steps=steps)
                for t in range(i, begun[0] if begun else j + 1):
                    del outputs[t]
    return errors


def _ends(removable: Sequence[bool], longest: int) -> list[int]:
    """For each layer, find the last of the removable layers that directly follow it, at most `longest` of them."""
    ends = list(range(len(removable)))
    for i in reversed(range(len(removable) - 1)):
        if removable[i + 1]:
            ends[i] = min(ends[i + 1], i + longest)
    return ends


def _copied(value: Any) -> Any:
    """Copy the tensors inside a value: what runs later may work in place."""
    return tree_map(lambda leaf: leaf.detach().clone() if isinstance(leaf, Tensor) else leaf, value)


def _shapes(activations: Sequence[Tensor]) -> list[torch.Size]:
    return [activation.shape for activation in activations]
