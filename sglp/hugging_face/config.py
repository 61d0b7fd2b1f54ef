"""Update a Hugging Face config when layers are removed; only the attributes of the config are used, not its class."""

import re
from typing import Any

# Attributes that list layer indices, and attributes that count layers from the first one. Any other list as long as the
# depth has one entry per layer.
_INDEX_LISTS = (
    *("attn_layer_indices", "cross_attention_layers", "full_attn_idxs", "fullatt_block_indexes", "global_attn_indexes"),
    *("local_layer_ids", "mlp_only_layers", "moe_layers", "rope_scaling_layers", "window_block_indices"),
)
_LEADING_COUNTS = ("first_k_dense_replace", "moe_layer_start_index", "num_dense_layers")
_NOT_PER_LAYER = re.compile(r"architectures|.*token.*")
# Attributes that hold the number of layers of each stage.
DEPTHS = ("depths", "depth")


def shorten(config: Any, depth: int, kept: list[int]) -> None:
    """Keep only the entries of these layers, in place, in a config that counts all layers together.

    Args:
        config: a config of transformers.
        depth: the number of layers before the removal.
        kept: the indices of the kept layers, in ascending order.
    """
    if getattr(config, "attention_types", None):  # GPT-Neo derives attention_layers from it
        config.attention_types = [[[config.attention_layers[i]], 1] for i in kept]
    per_layer = {int(index): entries for index, entries in config.to_dict().get("per_layer_config", {}).items()}
    for name, value in list(vars(config).items()):
        if name in _LEADING_COUNTS and value is not None:
            setattr(config, name, sum(i < value for i in kept))
        elif isinstance(value, list | tuple):
            entries: list | tuple = value
            if name in _INDEX_LISTS:
                entries = [kept.index(i) for i in value if i in kept]
            elif len(value) == depth and not _NOT_PER_LAYER.fullmatch(name):
                entries = [value[i] for i in kept]
            if isinstance(value, list):
                value[:] = entries  # in place: modules may hold the same list
            else:
                setattr(config, name, tuple(entries))
    config.num_hidden_layers = len(kept)
    _rename_features(config, depth, kept)
    if per_layer:
        config.per_layer_config = {new: per_layer[old] for new, old in enumerate(kept) if old in per_layer}


def shorten_stages(config: Any, depths: list[int]) -> None:
    """Set the number of layers of each stage, in place."""
    for name in DEPTHS:
        value = getattr(config, name, None)
        if isinstance(value, list):
            value[:] = depths
        elif isinstance(value, tuple):
            setattr(config, name, tuple(depths))


def _rename_features(config: Any, depth: int, kept: list[int]) -> None:
    """Renumber a backbone's output layers; the output of a removed layer becomes that of the kept layer before it."""
    names = getattr(config, "stage_names", None) or ()
    if len(names) != depth + 1:  # the first name is the stem's
        return
    old_indices = {i % len(names) for i in config.out_indices}
    config.stage_names = names[: len(kept) + 1]
    config.out_indices = sorted({sum(old < i for old in kept) for i in old_indices})
