"""Finds layers that seem to go, but that their parent can't be without: it computes something else then, or nothing.

A layer that is left out for a while hands on what it is given; one that is taken out is gone from its parent. Mostly
both are the same. But a parent may do something at its tenth layer, as ConViT, which adds a token there, go through two
lists side by side, read a weight of its first block, or run its blocks by another reference than the one that surgery
replaces. One try tells. Of a list (also an `nn.Sequential` that is not called itself) the first and the last are tried,
of all other layers all at once, and each only if that fails.
"""

from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from sglp.batches import first_sample, to_device
from sglp.errors import PlanError
from sglp.layer import Layer
from sglp.plan import Plan
from sglp.running import call, device_of, eval_mode, seeded
from sglp.surgery.bypass import Bypass
from sglp.surgery.prune import drop_modules, runs_in_a_row

INDEXED_BY_PARENT = "is in a list whose parent goes by the numbers of its items"
READ_BY_PARENT = "its parent reads from it, or runs it by another reference"


def unremovable(network: nn.Module, layers: Sequence, ran: Container[nn.Module], example) -> dict[int, str]:
    """Why layers that can be left out can't be taken out, by their numbers.

    Args:
        network: any module; left as it was.
        layers: those found so far.
        ran: the modules that were called.
        example: a tensor [samples, ...], or a dict of keyword arguments.
    """
    number = {network.get_submodule(layer.modules[0]): i for i, layer in enumerate(layers) if layer.removable}
    lists = [module for module in network.modules() if runs_in_a_row(module) and module not in ran]
    members = [inside for some in lists if (inside := sorted(number[m] for m in some.children() if m in number))]
    others = sorted(set(number.values()).difference(*members))
    if not number:
        return {}
    bypass = Bypass(network, layers, example)

    def goes(some: Sequence[int]) -> bool:
        with _taken_out(network, [path for i in some for path in layers[i].modules]):
            left = _outputs(network, example)
        with bypass.without(some):
            expected = _outputs(network, example)
            again = partial(_outputs, network, example, seed=1)
            return expected is not None and not _differ(left, expected, again)

    with eval_mode(network), torch.no_grad():
        found = {
            i: INDEXED_BY_PARENT for inside in members if not (goes(inside[:1]) and goes(inside[-1:])) for i in inside
        }
        if others and not goes(others):
            found |= {i: READ_BY_PARENT for i in others if not goes([i])}
    return found


def check_pruned(model: nn.Module, plan: Plan, pruned: nn.Module, example) -> None:
    """Check that a pruned network is the one that was scored: it computes what the dense one does, layers bypassed.

    Args:
        model: the dense network.
        plan: what was taken out of it.
        pruned: what `prune` has left.
        example: a tensor [samples, ...], or a dict of keyword arguments; one sample of it is run.

    Raises:
        PlanError: it computes something else, or does not run.
    """
    bypass = Bypass(model, [Layer(name, True, "", 0, 0) for name in plan.removed], example)
    example = to_device(first_sample(example), device_of(model))
    with eval_mode(model), eval_mode(pruned), torch.no_grad():
        left = _outputs(pruned, example)
        with bypass.without(range(len(plan.removed))):
            expected = _outputs(model, example)
            # The first tensor alone: of caches there is one a layer that is left.
            wrong = expected is not None and _differ(
                left and left[:1], expected[:1], lambda: _outputs(model, example, seed=1)[:1]
            )
    if wrong:
        what = "does not run" if left is None else "computes something else than with them bypassed"
        raise PlanError(
            f"{type(model).__name__} {what} without {', '.join(plan.removed)}: its code counts on one of them. Keep "
            "more of them, or say by name which modules are layers"
        )


def _outputs(network: nn.Module, example, seed: int = 0) -> list[Tensor] | None:
    """All tensors of a network's output, or None where it does not run."""
    try:
        with seeded(seed, device_of(network)):
            return [leaf for leaf in tree_leaves(call(network, example)) if isinstance(leaf, Tensor)]
    except Exception:  # whatever a network raises without its layers
        return None


def _differ(left: list[Tensor] | None, expected: list[Tensor], again: Callable) -> bool:
    """Whether outputs are not those expected; of what draws in eval mode too (`again` differs) no more can be told."""
    if left is None or len(left) != len(expected):
        return True
    return not _same(left, expected) and _same(expected, again())


def _same(some: list[Tensor], others: list[Tensor]) -> bool:
    return all(a.shape == b.shape and _close(a, b) for a, b in zip(some, others, strict=True))


def _close(a: Tensor, b: Tensor) -> bool:
    """Equal but for kernels that were chosen anew."""
    if torch.equal(a, b) or not b.is_floating_point():
        return torch.equal(a, b)
    return torch.allclose(a, b, rtol=0, atol=1e-4 * float(b.abs().nan_to_num().max()), equal_nan=True)


@contextmanager
def _taken_out(network: nn.Module, paths: Iterable[str]) -> Iterator[None]:
    """A network without some modules, for a while."""
    gone = {network.get_submodule(path) for path in paths}
    before = [(module, dict(module._modules)) for module in network.modules() if gone.intersection(module.children())]
    try:
        drop_modules(network, paths)
        yield
    finally:
        for module, children in before:
            module._modules.clear()
            module._modules.update(children)
