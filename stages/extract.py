"""Layers, and the Gram matrices of their activations on samples of the training split, a shard a batch."""

import math

from safetensors.torch import save_file

import sglp
from sglp.batches import to_device
from sglp.budget import check_removable
from sglp.distributed import processes
from sglp.distributed.processes import ProcessError
from sglp.files import new_folder
from sglp.running import device_of
from sglp.tasks.data import find_data
from sglp.tasks.schemas.workload import Calibration
from stages.support import launch
from stages.support.layers import write_layers
from stages.support.params import DeclaredParams
from stages.support.workloads import load_network, load_split, spread


def main(params: DeclaredParams, workload: DeclaredParams) -> None:
    """Find the layers, stream the batches through."""
    task, dials = find_data(workload.task), Calibration.model_validate(workload.calibration)
    placed = spread("data/dense")
    if placed and processes.count() > 1:
        raise ProcessError("data/dense is larger than a GPU, and one process takes all of them: unset SGLP_LAUNCH")
    network = load_network("data/dense", params, workload, **placed)
    data = load_split("train", params, workload, task.processor("data/dense", workload.architecture))
    example = to_device(task.example(data), device_of(network))
    layers = sglp.find_layers(network, example, paths=workload.layers)
    check_removable(layers)
    numbers = range(math.ceil(dials.samples / dials.batch_size))
    part = processes.part(len(numbers))
    batches = task.calibration_batches(data, dials.samples, dials.batch_size, params.seed, part)
    with processes.entered_by_rank_zero(new_folder("data/grams")) as folder:
        grams = sglp.gram_matrices(network, layers, batches, dials.pooling)
        for number, shard in zip(numbers[part], grams, strict=True):
            save_file({"grams": shard}, folder / f"{number:04d}.safetensors")
    if processes.rank() == 0:
        write_layers("data/layers.csv", layers)


if __name__ == "__main__":
    launch.run(main, "extract")
