"""Open the folder of a Hugging Face model that need not fit into memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sglp.architecture import remember
from sglp.checkpoints.tensor_files import StoredTensor, stored_tensors
from sglp.errors import CheckpointError
from sglp.hugging_face.pretrained import CONFIG, architecture_in
from sglp.hugging_face.skeleton import skeleton
from sglp.record import Architecture

if TYPE_CHECKING:
    from sglp.hugging_face.networks import PreTrainedModel


class OpenFolder(NamedTuple):
    """A folder for `from_pretrained`.

    Attributes:
        folder: its path.
        network: its model, without memory for weights.
        stored: the contents of its files, by name, unread.
        recorded: what architecture.json says, or None for a folder that `sglp.save` did not write.
    """

    folder: Path
    network: "PreTrainedModel"
    stored: dict[str, StoredTensor]
    recorded: Architecture | None


@contextmanager
def open_folder(folder: Path, trust: bool, instead: str, dtype: Any = None) -> Iterator[OpenFolder]:
    """Build the model of a folder on the meta device, and open its files inside a context.

    Args:
        folder: a folder written by `save` or `save_pretrained`, in safetensors.
        trust: whether code from the folder may run, as for `load`.
        instead: what to do with other folders, for errors.
        dtype: the data type of the model, or None for that of the files.

    Raises:
        CheckpointError: the folder is broken, is not a folder for `from_pretrained`, contains code that is not trusted,
            or its files do not hold the weights of the model.
    """
    architecture, is_ours = architecture_in(folder)
    if not (folder / CONFIG).is_file():
        raise CheckpointError(f"{folder} is not a folder for from_pretrained (it has no {CONFIG}): {instead}")
    with stored_tensors(folder) as stored:
        tensors = {name: tensor.meta for name, tensor in stored.items()}
        network = skeleton(folder, architecture, trust, tensors, dtype)
        if is_ours:
            remember(network, architecture)
        yield OpenFolder(folder, network, stored, architecture if is_ours else None)
