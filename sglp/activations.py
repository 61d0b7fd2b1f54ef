"""Gram matrices of every layer's activations, one batch at a time: all that any kernel or estimator of CKA needs."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import get_args

import torch
from torch import Tensor, nn

from sglp.batches import inputs_of, size_of, to_device
from sglp.choices import Pooling
from sglp.errors import SimilarityError
from sglp.layer import Layer
from sglp.running import call, device_of, first_tensor, run_watched, watched

# Relative to a layer's largest value, differences between samples below this are rounding of float32, not activity.
CONSTANT = 2**-21
FEATURES = 2048  # that are multiplied at a time
ROWS = 32  # of a Gram matrix that are one product; fewer take longer than they save


def gram_matrices(
    model: nn.Module, layers: Sequence[Layer], batches: Iterable, pooling: Pooling = "flatten"
) -> Iterator[Tensor]:
    """Run batches through a network and give the Gram matrices of its layers' outputs.

    Activations are centred over the batch, which changes no CKA, and multiplied in float64. They are dropped as soon as
    their Gram matrix stands, so that memory is that of the forward pass.

    Args:
        model: the network; runs in eval mode and is left as it was.
        layers: what `find_layers` found.
        batches: tensors, dicts of keyword arguments, or pairs of one of them and a target.
        pooling: "flatten", all values of a sample; "mean", over space [samples, channels, height, width] or tokens
            [samples, tokens, channels]; "last", the last token; "tokens", every token is a sample of its own. Of other
            shapes (Swin's [samples, height, width, channels], a 1-D convolution's) only "flatten" is right.

    Yields:
        One float64 tensor [layers, samples, samples] a batch, on the CPU.

    Raises:
        SimilarityError: the pooling is unknown, or needs tokens where there are none; a layer does not run on a batch,
            or hands on no tensor.
    """
    if pooling not in get_args(Pooling):
        raise SimilarityError(f"pooling={pooling!r} is unknown: it must be one of {', '.join(get_args(Pooling))}")
    device, axes = device_of(model), BatchAxis(model, layers)
    for batch in batches:
        inputs = to_device(inputs_of(batch), device)
        grams = _grams(model, layers, inputs, pooling, axes)
        if axes.was_wrong(inputs):
            grams = _grams(model, layers, inputs, pooling, axes)
        missing = [layer.name for i, layer in enumerate(layers) if i not in grams]
        if missing:
            raise SimilarityError(f"the layer {missing[0]} did not run on a batch: it can't be compared with others")
        yield torch.stack([grams[i] for i in range(len(layers))])


class BatchAxis:
    """Puts samples first: activations may be [tokens, samples, ...], as `nn.MultiheadAttention` has it by default.

    A layer with as many tokens as a batch has samples is taken to have samples first. `was_wrong` then asks one sample.
    """

    def __init__(self, model: nn.Module, layers: Sequence[Layer]):
        self.model, self.layers = model, layers
        self.ambiguous: set[int] = set()
        self.transposed: set[int] | None = None

    def samples_first(self, i: int, activation: Tensor, samples: int) -> Tensor:
        """A layer's activation [samples, ...], by its number."""
        if activation.ndim < 3 or activation.shape[1] != samples:
            return activation
        if len(activation) == samples and self.transposed is None:
            self.ambiguous.add(i)
        transposed = len(activation) != samples or i in (self.transposed or ())
        return activation.transpose(0, 1) if transposed else activation

    def was_wrong(self, inputs) -> bool:
        """Whether tokens were taken for samples in the pass that was just made; not again in those that follow."""
        if not self.ambiguous or self.transposed is not None:
            return False
        self.transposed = set()

        def learn(i: int, value) -> None:
            activation = first_tensor(value)
            if activation.ndim > 2 and len(activation) != 1 and activation.shape[1] == 1:
                self.transposed.add(i)

        run_watched(self.model, inputs, [_watch(self.model, self.layers, i, learn) for i in range(len(self.layers))])
        return bool(self.transposed & self.ambiguous)


def _grams(model: nn.Module, layers: Sequence[Layer], inputs, pooling: str, axes: BatchAxis) -> dict[int, Tensor]:
    """Of one batch, by the layers' numbers."""
    grams, samples = {}, size_of(inputs)

    def keep(i: int, value) -> None:
        try:
            activation = first_tensor(value)
        except StopIteration:
            raise SimilarityError(
                f"the layer {layers[i].name} hands on no tensor, but a {type(value).__name__}"
            ) from None
        grams[i] = _gram(axes.samples_first(i, activation, samples), pooling)

    # Batch by batch: what fails outside, while this waits, would leave the network with the hooks.
    with watched(model, [_watch(model, layers, i, keep) for i in range(len(layers))]):
        call(model, inputs)
    return grams


def _watch(model: nn.Module, layers: Sequence[Layer], i: int, keep: Callable):
    """Hook a layer's output. The stem's is the first block's input, after what is no module."""
    if layers[i].is_stem and i + 1 < len(layers):
        following = model.get_submodule(layers[i + 1].modules[0])

        def before(module, args, kwargs):
            keep(i, args or kwargs)

        return following.register_forward_pre_hook(before, with_kwargs=True)

    def after(module, args, output):
        keep(i, output)

    return model.get_submodule(layers[i].modules[-1]).register_forward_hook(after)


def _gram(activation: Tensor, pooling: str) -> Tensor:
    """[samples, samples] inner products of the centred activations; zeros where all samples have the same."""
    features = _pooled(activation.detach(), pooling)
    gram, offset = _centred_products(features)
    largest = gram.diagonal().amax().item()
    # No value is larger than the largest mean and the largest deviation together, so that the sums of squares say of
    # almost every layer that a deviation is above the limit, without another look at it.
    if largest <= features.shape[1] * (CONSTANT * (offset + math.sqrt(largest))) ** 2:
        limit = CONSTANT * max(abs(end.item()) for end in features.aminmax())
        features = features.double()
        if (features - features.mean(dim=0)).abs().amax() <= limit:
            gram.zero_()
    return gram.cpu()


def _centred_products(features: Tensor) -> tuple[Tensor, float]:
    """[samples, samples] in float64, from features of any precision, and the largest mean of a feature, without sign.

    Products in float32 would cost half as much, but similarities were then off by 2e-8 with 64 samples and by 2e-5
    with 4. Instead the features are taken so many at a time that the cache holds them while they are converted, centred
    and multiplied, and most of what mirrors the upper triangle is not computed.
    """
    samples, width = len(features), min(FEATURES, features.shape[1])
    gram = features.new_zeros(samples, samples, dtype=torch.float64)
    some = features.new_empty(samples, width, dtype=torch.float64)
    step = max(ROWS, samples // 8)
    products = [(gram[i : i + step, i:], some[i : i + step], some[i:].T) for i in range(0, samples, step)]
    means = []
    for part in features.split(width, dim=1):
        some[:, part.shape[1] :] = 0  # the last part may be narrower
        some[:, : part.shape[1]] = part
        means.append(some.mean(dim=0))
        some -= means[-1]
        for block, rows, columns in products:
            block.addmm_(rows, columns)
    return gram.triu() + gram.triu(1).T, torch.cat(means).abs().amax().item()


def _pooled(activation: Tensor, pooling: str) -> Tensor:
    """[samples, features]; means are float64, all else is as it was."""
    if pooling in ("last", "tokens"):
        if activation.ndim != 3:
            raise SimilarityError(
                f"pooling={pooling!r} needs tokens [samples, tokens, channels], but a layer's output has the shape "
                f"{list(activation.shape)}: 'flatten' or 'mean' would be right"
            )
        return activation[:, -1] if pooling == "last" else activation.flatten(0, 1)
    if pooling == "mean" and activation.ndim > 2:
        dims = 1 if activation.ndim == 3 else tuple(range(2, activation.ndim))
        return activation.mean(dim=dims, dtype=torch.float64)
    return activation.flatten(1)
