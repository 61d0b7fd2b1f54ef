"""Sum of gradient norms: keep the layers that give a random network's weights the largest sum of gradient norms.

The network is that of `gradnorm`. The score is the sum over matrices and convolutions of ||dL/dW||: norms are not
squared, and the gradients of norm layers and biases do not count. Embeddings do not count either, unless they share
their weights with the output.

Source: grad_norm of Zero-Cost Proxies for Lightweight NAS (Abdelfattah et al. 2021, arXiv 2101.08134), section 3.1.
Cost: forward `C * B * D + D`, backward `C * B * D`. Each random network takes one pass of a single sample, the memory
of a network, and the memory of the graphs of its passes, for every batch.
Use: as the form of GradNorm known from architecture search: without squares the largest gradients count less. The
remarks at `gradnorm` apply.
"""

from torch import Tensor, nn

from sglp.scoring.criteria.gradnorm import GradNorm


class GradNormSum(GradNorm):
    """The sum over the weights of convolutions and linear layers of ||dL/dW||.

    The network is that of `GradNorm`: random except for a set of layers.
    """

    def __init__(self, network: nn.Module, *args, **kwargs):
        super().__init__(network, *args, **kwargs)
        # Not chosen by class: transformers has linear layers of its own. An embedding tied to the output counts.
        matrices = {
            parameter
            for module in network.modules()
            if not isinstance(module, nn.Embedding)
            for parameter in module.parameters(recurse=False)
            if parameter.ndim > 1
        }
        self.weights = {name for name, parameter in network.named_parameters() if parameter in matrices}

    def _combine(self, norms: dict[str, Tensor]) -> float:
        return float(sum(norm for name, norm in norms.items() if name in self.weights))


criterion = GradNormSum
