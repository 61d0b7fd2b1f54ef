"""The architecture.json of a saved network: how it is built and which layers were removed. Reads it without torch."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from sglp.errors import CheckpointError

ARCHITECTURE = "architecture.json"
# Libraries whose factories only build networks. Any other factory needs `trust=`.
KNOWN_LIBRARIES = ("torchvision.models", "timm.models", "sglp.networks")
GENERIC = ("torchvision.models:get_model", "timm:create_model", "timm.models:create_model")


@dataclass(frozen=True)
class Architecture:
    """The construction of a network: its factory, and the layers that were removed.

    Attributes:
        factory: "package.module:function", which returns a module.
        kwargs: the factory's arguments, without those that fetch weights.
        kept, removed: names of the kept and the removed layers, as in the dense network; empty for a dense network.
        base_model: the dense network's name on the Hugging Face hub, or "".
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
    """Write the contents of architecture.json.

    Args:
        architecture: how the network is built.
        shared: maps a second name of a shared tensor to the name it is saved under.
        versions: state-dict versions of modules, by module path.
        reason: why plain `from_pretrained` can't load the folder, or "".
        precisions: precisions of buffers that are not saved, by name, where they differ from float32.

    Raises:
        CheckpointError: an argument of the factory can't be written as JSON.
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


def saved_architecture(folder: str | Path) -> Architecture:
    """Read how a saved network was built and which layers were removed, without running any of its code.

    Raises:
        CheckpointError: the folder does not hold a saved network.
    """
    return from_json(Path(folder))[0]


def from_json(folder: Path) -> tuple[Architecture, dict[str, str], dict[str, int], dict[str, str]]:
    """Read the architecture.json of a folder.

    Returns:
        The architecture, the shared tensors, the versions of modules and the precisions of buffers; see `to_json`.

    Raises:
        CheckpointError: there is no such file, or it is broken.
    """
    try:
        content = json.loads((folder / ARCHITECTURE).read_text(encoding="utf-8"))
        factory, kwargs, removed = content["factory"], content["kwargs"], tuple(content["removed"])
        kept, shared, versions = tuple(content["kept"]), content["shared"], content["versions"]
        precisions = content.get("precisions", {})
        architecture = Architecture(factory, kwargs, kept, removed, content.get("base_model", ""))
        mappings = (kwargs, shared, versions, precisions)
        if not (isinstance(factory, str) and all(isinstance(mapping, dict) for mapping in mappings)):
            raise TypeError("wrong kinds of values")
        if not all(isinstance(name, str) for name in (*kept, *removed, *shared.values(), *precisions.values())):
            raise TypeError("wrong kinds of names")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CheckpointError(f"{folder} is not a saved network: it has no {ARCHITECTURE}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / ARCHITECTURE} is broken: it does not say how to build the network") from error
    return architecture, shared, versions, precisions


def is_known_library(factory: str) -> bool:
    """Check whether a factory belongs to a library whose networks load without `trust`."""
    module = factory.partition(":")[0]
    inside = any(module == library or module.startswith(f"{library}.") for library in KNOWN_LIBRARIES)
    return inside or factory in GENERIC
