"""Check that a Hugging Face model with layers of several kinds still runs with a cache.

A cache has a part for each layer, of a kind that follows from the config, and some models ask it for its length, which
layers without attention do not know. Only a run shows it: a few tokens, at once and one after another.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sglp.errors import first_line
from sglp.hugging_face.networks import config_of, layers_of
from sglp.running import device_of, eval_mode

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_TOKENS = 8  # more than the convolutions of state-space layers span
_TOLERANCE = 1e-3  # of the largest logit
_OTHER_LOGITS = "its logits are not those without a cache"


def cache_fault(pruned: "PreTrainedModel", dense: "PreTrainedModel | nn.Module") -> str:
    """Return what is wrong when a pruned model runs with a cache, or "" if nothing is that is right in the dense one.

    Models whose layers are all of one kind are not run.
    """
    if not (has_several_kinds(dense) and pruned.can_generate() and uses_cache(pruned)):
        return ""
    fault = _fault(pruned)
    if not fault:
        return ""
    known = _fault(dense)  # an error is worse than other logits
    return "" if known and (known != _OTHER_LOGITS or fault == _OTHER_LOGITS) else fault


def has_several_kinds(network: nn.Module) -> bool:
    """Check whether a Hugging Face model has layers of several kinds."""
    return len(set(kinds_of(network, layers_of(network)))) > 1


def kinds_of(network: nn.Module, paths: list[str]) -> list[Any]:
    """Return the kind of each layer as a value to compare: its entry in the config, and the classes of its modules."""
    kinds: list[Any] = []
    lists: dict[str, list] = {}
    for path in paths:
        parent, _, index = path.rpartition(".")
        if parent not in lists:
            config = config_of(network, parent)
            names = ("layer_types", "layers_block_type")
            lists[parent] = next((list(v) for name in names if isinstance(v := getattr(config, name, None), list)), [])
        entry = dict(enumerate(lists[parent])).get(int(index), "")
        kinds.append((entry, *(type(module).__name__ for module in network.get_submodule(path).modules())))
    return kinds


def uses_cache(network: nn.Module) -> bool:
    """Check whether a Hugging Face model reads tokens and can keep a cache."""
    config = config_of(network).get_text_config()
    return network.main_input_name == "input_ids" and hasattr(config, "use_cache") and hasattr(config, "vocab_size")


def _fault(network: Any) -> str:
    """Run a few tokens at once, and one after another with a cache; return what is wrong, or ""."""
    config = network.config.get_text_config()
    device = device_of(network)
    if all(parameter.is_meta for parameter in network.parameters()) and not hasattr(network, "_hf_hook"):
        device = torch.device("meta")
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(config.vocab_size, (1, _TOKENS), generator=generator).to(device)
    try:
        with eval_mode(network), torch.no_grad():
            whole = _logits(network(input_ids=ids, use_cache=False))
            step = network(input_ids=ids[:, :-2], use_cache=True)
            if getattr(step, "past_key_values", None) is None:  # some models keep a cache, but do not return it
                network.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=2, do_sample=False)
                return ""
            step.past_key_values.get_seq_length()  # `generate` asks for it
            parts = [_logits(step)]
            for i in (_TOKENS - 2, _TOKENS - 1):
                step = network(input_ids=ids[:, i : i + 1], past_key_values=step.past_key_values, use_cache=True)
                parts.append(_logits(step))
    except Exception as error:  # whatever a model or a cache raises
        return f"{type(error).__name__}: {first_line(error)}"
    joined = torch.cat(parts, dim=1)
    # In half precision, experts and states may differ by more than the tolerance.
    if whole.is_meta or whole.dtype not in (torch.float32, torch.float64):
        return ""
    is_same = torch.allclose(joined, whole, rtol=0, atol=_TOLERANCE * float(whole.abs().max()), equal_nan=True)
    return "" if is_same else _OTHER_LOGITS


def _logits(output: Any) -> Tensor:
    return output.logits
