"""Latency, throughput and memory of the dense and the fine-tuned network, in turn in one process."""

import os
import platform
import statistics
import time

import torch
from tqdm import tqdm

from sglp.cost import peak_memory
from sglp.tasks.task import find_task
from sglp.tasks.work import Work
from stages.support import stage
from stages.support.params import View
from stages.support.tables import write_json
from stages.support.workloads import device, load_network, load_split

SHORTEST = 0.05  # seconds; faster passes are repeated until a round takes so long


def main(params: View, workload: View) -> None:
    """A round times both networks one after the other, so that whatever else the machine does hits both."""
    task = find_task(workload.task)
    networks = {name: load_network(f"data/{name}", params, workload).eval() for name in ("dense", "finetuned")}
    data = load_split("train", params, workload, task.processor("data/dense", workload.architecture))
    sizes = {}
    for size in workload.benchmark["batch_sizes"]:
        work = {name: task.work(network, data, workload.benchmark, size) for name, network in networks.items()}
        pairs = zip(work["dense"], work["finetuned"], strict=True)
        sizes[str(size)] = {
            "work": [_compared(*pair, params.benchmark.rounds, size) for pair in pairs],
            "peak_memory_bytes": {name: peak_memory(networks[name], work[name][0].inputs) for name in networks},
        }
    hardware = torch.cuda.get_device_name() if device().type == "cuda" else platform.processor() or platform.machine()
    content = {
        "hardware": hardware,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "rounds": params.benchmark.rounds,
        "batch": sizes,
    }
    write_json("reports/benchmark.json", content)


def _compared(dense: Work, tuned: Work, rounds: int, size: int) -> dict:
    """Medians, and the ratio dense / fine-tuned round by round with its quartiles."""
    repeats = [_repeats(work) for work in (dense, tuned)]
    times: list[tuple[float, float]] = []
    for _ in tqdm(range(rounds), desc=f"{dense.name}, batch {size}", unit="round", disable=None):
        times.append((_seconds(dense, repeats[0]), _seconds(tuned, repeats[1])))
    low, middle, high = statistics.quantiles([before / after for before, after in times], n=4)
    medians = dict(zip(("dense", "finetuned"), map(statistics.median, zip(*times, strict=True)), strict=True))
    return {
        "name": dense.name,
        "latency_seconds": medians,
        f"{dense.unit}_per_second": {name: dense.units / value for name, value in medians.items()},
        "speedup": {"median": middle, "quartile_1": low, "quartile_3": high},
    }


@torch.inference_mode()
def _seconds(work: Work, repeats: int) -> float:
    """Seconds of one run, the mean over repeats."""
    start = time.perf_counter()
    for _ in range(repeats):
        work.run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / repeats


def _repeats(work: Work) -> int:
    _seconds(work, 2)  # warm-up
    return max(1, round(SHORTEST / _seconds(work, 2)))


if __name__ == "__main__":
    stage.run(main, "benchmark")
