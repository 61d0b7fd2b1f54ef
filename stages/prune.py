"""The pruned network: the plan's layers taken out, batch norm's statistics taken anew."""

import sglp
from sglp.tasks.image_classification import calibration_batches
from stages.support import stage
from stages.support.params import View
from stages.support.workloads import load_images, load_network

BATCH = 128


def main(params: View, workload: View) -> None:
    """Take out, recalibrate, save."""
    network = load_network("data/dense", params, workload)
    pruned = sglp.prune(network, sglp.Plan.load("data/plan.json"))
    samples = params.prune.recalibration
    if samples:
        images = load_images("train", params, workload)
        sglp.recalibrate(pruned, calibration_batches(images, samples, BATCH, params.seed))
    sglp.save(pruned, "data/pruned")


if __name__ == "__main__":
    stage.run(main, "prune")
