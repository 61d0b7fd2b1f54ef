"""Measure how well each layer, refitted, produces the activations after later layers, if the plan is based on it."""

import sglp
from sglp.choices import runs_sglp
from sglp.distributed import processes
from sglp.tasks.schemas.workload import ReconstructionSamples
from stages.support import launch
from stages.support.layers import read_layers
from stages.support.matrices import write_errors
from stages.support.params import DeclaredParams

METHODS = ("reconstruction_error", "tournament")
CRITERIA = ("reconstruction_error",)  # of the methods that run "sglp"


def main(params: DeclaredParams, workload: DeclaredParams) -> None:
    """Measure, or write an empty table: the errors depend on neither k nor prune_ratio, but take time."""
    criterion = params.score.criterion if runs_sglp(params.method) else ""
    if params.method not in METHODS and criterion not in CRITERIA:
        if processes.rank() == 0:
            write_errors(())
        return
    # These import torch, which other methods need not wait for.
    from sglp.tasks.data import find_data
    from stages.support.workloads import load_network, load_split

    task = find_data(workload.task)
    size = ReconstructionSamples.model_validate(workload.reconstruction)
    network = load_network("data/dense", params, workload)
    data = load_split("train", params, workload, task.processor("data/dense", workload.architecture))
    batches = task.calibration_batches(data, size.samples, size.batch_size, params.seed)
    layers = read_layers("data/layers.csv")
    errors = sglp.reconstruction_errors(network, layers, batches, ridge=params.reconstruct.ridge)
    if processes.rank() == 0:
        write_errors(errors)


if __name__ == "__main__":
    launch.run(main, "errors")
