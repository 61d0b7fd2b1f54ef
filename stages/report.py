"""The report: the outcome in one sentence, the evidence for it, and all that made it. report.html stands alone."""

import json
import shlex
import statistics
from math import comb
from pathlib import Path

from sglp.files import new_file, new_folder
from sglp.scores import LayerScore
from stages.support import figures, stage
from stages.support.card import complete_card
from stages.support.outcome import NETWORKS, benchmark_rows, metric_rows, outcome, ranges, target_met
from stages.support.pages import embedded, render
from stages.support.params import DeclaredParams, flat
from stages.support.robustness import corruption_rows, robustness_rows, without_kinds
from stages.support.scores import Scores, read_scores
from stages.support.tables import read_json, read_rows, read_similarity, write_json


def main(params: DeclaredParams, workload: DeclaredParams) -> None:
    """Read what all stages found, draw it, write it down."""
    segments, scores = read_json("data/segments.json"), read_scores("data/scores.csv")
    layers = _layers(segments)
    metrics = {name: read_json(f"reports/metrics/{name}.json") for name in NETWORKS}
    benchmark = read_json("reports/benchmark.json")
    losses = [float(row["loss"]) for row in read_rows("reports/segmentation.csv")]
    training = [
        {name: float(value) if value else None for name, value in row.items()}
        for row in read_rows("reports/training.csv")
    ]
    scoring = read_json("reports/scoring.json")
    asked = {key: scoring[key] for key in ("target",) if key in scoring}
    write_json("reports/metrics.json", {name: without_kinds(found) for name, found in metrics.items()} | asked)
    with new_folder("reports/plots") as folder:
        figures.draw_architecture(folder / "architecture.png", layers, segments)
        figures.draw_similarity(folder / "similarity.png", read_similarity("data/similarity.csv"), layers, segments)
        figures.draw_segmentation(
            folder / "segmentation.png", losses, len(segments), flat(params)["segment.min_loss_drop"]
        )
        figures.draw_scores(folder / "scores.png", scores, layers)
        figures.draw_training(folder / "training.png", training)
    content = {
        "outcome": outcome(layers, metrics, benchmark),
        "target": target_met(asked["target"], benchmark) if asked else "",
        "table": metric_rows(metrics) + robustness_rows(metrics) + benchmark_rows(benchmark),
        "corruptions": corruption_rows(metrics),
        "measured": measured_on(metrics["dense"]),
        "examples": _examples(),
        "benchmark": benchmark,
        "layers": layers,
        "segments": segment_rows(segments, layers, scores),
        "criterion": flat(params)["score.criterion"] if params.method == "sglp" else params.method,
        "cost": cost_of(scoring),
        "joint": any(row.search == "joint" for row in scores),
        "one_by_one": any(isinstance(row, LayerScore) for row in scores),
        "model": params.model,
        "command": command(params),
        "dials": flat(params),
        "workload": flat(workload),
        "versions": [line.split("==") for line in Path("versions.txt").read_text(encoding="utf-8").split()],
    }
    _write("report.md", content | {"picture": lambda name: f"plots/{name}.png"})
    _write("report.html", content | {"picture": _embedded})
    with new_file("reports/model_card.md") as new:
        text = complete_card(params, workload, metrics, benchmark, content["measured"], content["command"])
        new.write_text(text, encoding="utf-8")


def segment_rows(segments: list, layers: list[dict], scores: Scores) -> list[dict]:
    """What was scored in every segment, and what stays of it."""
    rows = []
    for number, (first, last) in enumerate(segments):
        scored = [row for row in scores if row.segment == number]
        inside = layers[first : last + 1]
        kept = [layer["number"] for layer in inside if layer["fate"] != "removed"]
        free = [layer for layer in inside if layer["removable"]]
        values = sorted((row.score for row in scored), reverse=True)
        rows.append(
            {
                "number": number,
                "layers": f"{first}-{last}",
                "kept": ranges(kept),
                "gone": len(inside) - len(kept),
                "scored": len(scored),
                "possible": comb(len(free), sum(layer["fate"] == "kept" for layer in free)),
                "search": ", ".join(sorted({row.search for row in scored})),
                "ranks": [f"{value:#.4g}" for value in values[:2]] + [""] * (2 - len(values[:2])),
                "median": f"{statistics.median(values):#.4g}" if values else "",
                "lowest": f"{values[-1]:#.4g}" if values else "",
            }
        )
    return rows


def cost_of(scoring: dict) -> str:
    """What the way to the plan cost, in words."""
    passes = " and ".join(
        f"{scoring[f'{kind}_passes']:,} {kind} passes" for kind in ("forward", "backward") if scoring[f"{kind}_passes"]
    )
    of_size = f"{passes} of at most {scoring['samples_a_pass']} samples" if passes else "no pass through a network"
    return f"This took {scoring['seconds']:.1f} s: {of_size}."


def command(params: DeclaredParams) -> str:
    """What makes this report again from the same files: the dials on top of params.yaml, which are turned most."""
    found = flat(params)
    dials = [f"{key}={json.dumps(value).strip(chr(34))}" for key, value in found.items() if "." not in key]
    # A mapping takes the place of no other one, only of null.
    of_target = [f"{key.partition('.')[2]}: {value}" for key, value in found.items() if key.startswith("target.")]
    dials += [dial for text in of_target for dial in ("target=null", f"target={{{text}}}")]
    return f"dvc exp run {' '.join(f'-S {shlex.quote(dial)}' for dial in dials)}"


def measured_on(metrics: dict) -> str:
    """What the quality was measured on, in words."""
    parts = [f"{metrics[key]:,} test {key}" for key in ("samples", "tokens") if key in metrics]
    questions = [f"{count} {key.replace('_', ' ')}" for key, count in metrics.items() if key.endswith("_questions")]
    return ", ".join(parts + questions)


def _examples() -> list[dict]:
    """What every network made of the same prompts, where the task has any."""
    of = {name: read_json(f"reports/examples/{name}.json") for name in NETWORKS}
    return [
        {"prompt": rows[0]["prompt"]} | {name: row["continuation"] for name, row in zip(NETWORKS, rows, strict=True)}
        for rows in zip(*of.values(), strict=True)
    ]


def _layers(segments: list) -> list[dict]:
    """The layers with their numbers, their segments and what became of them."""
    segment_of = [number for number, (first, last) in enumerate(segments) for _ in range(first, last + 1)]
    removed = set(read_json("data/plan.json")["removed"])
    layers = []
    for number, row in enumerate(read_rows("data/layers.csv")):
        removable = row["removable"] == "True"
        fate = "removed" if row["name"] in removed else "kept" if removable else "can't be removed"
        numbers = {
            "number": number,
            "segment": segment_of[number],
            "parameters": int(row["parameters"]),
            "macs": int(row["macs"]),
        }
        layers.append(row | numbers | {"removable": removable, "fate": fate})
    return layers


def _embedded(name: str) -> str:
    return embedded(Path(f"reports/plots/{name}.png").read_bytes())


def _write(name: str, content: dict) -> None:
    text = render(Path(__file__).parent / f"support/{name}.jinja", content)
    with new_file(f"reports/{name}") as new:
        new.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    stage.run(main, "report")
