"""A config of transformers after layers went, known by what stands in it."""

import re

# Lists of layer numbers, and counts of layers at the beginning. Other lists as long as the depth have an entry a layer.
_NUMBERS = (
    *("attn_layer_indices", "cross_attention_layers", "full_attn_idxs", "fullatt_block_indexes", "global_attn_indexes"),
    *("local_layer_ids", "mlp_only_layers", "moe_layers", "rope_scaling_layers", "window_block_indices"),
)
_LEADING = ("first_k_dense_replace", "moe_layer_start_index", "num_dense_layers")
_NO_LAYERS = re.compile(r"architectures|.*token.*")
# How configs name the number of layers stage by stage.
DEPTHS = ("depths", "depth")


def shorten(config, depth: int, kept: list[int]) -> None:
    """Keep only these layers' entries in a config that counts all layers together, in place."""
    if getattr(config, "attention_types", None):  # GPT-Neo's, from which it makes attention_layers anew
        config.attention_types = [[[config.attention_layers[i]], 1] for i in kept]
    different = {int(number): entries for number, entries in config.to_dict().get("per_layer_config", {}).items()}
    for name, value in list(vars(config).items()):
        if name in _LEADING and value is not None:
            setattr(config, name, sum(i < value for i in kept))
        elif isinstance(value, list | tuple):
            entries = value
            if name in _NUMBERS:
                entries = [kept.index(i) for i in value if i in kept]
            elif len(value) == depth and not _NO_LAYERS.fullmatch(name):
                entries = [value[i] for i in kept]
            if isinstance(value, list):
                value[:] = entries  # in place: modules may hold the same list
            else:
                setattr(config, name, tuple(entries))
    config.num_hidden_layers = len(kept)
    _rename_features(config, depth, kept)
    if different:
        config.per_layer_config = {new: different[old] for new, old in enumerate(kept) if old in different}


def shorten_stages(config, depths: list[int]) -> None:
    """Let a config say how many layers each stage has now, in place."""
    for name in DEPTHS:
        value = getattr(config, name, None)
        if isinstance(value, list):
            value[:] = depths
        elif isinstance(value, tuple):
            setattr(config, name, tuple(depths))


def _rename_features(config, depth: int, kept: list[int]) -> None:
    """Backbones name the layers whose outputs are asked for; in the place of one that went stands the one before."""
    names = getattr(config, "stage_names", None) or ()
    if len(names) != depth + 1:  # the first is the stem
        return
    asked = {i % len(names) for i in config.out_indices}
    config.stage_names = names[: len(kept) + 1]
    config.out_indices = sorted({sum(old < i for old in kept) for i in asked})
