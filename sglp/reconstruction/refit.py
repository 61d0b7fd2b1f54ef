"""Refit one layer to targets: in closed form where it is affine in its last linear map, else by gradient.

New weights are kept only if the error on samples that the fit has not seen falls. ReplaceMe keeps them in any case.
"""

import copy
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sglp.choices import Reconstruction
from sglp.distributed import processes
from sglp.distributed.all_reduce import all_reduce_sum
from sglp.distributed.whole_batch import whole_batch
from sglp.errors import ScoringError
from sglp.reconstruction import gradient, replace_me
from sglp.reconstruction.affine import last_linear_map, weight_of
from sglp.reconstruction.closed_form import least_squares
from sglp.reconstruction.rows import mask_like, relative_error, row_weights, rows
from sglp.reconstruction.saved_fits import Fit
from sglp.running import first_tensor
from sglp.surgery.streams import changes_more_streams


class Sample(NamedTuple):
    """A batch at one layer.

    Attributes:
        run: runs the layer on its input.
        target: [rows, channels].
        weights: [rows], 0 for rows that do not count.
        has_more_streams: whether the layer changes more tensors than the first that it is passed and returns.
    """

    run: Callable[[], Any]
    target: Tensor
    weights: Tensor
    has_more_streams: bool = False


def sample_of(
    modules: Sequence[nn.Module],
    branch_ends: Sequence[int],
    args: tuple,
    kwargs: dict,
    output: Any,
    mask: Tensor | None,
    first: bool,
) -> Sample:
    """Make a sample from what the pruned network gives a layer and what the dense network has at its place.

    Args:
        modules: of the layer.
        branch_ends: see `run_layer`.
        args, kwargs: what the pruned network calls the layer with.
        output: what the target's layer returns.
        mask: the attention mask of the batch.
        first: whether channels are in dimension 1.
    """
    # Copies: what follows may work in place.
    target = rows(first_tensor(output), first).clone()
    mask = mask_like(mask, first_tensor(output))
    args, kwargs = detached(args), detached(kwargs)
    run = partial(run_layer, modules, branch_ends, args, kwargs)
    return Sample(run, target, row_weights(target, mask), changes_more_streams(args, kwargs, output))


def refit(
    modules: Sequence[nn.Module],
    seen: Sequence[Sample],
    unseen: Sequence[Sample],
    first: bool,
    fixed: set[nn.Parameter],
    *,
    method: Reconstruction,
    ridge: float,
    steps: int,
) -> Fit:
    """Refit a layer in place.

    Args:
        modules: of the layer.
        seen: samples to fit on.
        unseen: held-out samples.
        first: whether channels are in dimension 1.
        fixed: parameters that must not change, as other layers have them too.
        method, ridge, steps: see `reconstruct`.
    """
    with torch.no_grad(), whole_batch():
        gradient.refresh_statistics(modules, [sample.run for sample in seen])
        before = _error(unseen, first)
        found = None if method == "gradient" else last_map(modules, seen[0])
        if found is not None and found.get_parameter("weight") in fixed:
            found = None
        tied = any(p in fixed for module in modules for p in module.parameters())
        if found is not None:
            how = "replace_me" if method == "replace_me" else "closed_form"
        else:
            never = method in ("closed_form", "replace_me") or tied or not steps
            # The error does not see what a change does to a second stream.
            how = "" if never or seen[0].has_more_streams else "gradient"
        if not how:
            return Fit("", before, before, False)
        changing = modules if found is None else [found]
        states = [copy.deepcopy(module.state_dict()) for module in changing]
        if found is not None and how == "replace_me":
            observed = (_observe(found, sample, first) for sample in seen)
            replace_me.fold(found, replace_me.transform((m, r, w) for _, m, r, w in observed))
        elif found is not None:
            observed = (_observe(found, sample, first) for sample in seen)
            change = least_squares(((h, r, w) for h, _, r, w in observed), ridge)
            weight = weight_of(found)
            weight.copy_((weight.double() + change).to(weight.dtype))
        else:
            gradient.fit(modules, [(one.run, one.target, one.weights) for one in seen], first, steps)
            gradient.refresh_statistics(modules, [sample.run for sample in seen])
        after = _error(unseen, first)
        kept = after < before or how == "replace_me"  # the paper has no guard
        if not kept:
            for module, state in zip(changing, states, strict=True):
                module.load_state_dict(state)
    return Fit(how, before, after, kept)


def detached(value: Any) -> Any:
    """Copy all tensors in the arguments of a layer."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, tuple | list) and not hasattr(value, "_fields"):
        return type(value)(detached(item) for item in value)
    if isinstance(value, dict):
        return {key: detached(item) for key, item in value.items()}
    return value


def run_layer(modules: Sequence[nn.Module], branch_ends: Sequence[int], args: tuple, kwargs: dict) -> Any:
    """Run a layer, a run of modules one after another; add the outputs of branches to the stream, as the parent does.

    Args:
        modules: of the layer.
        branch_ends: indices of the modules that end a branch.
        args, kwargs: what the first module is called with.
    """
    output: Any = None
    stream = first_tensor(args or kwargs) if branch_ends else None
    for i, module in enumerate(modules):
        output = module(output) if i else module(*detached(args), **kwargs)  # a layer may work in place
        if stream is not None and i in branch_ends:
            output = stream = stream + first_tensor(output)
    return output


def last_map(modules: Sequence[nn.Module], sample: Sample) -> nn.Module | None:
    """Find the last linear map on the first process's samples: all processes must take the same."""
    inside = [inner for module in modules for inner in module.modules()]

    def place() -> int | None:
        found = last_linear_map(modules, sample.run)
        return None if found is None else inside.index(found)

    found = processes.from_rank_zero(place)
    return None if found is None else inside[found]


def _observe(linear: nn.Module, sample: Sample, first: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return rows of a batch: a linear map's inputs and outputs, targets minus the layer's outputs, and weights."""
    seen: list[tuple[Tensor, Tensor]] = []
    handle = linear.register_forward_hook(lambda module, args, output: seen.append((args[0], output.clone())))
    try:
        output = rows(first_tensor(sample.run()), first)
    finally:
        handle.remove()
    residuals = sample.target.double() - output.double()
    return rows(seen[0][0], False), rows(seen[0][1], False), residuals, sample.weights


def _error(samples: Sequence[Sample], first: bool) -> float:
    """Return the mean relative squared error over the rows that count, of all processes."""
    sums = torch.zeros(2, dtype=torch.float64)
    for sample in samples:
        sums += torch.tensor(relative_error(rows(first_tensor(sample.run()), first), sample.target, sample.weights))
    total, count = all_reduce_sum(sums).tolist()
    if not math.isfinite(total):
        raise ScoringError("a layer can't be reconstructed: its target or its output is not finite")
    return total / count if count else 0.0
