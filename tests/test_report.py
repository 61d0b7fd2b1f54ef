"""The report on small made-up inputs, with numbers worked out by hand."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import ModelCard
from pipeline import ROOT, stage_entry

from sglp.tasks.schemas.image_classification import ImageWorkload
from stages import report
from stages.support.outcome import NETWORKS
from stages.support.params import DeclaredParams
from stages.support.schema import Params

DENSE = {"accuracy": 0.9, "loss": 0.5, "params": 4000, "macs": 2_000_000, "samples": 100}
TUNED = {"accuracy": 0.8, "loss": 0.6, "params": 3000, "macs": 1_000_000, "samples": 100}
SEGMENTS = [[0, 3], [4, 6]]
SCORES = [  # of the layers 0 to 6, 0 and 4 can't be removed; 2 and 6 are removed
    (0, "0 1 2", 2.5, "exhaustive", 0),
    (0, "0 1 3", 3.5, "exhaustive", 1),
    (0, "0 2 3", 1.5, "exhaustive", 0),
    (1, "4 5", 8.0, "beam 4", 1),
    (1, "4 6", 7.0, "beam 4", 0),
]
TRAINING = [(10, 1.0, 0.9, 0.1, "", ""), (20, 2.0, 0.5, 0.05, "", "")]
RECONSTRUCTION = [
    ("block.1", "block.2", "gradient", 0.5, 0.2, True),
    ("block.3", "block.3", "closed_form", 0.25, 0.1, True),
    ("block.4", "block.4", "gradient", 0.1, 0.3, False),
]


def views() -> tuple[DeclaredParams, DeclaredParams]:
    params = {"model": "toy", "k": 2, "method": "a b", "segment": {"min_loss_drop": 0.05}, "score": {"budget": None}}
    source = {"loader": "some:Digits", "name": None}
    data = DeclaredParams("report", "data.", {"train": {"split": "some<b>"}, "source": source})
    workload = {"task": "image_classification", "data": data, "finetune": {"epochs": 2}}
    return DeclaredParams("report", "", params), DeclaredParams("report", "", workload)


def write_csv(path: str, columns: str, rows) -> None:
    with Path(path).open("w", newline="") as file:
        csv.writer(file).writerows([columns.split(","), *rows])


def write_inputs(
    count=7,
    fixed=(0, 4),
    removed=(2, 6),
    segments=SEGMENTS,
    scores=SCORES,
    training=TRAINING,
    reconstruction=RECONSTRUCTION,
    errors=(),
    dense=DENSE,
    tuned=TUNED,
    work=("forward",),
    examples=(),
) -> None:
    """All inputs of the report, in the current folder."""
    Path("data/finetuned").mkdir(parents=True, exist_ok=True)
    for name in ("metrics", "examples"):
        Path(f"reports/{name}").mkdir(parents=True, exist_ok=True)
    layers = [(f"block.{i}", i not in fixed, "stem" if i in fixed else "", 500, 200_000) for i in range(count)]
    write_csv("data/layers.csv", "name,removable,reason,parameters,macs", layers)
    position = np.arange(count) / count
    similarity = 1 - (position[:, None] - position) ** 2
    cells = [(i, j, similarity[i, j]) for i in range(count) for j in range(count)]
    write_csv("data/similarity.csv", "row,column,similarity", cells)
    columns = "segment,kept,score,search,best" if isinstance(scores[0][1], str) else "segment,layer,score,search,kept"
    write_csv("data/scores.csv", columns, scores)
    write_csv("reports/segmentation.csv", "k,loss", [(k, 8 * (1 / k - 1 / count)) for k in range(1, count + 1)])
    write_csv("data/reconstruction_errors.csv", "row,column,error", errors)
    write_csv("reports/reconstruction.csv", "layer,target,how,before,after,kept", reconstruction)
    write_csv("reports/training.csv", "step,epoch,loss,learning_rate,heldout_loss,heldout_accuracy", training)
    plan = {
        status: [f"block.{i}" for i in range(count) if (i in removed) == (status == "removed")]
        for status in ("kept", "removed")
    }
    timed = {
        "latency_seconds": {"dense": 0.004, "finetuned": 0.002},
        "samples_per_second": {"dense": 500.0, "finetuned": 1000.0},
        "speedup": {"median": 2.04, "quartile_1": 1.9, "quartile_3": 2.2},
    }
    batch = {"work": [timed | {"name": kind} for kind in work], "peak_memory_bytes": {"dense": 4e6, "finetuned": 3e6}}
    benchmark = {"hardware": "a CPU", "threads": 2, "repeats": 3, "batch": {"16": batch, "2": batch}}
    scoring = {"seconds": 1.25, "forward_passes": 1234, "backward_passes": 7, "samples_a_pass": 64}
    files = {"data/plan": plan, "data/segments": segments, "reports/benchmark": benchmark, "reports/scoring": scoring}
    files["data/finetuned/architecture"] = plan | {"factory": "toys:net", "kwargs": {}, "shared": {}, "versions": {}}
    files |= {f"reports/metrics/{name}": dense if name == "dense" else tuned for name in NETWORKS}
    files |= {
        f"reports/examples/{name}": [row | {"continuation": f"{name} & on"} for row in examples] for name in NETWORKS
    }
    for name, content in files.items():
        Path(f"{name}.json").write_text(json.dumps(content))
    Path("versions.txt").write_text("torch==1.2\n")


def made() -> tuple[str, str]:
    """Run the stage; the report in Markdown and in HTML."""
    report.main(*views())
    return Path("reports/report.md").read_text(), Path("reports/report.html").read_text()


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> tuple[str, str, Path]:
    """What `made` gives for the inputs above, and the folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("toy"))
        write_inputs()
        return *made(), Path.cwd()


def test_every_parameter_is_on_the_page():
    listed = stage_entry(ROOT, "report")["params"]
    own = {key for key in listed if isinstance(key, str)}
    (of_workload,) = (keys for item in listed if isinstance(item, dict) for keys in item.values())
    assert own == set(Params.model_fields)
    assert {key.partition(".")[0] for key in of_workload} == set(ImageWorkload.model_fields)


def row_of(markdown: str, start: str) -> list[str]:
    line = next(line for line in markdown.splitlines() if line.startswith(f"| {start} |"))
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def test_the_outcome_comes_first(toy):
    markdown, html, _ = toy
    # The standard errors are sqrt(0.9 * 0.1 / 100) = 0.03 and sqrt(0.8 * 0.2 / 100) = 0.04.
    said = (
        "2 of 7 layers are removed: 50.0 % fewer MACs, 25.0 % fewer parameters, accuracy 90.0 ± 3.0 % → 80.0 ± 4.0 % "
        "(-10.0 points), 2.0 times as fast at batch 2."
    )
    assert markdown.splitlines()[2] == f"**{said}**"
    assert said in html


def test_the_table_has_units_and_changes(toy):
    markdown, _, _ = toy
    assert row_of(markdown, "accuracy (top-1)")[0] == "90.00 ± 3.00 %"
    assert row_of(markdown, "accuracy (top-1)")[-2:] == ["80.00 ± 4.00 %", "-10.00 points"]
    assert row_of(markdown, "loss") == ["0.5000", *["0.6000", "+20.0 %"] * 3]
    assert row_of(markdown, "parameters")[::5] == ["4.000 k", "3.000 k"]
    assert row_of(markdown, "latency, batch 16") == ["4.000 ms", *[""] * 4, "2.000 ms", "-50.0 %"]
    assert row_of(markdown, "peak memory, batch 2")[-2:] == ["3.000 MB", "-25.0 %"]
    assert row_of(markdown, "speedup, batch 2")[-2] == "2.04 (1.90-2.20)"
    assert markdown.index("latency, batch 2 ") < markdown.index("latency, batch 16 ")


def test_a_task_without_accuracy():
    tuned = {"perplexity": 12.0, "lambada": 0.25, "note": "a|b"}
    write_inputs(dense={"perplexity": 10.0, "lambada": 0.5}, tuned=tuned)
    markdown, _ = made()
    assert "removed: perplexity 10.00 → 12.00 (+20.0 %), 2.0 times" in markdown
    assert row_of(markdown, "lambada") == ["0.5000", *["0.2500", "-50.0 %"] * 3]


def test_segments_and_layers(toy):
    markdown, _, _ = toy
    # Segment 0 keeps two of three removable layers: 3 possible sets; segment 1 keeps one of two.
    ranks = ["3.500", "2.500", "2.500", "1.500"]
    assert row_of(markdown, "0") == ["0-3", "0-1, 3", "1", "3", "3", "exhaustive", *ranks]
    assert row_of(markdown, "1")[:6] == ["4-6", "4-5", "1", "2", "2", "beam 4"]
    assert "| 4 | `block.4` | 1 | 500 | 200,000 | can't be removed: stem |" in markdown
    assert "| 6 | `block.6` | 1 | 500 | 200,000 | removed |" in markdown


def test_the_cost_of_the_scores(toy):
    assert all(
        "Scoring took 1.2 s: 1,234 forward passes and 7 backward passes of at most 64 samples." in page
        for page in toy[:2]
    )
    assert "was scored with a b" in toy[1]
    free = {"seconds": 0.0, "forward_passes": 0, "backward_passes": 0, "samples_a_pass": 64}
    assert report.scoring_cost(free) == "Scoring took 0.0 s: no pass through the network."


def test_every_parameter_and_the_command(toy):
    markdown, html, _ = toy
    for key, value in (("score.budget", "null"), ("segment.min_loss_drop", "0.05"), ("finetune.epochs", "2")):
        assert f"| `{key}` | `{value}` |" in markdown
    assert "dvc exp run -S model=toy -S k=2 -S 'method=a b'\n" in markdown
    assert "| torch | 1.2 |" in markdown
    assert "some&lt;b&gt;" in html


def test_the_page_stands_alone(toy):
    markdown, html, folder = toy
    assert html.count("data:image/png;base64,iVBOR") == 6
    assert not re.search(r"https?:|<script|<link|@import|url\(", html)
    linked = re.findall(r"\(<(plots/\w+\.png)>\)", markdown)
    assert sorted(linked) == sorted(f"plots/{p.name}" for p in (folder / "reports/plots").iterdir())
    metrics = json.loads((folder / "reports/metrics.json").read_text())
    assert metrics == {name: DENSE if name == "dense" else TUNED for name in NETWORKS}


def test_the_model_card_has_the_figures_of_the_metrics(toy):
    card = ModelCard((toy[2] / "reports/model_card.md").read_text())
    assert {result.metric_type: result.metric_value for result in card.data.eval_results} == TUNED
    assert card.data.model_name == "net without 2 of 7 layers"
    assert row_of(card.text, "accuracy (top-1)") == ["90.00 ± 3.00 %", "80.00 ± 4.00 %", "-10.00 points"]
    assert row_of(card.text, "parameters") == ["4.000 k", "3.000 k", "-25.0 %"]
    assert row_of(card.text, "latency, batch 2")[:2] == ["4.000 ms", "2.000 ms"]
    assert "Measured on 100 test samples of `some:Digits`." in card.text
    assert "- Removed layers: `block.2`, `block.6`\n" in card.text
    assert "```\ndvc exp run -S model=toy -S k=2 -S 'method=a b'\n```" in card.text
    assert 'sglp.load("this folder", trust=["toys:net"])' in card.text


def test_reconstructed_layers_are_summed_up(toy):
    markdown, html, folder = toy
    sentence = (
        "2 of 3 layers from the first gap on were refitted to the dense network's activations in closed form and by "
        "gradient, without labels: the mean relative squared error on held-out samples changed from 0.283 to 0.133."
    )
    card = (folder / "reports/model_card.md").read_text()
    assert all(sentence in text.replace("&#39;", "'") for text in (markdown, html, card))


def test_errors_of_runs_are_a_heat_map():
    write_inputs(errors=[(i, j, 0.1 * (j - i)) for i in range(7) for j in range(i, 7)])
    markdown, html = made()
    assert "plots/errors.png" in markdown
    assert "fails to produce" in html
    assert Path("reports/plots/errors.png").stat().st_size > 5000


def test_a_report_without_reconstruction():
    write_inputs(reconstruction=())
    markdown, html = made()
    assert "refitted" not in markdown + html + Path("reports/model_card.md").read_text()
    assert not Path("reports/plots/reconstruction.png").exists()


def test_the_model_card_names_what_chose_the_layers():
    write_inputs()
    params, workload = views()
    vars(params).update(
        score={"criterion": "gradnorm", "search": "independent", "budget": None}, prune={"weights": "random"}
    )
    report.main(params, workload)
    asked = "-S score.criterion=gradnorm -S score.search=independent -S prune.weights=random\n"
    assert asked in Path("reports/model_card.md").read_text()


def test_equal_inputs_give_equal_bytes(toy):
    write_inputs()
    made()
    files = [p for p in Path("reports").rglob("*.*") if p.is_file()]
    assert len(files) >= 8
    assert all(p.read_bytes() == (toy[2] / p).read_bytes() for p in files)


def test_a_baseline_and_held_out_samples():
    scores = [(0, i, -float(i), "tail", int(i not in (5, 6))) for i in range(7)]
    training = [(10, 1.0, 0.9, 0.1, "", ""), (20, 2.0, 0.5, 0.05, 0.7, 0.8)]
    write_inputs(removed=(5, 6), segments=[[0, 6]], scores=scores, training=training)
    markdown, _ = made()
    assert row_of(markdown, "0")[:6] == ["0-6", "0-4", "2", "7", "", "tail"]


def test_a_segment_without_a_choice():
    write_inputs(count=2, fixed=(0,), removed=(1,), segments=[[0, 1]], scores=[(0, "0 0", 1.0, "exhaustive", 1)])
    markdown, _ = made()
    assert row_of(markdown, "0")[6:] == ["1.000", "", "1.000", "1.000"]


def test_six_hundred_layers():
    segments = [[i, i + 13] for i in range(0, 602, 14)]
    removed = range(1, 602, 2)
    scores = [
        (number, " ".join(str(i) for i in range(first, last + 1, 2)), draw, "beam 4", int(draw == 19))
        for number, (first, last) in enumerate(segments)
        for draw in range(20)
    ]
    write_inputs(602, (0,), removed, segments, scores)
    markdown, _ = made()
    assert "**301 of 602 layers are removed" in markdown


def test_a_language_model(tmp_path):
    dense = {"perplexity": 20.0, "loss": 3.0, "tokens": 5000, "params": 100, "macs_per_token": 2000, "piqa_acc": 0.8}
    dense |= {"piqa_acc_norm": 0.5, "piqa_questions": 100}
    tuned = dense | {"perplexity": 30.0, "macs_per_token": 1500, "piqa_acc": 0.7}
    write_inputs(dense=dense, tuned=tuned, work=("prefill", "decode"), examples=[{"prompt": "Say | <b>this</b>\nand"}])
    markdown, html = made()
    assert (
        "removed: 25.0 % fewer MACs, 0.0 % fewer parameters, perplexity 20.00 → 30.00 (+50.0 %), 2.0 times as fast in "
        "prefill at batch 2, 2.0 times as fast in decode at batch 2."
    ) in markdown
    assert row_of(markdown, "piqa accuracy")[0] == "80.00 ± 4.00 %"  # sqrt(0.8 * 0.2 / 100)
    assert row_of(markdown, "piqa accuracy")[-2:] == ["70.00 ± 4.58 %", "-10.00 points"]
    assert row_of(markdown, "piqa accuracy, by length")[0] == "50.00 ± 5.00 %"
    assert row_of(markdown, "MACs per token")[::5] == ["2.000 k", "1.500 k"]
    assert row_of(markdown, "speedup, decode, batch 2")[-2] == "2.04 (1.90-2.20)"
    assert "Measured on 5,000 test tokens, 100 piqa questions" in markdown
    assert "> **Say | <b>this</b> and**" in markdown
    assert "- fine-tuned: finetuned & on" in markdown
    assert "<td>Say | &lt;b&gt;this&lt;/b&gt;\nand</td><td>dense &amp; on</td>" in html
    labels = [line.split("|")[1].strip() for line in markdown.splitlines() if line.startswith("| ")]
    assert labels.index("perplexity") < labels.index("piqa accuracy") < labels.index("parameters")
