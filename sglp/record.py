"""What a saved network's architecture.json says: how it is built and what was removed. It needs no torch to be read."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from sglp.errors import CheckpointError

ARCHITECTURE = "architecture.json"
# Libraries whose factories build networks and do nothing else. Any other dotted name runs only on the caller's word.
KNOWN_LIBRARIES = ("torchvision.models", "timm.models", "sglp.networks")
GENERIC = ("torchvision.models:get_model", "timm:create_model", "timm.models:create_model")


@dataclass(frozen=True)
class Architecture:
    """How a network is built.

    Attributes:
        factory: "package.module:function", which returns a module.
        kwargs: its arguments, those that fetch weights left out.
        kept, removed: names of the layers that stayed and went, as in the dense network; empty for a dense one.
        base_model: what the Hugging Face hub calls the dense network, if that is where it is from.
    """

    factory: str
    kwargs: dict = field(default_factory=dict)
    kept: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    base_model: str = ""


def to_json(
    architecture: Architecture,
    shared: dict[str, str],
    versions: dict[str, int],
    reason: str = "",
    precisions: dict[str, str] | None = None,
) -> str:
    """What stands in architecture.json.

    Args:
        architecture: how the network is built.
        shared: names of tensors that are others under a second name.
        versions: of modules, by their paths.
        reason: why the folder is not one for plain `from_pretrained`.
        precisions: of buffers that are not saved, by name, where it is not float32.
    """
    content = {
        "factory": architecture.factory,
        "kwargs": architecture.kwargs,
        "kept": architecture.kept,
        "removed": architecture.removed,
        "shared": shared,
        "versions": versions,
    }
    if architecture.base_model:
        content["base_model"] = architecture.base_model
    if precisions:
        content["precisions"] = precisions
    if reason:
        content["not_plain"] = reason
    try:
        return json.dumps(content, indent=2, sort_keys=True) + "\n"
    except TypeError as error:
        raise CheckpointError(
            f"the arguments {architecture.kwargs} of {architecture.factory} can't be saved: they must be numbers, "
            "strings, lists and dicts"
        ) from error


def saved_architecture(folder) -> Architecture:
    """How a saved network was built and what was removed from it, without running any of its code.

    Raises:
        CheckpointError: the folder holds no saved network.
    """
    return from_json(Path(folder))[0]


def from_json(folder: Path) -> tuple[Architecture, dict[str, str], dict[str, int], dict[str, str]]:
    """What `to_json` has written: the architecture, shared tensors, versions of modules, precisions of buffers."""
    try:
        content = json.loads((folder / ARCHITECTURE).read_text(encoding="utf-8"))
        factory, kwargs, removed = content["factory"], content["kwargs"], tuple(content["removed"])
        kept, shared, versions = tuple(content["kept"]), content["shared"], content["versions"]
        precisions = content.get("precisions", {})
        architecture = Architecture(factory, kwargs, kept, removed, content.get("base_model", ""))
        of_names = (kwargs, shared, versions, precisions)
        if not (isinstance(factory, str) and all(isinstance(part, dict) for part in of_names)):
            raise TypeError("wrong kinds of values")
        if not all(isinstance(name, str) for name in (*kept, *removed, *shared.values(), *precisions.values())):
            raise TypeError("wrong kinds of names")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CheckpointError(f"{folder} is no saved network: it has no {ARCHITECTURE}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / ARCHITECTURE} is broken: it does not say how to build the network") from error
    return architecture, shared, versions, precisions


def of_known_library(factory: str) -> bool:
    """Whether a factory's name is one in a library whose networks load without the caller's word."""
    module = factory.partition(":")[0]
    inside = any(module == library or module.startswith(f"{library}.") for library in KNOWN_LIBRARIES)
    return inside or factory in GENERIC
