"""Starts a network from a saved one of the same factory, pruned or not: for another round, or for other data."""

from pathlib import Path

from torch import nn

from sglp.architecture import architecture_of
from sglp.checkpoints.checkpoint import load
from sglp.errors import CheckpointError
from sglp.layer import module_paths
from sglp.plan import Plan
from sglp.record import saved_architecture
from sglp.surgery.prune import prune


def warm_start(network: nn.Module, folder) -> tuple[nn.Module, list[str]]:
    """A network without the layers that a saved one lacks, and with its weights where they have the same shape.

    The arguments of the factory may differ in what changes shapes alone, as the number of classes.

    Args:
        network: dense, as `sglp.build` made it; left as it is.
        folder: what `save` wrote.

    Returns:
        The new network, and the names of what has another shape in the folder and is as in `network`.

    Raises:
        CheckpointError: the folder holds no saved network, or one of another factory, of other modules, or with half
            of its parameters or more in other shapes.
    """
    folder, own, other = Path(folder), architecture_of(network), saved_architecture(folder)
    if other.factory != own.factory:
        raise CheckpointError(f"{folder} is a network of {other.factory}, from which none of {own.factory} can start")
    saved = load(folder, trust=[own.factory])
    differ = f"{folder} can't be started from: {own.factory} made it from {other.kwargs}, and from {own.kwargs}"
    known = dict(network.named_modules())
    lacking = [path for name in (*other.kept, *other.removed) for path in module_paths(name) if path not in known]
    if lacking:
        raise CheckpointError(f"{differ} it makes no {lacking[0]}")
    started = prune(network, Plan.from_architecture(other))
    state = saved.state_dict()
    precisions = {name: tensor.dtype for name, tensor in (*saved.named_parameters(), *saved.named_buffers())}
    strange = sorted(set(state) ^ set(started.state_dict()))
    if strange:
        raise CheckpointError(f"{differ} it makes other modules, as {strange[0]} shows")
    for name, tensor in (*started.named_parameters(), *started.named_buffers()):
        if name in precisions:  # in the precision that it was saved in
            tensor.data = tensor.data.to(precisions[name])
    fresh = {name: tensor for name, tensor in started.state_dict().items() if tensor.shape != state[name].shape}
    parameters = [name for name, _ in started.named_parameters()]
    count = sum(name in fresh for name in parameters)
    if 2 * count >= len(parameters):
        raise CheckpointError(f"{differ} it gives {count} of {len(parameters)} parameters another shape")
    state.update(fresh)
    started.load_state_dict(state)
    return started, list(fresh)
