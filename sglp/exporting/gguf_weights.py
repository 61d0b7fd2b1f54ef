"""The weights of a language model in the naming and order of llama.cpp, read from its folder one at a time."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sglp.checkpoints.tensor_files import StoredTensor
from sglp.errors import CheckpointError

# The data types of safetensors that GGUF can store unchanged; both formats use these names.
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_FILE_TYPES = {"F32": "ALL_F32", "F16": "MOSTLY_F16", "BF16": "MOSTLY_BF16"}


@dataclass(frozen=True)
class Weight:
    """A tensor of a GGUF file.

    Attributes:
        name: its name in llama.cpp.
        shape: its shape in torch.
        dtype: "F32", "F16" or "BF16".
        read: returns its values.
    """

    name: str
    shape: list[int]
    dtype: str
    read: Callable[[], Tensor]


def find_weights(folder: Path, stored: Mapping[str, StoredTensor], config: Any, architecture: str) -> list[Weight]:
    """Find the weights of the model that `from_pretrained` would load, and ignore other tensors in its files.

    Args:
        folder: the folder of the model, for errors.
        stored: its tensors; the files must be open when weights are read.
        config: the config of the model.
        architecture: the name of the architecture in llama.cpp.

    Raises:
        CheckpointError: a weight is missing, quantized, or has another shape than the config says.
    """
    from gguf import MODEL_ARCH, get_tensor_name_map
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        expected = AutoModelForCausalLM.from_config(config).state_dict()
    if config.tie_word_embeddings:  # without a head, llama.cpp uses the embedding
        del expected["lm_head.weight"]
    names = get_tensor_name_map(MODEL_ARCH[architecture.upper()], config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    weights = [_rope_factors(config)] if config.rope_parameters["rope_type"] == "llama3" else []
    for name, tensor in expected.items():
        if name not in stored:
            raise CheckpointError(f"the weights in {folder} are incomplete: {name} is missing")
        source = stored[name]
        shape = list(source.meta.shape)
        expected_shape = list(tensor.shape)
        dtype = source.kind
        if dtype not in _DTYPES:
            dtypes = ", ".join(_DTYPES)
            raise CheckpointError(f"{name} in {folder} is {dtype}, but only {dtypes} can be written to GGUF")
        if shape != expected_shape:
            raise CheckpointError(
                f"{name} has the shape {shape} in {folder}, but its config.json says {expected_shape}"
            )
        gguf_name = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert gguf_name is not None, f"gguf has no name for {name}"
        weights.append(
            Weight(
                name=gguf_name,
                shape=shape,
                dtype=dtype if len(shape) > 1 else "F32",
                read=_reader(source, heads.get(name.split(".")[-2]) if architecture == "llama" else None),
            )
        )
    return weights


def add_weights(writer: Any, weights: list[Weight]) -> None:
    """Add the names, shapes and types of the weights to a `gguf.GGUFWriter`."""
    import gguf

    for weight in weights:
        size = prod(weight.shape) * _DTYPES[weight.dtype].itemsize
        kind = gguf.GGMLQuantizationType[weight.dtype]
        writer.add_tensor_info(weight.name, weight.shape, np.dtype(np.float32), size, raw_dtype=kind)
    precision = next(weight.dtype for weight in weights if len(weight.shape) > 1)
    writer.add_file_type(gguf.LlamaFileType[_FILE_TYPES[precision]])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def write_weights(writer: Any, weights: list[Weight]) -> None:
    """Write the values of the weights, in the same order as `add_weights`."""
    for weight in weights:
        tensor = weight.read().to(_DTYPES[weight.dtype]).contiguous()
        # numpy has no bfloat16: pass its bytes as integers
        writer.write_tensor_data((tensor.view(torch.int16) if weight.dtype == "BF16" else tensor).numpy())


def _reader(stored: StoredTensor, heads: int | None) -> Callable[[], Tensor]:
    if heads is None:
        return stored.read

    def read() -> Tensor:
        tensor = stored.read()
        # transformers rotates the first half of a head against the second, llama.cpp each value against the next
        halves = tensor.view(heads, 2, -1, *tensor.shape[1:])
        return halves.transpose(1, 2).reshape(tensor.shape)

    return read


def _rope_factors(config: Any) -> Weight:
    """Compute Llama 3's position scaling as a divisor of each frequency."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    exponents = torch.arange(len(scaled), dtype=torch.float32) / len(scaled)
    factors = 1 / config.rope_parameters["rope_theta"] ** exponents / scaled
    return Weight("rope_freqs.weight", list(factors.shape), "F32", lambda: factors)
