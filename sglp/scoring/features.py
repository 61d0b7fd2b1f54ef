"""The features just before the classifier: what a network's last module with weights is given."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext

from torch import Tensor, nn

from sglp.batches import inputs_of, to_device
from sglp.layer import Layer
from sglp.running import call, device_of, first_tensor, run_watched, watched


class Features:
    """Gives the features that a network's classifier is given.

    The classifier is the last module to run that has weights and no modules inside: a linear layer, a convolution, the
    output embedding of a language model. A network whose last weights are those of a layer that can go has none (an
    encoder without a head); the features are then its output.

    Args:
        network: the network.
        layers: what `find_layers` found.
        inputs: those of a batch; one sample of them is run to find the classifier.
    """

    def __init__(self, network: nn.Module, layers: Sequence[Layer], inputs):
        self.network, self.given = network, None
        ran: list[nn.Module] = []
        leaves = [module for module in network.modules() if _is_weighted_leaf(module)]
        handles = [module.register_forward_pre_hook(lambda module, args: ran.append(module)) for module in leaves]
        run_watched(network, inputs, handles)
        can_go = {
            inner
            for layer in layers
            if layer.removable
            for path in layer.modules
            for inner in network.get_submodule(path).modules()
        }
        self.classifier = ran[-1] if ran and ran[-1] not in can_go else None

    def __call__(self, batches: Iterable, around: Callable = lambda number: nullcontext()) -> list[Tensor]:
        """For every batch the features [rows, values] in float64: a row a sample, or a token where there are tokens.

        Args:
            batches: tensors, dicts of keyword arguments, or pairs of one of them and a target.
            around: of a batch's number the context that its pass runs in.
        """
        ends = [] if self.classifier is None else [self.classifier]
        handles = [module.register_forward_pre_hook(self._keep, with_kwargs=True) for module in ends]
        found, device = [], device_of(self.network)
        with watched(self.network, handles):
            for number, batch in enumerate(batches):
                with around(number):
                    output = call(self.network, to_device(inputs_of(batch), device))
                found.append(self._rows(self.given if ends else first_tensor(output)))
        self.given = None
        return found

    def _keep(self, module: nn.Module, args, kwargs) -> None:
        self.given = first_tensor(args or kwargs)

    @staticmethod
    def _rows(features: Tensor) -> Tensor:
        rows = features.flatten(0, 1) if features.ndim == 3 else features.flatten(1)
        return rows.cpu().double()


def gram(rows: Tensor) -> Tensor:
    """[rows, rows] inner products of the centred features."""
    centred = rows - rows.mean(dim=0)
    return centred @ centred.T


def _is_weighted_leaf(module: nn.Module) -> bool:
    return not any(module.children()) and any(p.ndim >= 2 for p in module.parameters(recurse=False))
