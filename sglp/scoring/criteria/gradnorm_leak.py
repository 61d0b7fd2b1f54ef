"""GradNorm with the leak: as the published code computes it, the network is not reset between combinations.

The score is that of `gradnorm`, but the trained layers of one combination stay in the random network that the next one
is scored in: weights pile up, and the order of the combinations decides.

Source: the code published with SGLP (arXiv 2410.14720).
Cost: forward `C * B * D + D`, backward `C * B * D`. A random network takes one pass of one sample, the memory of a
network, and that of what its pass keeps for gradients, of every batch.
Use: to be compared with, and for nothing else.
"""

from sglp.distributed import processes
from sglp.errors import ScoringError
from sglp.scoring.criteria.gradnorm import GradNorm


class GradNormLeak(GradNorm):
    """`GradNorm` in a network that keeps the trained layers of all combinations before."""

    leaks = True

    def __init__(self, *args, **kwargs):
        if processes.count() > 1:
            raise ScoringError("gradnorm_leak depends on the order of all combinations: score in one process")
        super().__init__(*args, **kwargs)


criterion = GradNormLeak
