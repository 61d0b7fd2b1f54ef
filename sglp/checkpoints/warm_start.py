"""Start a network from a saved one of the same factory, pruned or not: for another round, or for other data."""

from pathlib import Path

from torch import nn

from sglp.architecture import architecture_of
from sglp.checkpoints.checkpoint import load
from sglp.errors import CheckpointError
from sglp.layer import module_paths
from sglp.plan import Plan
from sglp.record import saved_architecture
from sglp.surgery.prune import prune


def warm_start(network: nn.Module, folder: str | Path) -> tuple[nn.Module, list[str]]:
    """Copy a network, remove the layers that were removed from a saved one, and load all weights of the same shape.

    The arguments of the factory may differ only in ways that change shapes, such as the number of classes.

    Args:
        network: a dense network that `sglp.build` made; it is left unchanged.
        folder: a folder that `save` wrote.

    Returns:
        The new network, and the names of the tensors that have another shape in the folder and were kept from
        `network`.

    Raises:
        CheckpointError: the folder does not contain a saved network, or one with another factory, with other modules,
            or with at least half of its parameters in other shapes.
    """
    folder = Path(folder)
    own = architecture_of(network)
    other = saved_architecture(folder)
    assert own is not None, "sglp.build has made the network"
    if other.factory != own.factory:
        raise CheckpointError(
            f"{folder} holds a network of {other.factory}, so a network of {own.factory} can't start from it"
        )
    saved = load(folder, trust=[own.factory])
    refusal = f"can't start from {folder}, which {own.factory} built from {other.kwargs}: from {own.kwargs} it builds"
    known_paths = dict(network.named_modules())
    missing = [path for name in (*other.kept, *other.removed) for path in module_paths(name) if path not in known_paths]
    if missing:
        raise CheckpointError(f"{refusal} no module {missing[0]}")
    started = prune(network, Plan.from_architecture(other))
    state = saved.state_dict()
    precisions = {name: tensor.dtype for name, tensor in (*saved.named_parameters(), *saved.named_buffers())}
    unmatched = sorted(set(state) ^ set(started.state_dict()))
    if unmatched:
        raise CheckpointError(f"{refusal} other modules (only one of the two networks has {unmatched[0]})")
    for name, tensor in (*started.named_parameters(), *started.named_buffers()):
        if name in precisions:  # the saved precision, such as bfloat16
            tensor.data = tensor.data.to(precisions[name])
    fresh = {name: tensor for name, tensor in started.state_dict().items() if tensor.shape != state[name].shape}
    parameters = [name for name, _ in started.named_parameters()]
    num_fresh = sum(name in fresh for name in parameters)
    if 2 * num_fresh >= len(parameters):
        raise CheckpointError(f"{refusal} {num_fresh} of {len(parameters)} parameters with another shape")
    state.update(fresh)
    started.load_state_dict(state)
    return started, list(fresh)
