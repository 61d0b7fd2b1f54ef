"""Load parts of a Hugging Face model that is on the meta device, as `from_pretrained` loads the whole."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from sglp.errors import CheckpointError
from sglp.hugging_face.pretrained import no_progress_bars

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def compute_buffers(network: "PreTrainedModel") -> None:
    """Compute the buffers that no file holds, such as the frequencies of rotary embeddings, on the CPU, in place.

    `from_pretrained` does it in the same way: it lets the model initialise what is not marked as loaded.
    """
    for name, buffer in list(network.named_non_persistent_buffers()):
        path, _, attribute = name.rpartition(".")
        setattr(network.get_submodule(path), attribute, torch.zeros_like(buffer, device="cpu"))
    for module in network.modules():
        vars(module).pop("_is_hf_initialized", None)
    with torch.random.fork_rng([]):
        network.initialize_weights()  # leaves tensors on the meta device alone


def load_part(network: "PreTrainedModel", contents: Mapping[str, Any]) -> None:
    """Load some tensors into a model, in place; they are renamed, joined and cast as `from_pretrained` does it.

    Args:
        network: a model from `skeleton`; parameters that are loaded become new ones.
        contents: tensors by their names in files, or slices of safetensors, which are read one after another.

    Raises:
        CheckpointError: the contents can't be converted.
    """
    from transformers.core_model_loading import convert_and_load_state_dict_in_model
    from transformers.modeling_utils import LoadStateDictConfig

    conversions: Any = network._weight_conversions
    # With a disk, threads that read ahead are not used.
    devices = {"": "cpu", "none": "disk"}
    config = LoadStateDictConfig(device_map=devices, dtype=network.dtype, weight_mapping=conversions)
    with no_progress_bars(also_in_terminals=True):
        report, _ = convert_and_load_state_dict_in_model(network, dict(contents), config)
    network._weight_conversions = conversions  # only those that were used are left of them
    if report.conversion_errors:
        name, error = next(iter(report.conversion_errors.items()))
        raise CheckpointError(f"{name} can't be loaded: {' '.join(error.split())}")
