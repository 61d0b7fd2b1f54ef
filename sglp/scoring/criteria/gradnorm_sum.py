"""Sum of gradient norms: the layers stay that make the gradients of a random network's weights largest, added up.

The network is that of `gradnorm`. The score is the sum over matrices and convolutions of ||dL/dW||: neither squares nor
norms' and biases' gradients are added. Embeddings do not count, unless they are the output's weights too.

Source: grad_norm of Zero-Cost Proxies for Lightweight NAS (Abdelfattah et al. 2021, arXiv 2101.08134), section 3.1.
Cost: forward `C * B * D + D`, backward `C * B * D`. A random network takes one pass of one sample, the memory of a
network, and that of what its pass keeps for gradients, of every batch.
Use: as the form of GradNorm known from architecture search: without squares the largest gradients count less. What is
said at `gradnorm` holds.
"""

from torch import Tensor, nn

from sglp.scoring.criteria.gradnorm import GradNorm


class GradNormSum(GradNorm):
    """Scores sets of layers: sum over the weights of convolutions and linear layers of ||dL/dW||.

    The network is that of `GradNorm`: random but for the set's layers.
    """

    def __init__(self, network: nn.Module, *args, **kwargs):
        super().__init__(network, *args, **kwargs)
        # Not by their classes: transformers has linear layers of its own. Tied to the output, an embedding counts.
        matrices = {
            parameter
            for module in network.modules()
            if not isinstance(module, nn.Embedding)
            for parameter in module.parameters(recurse=False)
            if parameter.ndim > 1
        }
        self.weights = {name for name, parameter in network.named_parameters() if parameter in matrices}

    def _of(self, norms: dict[str, Tensor]) -> float:
        return float(sum(norm for name, norm in norms.items() if name in self.weights))


criterion = GradNormSum
