"""Networks whose modules can't be observed as they run, or can only be observed with some help."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils import checkpoint

from sglp.errors import LayerError


def check_watchable(network: nn.Module) -> None:
    """Refuse a network whose modules can't be observed.

    Raises:
        LayerError: inference mode is on, or the network is compiled, scripted or traced by torch.jit.
    """
    name = type(network).__name__
    if torch.is_inference_mode_enabled():
        raise LayerError(
            "layers are found with autograd, which torch.inference_mode() turns off: call this outside inference mode"
        )
    modules = list(network.modules())
    if any(isinstance(module, torch.jit.ScriptModule) for module in modules):
        raise LayerError(
            f"this {name} holds a module of torch.jit (scripted or traced), and those can't be observed or changed: "
            "pass the network as it was before torch.jit, and script the pruned network"
        )
    if any(m._compiled_call_impl is not None or "_orig_mod" in m._modules for m in modules):
        raise LayerError(
            f"this {name} is compiled, so its modules can't be observed: pass the module as it was before compilation, "
            "and compile the pruned network"
        )
    if is_flattened(network, entirely=True):
        raise LayerError(flattened_text(network))


def is_flattened(network: nn.Module, entirely: bool = False) -> bool:
    """Check whether a network contains a graph of torch.fx or torch.export that calls no module that has parts.

    Args:
        network: the network.
        entirely: whether to look only for graphs that call no modules at all, as those of torch.export.
    """
    graphs = [module for module in network.modules() if isinstance(module, torch.fx.GraphModule)]
    return any(not _called_by(graph, entirely) for graph in graphs)


def _called_by(graph: torch.fx.GraphModule, entirely: bool) -> list[nn.Module]:
    """Return the modules with parts, or with weights, that a graph calls."""
    paths = [str(node.target) for node in graph.graph.nodes if node.op == "call_module"]
    called = [graph.get_submodule(path) for path in paths]
    return [
        module for module in called if any(module.children()) or (entirely and any(True for _ in module.parameters()))
    ]


def flattened_text(network: nn.Module) -> str:
    """Return the sentence about such a network."""
    return (
        f"this {type(network).__name__} is, or holds, a graph that was traced by torch.fx or torch.export, in which "
        "blocks no longer run as modules: pass the network as it was before tracing, and trace the pruned network"
    )


def is_quantized(module: nn.Module) -> bool:
    """Recognise a quantized module, whose weights are not parameters."""
    return type(module).__module__.startswith("torch.ao.nn.") and "quantized" in type(module).__module__


def reason_without_flow(network: nn.Module) -> str:
    """Say why autograd does not connect the output of a network with its input."""
    if any(is_quantized(module) for module in network.modules()):
        return "its weights are quantized, so autograd can't follow the flow: pass the network before quantization"
    return "autograd does not connect the network's output with its input"


class _NoCheckpoint:
    """A stand-in for torch's `CheckpointFunction`: it runs the function, with gradients as usual."""

    @staticmethod
    def apply(function: Any, preserve: bool, *args: Any) -> Any:
        """Run the function."""
        return function(*args)


@contextmanager
def without_checkpoints() -> Iterator[None]:
    """Run what is under a reentrant checkpoint as usual inside a context: it would run without a graph."""
    original = checkpoint.CheckpointFunction
    checkpoint.CheckpointFunction = _NoCheckpoint  # type: ignore[misc, assignment]
    try:
        yield
    finally:
        checkpoint.CheckpointFunction = original  # type: ignore[misc]
