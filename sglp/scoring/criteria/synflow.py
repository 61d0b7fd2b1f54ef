"""SynFlow: the layers stay through whose weights most flows, without any data.

All weights take their absolute values, batch norms do nothing, and the input is ones. R is the sum of the outputs, the
score the sum over all weights (vectors, as biases, left out) of w dR/dw, in double precision, without the segment's
other layers.

Source: Tanaka et al. 2020 (arXiv 2006.05467), as in Zero-Cost Proxies for Lightweight NAS (arXiv 2101.08134), section
3.1.
Cost: forward `C + 1`, backward `C`. All are of one sample, of a copy of the network in double precision.
Use: with CNNs where there are no data. It looks at weights without their signs and without their norms. It needs inputs
of real numbers, which language models do not have.
"""

import copy
import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sglp.batches import at_least_one, inputs_of
from sglp.errors import ScoringError
from sglp.layer import Layer
from sglp.running import backward, call, device_of, logits_of
from sglp.surgery.bypass import Bypass


class SynFlow:
    """Scores sets of layers by the SynFlow of the trained network without the others of their segment.

    Args:
        network: the trained network; left as it was, a copy of it is made.
        layers: what `find_layers` found.
        batches: pairs (inputs, target), of which only the shape of an input is used.
        loss, seed, random_inits: not used.

    Raises:
        ScoringError: there is no batch, or inputs are no real numbers.
    """

    def __init__(
        self, network: nn.Module, layers: Sequence[Layer], batches: Iterable, loss=None, seed=0, random_inits=1
    ):
        inputs = inputs_of(next(at_least_one(batches)))
        if not (isinstance(inputs, Tensor) and inputs.is_floating_point()):
            raise ScoringError("synflow sends ones through the network, which needs inputs of real numbers, not of ids")
        self.network = copy.deepcopy(network).double().eval()
        for parameter in self.network.parameters():
            parameter.requires_grad_(True).data.abs_()
        for module in self.network.modules():
            if isinstance(module, _BatchNorm):
                module.forward = lambda given: given
        self.ones = torch.ones_like(inputs[:1], dtype=torch.float64, device=device_of(network))
        self.bypass = Bypass(self.network, layers, self.ones)

    def __call__(self, kept: Iterable[int], gone: Iterable[int], before: Iterable[int] = ()) -> float:
        """The sum over all weights (vectors, as biases, left out) of w dR/dw.

        Raises:
            ScoringError: it is not finite: the network is too deep for double precision.
        """
        weights = [parameter for parameter in self.network.parameters() if parameter.ndim > 1]
        with torch.enable_grad(), self.bypass.without({*gone, *before}):
            backward(logits_of(call(self.network, self.ones)).sum())
        score = sum(float((weight.detach() * weight.grad).sum()) for weight in weights if weight.grad is not None)
        self.network.zero_grad()
        if not math.isfinite(score):
            raise ScoringError(f"synflow without layers {sorted({*gone, *before})} is {score}: it must be finite")
        return score


criterion = SynFlow
