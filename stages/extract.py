"""Find the layers and compute Gram matrices of their activations on training samples, one shard per batch."""

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
    """Find the layers and stream batches through the network."""
    task = find_data(workload.task)
    calibration = Calibration.model_validate(workload.calibration)
    loading = spread("data/dense")
    if loading and processes.count() > 1:
        raise ProcessError("data/dense is larger than a GPU, so one process needs all GPUs: unset SGLP_LAUNCH")
    network = load_network("data/dense", params, workload, **loading)
    data = load_split("train", params, workload, task.processor("data/dense", workload.architecture))
    example = to_device(task.example(data), device_of(network))
    layers = sglp.find_layers(network, example, paths=workload.layers)
    check_removable(layers)
    indices = range(math.ceil(calibration.samples / calibration.batch_size))
    part = processes.part(len(indices))
    batches = task.calibration_batches(data, calibration.samples, calibration.batch_size, params.seed, part)
    with processes.entered_by_rank_zero(new_folder("data/grams")) as folder:
        grams = sglp.gram_matrices(network, layers, batches, calibration.pooling)
        for index, shard in zip(indices[part], grams, strict=True):
            save_file({"grams": shard}, folder / f"{index:04d}.safetensors")
    if processes.rank() == 0:
        write_layers("data/layers.csv", layers)


if __name__ == "__main__":
    launch.run(main, "extract")
