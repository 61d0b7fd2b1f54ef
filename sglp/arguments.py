"""How a network is called with given inputs: by name, by position, or with one argument that holds them all.

The inputs decide, together with the signature of the network's `forward`: a tuple of tensors can be several arguments
(a Siamese network) or one (a detector that takes a sequence of images); a dict can be keyword arguments or one argument
(a sentence encoder).
"""

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

IMAGES = ("image", "images")  # first parameters of networks that take a sequence of images
CHANNELS = (1, 3, 4)  # of a single image [channels, height, width]
POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def as_arguments(network: nn.Module, inputs: Any) -> Any:
    """Return inputs in the form in which `sglp.running.call` passes them.

    Args:
        network: the network.
        inputs: a batch's inputs, as the user gives them.

    Returns:
        A dict of keyword arguments, a tuple of positional arguments, or anything else as the only argument. Applied to
        its own result it changes nothing.
    """
    if not isinstance(inputs, Mapping | tuple | list) or hasattr(inputs, "_fields"):
        return inputs
    try:
        signature = inspect.signature(network.forward)
    except (TypeError, ValueError):  # a compiled forward has no signature
        return dict(inputs) if isinstance(inputs, Mapping) else inputs
    if isinstance(inputs, Mapping):
        return _from_dict(signature, inputs)
    return _from_sequence(signature, inputs)


def is_list_of_samples(items: Any) -> bool:
    """Whether a sequence has one item per sample, such as images of any sizes, rather than tensors [samples, ...]."""
    tensors = [item for item in items if isinstance(item, Tensor) and item.ndim]
    if not tensors or len(tensors) < len(items):
        return True
    if all(item.ndim == 3 and len(item) in CHANNELS for item in tensors):
        return True
    return len({len(item) for item in tensors}) > 1


def _from_dict(signature: inspect.Signature, inputs: Mapping) -> Any:
    named = dict(inputs)
    if all(isinstance(key, str) for key in named) and _fits(signature, **named):
        return named
    # A key or two can be named like the only parameter, such as `batch`. If most are, the dict holds arguments.
    known = sum(key in signature.parameters for key in named)
    return (inputs,) if 2 * known < len(named) and _fits(signature, inputs) else named


def _from_sequence(signature: inspect.Signature, inputs: tuple | list) -> Any:
    parameters = [p for p in signature.parameters.values() if p.kind in POSITIONAL]
    required = sum(p.default is p.empty for p in parameters)
    if len(inputs) == 1 and isinstance(inputs, tuple) and _fits(signature, *inputs):
        return inputs
    several = len(inputs) > 1 and _fits(signature, *inputs)
    if several and required < 2 and is_list_of_samples(inputs):
        # Optional parameters could take the further items too, such as a detector's `targets`.
        several = isinstance(inputs, tuple) and not _takes_sequence(parameters) and not _are_images(inputs)
    if several:
        names = [parameter.name for parameter in parameters[: len(inputs)]]
        by_name = dict(zip(names, inputs, strict=False))
        return by_name if "attention_mask" in by_name and len(names) == len(inputs) else tuple(inputs)
    if isinstance(inputs, tuple):
        return list(inputs) if is_list_of_samples(inputs) else (inputs,)
    return inputs


def _takes_sequence(parameters: list[inspect.Parameter]) -> bool:
    """Whether the first parameter is said to be a sequence, by its name or its annotation."""
    if not parameters:
        return False
    annotation = str(parameters[0].annotation).removeprefix("typing.").lower()
    return parameters[0].name in IMAGES or annotation.startswith(("list", "tuple", "sequence", "iterable"))


def _are_images(items: Any) -> bool:
    return all(isinstance(item, Tensor) and item.ndim == 3 and len(item) in CHANNELS for item in items)


def _fits(signature: inspect.Signature, *args: Any, **kwargs: Any) -> bool:
    try:
        signature.bind(*args, **kwargs)
    except TypeError:
        return False
    return True
