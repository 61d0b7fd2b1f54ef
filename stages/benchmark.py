"""Measure latency, throughput and memory of the dense and the fine-tuned network, alternately in one process."""

import os
import platform
import statistics

import torch

from sglp.cost import peak_memory
from sglp.latency import seconds_in_turn
from sglp.tasks.data import find_data
from sglp.tasks.timing import BenchmarkTask, find_timing
from stages.support import stage
from stages.support.params import DeclaredParams
from stages.support.tables import write_json
from stages.support.workloads import device, load_network, load_split


def main(params: DeclaredParams, workload: DeclaredParams) -> None:
    """Time the networks in turn in each round, so that other load on the machine affects both."""
    task = find_data(workload.task)
    timing = find_timing(workload.task)
    networks = {name: load_network(f"data/{name}", params, workload).eval() for name in ("dense", "finetuned")}
    data = load_split("train", params, workload, task.processor("data/dense", workload.architecture))
    sizes = {}
    for size in workload.benchmark["batch_sizes"]:
        work = {name: timing.work(network, data, workload.benchmark, size) for name, network in networks.items()}
        pairs = zip(work["dense"], work["finetuned"], strict=True)
        sizes[str(size)] = {
            "work": [_compare(*pair, params.benchmark.repeats, size) for pair in pairs],
            "peak_memory_bytes": {name: peak_memory(networks[name], work[name][0].inputs) for name in networks},
        }
    hardware = torch.cuda.get_device_name() if device().type == "cuda" else platform.processor() or platform.machine()
    content = {
        "hardware": hardware,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "repeats": params.benchmark.repeats,
        "batch": sizes,
    }
    write_json("reports/benchmark.json", content)


def _compare(dense: BenchmarkTask, tuned: BenchmarkTask, rounds: int, size: int) -> dict:
    """Return median latencies, and the median and quartiles of the ratio dense / fine-tuned over the rounds."""
    with torch.inference_mode():
        times = seconds_in_turn(dense.run, tuned.run, rounds, f"{dense.name}, batch {size}")
    low, middle, high = statistics.quantiles([before / after for before, after in times], n=4)
    medians = dict(zip(("dense", "finetuned"), map(statistics.median, zip(*times, strict=True)), strict=True))
    return {
        "name": dense.name,
        "latency_seconds": medians,
        f"{dense.unit}_per_second": {name: dense.units / value for name, value in medians.items()},
        "speedup": {"median": middle, "quartile_1": low, "quartile_3": high},
    }


if __name__ == "__main__":
    stage.run(main, "benchmark")
