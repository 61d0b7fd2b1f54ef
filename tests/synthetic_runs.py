"""Synthetic records, for tests of the comparison."""

from itertools import combinations

import numpy as np

from experiments.records import Record
from sglp.scores import LayerScore, SetScore

WORKLOAD = {
    "workload.task": "image_classification",
    "workload.architecture.kwargs.depth": 56,
    "workload.calibration.samples": 512,
    "workload.scoring.max_combinations": 1000,
    "workload.finetune.epochs": 15,
    "workload.evaluation.batch_size": 256,
}
PARAMS = {
    "model": "net",
    "k": 3,
    "prune_ratio": 0.5,
    "method": "sglp",
    "seed": 0,
    "cka.estimator": "unbiased",
    "segment.by": "fisher",
    "score.criterion": "gradnorm",
    "score.batches": 1,
    "score.search": "independent",
    "prune.weights": "trained",
    "benchmark.repeats": 15,
}


def record(name="run", size=10, removed=None, quality=0.9, dense=0.95, pruned=0.5, timed=True, scores=None, **params):
    """Make a run of a network with `size` layers, all but the first removable; "__" in a parameter is a dot."""
    params = {key.replace("__", "."): value for key, value in params.items()}
    params = PARAMS | WORKLOAD | params
    draw = np.random.default_rng([params["seed"], len(name), size])
    if removed is None:
        removed = tuple(sorted(draw.choice(np.arange(1, size), size // 2, replace=False).tolist()))
    k = {"auto": 3}.get(params["k"], params["k"]) if params["method"] == "sglp" else 1
    segments = [(int(part[0]), int(part[-1])) for part in np.array_split(np.arange(size), k)]
    if scores is None and params["method"] == "sglp":
        kept = [[i for i in range(a, b + 1) if i not in removed] for a, b in segments]
        scores = [
            SetScore(number, chosen, float(draw.random()), "made", False)
            for number, (a, b) in enumerate(segments)
            for chosen in combinations(range(a, b + 1), len(kept[number]))
        ]
    elif scores is None:
        scores = [LayerScore(0, i, float(draw.random()), "made", True) for i in range(size)]
    macs = 1000 * size
    metrics = {
        network: {"accuracy": value, "loss": 2 - value, "samples": 400, "macs": cost, "params": cost // 10}
        for network, value, cost in (
            ("dense", dense, macs),
            ("pruned", pruned, macs - 1000 * len(removed)),
            ("reconstructed", (pruned + quality) / 2, macs - 1000 * len(removed)),
            ("finetuned", quality, macs - 1000 * len(removed)),
        )
    }
    speedup = size / (size - len(removed))
    work = {
        "name": "forward",
        "latency_seconds": {"dense": 0.002, "finetuned": 0.002 / speedup},
        "speedup": {"median": speedup, "quartile_1": speedup, "quartile_3": speedup},
    }
    return Record(
        name=name,
        params=params,
        layers=[{"name": f"layer{i}", "removable": i > 0, "parameters": 100, "macs": 1000} for i in range(size)],
        segments=segments,
        scores=scores,
        removed=removed,
        metrics=metrics,
        benchmark={"hardware": "x86", "batch": {"64": {"work": [work]}, "1": {"work": [work]}}} if timed else None,
        cost={"seconds": 1.5, "forward_passes": 10, "backward_passes": 5, "samples_a_pass": 64},
    )


def language(name="run", quality=20.0, **params):
    """Make a run of a language model: perplexity, MACs per token, two kinds of work."""
    made = record(name, quality=0.5, workload__task="causal_lm", **params)
    metrics = {
        network: {
            "perplexity": value,
            "loss": float(np.log(value)),
            "tokens": 20000,
            "macs_per_token": found["macs"],
            "params": found["params"],
            "piqa_acc": 0.6,
            "piqa_questions": 300,
        }
        for (network, found), value in zip(made.metrics.items(), (15.0, 400.0, 30.0, quality), strict=True)
    }
    benchmark = made.benchmark
    if benchmark:
        (forward,) = benchmark["batch"]["1"]["work"]
        benchmark = {"batch": {"1": {"work": [forward | {"name": name} for name in ("prefill", "decode")]}}}
    return made._replace(metrics=metrics, benchmark=benchmark)
