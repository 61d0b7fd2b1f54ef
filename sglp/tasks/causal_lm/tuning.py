"""What of a language model is trained: adapters beside it (LoRA), a part of it, or all of it."""

import re
import warnings
from collections.abc import Callable

import torch
from torch import nn

from sglp.errors import SGLPError, first_line
from sglp.hugging_face.networks import stacked_layers
from sglp.tasks.schemas.causal_lm import Finetuning, Lora

BEFORE = re.compile(r"emb|\b(wte|wpe|project_in)\b")  # the embeddings, in all families


def adapt(network: nn.Module, recipe, seed: int) -> tuple[nn.Module, Callable[[], nn.Module]]:
    """What is trained in the place of a network, and how to get the network back.

    Args:
        network: of transformers; its parameters are frozen where they are not trained.
        recipe: with `tuning`, or without for all of it.
        seed: of the adapters' random weights.

    Returns:
        The network to train, and a function that gives the network itself after training: adapters merged into its
        weights, in the precision that it is stored in.

    Raises:
        SGLPError: LoRA's targets don't exist, or there are not so many layers.
    """
    stored = {name: parameter.dtype for name, parameter in network.named_parameters()}
    if recipe.gradient_checkpointing:
        if not network.supports_gradient_checkpointing:
            raise SGLPError(f"gradient_checkpointing=true is wrong: {type(network).__name__} does not support it")
        _checkpointing(network, "enable")({"use_reentrant": False})
    tuning = recipe.tuning if isinstance(recipe, Finetuning) else "full"
    trained = network
    if tuning == "lora":
        trained = _with_adapters(network, recipe.lora, seed)
    elif tuning == "partial":
        _freeze_but_the_end(network, recipe.last_layers)
    for parameter in trained.parameters():
        if parameter.requires_grad or not torch.cuda.is_available():
            # Small steps vanish in half precision; on a GPU the Trainer's autocast computes in it all the same.
            parameter.data = parameter.data.float()

    def merge() -> nn.Module:
        merged = trained.merge_and_unload() if tuning == "lora" else network
        if recipe.gradient_checkpointing:
            _checkpointing(merged, "disable")()
        for name, parameter in merged.requires_grad_(True).named_parameters():
            parameter.data = parameter.data.to(stored[name])
        return merged

    return trained, merge


def _checkpointing(network: nn.Module, what: str):
    """The method that switches it; transformers gave it another name in 5.23."""
    names = (f"{kind}_checkpointing_{what}" for kind in ("activation", "gradient"))
    return next(getattr(network, name) for name in names if hasattr(network, name))


def _with_adapters(network: nn.Module, lora: Lora, seed: int) -> nn.Module:
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise SGLPError("finetune.tuning=lora needs peft, which is not installed: pip install 'sglp[llm]'") from error
    kinds = ("Linear", "Conv1D")
    linear = sorted({name.rpartition(".")[2] for name, m in network.named_modules() if type(m).__name__ in kinds})
    wanted = [] if lora.targets == "all-linear" else lora.targets
    for target in wanted:
        if not any(name == target or name.endswith(f".{target}") for name, _ in network.named_modules()):
            raise SGLPError(f"finetune.lora.targets: this network has no {target}; its linear layers are {linear}")
    config = LoraConfig(
        r=lora.r, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=lora.targets, task_type="CAUSAL_LM"
    )
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft calls transformers by names of old
        torch.manual_seed(seed)
        try:
            return get_peft_model(network, config)
        except ValueError as error:
            raise SGLPError(f"finetune.lora.targets={lora.targets} can't be adapted: {first_line(error)}") from error


def _freeze_but_the_end(network: nn.Module, last: int) -> None:
    """Freeze all but the output embedding, the last layers, and what stands after them (the final norm)."""
    depth = network.config.get_text_config().num_hidden_layers
    if last > depth:
        raise SGLPError(f"finetune.last_layers={last}: the pruned network has {depth} layers")
    stack = sorted(stacked_layers(network), key=lambda path: int(path.rpartition(".")[2]))
    frozen = {p for path in stack[: depth - last] for p in network.get_submodule(path).parameters()}
    # What stands before the layers goes by few names; what stands after them by many.
    frozen |= {p for name, p in network.named_parameters() if BEFORE.search(name.rpartition(".")[0])}
    head = set(network.get_output_embeddings().parameters())
    for parameter in network.parameters():
        parameter.requires_grad_(parameter in head or parameter not in frozen)
