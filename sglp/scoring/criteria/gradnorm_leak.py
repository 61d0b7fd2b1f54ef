"""GradNorm with the leak: as in the published code, without resetting the network between combinations.

The score is that of `gradnorm`, but the trained layers of one combination remain in the random network in which the
next one is scored: trained weights accumulate, and the scores depend on the order of the combinations.

Source: the code published with SGLP (arXiv 2410.14720).
Cost: forward `C * B * D + D`, backward `C * B * D`. Each random network takes one pass of a single sample, the memory
of a network, and the memory of the graphs of its passes, for every batch.
Use: only for comparison with the published code.
"""

from sglp.distributed import processes
from sglp.errors import ScoringError
from sglp.scoring.criteria.gradnorm import GradNorm


class GradNormLeak(GradNorm):
    """`GradNorm` in a network that keeps the trained layers of all earlier combinations."""

    leaks = True

    def __init__(self, *args, **kwargs):
        if processes.count() > 1:
            raise ScoringError(
                "gradnorm_leak depends on the order of the combinations, which several processes would split: score in "
                "one process"
            )
        super().__init__(*args, **kwargs)


criterion = GradNormLeak
