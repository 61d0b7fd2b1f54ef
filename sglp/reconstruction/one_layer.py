"""Errors of one layer that is refitted to the activations after several later layers."""

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sglp.distributed.all_reduce import all_reduce_sum
from sglp.distributed.whole_batch import whole_batch
from sglp.reconstruction.closed_form import least_squares
from sglp.reconstruction.refit import Sample, last_map, refit, sample_of
from sglp.reconstruction.rows import channels_first, mask_like, row_weights, rows


class LayerCalls(NamedTuple):
    """A layer in the forward passes of all batches.

    Attributes:
        modules: of the layer.
        branch_ends: see `run_layer`.
        given: for each batch the (args, kwargs) of the first module.
        outputs: for each batch the activation after the layer.
        masks: for each batch the attention mask, or None.
        fitting: number of batches to fit on; the others are held out.
    """

    modules: list[nn.Module]
    branch_ends: tuple[int, ...]
    given: list[tuple[tuple, dict]]
    outputs: list[Tensor]
    masks: list[Tensor | None]
    fitting: int

    def sample(self, batch: int, target: Tensor, first: bool) -> Sample:
        """Make the sample of a batch at this layer, with another layer's activation as the target."""
        return sample_of(self.modules, self.branch_ends, *self.given[batch], target, self.masks[batch], first)


def errors_of_layer(
    layer: LayerCalls, targets: Sequence[list[Tensor]], fixed: set[nn.Parameter], *, ridge: float, steps: int
) -> list[float]:
    """Refit a copy of a layer to each target and return the held-out errors.

    As in `reconstruct`, new weights count only if they lower the held-out error.

    Args:
        layer: the layer and its calls.
        targets: for each target the activations of all batches, of the shape of the layer's outputs.
        fixed: parameters that other layers have too.
        ridge: see `least_squares`.
        steps: of Adam, for each target, if the layer is not affine in its last linear map; 0: it is not fitted.

    Returns:
        For each target the mean over held-out rows of ||target - output||^2 / ||target||^2.
    """
    with torch.no_grad(), whole_batch():
        first = channels_first(layer.modules, layer.outputs[0])
        linear = last_map(layer.modules, layer.sample(0, layer.outputs[0], first))
        if linear is not None and linear.get_parameter("weight") not in fixed:
            return _by_closed_form(layer, linear, targets, first, ridge)
        if not steps or any(parameter in fixed for module in layer.modules for parameter in module.parameters()):
            return _held_out(layer, targets, first).tolist()
        return [_by_gradient(layer, target, first, ridge, steps) for target in targets]


def _by_closed_form(
    layer: LayerCalls, linear: nn.Module, targets: Sequence[list[Tensor]], first: bool, ridge: float
) -> list[float]:
    """Solve for all targets together: one factorisation, as the weights of rows are those of the layer's own output."""

    def equations(batch: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return (H, R, w) of a batch; R has the residuals of all targets side by side."""
        own = layer.sample(batch, layer.outputs[batch], first)
        residuals = torch.cat([rows(target[batch], first) - own.target for target in targets], dim=1)
        precision = torch.promote_types(residuals.dtype, torch.float32)  # float64 would take twice as long
        return rows(_input_of(linear, own.run), False), residuals.to(precision), own.weights

    change = least_squares((equations(batch) for batch in range(layer.fitting)), ridge)

    def fitted(batch: int) -> Tensor:
        own = layer.sample(batch, layer.outputs[batch], first)
        inputs = rows(_input_of(linear, own.run), False)
        return inputs @ change.T.to(inputs)

    return torch.minimum(_held_out(layer, targets, first, fitted), _held_out(layer, targets, first)).tolist()


def _by_gradient(layer: LayerCalls, target: list[Tensor], first: bool, ridge: float, steps: int) -> float:
    modules = copy.deepcopy(layer.modules)
    copied = layer._replace(modules=modules)
    samples = [copied.sample(batch, target[batch], first) for batch in range(len(target))]
    seen, unseen = samples[: layer.fitting], samples[layer.fitting :]
    fit = refit(modules, seen, unseen, first, set(), method="gradient", ridge=ridge, steps=steps)
    return fit.after if fit.kept else fit.before


def _held_out(
    layer: LayerCalls, targets: Sequence[list[Tensor]], first: bool, added: Callable[[int], Tensor] | None = None
) -> Tensor:
    """Return the mean relative squared error for each target.

    Args:
        layer, targets: see `errors_of_layer`.
        first: whether channels are in dimension 1.
        added: for a batch, what is added to the layer's output for all targets side by side; None: nothing.
    """
    sums = torch.zeros(len(targets), 2, dtype=torch.float64)
    for batch in range(layer.fitting, len(layer.outputs)):
        output = rows(layer.outputs[batch], first).double()
        changes: Sequence[Tensor | float] = (
            [0.0] * len(targets) if added is None else added(batch).chunk(len(targets), dim=1)
        )
        for i, (target, change) in enumerate(zip(targets, changes, strict=True)):
            wanted = rows(target[batch], first)
            weights = row_weights(wanted, mask_like(layer.masks[batch], target[batch]))
            squares = (wanted.double() - output - change).square().sum(dim=-1)
            sums[i] += torch.stack([(squares * weights).sum(), (weights > 0).sum()]).cpu()
    total, count = all_reduce_sum(sums).T
    return total / count.clamp_min(1)


def _input_of(linear: nn.Module, run: Callable[[], Any]) -> Tensor:
    """Run a layer and return the input of its last linear map."""
    given: list[Tensor] = []
    handle = linear.register_forward_pre_hook(lambda module, args: given.append(args[0]))
    try:
        run()
    finally:
        handle.remove()
    return given[0]
