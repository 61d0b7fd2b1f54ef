"""The loss for scoring layers and training networks."""

from collections.abc import Callable, Iterable, Mapping
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sglp.batches import padding_mask, to_device
from sglp.errors import ScoringError
from sglp.running import device_of, holds_logits, inputs_for, logits_of

Loss = Callable[[Any, Any], Tensor]  # of a network's output, or its logits, and a target
IGNORED = -100  # marks a row of logits that has no target


def cross_entropy(output: Any, target: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Compute the cross-entropy of a classifier, or of a language model whose targets are the next tokens.

    Args:
        output: logits [..., classes] or, as in `torch.nn.functional.cross_entropy`, [samples, classes, ...]; or a
            Hugging Face output object or a dict that holds them under "logits".
        target: classes [...] or [samples, ...], where `IGNORED` marks a row without a target; or probabilities in the
            shape of the logits.
        label_smoothing: share of the target that is spread evenly over all classes.

    Raises:
        ScoringError: the output holds no logits, or the shapes do not say which dimension holds the classes.
    """
    if not holds_logits(output):
        raise ScoringError(
            f"the network returns a {type(output).__name__}, in which cross-entropy finds no logits: give a loss of "
            "your own (loss=...), which is called with the network's output and the target"
        )
    if not isinstance(target, Tensor):
        raise ScoringError(
            f"the target is a {type(target).__name__}, but cross-entropy needs a tensor of classes: give a loss of "
            "your own (loss=...), which is called with the network's output and the target"
        )
    logits = logits_of(output)
    # Half precision is too coarse for a sum over a vocabulary.
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if class_axis(output, target) == 1:
        target = target.to(logits.dtype) if target.is_floating_point() else target
    elif target.is_floating_point():
        logits, target = (value.flatten(0, -2) for value in (logits, target.to(logits.dtype)))
    else:
        logits, target = logits.flatten(0, -2), target.flatten()
    return F.cross_entropy(logits, target, ignore_index=IGNORED, label_smoothing=label_smoothing)


def loss_of(loss: Loss, output: Any, target: Any) -> Tensor:
    """Compute a loss of what a network returns.

    A loss that raises an error on an output object of transformers, or a dict, is called with the logits in it instead.
    """
    if loss is cross_entropy or isinstance(output, Tensor) or not holds_logits(output):
        return loss(output, target)
    try:
        return loss(output, target)
    except torch.OutOfMemoryError:
        raise
    except Exception:  # whatever a user's function raises
        return loss(logits_of(output), target)


def labelled(network: nn.Module, batches: Iterable, loss: Loss) -> list[tuple[Any, Any]]:
    """Return (inputs, target) of batches on a network's device, as `call` and `loss_of` take them."""
    device = device_of(network)
    pairs = []
    for batch in batches:
        inputs, target = inputs_for(network, batch), to_device(batch[1], device)
        pairs.append((inputs, without_padding(loss, inputs, target)))
    return pairs


def class_axis(output: Any, target: Any) -> int:
    """Return the dimension of the logits that holds the classes: 1 or -1; where both are the same one, -1.

    Raises:
        ScoringError: neither fits the target's shape, or both do.
    """
    logits = logits_of(output)
    shape = tuple(logits.shape)
    if len(shape) == 2 and target.numel() == (shape[0] if not target.is_floating_point() else logits.numel()):
        return -1
    if target.is_floating_point():
        axes = _axes_of_probabilities(logits, target)
    else:
        rows = tuple(target.shape)
        axes = [
            axis
            for axis, wanted in ((1, shape[:1] + shape[2:]), (-1, shape[:-1]))
            if len(shape) > 2 and rows in (wanted, (prod(wanted),), (*wanted, 1))
        ]
    if len(axes) == 2 and not isinstance(output, Tensor):
        # Hugging Face models classify tokens [samples, tokens, classes] or pixels [samples, classes, height, width].
        return -1 if len(shape) == 3 else 1
    if len(axes) != 1:
        which = "several dimensions of the logits can hold the classes" if axes else "they do not fit each other"
        raise ScoringError(
            f"cross-entropy can't compare logits of the shape {list(shape)} with a target of the shape "
            f"{list(target.shape)}, as {which}: it needs logits [..., classes] with a target [...], or logits "
            "[samples, classes, ...] with a target [samples, ...]; for anything else give a loss of your own (loss=...)"
        )
    return axes[0]


def without_padding(loss: Loss, inputs: Any, target: Any) -> Any:
    """Return the target for a loss: for `cross_entropy`, tokens that the attention mask hides have none.

    A next token that is hidden is no target either. Losses of the user get the target as it is.
    """
    mask = padding_mask(inputs)
    is_classes = isinstance(target, Tensor) and not target.is_floating_point()
    if mask is None or loss is not cross_entropy or not is_classes or target.shape != mask.shape:
        return target
    mask = mask.to(target.device)
    ids = inputs.get("input_ids") if isinstance(inputs, Mapping) else inputs[0].get("input_ids")
    counts = mask.clone()
    if isinstance(ids, Tensor) and ids.shape == target.shape:
        both = mask[:, :-1] & mask[:, 1:] & (target[:, :-1] != IGNORED)
        if both.any() and torch.equal(target[:, :-1][both], ids.to(target.device)[:, 1:][both]):
            counts[:, :-1] &= mask[:, 1:]
            counts[:, -1] = False
    return target.masked_fill(~counts, IGNORED)


def number_of_predictions(output: Any, inputs: Any, target: Any) -> int:
    """Count the predictions in logits, without those at tokens that the attention mask hides."""
    logits = logits_of(output)
    mask = padding_mask(inputs)
    hidden = 0 if mask is None or logits.shape[:-1] != mask.shape else int((~mask).sum())
    is_classes = isinstance(target, Tensor) and not target.is_floating_point()
    try:
        axis = class_axis(output, target) if is_classes else -1
    except ScoringError:  # a loss of the user's may know more
        axis = -1
    return logits.select(axis, 0).numel() - hidden


def _axes_of_probabilities(logits: Tensor, target: Tensor) -> list[int]:
    """Return the dimensions along which a target in the shape of the logits can hold probabilities."""
    if target.shape != logits.shape or logits.ndim < 2:
        return []
    sums = {axis: target.sum(dim=axis).sub(1).abs().amax() < 1e-3 for axis in (1, -1)}
    return [axis for axis, is_one in sums.items() if is_one] or [1, -1]
