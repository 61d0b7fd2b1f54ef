"""Refitted layers on disk, so that a killed reconstruction does not fit them again."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from safetensors.torch import load, save
from torch import nn

from sglp.distributed import processes
from sglp.files import new_file


class Fit(NamedTuple):
    """What happened to a layer; see `Reconstructed`."""

    how: str
    before: float
    after: float
    kept: bool


def fit_once(path: Path | None, modules: list[nn.Module], fit: Callable[[], Fit]) -> Fit:
    """Fit a layer, or take its state from the file that an earlier run wrote.

    Args:
        path: of the file; None fits without one.
        modules: of the layer, changed in place.
        fit: fits the layer.
    """
    if path is None:
        return fit()
    layer = nn.ModuleList(modules)
    if processes.from_rank_zero(path.exists):
        content = path.read_bytes()
        layer.load_state_dict(load(content))
        return Fit(**json.loads(_metadata(content)["fit"]))
    result = fit()
    if processes.rank() == 0:
        with new_file(path) as new:
            state = {key: value.contiguous() for key, value in layer.state_dict().items()}
            new.write_bytes(save(state, {"fit": json.dumps(result._asdict())}))
    processes.wait()
    return result


def _metadata(content: bytes) -> dict[str, str]:
    """Read the metadata of a safetensors file; the library gives it for files only, not for bytes."""
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length])["__metadata__"]
