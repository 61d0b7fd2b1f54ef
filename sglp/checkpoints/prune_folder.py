"""Prunes the folder of a network of transformers that need not fit into memory: tensors are copied one by one."""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import nn

from sglp.architecture import architecture_of, remember
from sglp.checkpoints.model_card import CARD, model_card
from sglp.checkpoints.tensor_files import INDEX, SHARD, StoredTensor, stored_tensors, write_tensors
from sglp.cost import count_parameters
from sglp.errors import CheckpointError
from sglp.files import new_folder
from sglp.hugging_face.equality import difference_of_skeletons
from sglp.hugging_face.networks import stack_of
from sglp.hugging_face.pretrained import CONFIG, architecture_in, only_errors
from sglp.hugging_face.skeleton import in_files, save_config, saved_state, skeleton
from sglp.plan import Plan
from sglp.record import ARCHITECTURE, to_json
from sglp.surgery.prune import prune

INSTEAD = "use sglp.load, sglp.prune and sglp.save"


def prune_folder(folder, plan: Plan, target, trust: bool = False, shard: int = SHARD) -> None:
    """Prune a network of transformers, from folder to folder, without loading it.

    The result is the folder that `load`, `prune` and `save` would write. The network is built without memory, from its
    config, and tells which tensors stay and under which names. They are copied one at a time: memory is needed for
    the largest one, not for the network. All other files of the folder are taken along.

    Args:
        folder: what `save` or `save_pretrained` wrote, in safetensors.
        plan: names as `find_layers` gave them for the network.
        target: where to; an existing folder is replaced. It appears whole or not at all.
        trust: whether code that the folder brings may run, as for `load`.
        shard: the most bytes of tensors in a file; where there are more, they are in several files with an index.

    Raises:
        CheckpointError: the folder is broken, is no folder for `from_pretrained`, brings code that is not trusted, or
            its files do not hold what `save` would write.
        PlanError: the network has no such layer, or can't do without it.
    """
    folder = Path(folder)
    architecture, ours = architecture_in(folder)
    if not (folder / CONFIG).is_file():
        raise CheckpointError(f"{folder} is no folder for from_pretrained (it has no {CONFIG}): {INSTEAD}")
    with stored_tensors(folder) as stored:
        dense = skeleton(folder, architecture, trust, {name: tensor.meta for name, tensor in stored.items()})
        if ours:
            remember(dense, architecture)
        pruned = prune(dense, plan)
        kept = _kept(dense, pruned, plan, stored, folder)
        known = architecture_of(pruned)
        with new_folder(target) as new:
            save_config(pruned, new)
            _take_along(folder, new)
            _check(pruned, new, trust, kept)
            write_tensors(new, kept, shard)
            (new / ARCHITECTURE).write_text(to_json(known, {}, {}), encoding="utf-8")
            (new / CARD).write_text(model_card(known, count_parameters(pruned)), encoding="utf-8")


def _kept(
    dense: nn.Module, pruned: nn.Module, plan: Plan, stored: dict[str, StoredTensor], folder: Path
) -> dict[str, StoredTensor]:
    """The stored tensors that stay, by their names in the files of the pruned network."""
    name = type(dense).__name__
    removed = plan.removed_modules
    stack = stack_of(dense, removed) if removed else []
    if stack is None:
        raise CheckpointError(f"no config of {name} says what is left without {removed[0]}: {INSTEAD}")
    old = {path: [f"{path}.{i}" for i in range(len(dense.get_submodule(path)))] for path in stack}
    before = [layer for layers in old.values() for layer in layers if layer not in removed]
    after = [f"{path}.{i}" for path in stack for i in range(len(pruned.get_submodule(path)))]
    origins: dict[str, str] = {}
    for new_names, old_names in zip(_by_layer(pruned, stack, after), _by_layer(dense, stack, before), strict=True):
        origins |= zip(new_names, old_names, strict=True)
    wanted = in_files(pruned, saved_state(pruned))
    for new, tensor in wanted.items():
        there = stored.get(origins.get(new, ""))
        if there is None or (there.meta.shape, there.meta.dtype) != (tensor.shape, tensor.dtype):
            what = "is not there" if there is None else f"is {there.kind} {list(there.meta.shape)}"
            raise CheckpointError(
                f"{folder} does not hold what sglp.save writes of a {name} ({origins.get(new, new)} {what}): {INSTEAD}"
            )
    return {new: stored[origins[new]] for new in wanted}


def _by_layer(network: nn.Module, stack: Sequence[str], layers: Sequence[str]) -> Iterator[list[str]]:
    """Names in files: of each of these layers' tensors, and of all tensors outside of the stack."""
    state = saved_state(network)
    for layer in layers:
        yield list(in_files(network, {name: state[name] for name in state if name.startswith(f"{layer}.")}))
    inside = tuple(f"{path}." for path in stack)
    yield list(in_files(network, {name: state[name] for name in state if not name.startswith(inside)}))


def _take_along(folder: Path, new: Path) -> None:
    """Copy what is neither weights nor written anew: the tokenizer, how to generate, code."""
    others = shutil.ignore_patterns("*.safetensors", INDEX, CONFIG, ARCHITECTURE, CARD, new.name)
    # Without the modes: of files in a cache, which can't be written.
    shutil.copytree(folder, new, ignore=others, copy_function=shutil.copyfile, dirs_exist_ok=True)


def _check(pruned: nn.Module, new: Path, trust: bool, kept: dict[str, StoredTensor]) -> None:
    """Check that the config which was written makes the pruned network."""
    tensors = {name: tensor.meta for name, tensor in kept.items()}
    try:
        with only_errors():
            difference = difference_of_skeletons(pruned, skeleton(new, architecture_of(pruned), trust, tensors))
    except CheckpointError as error:
        difference = str(error).replace(str(new), "the folder")
    if difference:
        raise CheckpointError(f"{type(pruned).__name__} would not be the same after from_pretrained: {difference}")
