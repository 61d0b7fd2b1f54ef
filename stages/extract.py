"""Layers, and the Gram matrices of their activations on samples of the training split, a shard a batch."""

from safetensors.torch import save_file

import sglp
from sglp.batches import device_of, to_device
from sglp.errors import LayerError
from sglp.files import new_folder
from sglp.tasks.task import find_task
from sglp.tasks.workload import Calibration
from stages.support import stage
from stages.support.layers import write_layers
from stages.support.params import View
from stages.support.workloads import load_network, load_split, spread


def main(params: View, workload: View) -> None:
    """Find the layers, stream the batches through."""
    task, dials = find_task(workload.task), Calibration.model_validate(workload.calibration)
    network = load_network("data/dense", params, workload, **spread("data/dense"))
    data = load_split("train", params, workload, task.processor("data/dense", workload.architecture))
    example = to_device(task.example(data), device_of(network))
    layers = sglp.find_layers(network, example, paths=workload.layers)
    if not any(layer.removable for layer in layers):
        reasons = "; ".join(f"{layer.name}: {layer.reason}" for layer in layers[:3])
        raise LayerError(f"no layer of {type(network).__name__} can be removed ({reasons}, ...)")
    batches = task.calibration_batches(data, dials.samples, dials.batch_size, params.seed)
    with new_folder("data/grams") as folder:
        for number, grams in enumerate(sglp.gram_matrices(network, layers, batches, dials.pooling)):
            save_file({"grams": grams}, folder / f"{number:04d}.safetensors")
    write_layers("data/layers.csv", layers)


if __name__ == "__main__":
    stage.run(main, "extract")
