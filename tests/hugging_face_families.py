"""Tiny Hugging Face models of every family, and what tests do with them."""

import copy
import functools
import json

import torch
import transformers as hf

import sglp

DEPTH, WINDOW, LENGTH, VOCABULARY = 6, 8, 24, 96
TOKENS = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": None}
SIZES = {"hidden_size": 32, "num_hidden_layers": DEPTH, "num_attention_heads": 4, "vocab_size": VOCABULARY, **TOKENS}
WIDE = {**SIZES, "intermediate_size": 48, "max_position_embeddings": 64}
GROUPED = {**WIDE, "num_key_value_heads": 2}
HEADS = {**GROUPED, "head_dim": 8, "sliding_window": WINDOW}
MIXED = ["sliding_attention", "sliding_attention", "full_attention"] * 2
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
MINILM = {**WIDE, "num_attention_heads": 8, "hidden_size": 24, "intermediate_size": 96}  # flat, as MiniLM is
# Class, arguments of its config, and where its layers are.
DECODERS = {
    "Llama": (hf.LlamaForCausalLM, GROUPED, "model.layers"),
    "Mistral": (hf.MistralForCausalLM, {**GROUPED, "sliding_window": WINDOW}, "model.layers"),
    "Qwen2": (
        hf.Qwen2ForCausalLM,
        {**GROUPED, "use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 3},
        "model.layers",
    ),
    "Qwen3": (hf.Qwen3ForCausalLM, HEADS, "model.layers"),
    "Gemma2": (hf.Gemma2ForCausalLM, HEADS, "model.layers"),
    "Gemma3": (hf.Gemma3ForCausalLM, {**HEADS, "layer_types": MIXED}, "model.layers"),
    "Phi3": (hf.Phi3ForCausalLM, {**GROUPED, "sliding_window": WINDOW}, "model.layers"),
    "GPT-2": (
        hf.GPT2LMHeadModel,
        {"n_embd": 32, "n_layer": DEPTH, "n_head": 4, "n_positions": 64, "vocab_size": VOCABULARY, **TOKENS},
        "transformer.h",
    ),
    "GPT-Neo": (
        hf.GPTNeoForCausalLM,
        {
            **{"hidden_size": 32, "num_layers": DEPTH, "num_heads": 4, "max_position_embeddings": 64, **TOKENS},
            **{"attention_types": [[["global", "local"], 3]], "window_size": WINDOW, "vocab_size": VOCABULARY},
        },
        "transformer.h",
    ),
    "OPT": (hf.OPTForCausalLM, {**SIZES, "ffn_dim": 48, "word_embed_proj_dim": 32}, "model.decoder.layers"),
    "GPT-NeoX": (hf.GPTNeoXForCausalLM, WIDE, "gpt_neox.layers"),
    "Falcon": (hf.FalconForCausalLM, SIZES, "transformer.h"),
    "OLMo2": (hf.Olmo2ForCausalLM, GROUPED, "model.layers"),
    "Mixtral": (hf.MixtralForCausalLM, {**GROUPED, "num_local_experts": 4}, "model.layers"),
    "Qwen2-MoE": (
        hf.Qwen2MoeForCausalLM,
        {**GROUPED, **EXPERTS, "num_experts": 4, "mlp_only_layers": [1, 4], "shared_expert_intermediate_size": 16},
        "model.layers",
    ),
    "DeepSeek-V3": (
        hf.DeepseekV3ForCausalLM,
        {
            **{**WIDE, **EXPERTS, "n_routed_experts": 4, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 3},
            **{"kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8},
        },
        "model.layers",
    ),
}
ENCODERS = {
    "BERT": (hf.BertForMaskedLM, WIDE, "bert.encoder.layer"),
    "MiniLM": (hf.BertModel, MINILM, "encoder.layer"),
    "MPNet": (
        hf.MPNetForMaskedLM,
        WIDE | {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3},
        "mpnet.encoder.layer",
    ),
    "XLNet": (
        hf.XLNetModel,
        {"d_model": 32, "n_layer": DEPTH, "n_head": 4, "d_inner": 48, "vocab_size": VOCABULARY, **TOKENS},
        "layer",
    ),
}
FAMILIES = DECODERS | ENCODERS


# Sets of removed layers, with the first and the last layer among them, that break every repeating pattern.
REMOVED = [(0, 2, 3), (1, 5)]


@functools.cache
def made(family):
    kind, arguments, _ = FAMILIES[family]
    torch.manual_seed(0)
    network = kind(kind.config_class(**arguments)).eval()
    with torch.no_grad():  # norms and biases that do nothing would hide a layer in the wrong place
        for parameter in network.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
            else:
                parameter.mul_(3)
    return network


def make(family):
    return copy.deepcopy(made(family))


def tokens(length=LENGTH, batch=2, seed=0):
    return torch.randint(1, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))


def example(family):
    return {"input_ids": tokens()} | ({"use_cache": False} if family in DECODERS else {})


def names(family, numbers=range(DEPTH)):
    return [f"{FAMILIES[family][2]}.{number}" for number in numbers]


def plan(family, removed, depth=DEPTH):
    return sglp.Plan(names(family, [i for i in range(depth) if i not in removed]), names(family, removed))


def pruned(family, removed=REMOVED[0]):
    return sglp.prune(made(family), plan(family, removed))


def outputs(network, inputs):
    with torch.no_grad():
        return network.eval()(**inputs)[0]


def bypassed(network, paths):
    """Bypass some layers: each returns its input, in the container that it would return."""

    def hook(module, args, kwargs, output):
        hidden = args[0] if args else kwargs["hidden_states"]
        return hidden if isinstance(output, torch.Tensor) else (hidden, *output[1:])

    for path in paths:
        network.get_submodule(path).register_forward_hook(hook, with_kwargs=True)
    return network


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


CODE = """
from transformers import LlamaConfig, LlamaForCausalLM

class TinyConfig(LlamaConfig):
    model_type = "tiny"

class TinyForCausalLM(LlamaForCausalLM):
    config_class = TinyConfig
"""


def save_with_code(folder):
    """Save a tiny Llama in a folder that brings code of its own."""
    make("Llama").save_pretrained(folder)
    (folder / "tiny.py").write_text(CODE)
    config = json.loads((folder / "config.json").read_text()) | {"model_type": "tiny"}
    config["auto_map"] = {"AutoConfig": "tiny.TinyConfig", "AutoModelForCausalLM": "tiny.TinyForCausalLM"}
    (folder / "config.json").write_text(json.dumps(config))
