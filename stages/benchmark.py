"""Latency, throughput and memory of the dense and the fine-tuned network, in turn in one process."""

import os
import platform
import statistics
import time

import torch
from tqdm import tqdm

from sglp.cost import peak_memory
from sglp.tasks.image_classification import example
from stages.support import stage
from stages.support.params import View
from stages.support.tables import write_json
from stages.support.workloads import device, load_images, load_network

SHORTEST = 0.05  # seconds; faster passes are repeated until a round takes so long


def main(params: View, workload: View) -> None:
    """A round times both networks one after the other, so that whatever else the machine does hits both."""
    networks = {name: load_network(f"data/{name}", params, workload).eval() for name in ("dense", "finetuned")}
    sample = example(load_images("train", params, workload)).to(device())
    sizes = {}
    for size in params.benchmark.batch_sizes:
        inputs = sample.expand(size, *sample.shape[1:]).contiguous()
        repeats = {name: _repeats(network, inputs) for name, network in networks.items()}
        times: dict[str, list[float]] = {name: [] for name in networks}
        for _ in tqdm(range(params.benchmark.rounds), desc=f"batch {size}", unit="round", disable=None):
            for name, network in networks.items():
                times[name].append(_seconds(network, inputs, repeats[name]))
        sizes[str(size)] = _summary(times, size) | {
            "peak_memory_bytes": {name: peak_memory(network, inputs) for name, network in networks.items()}
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


@torch.inference_mode()
def _seconds(network: torch.nn.Module, inputs: torch.Tensor, repeats: int) -> float:
    """Seconds of one forward pass, the mean over repeats."""
    start = time.perf_counter()
    for _ in range(repeats):
        network(inputs)
    if inputs.is_cuda:
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / repeats


def _repeats(network: torch.nn.Module, inputs: torch.Tensor) -> int:
    _seconds(network, inputs, 2)  # warm-up
    return max(1, round(SHORTEST / _seconds(network, inputs, 2)))


def _summary(times: dict[str, list[float]], size: int) -> dict:
    """Medians, and the ratio dense / fine-tuned round by round with its quartiles."""
    ratios = [dense / tuned for dense, tuned in zip(times["dense"], times["finetuned"], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {
        "latency_seconds": medians,
        "samples_per_second": {name: size / value for name, value in medians.items()},
        "speedup": {"median": middle, "quartile_1": low, "quartile_3": high},
    }


if __name__ == "__main__":
    stage.run(main, "benchmark")
