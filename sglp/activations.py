"""Gram matrices of each layer's activations, one batch at a time: the only input that CKA needs, with any kernel."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from sglp.batches import padding_mask
from sglp.choices import Pooling
from sglp.cutting import Inputs, can_be_cut, size_of
from sglp.errors import SimilarityError
from sglp.layer import Layer
from sglp.observing import observe_after
from sglp.padding import last_token, mean_token, moved_to_the_front, tokens_of, visible_rows
from sglp.running import call, check_float64, device_of, first_tensor, hooked_eval, inputs_for, run_hooked

# A layer's output counts as constant if its samples differ by less than this, relative to its largest value: such
# differences are float32 rounding.
CONSTANT = 2**-21
FEATURES = 2048  # features multiplied at a time
ROWS = 32  # least number of rows of a Gram matrix in one product; smaller products take longer than they save


def gram_matrices(
    model: nn.Module, layers: Sequence[Layer], batches: Iterable, pooling: Pooling = "flatten"
) -> Iterator[Tensor]:
    """Run batches through a network and yield the Gram matrices of its layers' outputs.

    Activations are centred over the batch, which does not change CKA, and multiplied in float64. Each activation is
    dropped once its Gram matrix is computed, so memory stays at that of the forward pass. Tokens that an attention mask
    [samples, tokens] among the inputs hides do not count: they are in no mean, they are no last token and no sample,
    and for "flatten" the others move to the front and zeros follow.

    Args:
        model: the network; runs in eval mode and is left unchanged.
        layers: the layers, from `find_layers`.
        batches: inputs (a tensor, a dict of keyword arguments, a tuple of arguments), or pairs of inputs and a target.
        pooling: "flatten", all values of a sample; "mean", the mean over space [samples, channels, height, width] or
            tokens [samples, tokens, channels]; "last", the last token; "tokens", each token counts as a sample. Other
            shapes (Swin's [samples, height, width, channels], a 1-D convolution's) need "flatten".

    Yields:
        One float64 tensor [layers, samples, samples] per batch, on the CPU.

    Raises:
        SimilarityError: the pooling is unknown or needs tokens that an output does not have; a layer does not run on a
            batch or returns no tensor; layers have different numbers of rows.
    """
    if pooling not in get_args(Pooling):
        raise SimilarityError(f"pooling={pooling!r} is unknown: it must be one of {', '.join(get_args(Pooling))}")
    check_float64(device_of(model))
    batch_axis = BatchAxis(model, layers)
    for batch in batches:
        inputs = inputs_for(model, batch)
        grams = _grams(model, layers, inputs, pooling, batch_axis)
        if batch_axis.was_wrong(inputs):
            grams = _grams(model, layers, inputs, pooling, batch_axis)
        missing = [layer.name for i, layer in enumerate(layers) if i not in grams]
        if missing:
            raise SimilarityError(f"the layer {missing[0]} did not run on a batch, so it can't be compared with others")
        rows = {len(gram): layers[i].name for i, gram in grams.items()}
        if len(rows) > 1:
            numbers = " and ".join(f"{number} for {name}" for number, name in rows.items())
            raise SimilarityError(
                f"layers with different numbers of rows can't be compared ({numbers}): use another pooling, or name "
                "layers with the same number of samples or tokens (paths)"
            )
        yield torch.stack([grams[i] for i in range(len(layers))])


class BatchAxis:
    """The position of the batch dimension: some activations are [tokens, samples, ...], as in `nn.MultiheadAttention`.

    An activation whose dimension 1 has as many entries as the batch has samples is ambiguous: it can also have as many
    tokens, or channels. It counts as transposed if its dimension 0 is another number, which `was_wrong` checks by
    running a single sample.
    """

    def __init__(self, model: nn.Module, layers: Sequence[Layer]):
        self.model, self.layers = model, layers
        self.ambiguous: dict[int, bool] = {}  # layer indices, and whether their activation was taken for transposed
        self.transposed: set[int] | None = None

    def samples_first(self, i: int, activation: Tensor, samples: int) -> Tensor:
        """Return the activation of layer index `i` as [samples, ...], for a batch of `samples`."""
        if activation.ndim < 3 or activation.shape[1] != samples:
            return activation
        if self.transposed is None:
            transposed = len(activation) != samples
            self.ambiguous[i] = transposed
        else:
            transposed = i in self.transposed
        return activation.transpose(0, 1) if transposed else activation

    def was_wrong(self, inputs: Inputs) -> bool:
        """Check whether the last pass mistook tokens for samples; later passes then get the right axis."""
        if not self.ambiguous or self.transposed is not None or not can_be_cut(inputs):
            return False
        transposed = self.learn(inputs)
        return any(taken != (i in transposed) for i, taken in self.ambiguous.items())

    def learn(self, inputs: Inputs) -> set[int]:
        """Find the layers with activations [tokens, samples, ...] by running a single sample."""
        transposed: set[int] = set()
        self.transposed = transposed

        def learn(i: int, value: Any) -> None:
            activation = first_tensor(value)
            if activation.ndim > 2 and len(activation) != 1 and activation.shape[1] == 1:
                transposed.add(i)

        run_hooked(self.model, inputs, _hooks(self.model, self.layers, learn))
        return transposed


def tokens_first(model: nn.Module, layers: Sequence[Layer], batches: Iterable) -> set[int]:
    """Return the indices of layers with activations [tokens, samples, ...], if a mask's shape does not tell."""
    for batch in batches:
        inputs = inputs_for(model, batch)
        mask = padding_mask(inputs)
        if mask is not None and mask.shape[0] == mask.shape[1]:
            return BatchAxis(model, layers).learn(inputs)
    return set()


def _grams(
    model: nn.Module, layers: Sequence[Layer], inputs: Inputs, pooling: str, batch_axis: BatchAxis
) -> dict[int, Tensor]:
    """Compute the Gram matrices of one batch, by layer index."""
    grams: dict[int, Tensor] = {}
    samples = size_of(inputs)
    mask = padding_mask(inputs)

    def keep(i: int, value: Any) -> None:
        try:
            activation = first_tensor(value)
        except StopIteration:
            raise SimilarityError(
                f"the layer {layers[i].name} returns no tensor, but a {type(value).__name__}"
            ) from None
        grams[i] = _gram(batch_axis.samples_first(i, activation, samples), pooling, mask)

    # Hooks are added anew for each batch: if they outlived a yield, an error in the caller would leave them in place.
    with hooked_eval(model, _hooks(model, layers, keep)):
        call(model, inputs)
    return grams


def _hooks(model: nn.Module, layers: Sequence[Layer], keep: Callable[[int, Any], None]) -> list[RemovableHandle]:
    """Pass the output of each layer to `keep`."""
    return [handle for i in range(len(layers)) for handle in _hooks_of(model, layers, i, keep)]


def _hooks_of(
    model: nn.Module, layers: Sequence[Layer], i: int, keep: Callable[[int, Any], None]
) -> list[RemovableHandle]:
    """Pass a layer's output to `keep`; see `observe_after`.

    The stem's output is taken from the input of the first block, as operations that are not modules may come between.
    """
    if layers[i].is_stem and i + 1 < len(layers):
        following = model.get_submodule(layers[i + 1].modules[0])

        def before(module: nn.Module, args: tuple, kwargs: dict) -> None:
            keep(i, args or kwargs)

        return [following.register_forward_pre_hook(before, with_kwargs=True)]
    return observe_after(model, layers[i].name, partial(keep, i))


def _gram(activation: Tensor, pooling: str, mask: Tensor | None) -> Tensor:
    """Compute [samples, samples] inner products of the centred activations; zeros if all samples are the same."""
    features = pooled(activation.detach(), pooling, mask)
    gram, offset = _centred_products(features)
    largest = gram.diagonal().amax().item()
    # No value exceeds the largest mean plus the largest deviation. For almost every layer this bound shows that some
    # deviation is above the limit, which saves a second pass over the features.
    if largest <= features.shape[1] * (CONSTANT * (offset + math.sqrt(largest))) ** 2:
        limit = CONSTANT * max(abs(end.item()) for end in features.aminmax())
        features = features.double()
        if (features - features.mean(dim=0)).abs().amax() <= limit:
            gram.zero_()
    return gram.cpu()


def _centred_products(features: Tensor) -> tuple[Tensor, float]:
    """Compute [samples, samples] products in float64 and the largest absolute mean of a feature, in any precision.

    Products in float32 would cost half as much, but similarities would be off by 2e-8 with 64 samples and by 2e-5 with
    4. Instead, features are converted, centred and multiplied in chunks that fit the cache, and most of the products
    below the diagonal are skipped, as they mirror those above it.
    """
    samples, width = len(features), min(FEATURES, features.shape[1])
    gram = features.new_zeros(samples, samples, dtype=torch.float64)
    chunk = features.new_empty(samples, width, dtype=torch.float64)
    step = max(ROWS, samples // 8)
    products = [(gram[i : i + step, i:], chunk[i : i + step], chunk[i:].T) for i in range(0, samples, step)]
    means = []
    for part in features.split(width, dim=1):
        chunk[:, part.shape[1] :] = 0  # the last part may be narrower
        chunk[:, : part.shape[1]] = part
        means.append(chunk.mean(dim=0))
        chunk -= means[-1]
        for block, rows, columns in products:
            block.addmm_(rows, columns)
    return gram.triu() + gram.triu(1).T, torch.cat(means).abs().amax().item()


def pooled(activation: Tensor, pooling: str, mask: Tensor | None = None) -> Tensor:
    """Pool an activation to [samples, features]; means are in float64, other values keep their precision.

    Args:
        activation: [samples, ...].
        pooling: see `gram_matrices`.
        mask: from `padding_mask`.
    """
    if (found := tokens_of(activation, mask)) is not None:
        tokens, shown = found
        if pooling == "tokens":
            return tokens[shown]
        if pooling == "flatten":
            return moved_to_the_front(tokens, shown).flatten(1)
        return mean_token(tokens, shown) if pooling == "mean" else last_token(tokens, shown)
    if pooling in ("last", "tokens"):
        if activation.ndim != 3:
            raise SimilarityError(
                f"pooling={pooling!r} needs tokens [samples, tokens, channels], but the output of a layer has the "
                f"shape {list(activation.shape)}: use 'flatten' or 'mean'"
            )
        return activation[:, -1] if pooling == "last" else activation.flatten(0, 1)
    if pooling == "mean" and activation.ndim > 2:
        dims = 1 if activation.ndim == 3 else tuple(range(2, activation.ndim))
        return activation.mean(dim=dims, dtype=torch.float64)
    return visible_rows(activation, mask) if activation.ndim == 2 else activation.flatten(1)
