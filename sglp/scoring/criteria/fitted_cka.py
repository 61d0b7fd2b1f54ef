"""CKA of the final features, fitted: as `cka_output`, where batch norms take the statistics of the batch.

The score is the CKA of the features before the classifier, without the segment's other layers and with all of them,
both with the statistics of the batch in all batch norms. Without batch norms it is that of `cka_output`.

Source: of this project, after CKA layer pruning (Pons et al., arXiv 2405.17081); docs/results.md has the evidence.
Cost: forward `(C + 1) * B + 2`, backward `0`. The two are of one sample.
Use: where there are no labels. Without layers, the running statistics no longer fit, which hides what was lost. CKA
does not see the scale of the features either.
"""

from torch import Tensor

from sglp.scoring.criteria.cka_output import CkaOutput
from sglp.surgery.batchnorm import batch_statistics


class FittedCka(CkaOutput):
    """Scores sets of layers as `CkaOutput` does, with the statistics of the batch in all batch norms."""

    def _grams(self, out: set[int]) -> list[Tensor]:
        with batch_statistics(self.features.network):
            return super()._grams(out)


criterion = FittedCka
