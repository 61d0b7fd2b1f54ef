"""The tensors that a network returns, by name."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import Tensor

LEFT_OUT = ("past_key_values",)  # a cache for the next call, not a result


def named_outputs(output: Any, name: str = "") -> dict[str, Tensor]:
    """Return all tensors in a network's output, in their order; None and caches are left out.

    A tensor alone is called "logits"; one in a dict or an output object has its key; one in a tuple is "output_0",
    "output_1", and so on. Names of nested ones are joined by dots.
    """
    if isinstance(output, Tensor):
        return {name or "logits": output}
    items: list[tuple[str, Any]] = []
    if isinstance(output, Mapping):
        items = [(str(key), value) for key, value in output.items() if key not in LEFT_OUT]
    elif hasattr(output, "_fields"):
        items = list(zip(output._fields, output, strict=True))
    elif isinstance(output, tuple | list):
        items = [(str(i) if name else f"output_{i}", value) for i, value in enumerate(output)]
    elif dataclasses.is_dataclass(output):
        items = [(field.name, getattr(output, field.name)) for field in dataclasses.fields(output)]
    elif isinstance(getattr(output, "logits", None), Tensor):
        items = [("logits", output.logits)]
    named: dict[str, Tensor] = {}
    for key, value in items:
        named |= named_outputs(value, f"{name}.{key}" if name else key)
    return named


def is_plain(output: Any) -> bool:
    """Check whether an output has only tensors in tuples, lists and dicts, which torch.export returns as they are."""
    if isinstance(output, Tensor):
        return True
    if type(output) is dict:
        return bool(output) and "past_key_values" not in output and all(is_plain(item) for item in output.values())
    return type(output) in (tuple, list) and bool(output) and all(is_plain(item) for item in output)
