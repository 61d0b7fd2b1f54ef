"""SynFlow: keep the layers through whose weights the most signal flows, without any data.

All weights are replaced by their absolute values, batch norms by identities, and the input by ones. With R the sum of
the outputs, the score is the sum over all weights (not vectors, such as biases) of w dR/dw, in double precision,
without the segment's other layers.

Source: Tanaka et al. 2020 (arXiv 2006.05467), as in Zero-Cost Proxies for Lightweight NAS (arXiv 2101.08134), section
3.1.
Cost: forward `C + 1`, backward `C`. All passes use a single sample and a copy of the network in double precision.
Use: with CNNs, where there are no data. It ignores the signs of weights and all batch norms. It needs real-valued
inputs, which language models do not have.
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
from sglp.loss import Loss
from sglp.running import backward, call, device_of, logits_of
from sglp.surgery.bypass import Bypass


class SynFlow:
    """The SynFlow of the trained network without the other layers of a segment.

    Args:
        network: the trained network; it is left unchanged, as a copy of it is used.
        layers: as returned by `find_layers`.
        batches: pairs (inputs, target), of which only the shape of one input is used.
        loss, seed, random_inits: not used.

    Raises:
        ScoringError: `batches` is empty, or the inputs are not real-valued.
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
        inputs = inputs_of(next(at_least_one(batches)))
        if not (isinstance(inputs, Tensor) and inputs.is_floating_point()):
            raise ScoringError("synflow sends ones through the network: it needs real-valued inputs, not token ids")
        self.network = copy.deepcopy(network).double().eval()
        for parameter in self.network.parameters():
            parameter.requires_grad_(True).data.abs_()
        norms: list[nn.Module] = [module for module in self.network.modules() if isinstance(module, _BatchNorm)]
        for norm in norms:
            norm.forward = _identity
        self.ones = torch.ones_like(inputs[:1], dtype=torch.float64, device=device_of(network))
        self.bypass = Bypass(self.network, layers, self.ones)

    def __call__(self, kept: Iterable[int], removed: Iterable[int], already_removed: Iterable[int] = ()) -> float:
        """Return the sum over all weights (not vectors, such as biases) of w dR/dw.

        Raises:
            ScoringError: the sum is not finite, because the network is too deep for double precision.
        """
        missing = {*removed, *already_removed}
        weights = [parameter for parameter in self.network.parameters() if parameter.ndim > 1]
        with torch.enable_grad(), self.bypass.without(missing):
            backward(logits_of(call(self.network, self.ones)).sum())
        score = sum(float((weight.detach() * weight.grad).sum()) for weight in weights if weight.grad is not None)
        self.network.zero_grad()
        if not math.isfinite(score):
            raise ScoringError(f"synflow without layers {sorted(missing)} is {score}: it must be finite")
        return score


def _identity(input: Tensor) -> Tensor:
    return input


criterion = SynFlow
