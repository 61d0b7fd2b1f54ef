"""Prune the folder of a Hugging Face model that need not fit into memory: tensors are copied one by one."""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from torch import nn

from sglp.architecture import architecture_of
from sglp.checkpoints.model_card import CARD, model_card
from sglp.checkpoints.open_folder import open_folder
from sglp.checkpoints.tensor_files import INDEX, SHARD, StoredTensor, write_tensors
from sglp.cost import count_parameters
from sglp.errors import CheckpointError
from sglp.files import new_folder
from sglp.hugging_face.equality import difference_of_skeletons
from sglp.hugging_face.networks import module_list, stack_of
from sglp.hugging_face.pretrained import CONFIG, only_errors
from sglp.hugging_face.skeleton import by_file_name, save_config, saved_state, skeleton
from sglp.plan import Plan
from sglp.record import ARCHITECTURE, Architecture, to_json
from sglp.surgery.prune import prune

if TYPE_CHECKING:
    from sglp.hugging_face.networks import PreTrainedModel

_INSTEAD = "use sglp.load, sglp.prune and sglp.save"


def prune_folder(folder: str | Path, plan: Plan, target: str | Path, trust: bool = False, shard: int = SHARD) -> None:
    """Prune a Hugging Face model from folder to folder, without loading it.

    The result is the folder that `load`, `prune` and `save` would write. The model is built from its config, without
    memory for weights, to find out which tensors are kept and under which names. These are copied one at a time, so
    that the largest tensor must fit into memory, not the model. All other files of the folder are copied too.

    Args:
        folder: a folder written by `save` or `save_pretrained`, in safetensors.
        plan: the kept and removed layers, by the names from `find_layers`.
        target: the folder to write; an existing one is replaced. It appears complete or not at all.
        trust: whether code from the folder may run, as for `load`.
        shard: the largest number of bytes of tensors per file; larger models get several files with an index.

    Raises:
        CheckpointError: the folder is broken, is not a folder for `from_pretrained`, contains code that is not trusted,
            or its files do not hold the tensors that `save` would write.
        PlanError: the model has no such layer, or it can't be removed.
    """
    folder = Path(folder)
    with open_folder(folder, trust, _INSTEAD) as (_, dense, stored, _):
        pruned = cast("PreTrainedModel", prune(dense, plan))
        kept = _kept(dense, pruned, plan, stored, folder)
        pruned_architecture = architecture_of(pruned)
        assert pruned_architecture is not None, "architecture_of knows every Hugging Face model"
        with new_folder(target) as new:
            save_config(pruned, new)
            copy_other_files(folder, new, CONFIG, ARCHITECTURE, CARD)
            _check(pruned, pruned_architecture, new, trust, kept)
            write_tensors(new, kept, shard)
            (new / ARCHITECTURE).write_text(to_json(pruned_architecture, {}, {}), encoding="utf-8")
            (new / CARD).write_text(model_card(pruned_architecture, count_parameters(pruned)), encoding="utf-8")


def _kept(
    dense: "PreTrainedModel", pruned: "PreTrainedModel", plan: Plan, stored: dict[str, StoredTensor], folder: Path
) -> dict[str, StoredTensor]:
    """Return the stored tensors of the pruned model, by their names in its files."""
    name = type(dense).__name__
    removed = plan.removed_modules
    stack = stack_of(dense, removed) if removed else []
    if stack is None:
        raise CheckpointError(f"no config of {name} can describe it without {removed[0]}: {_INSTEAD}")
    all_layers = [f"{path}.{i}" for path in stack for i in range(len(module_list(dense, path)))]
    before = [layer for layer in all_layers if layer not in removed]
    after = [f"{path}.{i}" for path in stack for i in range(len(module_list(pruned, path)))]
    origins: dict[str, str] = {}
    for new_names, old_names in zip(_by_layer(pruned, stack, after), _by_layer(dense, stack, before), strict=True):
        origins |= zip(new_names, old_names, strict=True)
    expected = by_file_name(pruned, saved_state(pruned))
    for new, tensor in expected.items():
        source = stored.get(origins.get(new, ""))
        if source is None or (source.meta.shape, source.meta.dtype) != (tensor.shape, tensor.dtype):
            fault = "is missing" if source is None else f"is {source.kind} {list(source.meta.shape)}"
            raise CheckpointError(
                f"{folder} does not hold the tensors that sglp.save writes for a {name} "
                f"({origins.get(new, new)} {fault}): {_INSTEAD}"
            )
    return {new: stored[origins[new]] for new in expected}


def _by_layer(network: "PreTrainedModel", stack: Sequence[str], layers: Sequence[str]) -> Iterator[list[str]]:
    """Yield names in files: those of the tensors of each layer, and last those of all tensors outside the stack."""
    state = saved_state(network)
    for layer in layers:
        yield list(by_file_name(network, {name: state[name] for name in state if name.startswith(f"{layer}.")}))
    inside = tuple(f"{path}." for path in stack)
    yield list(by_file_name(network, {name: state[name] for name in state if not name.startswith(inside)}))


def copy_other_files(folder: Path, new: Path, *written_anew: str) -> None:
    """Copy all files except weights and files that are written anew: the tokenizer, the generation config, code."""
    left_out = shutil.ignore_patterns("*.safetensors", INDEX, *written_anew, new.name)
    # Without the file modes: files in a cache are read-only.
    shutil.copytree(folder, new, ignore=left_out, copy_function=shutil.copyfile, dirs_exist_ok=True)


def _check(
    pruned: nn.Module, architecture: Architecture, new: Path, trust: bool, kept: dict[str, StoredTensor]
) -> None:
    """Check that the written config builds the pruned model."""
    tensors = {name: tensor.meta for name, tensor in kept.items()}
    try:
        with only_errors():
            difference = difference_of_skeletons(pruned, skeleton(new, architecture, trust, tensors))
    except CheckpointError as error:
        difference = str(error).replace(str(new), "the folder")
    if difference:
        raise CheckpointError(f"{type(pruned).__name__} would not be the same after from_pretrained: {difference}")
