"""The report: the outcome in one sentence, the evidence, and how to reproduce it. report.html is a single file."""

import json
import shlex
from dataclasses import asdict
from math import comb
from pathlib import Path

import numpy as np
import pandas as pd

from sglp.choices import runs_sglp
from sglp.figures import draw_reconstruction, draw_similarity
from sglp.files import new_file, new_folder
from sglp.pages import embedded, render
from sglp.scores import LayerScore
from stages.support import figures, stage
from stages.support.card import complete_card
from stages.support.matrices import read_errors, read_similarity
from stages.support.outcome import NETWORKS, benchmark_rows, metric_rows, outcome, ranges, target_met
from stages.support.params import DeclaredParams, flat
from stages.support.reconstruction import read_reconstructed, summary
from stages.support.robustness import corruption_rows, robustness_rows, without_kinds
from stages.support.scores import Scores, read_scores
from stages.support.tables import read_json, write_json


def main(params: DeclaredParams, workload: DeclaredParams) -> None:
    """Read the results of all stages, draw figures, and write the report."""
    segments = read_json("data/segments.json")
    scores = read_scores("data/scores.csv")
    layers = _layers(segments)
    metrics = {name: read_json(f"reports/metrics/{name}.json") for name in NETWORKS}
    benchmark = read_json("reports/benchmark.json")
    losses = pd.read_csv("reports/segmentation.csv")["loss"].tolist()
    reconstructed = read_reconstructed()
    errors = read_errors(len(layers))
    training = pd.read_csv("reports/training.csv")
    scoring = read_json("reports/scoring.json")
    target = {"target": scoring["target"]} if "target" in scoring else {}
    write_json("reports/metrics.json", {name: without_kinds(values) for name, values in metrics.items()} | target)
    with new_folder("reports/plots") as folder:
        figures.draw_architecture(folder / "architecture.png", layers, segments)
        draw_similarity(folder / "similarity.png", read_similarity("data/similarity.csv"), layers, segments)
        figures.draw_segmentation(
            folder / "segmentation.png", losses, len(segments), flat(params)["segment.min_loss_drop"]
        )
        figures.draw_scores(folder / "scores.png", scores, layers)
        if reconstructed:
            draw_reconstruction(folder / "reconstruction.png", reconstructed)
        if errors is not None:
            figures.draw_errors(folder / "errors.png", errors)
        figures.draw_training(folder / "training.png", training)
    content = {
        "outcome": outcome(layers, metrics, benchmark),
        "target": target_met(target["target"], benchmark) if target else "",
        "table": metric_rows(metrics) + robustness_rows(metrics) + benchmark_rows(benchmark),
        "corruptions": corruption_rows(metrics),
        "measured": measured_on(metrics["dense"]),
        "examples": _examples(),
        "benchmark": benchmark,
        "errors": errors is not None,
        "reconstruction": summary(reconstructed),
        "layers": layers,
        "segments": segment_rows(segments, layers, scores),
        "criterion": flat(params)["score.criterion"] if runs_sglp(params.method) else params.method,
        "cost": scoring_cost(scoring),
        "joint": any(row.search == "joint" for row in scores),
        "one_by_one": any(isinstance(row, LayerScore) for row in scores),
        "model": params.model,
        "command": command(params),
        "params": flat(params),
        "workload": flat(workload),
        "versions": [line.split("==") for line in Path("versions.txt").read_text(encoding="utf-8").split()],
    }
    _write("report.md", content | {"picture": lambda name: f"plots/{name}.png"})
    _write("report.html", content | {"picture": _embedded})
    with new_file("reports/model_card.md") as new:
        described = (content[name] for name in ("measured", "command", "reconstruction"))
        text = complete_card(params, workload, metrics, benchmark, *described)
        new.write_text(text, encoding="utf-8")


def segment_rows(segments: list, layers: list[dict], scores: Scores) -> list[dict]:
    """Summarise each segment: what was scored, and which layers are kept."""
    table = pd.DataFrame([asdict(row) for row in scores], columns=["segment", "score", "search"])
    rows = []
    for number, (first, last) in enumerate(segments):
        scored = table[table["segment"] == number]
        values = scored["score"].sort_values(ascending=False)
        inside = pd.DataFrame(layers[first : last + 1])
        kept = inside["status"] != "removed"
        highest = [f"{value:#.4g}" for value in values[:2]]
        rows.append(
            {
                "number": number,
                "layers": f"{first}-{last}",
                "kept": ranges(inside["number"][kept].tolist()),
                "num_removed": int((~kept).sum()),
                "scored": len(scored),
                "possible": comb(int(inside["removable"].sum()), int((inside["status"] == "kept").sum())),
                "search": ", ".join(sorted(scored["search"].unique())),
                "ranks": highest + [""] * (2 - len(highest)),
                "median": f"{values.median():#.4g}" if len(values) else "",
                "lowest": f"{values.iloc[-1]:#.4g}" if len(values) else "",
            }
        )
    return rows


def scoring_cost(scoring: dict) -> str:
    """Describe the time and the passes that scoring took."""
    passes = " and ".join(
        f"{scoring[f'{kind}_passes']:,} {kind} passes" for kind in ("forward", "backward") if scoring[f"{kind}_passes"]
    )
    size = f"{passes} of at most {scoring['samples_a_pass']} samples" if passes else "no pass through the network"
    return f"Scoring took {scoring['seconds']:.1f} s: {size}."


def command(params: DeclaredParams) -> str:
    """Return the command that makes this report again: it sets the top-level parameters and the target."""
    values = flat(params)
    settings = [f"{key}={json.dumps(value).strip(chr(34))}" for key, value in values.items() if "." not in key]
    # DVC replaces null by a mapping, but merges a mapping into another one.
    targets = [f"{key.partition('.')[2]}: {value}" for key, value in values.items() if key.startswith("target.")]
    settings += [setting for text in targets for setting in ("target=null", f"target={{{text}}}")]
    return f"dvc exp run {' '.join(f'-S {shlex.quote(setting)}' for setting in settings)}"


def measured_on(metrics: dict) -> str:
    """Describe the test data that quality was measured on."""
    parts = [f"{metrics[key]:,} test {key}" for key in ("samples", "tokens") if key in metrics]
    questions = [f"{count} {key.replace('_', ' ')}" for key, count in metrics.items() if key.endswith("_questions")]
    return ", ".join(parts + questions)


def _examples() -> list[dict]:
    """Collect the continuations of each prompt by all networks, for tasks that have prompts."""
    examples = {name: read_json(f"reports/examples/{name}.json") for name in NETWORKS}
    return [
        {"prompt": rows[0]["prompt"]} | {name: row["continuation"] for name, row in zip(NETWORKS, rows, strict=True)}
        for rows in zip(*examples.values(), strict=True)
    ]


def _layers(segments: list) -> list[dict]:
    """Read the layers, with the index, segment and status ("kept", "removed", "can't be removed") of each."""
    layers = pd.read_csv("data/layers.csv", keep_default_na=False)
    removed = layers["name"].isin(read_json("data/plan.json")["removed"])
    layers["number"] = range(len(layers))
    layers["segment"] = np.repeat(range(len(segments)), [last - first + 1 for first, last in segments])
    layers["status"] = np.select([removed, layers["removable"]], ["removed", "kept"], "can't be removed")
    return [{str(key): value for key, value in row.items()} for row in layers.to_dict("records")]


def _embedded(name: str) -> str:
    return embedded(Path(f"reports/plots/{name}.png").read_bytes())


def _write(name: str, content: dict) -> None:
    text = render(Path(__file__).parent / f"support/{name}.jinja", content)
    with new_file(f"reports/{name}") as new:
        new.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    stage.run(main, "report")
