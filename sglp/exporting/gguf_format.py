"""Write the folder of a language model as one GGUF file for llama.cpp and programs built on it.

`export_gguf` is internal: use `sglp.export(folder, path, "gguf")` or `sglp export FOLDER --to gguf`.
"""

import json
from contextlib import closing
from pathlib import Path
from typing import Any

from sglp.checkpoints.tensor_files import stored_tensors
from sglp.errors import CheckpointError, first_line
from sglp.exporting.gguf_tokenizer import add_tokenizer
from sglp.exporting.gguf_weights import add_weights, find_weights, write_weights
from sglp.files import new_file

# The names of the architectures in llama.cpp, which treats Mistral as a Llama.
ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
# The architectures for each kind of position scaling: llama.cpp reads Llama 3's factors only in Llamas.
_SCALINGS = {"default": ("llama", "qwen2", "qwen3"), "linear": ("llama", "qwen2", "qwen3"), "llama3": ("llama",)}


def export_gguf(folder: str | Path, path: str | Path) -> None:
    """Write a language model and its tokenizer as a GGUF file, with the same weights in the same precision.

    Internal: `sglp.export(folder, path, "gguf")` and `sglp export FOLDER --to gguf` call this function.

    Llama, Mistral, Qwen2 and Qwen3 models with a byte-level BPE tokenizer are supported. Vectors (norms, biases) become
    float32, as llama.cpp requires. For sliding-window attention, the context length in the file is limited to the
    window, within which full attention gives the same result. One tensor at a time is held in memory.

    Args:
        folder: a folder with the model and its tokenizer, written by `save_pretrained`.
        path: the file to write; it appears complete or not at all, and an existing one is replaced.

    Raises:
        CheckpointError: the folder is incomplete, or llama.cpp would not compute the same as the model.
    """
    folder = Path(folder)
    architecture = _architecture(folder)
    try:
        import gguf
        from transformers import AutoConfig
    except ImportError as error:
        raise CheckpointError(f"export to gguf needs the package {error.name}: pip install 'sglp[llm]'") from error
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # report any error of transformers in one sentence
        raise CheckpointError(f"{folder / 'config.json'} is broken: {first_line(error)}") from error
    _check(config, architecture)
    with (
        stored_tensors(folder) as stored,
        new_file(path) as new,
        closing(gguf.GGUFWriter(new, architecture)) as writer,
    ):
        weights = find_weights(folder, stored, config, architecture)
        add_weights(writer, weights)
        writer.add_type(gguf.GGUFType.MODEL)
        writer.add_name(gguf.Metadata.id_to_title(folder.resolve().name))
        writer.add_size_label(gguf.size_label(*writer.get_total_parameter_count()))
        _add_sizes(writer, config)
        add_tokenizer(writer, folder, config.vocab_size)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        write_weights(writer, weights)


def _architecture(folder: Path) -> str:
    """Return the name of the model's architecture in llama.cpp."""
    try:
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        name = (content.get("architectures") or [content["model_type"]])[0]
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CheckpointError(f"{folder} is not the folder of a language model: it has no config.json") from error
    except (ValueError, AttributeError, LookupError, TypeError) as error:
        raise CheckpointError(f"{folder / 'config.json'} is broken: it does not name an architecture") from error
    if name not in ARCHITECTURES:
        raise CheckpointError(
            f"only {', '.join(ARCHITECTURES)} can be written as GGUF, but {folder} holds a {name}: "
            "llama.cpp's convert_hf_to_gguf.py may support it and reads the same folder"
        )
    return ARCHITECTURES[name]


def _check(config: Any, architecture: str) -> None:
    """Refuse settings that transformers supports for the architecture, but llama.cpp does not."""
    rope = config.rope_parameters["rope_type"]
    if architecture not in _SCALINGS.get(rope, ()):
        raise CheckpointError(
            f"position scaling of the type {rope!r} can't be written for {architecture}: "
            "llama.cpp's convert_hf_to_gguf.py may support it and reads the same folder"
        )
    if config.hidden_act != "silu":
        raise CheckpointError(
            f"the activation is {config.hidden_act}, but llama.cpp always uses silu in {architecture}"
        )
    if architecture == "qwen3" and config.attention_bias:
        raise CheckpointError("the model's attention has biases, which llama.cpp does not support in qwen3")


def _add_sizes(writer: Any, config: Any) -> None:
    """Add the sizes in the config to a `gguf.GGUFWriter`."""
    import gguf

    rope = config.rope_parameters
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    window = getattr(config, "sliding_window", None) or config.max_position_embeddings
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(min(config.max_position_embeddings, window))
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
