"""Advance the dense and the pruned network together, from layer to layer, to the layers to refit.

All passes wait for each other before every layer, so that one layer of each network runs at a time.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple

from torch import nn
from tqdm import tqdm

from sglp.batches import padding_mask
from sglp.layer import module_paths
from sglp.reconstruction.goals import Goal
from sglp.reconstruction.lockstep import advance_to, in_lockstep, pause_after, pause_before, run_in_one_thread
from sglp.reconstruction.refit import Sample, refit, sample_of
from sglp.reconstruction.rows import channels_first
from sglp.reconstruction.safeguards import shared_parameters, without_cache
from sglp.reconstruction.saved_fits import Fit
from sglp.running import first_tensor


class Pair(NamedTuple):
    """A network before and after the removal of layers.

    Attributes:
        dense: the network before.
        pruned: the network after.
        order: the names of the dense network's layers, in the order in which they run.
        counterparts: maps the paths of kept modules in the dense network to the modules of the pruned network.
    """

    dense: nn.Module
    pruned: nn.Module
    order: list[str]
    counterparts: dict[str, nn.Module]

    def starts(self) -> dict[str, nn.Module]:
        """Return the modules of the pruned network in which kept layers begin, by the names of the layers."""
        firsts = {name: module_paths(name)[0] for name in self.order}
        return {name: self.counterparts[path] for name, path in firsts.items() if path in self.counterparts}


class Step(NamedTuple):
    """A layer to refit, which all passes of the pruned network have reached.

    Attributes:
        goal: the layer.
        refit: refits the layer in place.
    """

    goal: Goal
    refit: Callable[[], Fit]


def steps_of(pair: Pair, goals: Sequence[Goal], inputs: Sequence[Any], fitting: int, **fit: Any) -> Iterator[Step]:
    """Advance both networks to each layer to refit; refit it before asking for the next one.

    Args:
        pair: the networks.
        goals: the layers to refit.
        inputs: the batches.
        fitting: the number of batches to fit on, which come first; the others are held out.
        **fit: see `refit`.
    """
    masks = [padding_mask(one) for one in inputs]
    shared = shared_parameters(pair.pruned)
    with ExitStack() as stack:
        for network in (pair.dense, pair.pruned):
            stack.enter_context(without_cache(network))
        firsts = [(name, pair.dense.get_submodule(module_paths(name)[0])) for name in pair.order]
        for name, module in (*firsts, *pair.starts().items()):
            stack.callback(pause_before(module, _start(name)))
            stack.callback(run_in_one_thread(module))
        for target in dict.fromkeys(goal.target for goal in goals):
            stack.callback(pause_after(pair.dense, target, _end(target)))
        originals = stack.enter_context(in_lockstep(pair.dense, inputs))
        copies = stack.enter_context(in_lockstep(pair.pruned, inputs))
        for goal in tqdm(goals, desc="reconstruct", unit="layer", disable=None):
            outputs = advance_to(originals, _end(goal.target))
            arguments = advance_to(copies, _start(goal.name))
            first = channels_first(goal.modules, first_tensor(outputs[0]))
            samples = [
                sample_of(goal.modules, goal.branch_ends, args, kwargs, output, mask, first)
                for output, (args, kwargs), mask in zip(outputs, arguments, masks, strict=True)
            ]
            del outputs, arguments
            yield Step(goal, partial(_refit, pair.pruned, goal.modules, samples, fitting, first, shared, fit))
            samples.clear()  # the next layer needs the memory


def _refit(
    pruned: nn.Module,
    modules: Sequence[nn.Module],
    samples: Sequence[Sample],
    fitting: int,
    first: bool,
    shared: Sequence[str],
    fit: dict[str, Any],
) -> Fit:
    """Refit a layer; shared parameters are looked up only now, as loading a layer replaces its parameters."""
    fixed = {pruned.get_parameter(path) for path in shared}
    return refit(modules, samples[:fitting], samples[fitting:], first, fixed, **fit)


def _start(layer: str) -> str:
    return f"the start of {layer}"


def _end(layer: str) -> str:
    return f"the end of {layer}"
