"""Hugging Face models on the meta device: all that a folder for `from_pretrained` tells without reading its weights.

transformers renames tensors when it loads them, and may join several into one (such as experts). The names in the files
of a saved model are those that result from undoing this.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sglp.errors import CheckpointError
from sglp.hugging_face.pretrained import CONFIG, load_checked, no_progress_bars, one_line, reader_of, with_own_config
from sglp.record import Architecture

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def skeleton(
    folder: Path, architecture: Architecture, trust: bool, tensors: Mapping[str, Tensor], dtype: Any = None
) -> "PreTrainedModel":
    """Build the model that `load_pretrained` loads on the meta device, without memory for weights.

    Args:
        folder: a folder for `from_pretrained`; its weights are not read.
        architecture: names the class that reads the folder.
        trust: whether code from the folder may run.
        tensors: the contents of its files, by name, on the meta device.
        dtype: the data type of the model, or None for that of the files.

    Raises:
        CheckpointError: the folder is broken, is not a Hugging Face model, contains code that is not trusted, or its
            files do not contain the weights of the model.
    """
    import transformers

    model_class, has_code = reader_of(folder, architecture, trust)
    try:
        if has_code and not issubclass(model_class, nn.Module):
            config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=True)
            with torch.device("meta"):
                model_class = type(model_class.from_config(config, trust_remote_code=True))
        config = model_class.config_class.from_pretrained(folder)
    except Exception as error:  # report any error of transformers in one sentence
        message = f"{folder / CONFIG} can't build a {model_class.__name__}: {one_line(error)}"
        raise CheckpointError(message) from error
    arguments: dict[str, Any] = {"config": config, "state_dict": dict(tensors), "device_map": "meta"}
    arguments |= {"pretrained_model_name_or_path": None, "dtype": dtype or "auto"}
    return load_checked(model_class, folder, **arguments).eval()


def saved_state(network: "PreTrainedModel") -> dict[str, Tensor]:
    """Return the tensors of a skeleton that are saved, by the model's names; tied tensors appear once."""
    from transformers.modeling_utils import remove_tied_weights_from_state_dict

    return remove_tied_weights_from_state_dict(network.state_dict(), network)


def by_file_name(network: "PreTrainedModel", state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert tensors of a skeleton to the names, and the form, that they have in the files of the saved model."""
    from transformers.core_model_loading import revert_weight_conversion

    return revert_weight_conversion(network, dict(state))


def save_config(network: "PreTrainedModel", folder: Path) -> None:
    """Write all files that transformers saves for a model, except the weights."""
    with no_progress_bars():
        with_own_config(network).save_pretrained(folder, state_dict={})
