"""Tiny configs for any model of transformers: common names of sizes are overridden, all else is left as it is."""

import dataclasses
from typing import Any

import transformers
from transformers import PreTrainedConfig

DEPTH, VOCABULARY = 6, 96
_SIZES = (
    (
        DEPTH,
        "num_hidden_layers n_layer n_layers num_layers num_decoder_layers encoder_layers decoder_layers num_blocks",
    ),
    (32, "hidden_size d_model n_embd embed_dim embedding_size lru_width dim attention_hidden_size embed_dim_size"),
    (32, "word_embed_proj_dim encoder_hidden_size vision_hidden_size kv_dim head_hidden_size output_hidden_size"),
    (
        48,
        "intermediate_size d_ff n_inner ffn_dim d_inner mlp_hidden_size encoder_ffn_dim decoder_ffn_dim",
    ),
    (48, "feed_forward_size"),
    (48, "ffn_hidden_size shared_intermediate_size intermediate_size_mlp block_ff_dim"),
    (4, "num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads"),
    (2, "num_key_value_heads num_kv_heads multi_query_group_num num_attention_groups num_global_key_value_heads"),
    (8, "head_dim d_kv kv_channels global_head_dim swa_head_dim attention_head_dim qk_head_dim d_head"),
    (VOCABULARY, "vocab_size vocab_size_per_layer_input"),
    (128, "max_position_embeddings n_positions max_sequence_length seq_length max_seq_len context_length n_ctx"),
    (8, "sliding_window attention_window_size window_size attention_chunk_size sliding_window_size local_attention"),
    (4, "num_experts n_routed_experts num_local_experts moe_num_experts"),
    (2, "num_experts_per_tok num_experts_per_token moe_topk moe_k moe_top_k top_k_experts"),
    (
        16,
        "moe_intermediate_size shared_expert_intermediate_size expert_hidden_size moe_ffn_hidden_size",
    ),
    (16, "expert_ffn_hidden_size"),
    (16, "moe_shared_expert_intermediate_size"),
    (1, "n_group topk_group n_shared_experts num_shared_experts moe_num_shared_experts"),
    (8, "kv_lora_rank q_lora_rank qk_nope_head_dim v_head_dim o_lora_rank laurel_rank swa_v_head_dim"),
    (4, "qk_rope_head_dim"),
    (8, "state_size mamba_d_state ssm_state_size"),
    (4, "mamba_n_heads mamba_num_heads mamba_dt_rank time_step_rank linear_num_value_heads linear_num_heads"),
    (2, "linear_num_key_heads"),
    (8, "linear_key_head_dim linear_value_head_dim"),
    (8, "index_head_dim index_topk mamba_chunk_size"),
    (2, "index_n_heads"),
    (1, "mamba_n_groups"),
    (32, "image_size"),
    (8, "patch_size"),
    (0, "pad_token_id"),
    (1, "bos_token_id cls_token_id"),
    (2, "eos_token_id sep_token_id"),
    (3, "mask_token_id"),
    (0, "padding_idx"),
    (5, "num_labels"),
)
_OVERRIDES = {name: value for value, names in _SIZES for name in names.split()}
# For models in which the sizes above contradict each other, or would leave out what makes the model special.
_SPECIAL: dict[str, dict[str, Any]] = {
    "JambaConfig": {"attn_layer_period": 3, "attn_layer_offset": 1, "use_mamba_kernels": False},
    "BambaConfig": {"mamba_d_head": 16, "mamba_expand": 2, "attn_layer_indices": [2, 4]},
    "GraniteMoeHybridConfig": {
        **{"mamba_d_head": 16, "mamba_expand": 2},
        "layer_types": ["mamba", "mamba", "attention"] * 2,
    },
    "FalconH1Config": {"mamba_d_ssm": 64, "mamba_d_head": 16},
    "Zamba2Config": {"mamba_ngroups": 1, "n_mamba_heads": 4, "mamba_headdim": 16},
    "Mamba2Config": {"num_heads": 8, "head_dim": 8, "n_groups": 1},
    "NemotronHConfig": {
        **{"mamba_head_dim": 16, "n_groups": 1},
        "layers_block_type": ["mamba", "mlp", "attention"] * 2,
    },
    "Lfm2Config": {"layer_types": ["conv", "conv", "full_attention"] * 2},
    "Lfm2MoeConfig": {"layer_types": ["conv", "conv", "full_attention"] * 2, "num_dense_layers": 2},
    "EsmConfig": {"position_embedding_type": "rotary"},
    "Ernie4_5_MoeConfig": {"moe_layer_interval": 2, "moe_layer_start_index": 1},
    "Qwen3MoeConfig": {"decoder_sparse_step": 2},
    "Gemma3nTextConfig": {"activation_sparsity_pattern": [0.0] * DEPTH, "altup_num_inputs": 2},
    "OpenAIGPTConfig": {"afn": "gelu"},
    "XLNetConfig": {"d_inner": 48},
    "ReformerConfig": {
        "attn_layers": ["local", "lsh"] * 3,
        "axial_pos_shape": [8, 16],
        "axial_pos_embds_dim": [16, 16],
        "is_decoder": True,
    },
    "BigBirdConfig": {"attention_type": "original_full"},
    "BloomConfig": {"n_head": 4},
    "SwinConfig": {"embed_dim": 8, "depths": [2, 4], "num_heads": [2, 2], "window_size": 4, "patch_size": 2},
    "Swinv2Config": {"embed_dim": 8, "depths": [2, 4], "num_heads": [2, 2], "window_size": 4, "patch_size": 2},
    "FunnelConfig": {"block_sizes": [2, 2, 2], "d_head": 8},
    "RwkvConfig": {"attention_hidden_size": 32},
    "CodeGenConfig": {"rotary_dim": 8},
    "GPTJConfig": {"rotary_dim": 8},
}


def tiny(config_class: type[PreTrainedConfig], level: int = 0) -> Any:
    """Return a config with small sizes.

    Args:
        config_class: the class of the config.
        level: 0 overrides all common names of sizes, 1 not those of heads and experts, 2 none but layers and words.
    """
    return config_class(**_arguments(config_class, level))


def _arguments(config_class: type[PreTrainedConfig], level: int) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for field in dataclasses.fields(config_class):
        factory: Any = field.default_factory
        fields[field.name] = field.default if factory is dataclasses.MISSING else factory()
    used = _OVERRIDES
    if level:
        kept = ("num_hidden_layers", "vocab_size", "hidden_size", "n_layer", "num_layers", "d_model")
        used = {
            n: v for n, v in _OVERRIDES.items() if n in kept or (level == 1 and "head" not in n and "expert" not in n)
        }
    arguments: dict[str, Any] = {}
    depth = next(
        (fields[n] for n in ("num_hidden_layers", "n_layer", "num_layers") if isinstance(fields.get(n), int)), 0
    )
    for name, value in fields.items():
        is_number = isinstance(value, int) and not isinstance(value, bool)
        if name in used and (is_number or (value is None and name not in ("sliding_window", "n_inner", "head_dim"))):
            arguments[name] = used[name]
        elif isinstance(value, list | tuple) and depth > 2 and len(value) == depth:
            arguments[name] = list(value)[: DEPTH - 1] + list(value)[-1:]
        elif name == "attention_types" and value:
            arguments[name] = [[["global", "local"], DEPTH // 2]]
    for name, part in (config_class.sub_configs or {}).items():
        if name != "backbone_config" and part is not transformers.AutoConfig:
            arguments[name] = _arguments(part, level)
    if "qk_rope_head_dim" in fields:  # latent attention
        arguments |= {name: 4 for name in ("head_dim", "num_key_value_heads") if name in arguments}
    return arguments | _SPECIAL.get(config_class.__name__, {})
