"""A language model's weights as llama.cpp names and orders them, read from its folder one at a time."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sglp.checkpoints.tensor_files import StoredTensor
from sglp.errors import CheckpointError

# The types of safetensors that a GGUF file holds as they are, by the names which both give them.
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_FILE_TYPES = {"F32": "ALL_F32", "F16": "MOSTLY_F16", "BF16": "MOSTLY_BF16"}


@dataclass(frozen=True)
class Weight:
    """A tensor of a GGUF file.

    Attributes:
        name: as llama.cpp calls it.
        shape: as in torch.
        dtype: "F32", "F16" or "BF16".
        read: gets it.
    """

    name: str
    shape: list[int]
    dtype: str
    read: Callable[[], Tensor]


def find_weights(folder: Path, stored: Mapping[str, StoredTensor], config, architecture: str) -> list[Weight]:
    """The weights of the model that `from_pretrained` would load; what else is in the folder's files is left out.

    Args:
        folder: of the model, for errors.
        stored: its tensors; the files must be open when weights are read.
        config: the model's configuration, as transformers reads it.
        architecture: as llama.cpp calls it.

    Raises:
        CheckpointError: a weight is missing, or of another shape than the configuration says, or quantized.
    """
    from gguf import MODEL_ARCH, get_tensor_name_map
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        expected = AutoModelForCausalLM.from_config(config).state_dict()
    if config.tie_word_embeddings:  # llama.cpp takes the embedding where there is no head
        del expected["lm_head.weight"]
    names = get_tensor_name_map(MODEL_ARCH[architecture.upper()], config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    weights = [_rope_factors(config)] if config.rope_parameters["rope_type"] == "llama3" else []
    for name, tensor in expected.items():
        if name not in stored:
            raise CheckpointError(f"the weights in {folder} are not whole: {name} is missing")
        found, wanted = stored[name], list(tensor.shape)
        shape, dtype = list(found.meta.shape), found.kind
        if dtype not in _DTYPES:
            known = ", ".join(_DTYPES)
            raise CheckpointError(f"{name} in {folder} is {dtype}, but only {known} can be written as they are")
        if shape != wanted:
            raise CheckpointError(f"{name} has the shape {shape} in {folder}, but its config.json says {wanted}")
        weights.append(
            Weight(
                name=names.get_name(name, try_suffixes=(".weight", ".bias")),
                shape=shape,
                dtype=dtype if len(shape) > 1 else "F32",
                read=_reader(found, heads.get(name.split(".")[-2]) if architecture == "llama" else None),
            )
        )
    return weights


def add_weights(writer, weights: list[Weight]) -> None:
    """Announce the weights to a `gguf.GGUFWriter`."""
    import gguf

    for weight in weights:
        size = prod(weight.shape) * _DTYPES[weight.dtype].itemsize
        kind = gguf.GGMLQuantizationType[weight.dtype]
        writer.add_tensor_info(weight.name, weight.shape, np.dtype(np.float32), size, raw_dtype=kind)
    precision = next(weight.dtype for weight in weights if len(weight.shape) > 1)
    writer.add_file_type(gguf.LlamaFileType[_FILE_TYPES[precision]])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def write_weights(writer, weights: list[Weight]) -> None:
    """Write the weights that were announced, in the same order."""
    for weight in weights:
        tensor = weight.read().to(_DTYPES[weight.dtype]).contiguous()
        # numpy has no bfloat16: its bytes go through as integers
        writer.write_tensor_data((tensor.view(torch.int16) if weight.dtype == "BF16" else tensor).numpy())


def _reader(stored: StoredTensor, heads: int | None) -> Callable[[], Tensor]:
    if heads is None:
        return stored.read

    def read() -> Tensor:
        tensor = stored.read()
        # transformers rotates the first half of a head against the second, llama.cpp each number against the next
        halves = tensor.view(heads, 2, -1, *tensor.shape[1:])
        return halves.transpose(1, 2).reshape(tensor.shape)

    return read


def _rope_factors(config) -> Weight:
    """Llama 3's scaling of positions, as what divides each frequency."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    exponents = torch.arange(len(scaled), dtype=torch.float32) / len(scaled)
    factors = 1 / config.rope_parameters["rope_theta"] ** exponents / scaled
    return Weight("rope_freqs.weight", list(factors.shape), "F32", lambda: factors)
