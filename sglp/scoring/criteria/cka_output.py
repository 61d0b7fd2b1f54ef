"""CKA of the final features: keep the layers that preserve the features before the classifier best.

The score is the CKA between the features before the classifier with all layers and without the segment's other layers:
1 for no change. CKA is linear and unbiased; its HSIC terms are averaged over the batches. A row of features is a
sample, or a token.

Source: the rule of CKA layer pruning (Pons et al., arXiv 2405.17081), applied within a segment.
Cost: forward `(C + 1) * B + 2`, backward `0`. Two of the passes use a single sample.
Use: without labels. CKA does not see a change of scale or a rotation of the features, but the classifier does until it
is fine-tuned.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from sglp.batches import at_least_one, inputs_of
from sglp.cka import cka_matrix
from sglp.layer import Layer
from sglp.loss import Loss
from sglp.scoring.features import Features, gram
from sglp.scoring.prefix_cache import PrefixCache
from sglp.surgery.bypass import Bypass


class CkaOutput:
    """The CKA between the features of the whole network and those without the other layers of a segment.

    Args:
        network: the trained network; it is left unchanged.
        layers: as returned by `find_layers`.
        batches: pairs (inputs, target), whose targets are not used; HSIC is averaged over them (minibatch CKA).
        loss, seed, random_inits: not used.

    Raises:
        ScoringError: `batches` is empty.
    """

    def __init__(
        self,
        network: nn.Module,
        layers: Sequence[Layer],
        batches: Iterable,
        loss: Loss | None = None,
        seed: int = 0,
        random_inits: int = 1,
    ):
        self.batches = list(at_least_one(batches))
        inputs = inputs_of(self.batches[0])
        self.bypass = Bypass(network, layers, inputs)
        self.features = Features(network, layers, inputs)
        self.prefix = PrefixCache(network, layers)
        self.num_layers = len(layers)
        self.dense = self._grams(set())

    def __call__(self, kept: Iterable[int], removed: Iterable[int], already_removed: Iterable[int] = ()) -> float:
        """Return the unbiased linear CKA without the layers `removed` and `already_removed`; 1 for no change."""
        missing = {*removed, *already_removed}
        with self.bypass.without(missing):
            pruned = self._grams(missing)
        pairs = (torch.stack(pair) for pair in zip(self.dense, pruned, strict=True))
        names = ("the network", f"the network without layers {sorted(missing)}")
        return float(cka_matrix(pairs, names=names)[0, 1])

    def _grams(self, missing: set[int]) -> list[Tensor]:
        states = [i in missing for i in range(self.num_layers)]
        features = self.features(self.batches, lambda batch: self.prefix.reuse(batch, states))
        return [gram(rows) for rows in features]


criterion = CkaOutput
