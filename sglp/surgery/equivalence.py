"""Find layers that look removable but whose parent module breaks or changes its output without them.

A bypassed layer returns its input; a removed layer is missing from its parent. Usually both give the same output. But a
parent may do something at its tenth layer (ConViT adds a token there), iterate over two lists in parallel, read a
weight of its first block, or call its blocks through another reference than the one that surgery replaces. Trying the
removal shows this. In a list (or an `nn.Sequential` that is not called itself) the first and the last layer are tried;
all other layers are tried together, and one by one only if that fails.
"""

from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from sglp.batches import to_device
from sglp.cutting import Inputs, first_sample
from sglp.errors import PlanError
from sglp.layer import Layer, module_paths
from sglp.plan import Plan
from sglp.running import call, device_of, eval_mode, seeded
from sglp.surgery.bypass import Bypass
from sglp.surgery.prune import drop_modules, runs_in_a_row

INDEXED_BY_PARENT = "is in a list whose parent depends on the indices of its items"
READ_BY_PARENT = "its parent reads its attributes, or calls it through another reference"


def unremovable(
    network: nn.Module, layers: Sequence[Layer], called: Container[nn.Module], example: Inputs
) -> dict[int, str]:
    """Find layers that can be bypassed but not removed.

    Args:
        network: any module; left unchanged.
        layers: its layers.
        called: the modules that the forward pass called.
        example: a tensor [samples, ...], or a dict of keyword arguments.

    Returns:
        The reasons, by layer index.
    """
    index = {network.get_submodule(layer.modules[0]): i for i, layer in enumerate(layers) if layer.removable}
    lists = [module for module in network.modules() if runs_in_a_row(module) and module not in called]
    members = [inside for parent in lists if (inside := sorted(index[m] for m in parent.children() if m in index))]
    others = sorted(set(index.values()).difference(*members))
    if not index:
        return {}
    bypass = Bypass(network, layers, example)
    with eval_mode(network), torch.no_grad():
        shapes = _shapes(_outputs(network, example))

    def can_be_removed(indices: Sequence[int]) -> bool:
        with _removed(network, [layers[i].name for i in indices]):
            outputs = _outputs(network, example)
        with bypass.without(indices):
            expected = _outputs(network, example)
            again = partial(_outputs, network, example, seed=1)
            return expected is not None and _shapes(expected) == shapes and not outputs_differ(outputs, expected, again)

    with eval_mode(network), torch.no_grad():
        reasons = {
            i: INDEXED_BY_PARENT
            for inside in members
            if not (can_be_removed(inside[:1]) and can_be_removed(inside[-1:]))
            for i in inside
        }
        if others and not can_be_removed(others):
            reasons |= {i: READ_BY_PARENT for i in others if not can_be_removed([i])}
    return reasons


def check_pruned(model: nn.Module, plan: Plan, pruned: nn.Module, example: Inputs) -> None:
    """Check that a pruned network computes what was scored: the dense network with the removed layers bypassed.

    Args:
        model: the dense network.
        plan: the layers that were removed from it.
        pruned: the pruned network.
        example: a tensor [samples, ...], or a dict of keyword arguments; its first sample is run.

    Raises:
        PlanError: the pruned network gives other outputs, or does not run.
    """
    bypass = Bypass(model, [Layer(name, True, "", 0, 0) for name in plan.removed], example)
    example = to_device(first_sample(example), device_of(model))
    with eval_mode(model), eval_mode(pruned), torch.no_grad():
        outputs = _outputs(pruned, example)
        with bypass.without(range(len(plan.removed))):
            expected = _outputs(model, example)
            # The number of other tensors, such as caches of keys and values, can vary.
            compared = None if outputs is None or expected is None or len(outputs) == len(expected) else 1

            def again() -> list[Tensor] | None:
                others = _outputs(model, example, seed=1)
                return others and others[:compared]

            is_wrong = expected is not None and outputs_differ(
                outputs and outputs[:compared], expected[:compared], again
            )
    if is_wrong:
        problem = "does not run" if outputs is None else "computes something else than with these layers bypassed"
        raise PlanError(
            f"{type(model).__name__} without {', '.join(plan.removed)} {problem}: its code depends on one of them. "
            "Keep more of them, or name explicitly which modules are layers"
        )


def _shapes(outputs: list[Tensor] | None) -> list[torch.Size] | None:
    return None if outputs is None else [output.shape for output in outputs]


def _outputs(network: nn.Module, example: Inputs, seed: int = 0) -> list[Tensor] | None:
    """Return all tensors of a network's output, or None if the network does not run."""
    try:
        with seeded(seed, device_of(network)):
            return [leaf for leaf in tree_leaves(call(network, example)) if isinstance(leaf, Tensor)]
    except Exception:  # whatever a network raises without its layers
        return None


def first_output(network: nn.Module, example: Inputs, seed: int = 0) -> list[Tensor] | None:
    """Return the first tensor of a network's output, or None; the number of others, such as caches, can vary."""
    outputs = _outputs(network, example, seed)
    return outputs and outputs[:1]


def outputs_differ(
    outputs: list[Tensor] | None, expected: list[Tensor], again: Callable[[], list[Tensor] | None]
) -> bool:
    """Check whether outputs differ from the expected ones.

    If the expected outputs depend on the random seed (`again` gives others), only the number of outputs is compared.
    """
    if outputs is None or len(outputs) != len(expected):
        return True
    return not _same(outputs, expected) and _same(expected, again())


def _same(outputs: list[Tensor], others: list[Tensor] | None) -> bool:
    if others is None:
        return False
    return all(a.shape == b.shape and _close(a, b) for a, b in zip(outputs, others, strict=True))


def _close(a: Tensor, b: Tensor) -> bool:
    """Check equality up to the choice of kernels."""
    if torch.equal(a, b) or not b.is_floating_point():
        return torch.equal(a, b)
    return torch.allclose(a, b, rtol=0, atol=1e-4 * float(b.abs().nan_to_num().max()), equal_nan=True)


@contextmanager
def _removed(network: nn.Module, names: Iterable[str]) -> Iterator[None]:
    """Remove layers from a network inside a context."""
    names = list(names)
    removed = {network.get_submodule(path) for name in names for path in module_paths(name)}
    before = [
        (module, dict(module._modules)) for module in network.modules() if removed.intersection(module.children())
    ]
    try:
        drop_modules(network, names)
        yield
    finally:
        for module, children in before:
            module._modules.clear()
            module._modules.update(children)
