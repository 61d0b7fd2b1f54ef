"""Tiny language models and texts for tests."""

import torch
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
