"""Refit the layers that are kept to the dense network's activations."""

import shutil

import torch
from torch import nn

import sglp
from sglp.distributed import processes
from sglp.files import new_folder
from sglp.tasks.data import find_data
from sglp.tasks.schemas.workload import ReconstructionSamples
from stages.support import launch
from stages.support.params import DeclaredParams
from stages.support.reconstruction import write_reconstructed
from stages.support.resume import resumable
from stages.support.workloads import device, load_network, load_split


def main(params: DeclaredParams, workload: DeclaredParams) -> None:
    """Reconstruct, or resume a killed run; copy the pruned network if there is nothing to reconstruct."""
    options = params.reconstruct
    if (
        options["method"] == "none" or params.prune.weights == "random"
    ):  # a control that is trained from scratch stays one
        if processes.rank() == 0:
            with new_folder("data/reconstructed") as new:
                shutil.copytree("data/pruned", new, copy_function=shutil.copyfile, dirs_exist_ok=True)
            write_reconstructed([])
        return
    task = find_data(workload.task)
    size = ReconstructionSamples.model_validate(workload.reconstruction)
    stored = load_network("data/pruned", params, workload, stored=True)
    processor = task.processor("data/pruned", workload.architecture)
    data = load_split("train", params, workload, processor)
    dense, pruned = (_computing(load_network(f"data/{name}", params, workload)) for name in ("dense", "pruned"))
    batches = task.calibration_batches(data, size.samples, size.batch_size, params.seed)
    plan = sglp.Plan.load("data/plan.json")
    with processes.entered_by_rank_zero(resumable("reconstruct", params, workload)) as folder:
        rows = sglp.reconstruct(dense, pruned, plan, batches, folder=folder, **options)
        if processes.rank() == 0:
            with torch.no_grad():
                for value, new_value in zip(stored.state_dict().values(), pruned.state_dict().values(), strict=True):
                    value.copy_(new_value)
            sglp.save(stored, "data/reconstructed", processor)
            write_reconstructed(rows)


def _computing(network: nn.Module) -> nn.Module:
    """Convert half precision, which is too coarse for the differences that are fitted, to float32."""
    half = any(p.dtype in (torch.float16, torch.bfloat16) for p in network.parameters())
    return (network.float() if half else network).to(device())


if __name__ == "__main__":
    launch.run(main, "reconstruct")
