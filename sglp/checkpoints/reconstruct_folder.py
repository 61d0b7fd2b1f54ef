"""Reconstruct a pruned Hugging Face model from folder to folder, with one layer of each network in memory at a time."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from sglp.architecture import architecture_of
from sglp.checkpoints.changed_weights import ChangedWeights
from sglp.checkpoints.lazy_weights import LazyWeights
from sglp.checkpoints.open_folder import OpenFolder, open_folder
from sglp.checkpoints.prune_folder import copy_other_files
from sglp.checkpoints.tensor_files import SHARD, write_tensors
from sglp.choices import Reconstruction, Scope
from sglp.distributed import processes
from sglp.errors import CheckpointError, PlanError, ScoringError
from sglp.files import new_folder
from sglp.hugging_face.networks import module_list, stack_of
from sglp.layer import module_paths
from sglp.plan import Plan
from sglp.reconstruction.goals import counterparts_of, goals_of, shapes_of
from sglp.reconstruction.reconstruct import IMPLIED, Reconstructed, calibration, refit_all
from sglp.reconstruction.steps import Pair
from sglp.surgery.prune import prune

_INSTEAD = "use sglp.load, sglp.reconstruct and sglp.save"


def reconstruct_folder(
    dense_folder: str | Path,
    pruned_folder: str | Path,
    plan: Plan,
    target_folder: str | Path,
    batches: Iterable,
    *,
    dtype: Any = None,
    trust: bool = False,
    shard: int = SHARD,
    method: Reconstruction = "auto",
    scope: Scope = "all",
    ridge: float = 0.1,
    steps: int = 60,
    folder: Path | None = None,
) -> list[Reconstructed]:
    """Refit the kept layers of a pruned Hugging Face model, without loading the dense or the pruned model as a whole.

    The result is the pruned folder with the tensors that `reconstruct` would change. Both models are built from their
    configs, without memory for weights. The batches advance through them together, on the CPU; the weights of a layer
    are read when the first batch reaches it, and dropped when the last one leaves it. Memory holds one layer of each
    model, the activations of all batches at one depth, and the sums of one least-squares problem. New weights wait in
    files beside the target. Several processes share the samples of every batch, and the first one writes.

    Args:
        dense_folder, pruned_folder: folders written by `save` or `save_pretrained`, in safetensors.
        plan: the plan between them.
        target_folder: the folder to write; an existing one is replaced. It appears complete or not at all.
        batches: see `reconstruct`; inputs are on the CPU.
        dtype: the data type to compute in, or None for that of the files. The files keep theirs.
        trust: whether code from the folders may run, as for `load`.
        shard: the largest number of bytes of tensors per file; larger models get several files with an index.
        method, scope, ridge, steps, folder: see `reconstruct`; Prune&Comp needs the whole network in memory.

    Returns:
        See `reconstruct`.

    Raises:
        CheckpointError: a folder is broken, is not a folder for `from_pretrained`, contains code that is not trusted,
            or its files do not hold the tensors that `save` would write.
        PlanError: the pruned folder is not what the plan makes of the dense one.
        ScoringError: there is no batch, or the method is "prune_comp".
    """
    if method == "prune_comp":
        raise ScoringError(f"method=prune_comp needs the whole network in memory: {_INSTEAD}")
    inputs = calibration(batches)
    dense_folder, pruned_folder, target = Path(dense_folder), Path(pruned_folder), Path(target_folder)
    with ExitStack() as stack:
        before = stack.enter_context(open_folder(dense_folder, trust, _INSTEAD, dtype))
        after = stack.enter_context(open_folder(pruned_folder, trust, _INSTEAD, dtype))
        _check_plan(before, after, plan)
        counterparts = counterparts_of(before.network, after.network, plan)
        originals = LazyWeights(before)
        new = stack.enter_context(processes.entered_by_rank_zero(new_folder(target)))
        directory = stack.enter_context(processes.entered_by_rank_zero(_folder_beside(target)))
        copies = ChangedWeights(after, directory, stack)
        layers = [path for name in (*plan.kept, *plan.removed) for path in module_paths(name)]
        with (
            _no_missing_weights(before),
            originals.attached([before.network.get_submodule(path) for path in layers]),
            copies.attached([counterparts[path] for path in layers if path in counterparts]),
        ):
            shapes = _shapes(before.network, plan, inputs[0])
            pair = Pair(before.network, after.network, list(shapes), counterparts)
            goals = goals_of(shapes, counterparts, plan, IMPLIED.get(method, scope))
            results = refit_all(pair, goals, inputs, copies, folder, method=method, ridge=ridge, steps=steps)
        if processes.rank() == 0:
            copy_other_files(pruned_folder, new)
            write_tensors(new, {name: copies.stored[name] for name in copies.files}, shard)
    return results


def _check_plan(before: OpenFolder, after: OpenFolder, plan: Plan) -> None:
    """Compare the removed layers that architecture.json names with those of the plan."""
    expected = architecture_of(prune(before.network, plan))
    assert expected is not None, "architecture_of knows every Hugging Face model"
    if after.recorded is not None and set(after.recorded.removed) != set(expected.removed):
        raise PlanError(
            f"{after.folder} is not what the plan makes of {before.folder}: it lacks "
            f"{', '.join(sorted(after.recorded.removed)) or 'no layers'}, not {', '.join(sorted(expected.removed))}"
        )


def _shapes(dense: nn.Module, plan: Plan, inputs: Any) -> dict[str, torch.Size]:
    """Return a plan's layers in the order in which they run, with shapes that tell which outputs differ in shape.

    Layers of a stack run in its order and have the same shape, so that the network need not run to find out.
    """
    names = {*plan.kept, *plan.removed}
    stack = stack_of(dense, plan.removed_modules) if plan.removed else None
    stacked = [f"{path}.{i}" for path in stack or () for i in range(len(module_list(dense, path)))]
    if not names <= {*stacked}:
        return shapes_of(dense, plan, inputs)
    return {name: torch.Size() for name in stacked if name in names}


@contextmanager
def _no_missing_weights(opened: OpenFolder) -> Iterator[None]:
    """Report in one sentence that a model uses weights that are not loaded."""
    try:
        yield
    except RuntimeError as error:
        if "meta" not in str(error):
            raise
        raise CheckpointError(
            f"the {type(opened.network).__name__} in {opened.folder} uses the weights of a module that it does not "
            f"call, so that they can't be loaded one after another: {_INSTEAD}"
        ) from error


@contextmanager
def _folder_beside(target: Path) -> Iterator[Path]:
    """Make a temporary folder beside another one."""
    with TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as folder:
        yield Path(folder)
