"""Evaluate a network on the test split: ``python -m stages.evaluate NETWORK``, with a name from `NETWORKS`."""

import sys
from pathlib import Path

from sglp.cost import count_parameters
from sglp.distributed import processes
from sglp.errors import SGLPError
from sglp.tasks.data import find_data
from sglp.tasks.evaluation import find_evaluation
from stages.support import launch
from stages.support.params import DeclaredParams
from stages.support.tables import write_json
from stages.support.userfiles import verified_path
from stages.support.workloads import load_network, load_split

NETWORKS = ("dense", "pruned", "reconstructed", "finetuned")


def main(params: DeclaredParams, workload: DeclaredParams) -> None:
    """Measure quality and cost; no other stage reads the test split."""
    if sys.argv[1:] not in ([name] for name in NETWORKS):
        arguments = " ".join(sys.argv[1:]) or "no network"
        raise SGLPError(f"{arguments} is not one of {', '.join(NETWORKS)}: run python -m stages.evaluate NETWORK")
    name = sys.argv[1]
    folder = Path(f"data/{name}")
    task = find_data(workload.task)
    network = load_network(str(folder), params, workload)
    processor = task.processor(folder, workload.architecture)
    data = load_split("test", params, workload, processor)
    tasks = verified_path(params.model, "tasks", workload.files.tasks.sha256)
    evaluation = find_evaluation(workload.task)
    metrics, examples = evaluation.evaluate(network, data, workload.evaluation, processor, tasks)
    metrics |= evaluation.macs(network, data) | {
        "params": count_parameters(network),
        "bytes": sum(file.stat().st_size for file in folder.glob("*.safetensors")),
    }
    if processes.rank() == 0:
        write_json(f"reports/metrics/{name}.json", metrics)
        write_json(f"reports/examples/{name}.json", examples)


if __name__ == "__main__":
    launch.run(main, "evaluate")
