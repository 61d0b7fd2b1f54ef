"""CKA of the final features: the layers stay with which the features before the classifier change least.

The score is the CKA of the features before the classifier, without the segment's other layers and with all of them: 1
for no change. CKA is linear and unbiased; its HSIC terms are averaged over the batches. A row of features is a sample,
or a token.

Source: the rule of CKA layer pruning (Pons et al., arXiv 2405.17081), asked inside a segment.
Cost: forward `(C + 1) * B + 2`, backward `0`. The two are of one sample.
Use: where there are no labels. CKA does not see a change of scale, or a rotation of the features, but the classifier
does before it is tuned.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from sglp.batches import at_least_one, inputs_of
from sglp.cka import cka_matrix
from sglp.layer import Layer
from sglp.scoring.features import Features, gram
from sglp.scoring.prefix_cache import PrefixCache
from sglp.surgery.bypass import Bypass


class CkaOutput:
    """Scores sets of layers by the CKA of the dense features and those with the others of their segment gone.

    Args:
        network: the trained network; left as it was.
        layers: what `find_layers` found.
        batches: pairs (inputs, target), whose targets are not used; HSIC is averaged over them (minibatch CKA).
        loss, seed, random_inits: not used.

    Raises:
        ScoringError: there is no batch.
    """

    def __init__(
        self, network: nn.Module, layers: Sequence[Layer], batches: Iterable, loss=None, seed=0, random_inits=1
    ):
        self.batches = list(at_least_one(batches))
        first = inputs_of(self.batches[0])
        self.bypass, self.features = Bypass(network, layers, first), Features(network, layers, first)
        self.prefix, self.numbers = PrefixCache(network, layers), range(len(layers))
        self.dense = self._grams(set())

    def __call__(self, kept: Iterable[int], gone: Iterable[int], before: Iterable[int] = ()) -> float:
        """Unbiased linear CKA without the layers `gone`, and `before`, which are out already; 1 for no change."""
        out = {*gone, *before}
        with self.bypass.without(out):
            pruned = self._grams(out)
        pairs = (torch.stack(pair) for pair in zip(self.dense, pruned, strict=True))
        names = ("the network", f"the network without layers {sorted(out)}")
        return float(cka_matrix(pairs, names=names)[0, 1])

    def _grams(self, out: set[int]) -> list[Tensor]:
        states = [i in out for i in self.numbers]
        features = self.features(self.batches, lambda number: self.prefix.reuse(number, states))
        return [gram(rows) for rows in features]


criterion = CkaOutput
