"""One network's metrics on the test split: ``python -m stages.evaluate dense``, pruned or finetuned."""

import sys
from pathlib import Path

from sglp.cost import count_macs, count_parameters
from sglp.errors import SGLPError
from sglp.tasks.image_classification import evaluate, example
from stages.support import stage
from stages.support.params import View
from stages.support.tables import write_json
from stages.support.workloads import load_images, load_network

NETWORKS = ("dense", "pruned", "finetuned")


def main(params: View, workload: View) -> None:
    """Quality and cost; the only stage that reads the test split."""
    if sys.argv[1:] not in ([name] for name in NETWORKS):
        raise SGLPError(f"which network is meant? say one of {', '.join(NETWORKS)}")
    name = sys.argv[1]
    network = load_network(f"data/{name}", params, workload)
    images = load_images("test", params, workload)
    macs = count_macs(network, example(images).to(next(network.parameters()).device))
    metrics = evaluate(network, images, params.evaluate.batch_size)
    metrics |= {
        "params": count_parameters(network),
        "macs": macs,
        "flops": 2 * macs,
        "bytes": Path(f"data/{name}/model.safetensors").stat().st_size,
        "samples": len(images),
    }
    write_json(f"reports/metrics/{name}.json", metrics)


if __name__ == "__main__":
    stage.run(main, "evaluate")
