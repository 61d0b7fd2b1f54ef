"""Remove the plan's layers and recalibrate batch-norm statistics."""

from pathlib import Path

import sglp
from sglp.checkpoints.prune_folder import prune_folder
from sglp.surgery.batchnorm import has_statistics
from sglp.surgery.equivalence import check_pruned
from sglp.surgery.random_weights import reinitialized
from sglp.tasks.data import find_data
from stages.support import stage
from stages.support.params import DeclaredParams
from stages.support.workloads import device, load_network, load_split

BATCH_SIZE = 128


def main(params: DeclaredParams, workload: DeclaredParams) -> None:
    """Prune, recalibrate and save the network."""
    task = find_data(workload.task)
    plan = sglp.Plan.load("data/plan.json")
    is_hugging_face = Path("data/dense/config.json").is_file()
    if workload.task == "causal_lm" and is_hugging_face and params.prune.weights == "trained":
        # Language models have no batch norm, so the network, which may be larger than memory, need not be loaded.
        trust = workload.architecture["kwargs"].get("trust_remote_code", False)
        prune_folder("data/dense", plan, "data/pruned", trust)
        return
    network = load_network("data/dense", params, workload, stored=True)
    if params.prune.weights == "random":
        network = reinitialized(network, params.seed)
    processor = task.processor("data/dense", workload.architecture)
    pruned = sglp.prune(network, plan)
    data = load_split("train", params, workload, processor)
    check_pruned(network, plan, pruned, task.example(data))
    samples = params.prune.recalibration_samples
    if samples and has_statistics(pruned):
        sglp.recalibrate(pruned.to(device()), task.calibration_batches(data, samples, BATCH_SIZE, params.seed))
    sglp.save(pruned, "data/pruned", processor)


if __name__ == "__main__":
    stage.run(main, "prune")
