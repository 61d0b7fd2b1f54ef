"""Update a Hugging Face config when layers are removed; only the attributes of the config are used, not its class."""

import re
from collections.abc import Sequence
from itertools import product
from typing import Any

from sglp.hugging_face.computed_lists import computed_lists, set_computed_lists

# Attributes that list layer indices, and attributes that count layers from the first one. Any other list as long as the
# depth has one entry per layer.
_INDEX_LISTS = (
    *("attn_layer_indices", "cross_attention_layers", "full_attn_idxs", "fullatt_block_indexes", "global_attn_indexes"),
    *("local_layer_ids", "mlp_only_layers", "moe_layers", "rope_scaling_layers", "window_block_indices"),
)
_LEADING_COUNTS = ("first_k_dense_replace", "num_dense_layers")
_NOT_PER_LAYER = re.compile(r"architectures|.*token.*")
# Lists that are repeated until they are as long as the depth.
_REPEATED = ("block_types",)
# Attributes that hold the number of layers in addition to num_hidden_layers.
_COUNTS = ("num_blocks",)
# Attributes that hold the number of layers of each stage.
DEPTHS = ("depths", "depth")


def shorten(config: Any, depth: int, kept: list[int], counts: Sequence[str] = ("num_hidden_layers",)) -> None:
    """Keep only the entries of these layers, in place, in a config that counts all layers together.

    Args:
        config: a config of transformers.
        depth: the number of layers before the removal.
        kept: the indices of the kept layers, in ascending order.
        counts: the attributes that hold the number of layers; those after the first may hold another one.
    """
    if getattr(config, "attention_types", None):  # GPT-Neo derives attention_layers from it
        config.attention_types = [[[config.attention_layers[i]], 1] for i in kept]
    computed = computed_lists(config, depth)
    _make_explicit(config, depth, kept)
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
    setattr(config, counts[0], len(kept))
    for name in (*counts[1:], *_COUNTS):
        if getattr(config, name, None) == depth:
            setattr(config, name, len(kept))
    if hasattr(config, "final_w_init_variance_scale"):  # RecurrentGemma derives it when it is loaded
        config.final_w_init_variance_scale = 2.0 / len(kept)
    set_computed_lists(config, {name: [values[i] for i in kept] for name, values in computed.items()})
    _rename_features(config, depth, kept)
    if per_layer:
        config.per_layer_config = {new: per_layer[old] for new, old in enumerate(kept) if old in per_layer}


def _make_explicit(config: Any, depth: int, kept: list[int]) -> None:
    """Replace rules for kinds of layers by explicit lists or by other numbers, in place, where the config allows it."""
    for name in _REPEATED:
        pattern = getattr(config, name, None)
        if isinstance(pattern, list) and 0 < len(pattern) < depth:
            pattern[:] = [pattern[i % len(pattern)] for i in range(depth)]
    step = getattr(config, "decoder_sparse_step", 1) or 1
    if step > 1 and isinstance(getattr(config, "mlp_only_layers", None), list):
        config.mlp_only_layers[:] = sorted({*config.mlp_only_layers, *(i for i in range(depth) if (i + 1) % step)})
        config.decoder_sparse_step = 1
    names = ("moe_layer_interval", "moe_layer_start_index", "moe_layer_end_index")
    if all(isinstance(getattr(config, name, None), int) for name in names):
        _shift_interval(config, depth, kept, names)


def _shift_interval(config: Any, depth: int, kept: list[int], names: tuple[str, str, str]) -> None:
    """Set the interval, the start and the end of the layers with experts, in place, if any fit the kept layers."""

    def indices(interval: int, start: int, end: int, depth: int) -> list[int]:
        return [i for i in range(depth) if (i + 1) % interval == 0 and start <= i <= end]

    interval, start, end = (getattr(config, name) for name in names)
    with_experts = indices(interval, start, end, depth)
    expected = [new for new, old in enumerate(kept) if old in with_experts]
    numbers = range(len(kept))
    for values in product(range(1, len(kept) + 2), numbers, reversed(numbers)):
        if indices(*values, len(kept)) == expected:
            for name, value in zip(names, values, strict=True):
                setattr(config, name, value)
            return


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
