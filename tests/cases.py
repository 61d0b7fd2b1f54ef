"""What methods are tried on: a small CNN and a tiny language model, with batches of unequal size."""

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
    """All that a method is given, but for `keep` and the seed."""

    network: nn.Module
    layers: list
    segments: list
    similarity: np.ndarray
    batches: list

    @property
    def free(self) -> list[int]:
        """The numbers of the layers that can go."""
        return [i for i, layer in enumerate(self.layers) if layer.removable]

    def run(self, name, keep, seed=0, batches=None):
        batches = self.batches if batches is None else batches
        return find_method(name)(self.network, self.layers, self.segments, self.similarity, batches, keep, seed)

    def without(self, gone):
        """What surgery leaves without the layers of these numbers."""
        names = [layer.name for layer in self.layers]
        plan = sglp.Plan([n for i, n in enumerate(names) if i not in gone], [names[i] for i in gone])
        return sglp.prune(self.network, plan).eval()

    def gone(self, plan) -> set[int]:
        return {i for i, layer in enumerate(self.layers) if layer.name in plan.removed}


def cnn(network, digits, dtype=torch.float64) -> Case:
    """Ten layers, three of which (0, 4 and 7) can't go."""
    network = copy.deepcopy(network).to(dtype)
    images, targets = digits[0].to(dtype), digits[1]
    batches = [(images[:10], targets[:10]), (images[10:16], targets[10:16])]
    layers = sglp.find_layers(network, images[:2])
    return Case(network, layers, [(0, 3), (4, 6), (7, 9)], similarity(10), batches)


def llama(layers=5) -> Case:
    """Layers that can all go; a residual stream that every one of them turns."""
    network = cast(tiny_llama(layers), torch.float64)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(5 if parameter.ndim > 1 else 1)
    batches = []
    for samples, seed in ((3, 0), (2, 1)):
        ids = torch.randint(259, (samples, 9), generator=torch.Generator().manual_seed(seed))
        target = torch.cat([ids[:, 1:], torch.full((samples, 1), IGNORED)], dim=1)
        batches.append(({"input_ids": ids, "use_cache": False}, target))
    found = sglp.find_layers(network, batches[0][0])
    return Case(network, found, [(0, 1), (2, layers - 1)], similarity(layers), batches)


def similarity(size) -> np.ndarray:
    """A symmetric matrix with ones on its diagonal."""
    values = np.random.default_rng(5).random((size, size))
    values = (values + values.T) / 2
    np.fill_diagonal(values, 1)
    return values


def run(network, inputs):
    """A network's logits, without gradients."""
    with torch.no_grad():
        return logits_of(network(**inputs) if isinstance(inputs, dict) else network(inputs))


def features(network, inputs):
    """What the classifier is given, row by row."""
    with torch.no_grad():
        if isinstance(inputs, dict):
            return network.model(**inputs).last_hidden_state.flatten(0, 1).numpy()
        x = F.relu(network.bn1(network.conv1(inputs)))
        return network.layer3(network.layer2(network.layer1(x))).mean(dim=(2, 3)).numpy()


def hsic(x, y):
    """Unbiased HSIC as Song et al. 2012 write it, with all matrices at hand."""
    n = len(x)
    K, L, one = x @ x.T, y @ y.T, np.ones(n)
    np.fill_diagonal(K, 0)
    np.fill_diagonal(L, 0)
    parts = np.trace(K @ L), one @ K @ one * (one @ L @ one) / ((n - 1) * (n - 2)), one @ K @ L @ one * 2 / (n - 2)
    return (parts[0] + parts[1] - parts[2]) / (n * (n - 3))


def change(case, gone):
    """1 - CKA of the features without these layers and with them; every HSIC is a mean over batches."""
    small, terms = case.without(gone), []
    for inputs, _ in case.batches:
        x, y = features(case.network, inputs), features(small, inputs)
        terms.append([hsic(x, y), hsic(x, x), hsic(y, y)])
    xy, xx, yy = np.mean(terms, axis=0)
    return 1 - xy / np.sqrt(xx * yy)


def loss(case, gone):
    """The mean of all batches' losses without these layers."""
    small = case.without(gone)
    losses = [F.cross_entropy(run(small, x).flatten(0, -2), t.flatten()).item() for x, t in case.batches]
    return sum(losses) / len(losses)
