"""Refit the layers that are kept to the dense network's activations."""

import shutil
from pathlib import Path

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
    # With random weights the network is a control that is trained from scratch, and must not learn from the dense one.
    if options["method"] == "none" or params.prune.weights == "random":
        if processes.rank() == 0:
            with new_folder("data/reconstructed") as new:
                shutil.copytree("data/pruned", new, copy_function=shutil.copyfile, dirs_exist_ok=True)
            write_reconstructed([])
        return
    task = find_data(workload.task)
    size = ReconstructionSamples.model_validate(workload.reconstruction)
    processor = task.processor("data/pruned", workload.architecture)
    data = load_split("train", params, workload, processor)
    batches = task.calibration_batches(data, size.samples, size.batch_size, params.seed)
    plan = sglp.Plan.load("data/plan.json")
    with processes.entered_by_rank_zero(resumable("reconstruct", params, workload)) as folder:
        if workload.task == "causal_lm" and options["method"] != "prune_comp" and _exceeds_gpu():
            trust = workload.architecture["kwargs"].get("trust_remote_code", False)
            rows = sglp.reconstruct_folder(
                "data/dense",
                "data/pruned",
                plan,
                "data/reconstructed",
                batches,
                dtype=torch.float32,
                trust=trust,
                folder=folder,
                **options,
            )
        else:
            stored = load_network("data/pruned", params, workload, stored=True)
            dense, pruned = (_computing(load_network(f"data/{name}", params, workload)) for name in ("dense", "pruned"))
            rows = sglp.reconstruct(dense, pruned, plan, batches, folder=folder, **options)
            if processes.rank() == 0:
                with torch.no_grad():
                    for value, new in zip(stored.state_dict().values(), pruned.state_dict().values(), strict=True):
                        value.copy_(new)
                sglp.save(stored, "data/reconstructed", processor)
        if processes.rank() == 0:
            write_reconstructed(rows)


def _exceeds_gpu() -> bool:
    """Check for a Hugging Face model that does not fit twice, in float32, onto a GPU, or for the lack of a GPU."""
    dense = Path("data/dense")
    if not (dense / "config.json").is_file():
        return False
    size = sum(file.stat().st_size for file in dense.glob("*.safetensors"))
    return not torch.cuda.is_available() or 5 * size > torch.cuda.mem_get_info()[0]


def _computing(network: nn.Module) -> nn.Module:
    """Convert half precision, which is too coarse for the differences that are fitted, to float32."""
    half = any(p.dtype in (torch.float16, torch.bfloat16) for p in network.parameters())
    return (network.float() if half else network).to(device())


if __name__ == "__main__":
    launch.run(main, "reconstruct")
