"""CKA of the final features, fitted: `cka_output` with batch statistics in all batch norms.

The score is the CKA between the features before the classifier with all layers and without the segment's other layers,
where all batch norms use the statistics of the batch. Without batch norms it equals `cka_output`.

Source: this project, after CKA layer pruning (Pons et al., arXiv 2405.17081); docs/results.md has the evidence.
Cost: forward `(C + 1) * B + 2`, backward `0`. Two of the passes use a single sample.
Use: without labels. When layers are removed, the running statistics no longer fit, which hides what was lost. CKA does
not see the scale of the features either.
"""

from torch import Tensor

from sglp.scoring.criteria.cka_output import CkaOutput
from sglp.surgery.batchnorm import batch_statistics


class FittedCka(CkaOutput):
    """`CkaOutput` with the statistics of the batch in all batch norms."""

    def _grams(self, missing: set[int]) -> list[Tensor]:
        with batch_statistics(self.features.network):
            return super()._grams(missing)


criterion = FittedCka
