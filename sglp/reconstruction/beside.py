"""Which layers do not follow the layer before them: they run in another branch, or read more than its activation."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from sglp.batches import to_device
from sglp.cutting import can_be_cut, part_of, size_of
from sglp.layer import branch_start, module_paths
from sglp.observing import observe_after
from sglp.running import call, device_of, first_tensor, hooked_eval, run_hooked


def beside(network: nn.Module, order: Sequence[str], inputs: Any) -> set[str]:
    """Find the layers whose input is not made of the activation after the layer before them alone.

    A kept layer can't be fitted to what such a layer returns. Most layers are passed the activation as it is. Where
    they are not, the activation of one sample is put into the forward pass of another: a layer that follows is then
    passed what it was passed with the first sample. Layers of another shape than the layer before them are left out.

    Args:
        network: the dense network.
        order: names of its layers, in the order in which they run.
        inputs: a batch; its first two samples are run.
    """
    suspects = _not_passed_on(network, order, inputs)
    if not suspects or size_of(inputs) < 2 or not can_be_cut(inputs):
        return set()
    second = to_device(part_of(inputs, 1, 2), device_of(network))
    return {
        name for before, name in suspects if branch_start(before) or _reads_more(network, before, name, inputs, second)
    }


def _not_passed_on(network: nn.Module, order: Sequence[str], inputs: Any) -> list[tuple[str, str]]:
    """Return pairs of neighbours of one shape of which the second is not passed what the first returns."""
    after: list[tuple[str, Tensor]] = []
    pairs: list[tuple[str, str]] = []
    handles = []
    for name in order:

        def start(module: nn.Module, args: tuple, kwargs: dict, name: str = name) -> None:
            given = first_tensor(args or kwargs)
            if after and after[0][1].shape == given.shape and not torch.equal(after[0][1], given):
                pairs.append((after[0][0], name))

        def end(value: Any, name: str = name) -> None:
            after[:] = [(name, first_tensor(value).clone())]

        handles.append(network.get_submodule(module_paths(name)[0]).register_forward_pre_hook(start, with_kwargs=True))
        handles += observe_after(network, name, end)
    run_hooked(network, inputs, handles)
    return pairs


def _copied(value: Any) -> Any:
    return tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, value)


def _reads_more(network: nn.Module, before: str, name: str, inputs: Any, second: Any) -> bool:
    """Put what a layer returns for one sample into the pass of another, and compare what the next layer is passed."""
    last = network.get_submodule(module_paths(before)[-1])
    first = network.get_submodule(module_paths(name)[0])
    returned: list[Any] = []
    given: list[Tensor] = []

    def exchange(module: nn.Module, args: tuple, output: Any) -> Any:
        returned.append(_copied(output))  # later modules may work in place
        return _copied(returned[0])

    def note(module: nn.Module, args: tuple, kwargs: dict) -> None:
        given.append(first_tensor(args or kwargs).clone())

    handles = [
        last.register_forward_hook(exchange),
        first.register_forward_pre_hook(note, with_kwargs=True),
    ]
    one = to_device(part_of(inputs, 0, 1), device_of(network))
    with hooked_eval(network, handles):
        call(network, one)
        call(network, second)
    return given[0].shape != given[1].shape or not torch.allclose(given[0], given[1], rtol=1e-4, atol=1e-6)
