"""Cases for methods and criteria: a small CNN and a tiny language model, with batches of unequal size."""

import copy
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from language import cast, tiny_llama
from torch import nn

import sglp
from sglp.loss import IGNORED
from sglp.running import logits_of
from sglp.scoring.methods import find_method


class Case(NamedTuple):
    """The arguments of a method, except `keep` and the seed."""

    network: nn.Module
    layers: list
    segments: list
    similarity: np.ndarray
    batches: list

    @property
    def removable(self) -> list[int]:
        """The indices of the removable layers."""
        return [i for i, layer in enumerate(self.layers) if layer.removable]

    def run(self, name, keep, seed=0, batches=None, **options):
        """Run a method."""
        arguments = (self.network, self.layers, self.segments, self.similarity)
        return find_method(name)(*arguments, self.batches if batches is None else batches, keep, seed, **options)

    def without(self, removed):
        """Return the network pruned of the layers with these indices."""
        names = [layer.name for layer in self.layers]
        plan = sglp.Plan([n for i, n in enumerate(names) if i not in removed], [names[i] for i in removed])
        return sglp.prune(self.network, plan).eval()

    def removed_by(self, plan) -> set[int]:
        """Return the indices of the layers that a plan removes."""
        return {i for i, layer in enumerate(self.layers) if layer.name in plan.removed}


def cnn(network, digits, dtype=torch.float64) -> Case:
    """Return ten layers, three of which (0, 4 and 7) can't be removed."""
    network = copy.deepcopy(network).to(dtype)
    images, targets = digits[0].to(dtype), digits[1]
    batches = [(images[:10], targets[:10]), (images[10:16], targets[10:16])]
    layers = sglp.find_layers(network, images[:2])
    return Case(network, layers, [(0, 3), (4, 6), (7, 9)], similarity(10), batches)


def llama(layers=5) -> Case:
    """Return layers that are all removable, each of which rotates the residual stream."""
    network = cast(tiny_llama(layers), torch.float64)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(5 if parameter.ndim > 1 else 1)
    batches = []
    for samples, seed in ((3, 0), (2, 1)):
        ids = torch.randint(259, (samples, 9), generator=torch.Generator().manual_seed(seed))
        target = torch.cat([ids[:, 1:], torch.full((samples, 1), IGNORED)], dim=1)
        batches.append(({"input_ids": ids, "use_cache": False}, target))
    network_layers = sglp.find_layers(network, batches[0][0])
    return Case(network, network_layers, [(0, 1), (2, layers - 1)], similarity(layers), batches)


def similarity(size) -> np.ndarray:
    """Return a symmetric matrix with ones on its diagonal."""
    values = np.random.default_rng(5).random((size, size))
    values = (values + values.T) / 2
    np.fill_diagonal(values, 1)
    return values


def run(network, inputs):
    """Return a network's logits, without gradients."""
    with torch.no_grad():
        return logits_of(network(**inputs) if isinstance(inputs, dict) else network(inputs))


def features(network, inputs):
    """Return the input of the classifier, row by row."""
    with torch.no_grad():
        if isinstance(inputs, dict):
            return network.model(**inputs).last_hidden_state.flatten(0, 1).numpy()
        x = F.relu(network.bn1(network.conv1(inputs)))
        return network.layer3(network.layer2(network.layer1(x))).mean(dim=(2, 3)).numpy()


def hsic(x, y):
    """Compute unbiased HSIC as in Song et al. 2012, from the full matrices."""
    n = len(x)
    K, L, ones = x @ x.T, y @ y.T, np.ones(n)
    np.fill_diagonal(K, 0)
    np.fill_diagonal(L, 0)
    parts = (
        np.trace(K @ L),
        ones @ K @ ones * (ones @ L @ ones) / ((n - 1) * (n - 2)),
        ones @ K @ L @ ones * 2 / (n - 2),
    )
    return (parts[0] + parts[1] - parts[2]) / (n * (n - 3))


def change(case, removed):
    """Compute 1 - CKA of the features with and without these layers; every HSIC is a mean over batches."""
    small, terms = case.without(removed), []
    for inputs, _ in case.batches:
        x, y = features(case.network, inputs), features(small, inputs)
        terms.append([hsic(x, y), hsic(x, x), hsic(y, y)])
    xy, xx, yy = np.mean(terms, axis=0)
    return 1 - xy / np.sqrt(xx * yy)


def loss(case, removed):
    """Compute the mean of all batches' losses without these layers."""
    small = case.without(removed)
    losses = [F.cross_entropy(run(small, x).flatten(0, -2), t.flatten()).item() for x, t in case.batches]
    return sum(losses) / len(losses)
