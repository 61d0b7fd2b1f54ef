"""Tiny language models and texts for tests."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import ByT5Tokenizer, LlamaConfig, LlamaForCausalLM

TEXT = "the quick brown fox jumps over a lazy dog and runs far away from all that noise"


def tiny_llama(layers: int = 4, seed: int = 0, **more) -> LlamaForCausalLM:
    """A random Llama that reads bytes."""
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1}
    sizes |= {"vocab_size": 259, "max_position_embeddings": 128}
    config = LlamaConfig(num_hidden_layers=layers, **(sizes | more))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).eval()


def byte_tokenizer():
    """A tokenizer with one token per byte."""
    return ByT5Tokenizer(extra_ids=0)


def prose(words: int, seed: int = 0) -> str:
    """Words in a random order."""
    vocabulary = TEXT.split()
    indices = torch.randint(len(vocabulary), (words,), generator=torch.Generator().manual_seed(seed))
    return " ".join(vocabulary[i] for i in indices)


def cast(network, dtype: torch.dtype):
    """Convert a network's parameters to another precision, in place; `to(dtype)` would spoil rotary frequencies."""
    for parameter in network.parameters():
        parameter.data = parameter.data.to(dtype)
    return network


def write_llama(folder: Path, layers: int, **sizes) -> int:
    """Write a random Llama in half precision, one file per layer, holding one at a time; return its size in bytes."""
    config = LlamaConfig(num_hidden_layers=layers, num_attention_heads=16, dtype="bfloat16", **sizes)
    config.save_pretrained(folder)
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in LlamaForCausalLM(config).state_dict().items()}
    parts: dict[str, list[str]] = {}
    for name in shapes:
        parts.setdefault(name.split(".")[2] if ".layers." in name else name, []).append(name)
    for part, names in parts.items():
        tensors = {name: torch.randn(shapes[name], dtype=torch.bfloat16) for name in names}
        save_file(tensors, folder / f"{part}.safetensors", metadata={"format": "pt"})
    index = {name: f"{part}.safetensors" for part, names in parts.items() for name in names}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    built = {"factory": "transformers:LlamaForCausalLM", "kwargs": {}, "kept": [], "removed": []}
    (folder / "architecture.json").write_text(json.dumps(built | {"shared": {}, "versions": {}}))
    return 2 * sum(shape.numel() for shape in shapes.values())
