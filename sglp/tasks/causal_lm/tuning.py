"""Select what is trained of a language model: adapters (LoRA), its last layers, or all parameters."""

import re
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, cast

import torch
from torch import nn

from sglp.errors import SGLPError, first_line
from sglp.hugging_face.networks import stacked_layers
from sglp.tasks.schemas.causal_lm import Finetuning, Lora, TextRecipe

if TYPE_CHECKING:
    from peft import LoraModel, PeftModel
    from transformers import PreTrainedModel

EMBEDDINGS = re.compile(r"emb|\b(wte|wpe|project_in)\b")  # names of modules before the layers, in all families


def adapt(network: "PreTrainedModel", recipe: TextRecipe, seed: int) -> tuple[nn.Module, Callable[[], nn.Module]]:
    """Prepare a network for training as its recipe says.

    Args:
        network: a Hugging Face model; parameters that are not trained are frozen in place.
        recipe: a fine-tuning recipe; any other recipe trains all parameters.
        seed: seed of the adapters' random weights.

    Returns:
        The network to train, and a function that returns the original network after training: with adapters merged
        into its weights, and in the precision that it was stored in.

    Raises:
        SGLPError: the network lacks the targets of LoRA or the number of last layers, can't recompute activations, or
            peft is not installed.
    """
    stored = {name: parameter.dtype for name, parameter in network.named_parameters()}
    if recipe.gradient_checkpointing:
        if not network.supports_gradient_checkpointing:
            raise SGLPError(f"gradient_checkpointing must be false: {type(network).__name__} does not support it")
        _checkpointing(network, "enable")({"use_reentrant": False})
    lora = recipe.lora if isinstance(recipe, Finetuning) and recipe.tuning == "lora" else None
    adapted = None if lora is None else _with_adapters(network, lora, seed)
    trained = network if adapted is None else adapted
    if isinstance(recipe, Finetuning) and recipe.tuning == "partial":
        _freeze_all_but_last(network, recipe.last_layers)
    for parameter in trained.parameters():
        if parameter.requires_grad or not torch.cuda.is_available():
            # Small updates vanish in half precision. On a GPU, the Trainer's autocast still computes in bfloat16.
            parameter.data = parameter.data.float()

    def merge() -> nn.Module:
        merged = network if adapted is None else cast("LoraModel", adapted.base_model).merge_and_unload()
        if recipe.gradient_checkpointing:
            _checkpointing(merged, "disable")()
        for name, parameter in merged.requires_grad_(True).named_parameters():
            parameter.data = parameter.data.to(stored[name])
        return merged

    return trained, merge


def _checkpointing(network: nn.Module, action: Literal["enable", "disable"]) -> Callable[..., None]:
    """Return the method that enables or disables gradient checkpointing; transformers 5.23 renamed it."""
    names = (f"{kind}_checkpointing_{action}" for kind in ("activation", "gradient"))
    return next(getattr(network, name) for name in names if hasattr(network, name))


def _with_adapters(network: "PreTrainedModel", lora: Lora, seed: int) -> "PeftModel":
    """Add low-rank adapters to the linear layers of a network and freeze its own parameters."""
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise SGLPError("finetune.tuning=lora needs peft, which is not installed: pip install 'sglp[llm]'") from error
    kinds = ("Linear", "Conv1D")
    linear = sorted({name.rpartition(".")[2] for name, m in network.named_modules() if type(m).__name__ in kinds})
    targets = [] if lora.targets == "all-linear" else lora.targets
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name, _ in network.named_modules()):
            raise SGLPError(f"finetune.lora.targets: the network has no layer {target}; its linear layers are {linear}")
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # declared as int, but any number works
        lora_dropout=lora.dropout,
        target_modules=lora.targets,
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft uses deprecated names of transformers
        torch.manual_seed(seed)
        try:
            return get_peft_model(network, config)
        except ValueError as error:
            raise SGLPError(f"finetune.lora.targets={lora.targets} can't be adapted: {first_line(error)}") from error


def _freeze_all_but_last(network: "PreTrainedModel", last: int) -> None:
    """Freeze all parameters but those of the output embedding, the last layers and modules after them (final norm)."""
    depth = network.config.get_text_config().num_hidden_layers
    if last > depth:
        raise SGLPError(f"finetune.last_layers={last} is too many: the pruned network has {depth} layers")
    stack = sorted(stacked_layers(network), key=lambda path: int(path.rpartition(".")[2]))
    frozen = {p for path in stack[: depth - last] for p in network.get_submodule(path).parameters()}
    # Freeze modules before the layers by name: they have few names, whereas modules after the layers have many.
    frozen |= {p for name, p in network.named_parameters() if EMBEDDINGS.search(name.rpartition(".")[0])}
    head = set(network.get_output_embeddings().parameters())
    for parameter in network.parameters():
        parameter.requires_grad_(parameter in head or parameter not in frozen)
