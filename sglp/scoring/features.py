"""The features before the classifier: the input of a network's last module with weights."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext

from torch import Tensor, nn

from sglp.batches import padding_mask
from sglp.layer import Layer
from sglp.padding import visible_rows
from sglp.running import call, first_tensor, hooked_eval, inputs_for, run_hooked


class Features:
    """Computes the features that enter a network's classifier.

    The classifier is the last module to run that has weights and no child modules: a linear layer, a convolution, the
    output embedding of a language model. If that module is part of a removable layer, the network has no classifier (an
    encoder without a head), and its output is used as features.

    Args:
        network: the network.
        layers: as returned by `find_layers`.
        inputs: inputs of a batch; one sample of them is run to find the classifier.

    Attributes:
        classifier: the classifier, or None.
    """

    def __init__(self, network: nn.Module, layers: Sequence[Layer], inputs):
        self.network = network
        self._captured: Tensor | None = None
        ran: list[nn.Module] = []
        leaves = [module for module in network.modules() if _is_weighted_leaf(module)]
        handles = [module.register_forward_pre_hook(lambda module, args: ran.append(module)) for module in leaves]
        run_hooked(network, inputs, handles)
        removable = {
            inner
            for layer in layers
            if layer.removable
            for path in layer.modules
            for inner in network.get_submodule(path).modules()
        }
        self.classifier = ran[-1] if ran and ran[-1] not in removable else None

    def __call__(
        self, batches: Iterable, around: Callable[[int], AbstractContextManager] = lambda index: nullcontext()
    ) -> list[Tensor]:
        """Return the features [rows, values] of each batch in float64: one row per sample, or per token that is not
        padding.

        Args:
            batches: tensors, dicts of keyword arguments, or pairs of either and a target.
            around: function of a batch's index that returns the context in which its pass runs.
        """
        hooked = [] if self.classifier is None else [self.classifier]
        handles = [module.register_forward_pre_hook(self._capture, with_kwargs=True) for module in hooked]
        features = []
        with hooked_eval(self.network, handles):
            for index, batch in enumerate(batches):
                inputs = inputs_for(self.network, batch)
                with around(index):
                    output = call(self.network, inputs)
                features.append(self._rows(output, padding_mask(inputs)))
        self._captured = None
        return features

    def _capture(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        self._captured = first_tensor(args or kwargs)

    def _rows(self, output, mask: Tensor | None) -> Tensor:
        features = first_tensor(output) if self.classifier is None else self._captured
        assert features is not None  # the classifier's hook has stored them
        return visible_rows(features, mask).cpu().double()


def gram(rows: Tensor) -> Tensor:
    """Return the inner products [rows, rows] of the centred features."""
    centred = rows - rows.mean(dim=0)
    return centred @ centred.T


def _is_weighted_leaf(module: nn.Module) -> bool:
    return not any(module.children()) and any(p.ndim >= 2 for p in module.parameters(recurse=False))
