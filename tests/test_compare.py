"""The comparison's page and its table, for synthetic runs."""

import base64
import csv
import io
import re
import statistics
from html.parser import HTMLParser

import pytest
from PIL import Image
from synthetic_runs import language, record

from experiments import compare, outcomes
from experiments.compare import page, rows
from experiments.records import ExperimentError, Reading
from experiments.settings import by_model
from experiments.tables import tables_of
from stages.support.tables import read_rows

SECTIONS = (
    "Outcome",
    "Other metrics",
    "Number of segments",
    "Ablations",
    "Removed layers",
    "Scores and outcomes",
    "Cost of finding the plan",
    "All runs",
)


def sweep(make=record, **params):
    """Three seeds of two criteria at two k, of a baseline and of a control."""
    points = [{"k": k, "score__criterion": criterion} for k in (2, 3) for criterion in ("gradnorm", "loss")]
    points += [{"method": "tail"}, {"prune__weights": "random"}]
    return [
        make(f"run-{number}-{seed}", quality=0.8 + 0.01 * number + 0.013 * seed, seed=seed, **point, **params)
        for number, point in enumerate(points)
        for seed in range(3)
    ]


class Page(HTMLParser):
    """A page's tables and images, and the addresses that it would load."""

    def __init__(self, html: str):
        super().__init__()
        self.html, self.tables, self.images, self.loads, self.sections = html, [], [], [], []
        self.cell = None
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        assert tag not in ("link", "iframe", "object", "base")
        self.loads += [value for key, value in attributes.items() if key in ("src", "href", "srcset", "data", "action")]
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.cell = ""
        elif tag == "img":
            self.images.append(attributes["src"])
        elif tag == "section":
            self.sections.append(attributes["data-model"])

    def handle_data(self, data):
        if self.cell is not None:
            self.cell += data

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.tables[-1][-1].append(self.cell)
            self.cell = None

    def table(self, *columns):
        """Return the first table with these columns, its rows as mappings."""
        found = next(table for table in self.tables if set(columns) <= set(table[0]))
        return [dict(zip(found[0], row, strict=True)) for row in found[1:]]


@pytest.fixture(scope="module")
def records():
    return sweep() + sweep(language, model="llm")


@pytest.fixture(scope="module")
def whole(records) -> Page:
    return Page(page(Reading(records, {"broken": "it did not make <data/plan.json>"}, {})))


def test_the_page_is_self_contained(whole):
    assert whole.loads
    assert all(value.startswith("data:image/png;base64,") for value in whole.loads)
    assert not re.search(
        r"https?:|@import|url\(|fetch\(|XMLHttpRequest|import\(", re.sub(r"base64,[^\"]*", "", whole.html)
    )


def test_every_model_has_every_section(whole):
    assert whole.sections == ["llm", "net"]
    for section in whole.html.split("<section")[1:]:
        assert [heading for heading in SECTIONS if f">{heading}</" in section] == list(SECTIONS)
    assert whole.html.count("<option>") == 2
    for source in whole.images:
        picture = Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2])))
        assert picture.format == "PNG"
        assert len(picture.convert("L").getcolors()) > 20
    assert len(whole.images) == 6


def test_numbers_are_those_of_the_csv(whole, records, tmp_path):
    file = tmp_path / "compare.csv"
    rows(records).to_csv(file, index=False)
    found = [row for row in read_rows(str(file)) if row["workload"] == "net"]
    assert 2 * len(found) == len(records)
    groups = {}
    for row in found:
        groups.setdefault(row["setting"], []).append(row)
    shown = {row["setting"]: row for row in whole.table("accuracy", "MACs", "runs")}
    assert shown.keys() == groups.keys() | {"dense network"}
    for setting, group in groups.items():
        after = [float(row["finetuned.accuracy"]) for row in group]
        deviation = statistics.stdev(after)
        row = shown[setting]
        assert row["accuracy"] == f"{100 * statistics.mean(after):.2f} ± {100 * deviation:.2f} %"
        assert row["s.e."] == f"{100 * deviation / 3**0.5:.2f}"
        assert row["runs"] == "3"
        assert row["MACs"].startswith(f"{statistics.mean(float(r['finetuned.macs']) for r in group) / 1000:.2f} k")
        assert row["score seconds"] == f"{statistics.median(float(r['scoring.seconds']) for r in group):.3g}"
        speed = statistics.median(float(r["timed.batch.1.work.forward.speedup.median"]) for r in group)
        assert f"({speed:.2f} times)" in row["latency, batch 1"]
    order = [statistics.mean(float(r["finetuned.accuracy"]) for r in groups[s]) for s in shown if s in groups]
    assert order == sorted(order, reverse=True)


def test_a_run_is_a_row_with_its_parameters_and_layers(records):
    table = rows(records)
    (first,) = (r for r in records if r.name == "run-0-1" and r.params["model"] == "net")
    (_, row), *_ = table[(table["experiment"] == "run-0-1") & (table["workload"] == "net")].iterrows()
    assert (row["k"], row["seed"], row["score.search"], row["method"]) == ("2", "1", "independent", "sglp")
    assert row["removed"].split() == [f"layer{i}" for i in first.removed]
    assert row["dense.accuracy"] == 0.95
    assert "workload.finetune.epochs" not in table, "it is the same everywhere"
    assert "workload.task" in table


def test_less_perplexity_is_better(whole):
    shown = whole.table("perplexity", "MACs per token")
    values = [float(row["perplexity"].split()[0]) for row in shown[1:]]
    assert values == sorted(values)
    assert "latency of decode, batch 1" in shown[0]
    assert any("MACs per token" in row["on the Pareto front of"] for row in shown)
    assert whole.table("piqa_acc")[1]["piqa_acc"] == "60.00 ± 0.00 %"


def test_robustness_is_shown_by_attack_and_severity():
    run = record()
    for metrics in run.metrics.values():
        metrics |= {"robustness.samples": 100, "robustness.fgsm.0.01": 0.5, "robustness.corruptions.3.fog": 0.4}
        metrics["robustness.corruptions.3.mean"] = 0.25
    found = tables_of(outcomes.compare([run]))["metrics"]
    assert found.columns == ["#", "setting", "loss", "fgsm 0.01", "corruptions 3, mean"]
    assert found.rows[1] == ["1", "sglp", "1.100", "50.00 %", "25.00 %"]
    assert "finetuned.robustness.corruptions.3.fog" in rows([run])


def test_the_cost_of_scoring_is_a_median(records):
    runs = [record(seed=s)._replace(cost={"seconds": c, "samples_a_pass": 8}) for s, c in enumerate((1.0, 9.0, 2.0))]
    found = tables_of(outcomes.compare([*runs, record(k=2)._replace(cost=None)]))["cost"]
    assert found.columns == ["#", "setting", "seconds", "samples a pass", "accuracy"]
    assert [row[1:4] for row in found.rows] == [["sglp · k=3", "2", "8"]]


def test_ablations_compare_seed_by_seed():
    runs = [record(quality=q, seed=s) for s, q in ((0, 0.90), (1, 0.80))]
    runs += [record(quality=q, seed=s, score__search="sequential") for s, q in ((1, 0.83), (0, 0.92), (2, 0.1))]
    runs += [record(quality=0.5, seed=0, score__search="sequential", k=2)]
    found = tables_of(outcomes.compare(runs, record().params))["ablations"]
    assert [row[:2] for row in found.rows] == [
        ["reference", "sglp · k=3 · search=independent"],
        ["score.search", "independent → sequential"],
    ]
    row = dict(zip(found.columns, found.rows[1], strict=True))
    assert (row["change"], row["s.e. of the change"], row["common seeds"]) == ("+2.50 points", "0.50", "2")


def test_runs_with_other_layers_are_another_model():
    """Layer indices can't be compared if another pattern selects the layers."""
    one, other = record(), record(seed=1)
    groups = by_model(
        [
            one._replace(params=one.params | {"workload.layers": None}),
            other._replace(params=other.params | {"workload.layers": "stage2.*"}),
        ]
    )
    assert sorted(len(group) for group in groups.values()) == [1, 1]


def test_layers_that_all_runs_or_some_runs_remove():
    runs = [record(seed=0, removed=(1, 2, 3, 7)), record(seed=1, removed=(1, 2, 3, 9))]
    assert tables_of(outcomes.compare(runs))["layers"].rows == [["1", "sglp", "2", "0.60", "1-3", "7, 9"]]
    assert tables_of(outcomes.compare(runs[:1]))["layers"].columns == ["#", "setting", "runs", "always removed"]


def test_the_pareto_front_counts_the_dense_network():
    runs = [record(removed=(1,), quality=0.96), record(removed=(1, 2), quality=0.9, k=2), record(quality=0.8, k=4)]
    found = outcomes.compare([*runs, record(removed=(1, 2), quality=0.85, k=5)])
    assert [found.points["setting"][number] for number in found.front("MACs")] == [
        "sglp · k=4",
        "sglp · k=2",
        "sglp · k=3",
    ]
    assert 0 in outcomes.compare(runs[1:]).front("MACs")


def test_names_are_escaped():
    nasty = "<script>alert('x')</script> & \"more\""
    runs = [record(nasty, method=f"mine:{nasty}", model=nasty), record("b", model=nasty)]
    html = page(Reading(runs, {nasty: nasty}, {}))
    assert "<script>alert" not in html
    assert html.count("<script>") == 1
    assert [row["experiment"] for row in Page(html).table("experiment", "why")] == [nasty]
    assert Page(html).sections == [nasty]


def test_one_run_is_enough():
    found = Page(page(Reading([record(timed=False)._replace(cost=None)], {}, {})))
    (row,) = found.table("accuracy", "MACs")[1:]
    assert (row["runs"], row["accuracy"]) == ("1", "90.00 %")
    assert not row.keys() & {"s.e.", "score seconds", "passes"}
    assert "No two settings differ only in k." in found.html
    assert "No setting differs from sglp in one parameter." in found.html
    assert "No run has" in found.html
    assert len(found.images) == 2


def test_runs_without_a_benchmark_have_no_latency():
    runs = [record(seed=0), record(seed=1, timed=False), record(k=2, timed=False)]
    shown = Page(page(Reading(runs, {}, {}))).table("accuracy", "latency, batch 1")
    assert {row["setting"]: row["latency, batch 1"] for row in shown} == {
        "dense network": "",
        "sglp · k=3": "1.00 ms (2.00 times)",
        "sglp · k=2": "",
    }
    assert outcomes.compare(runs[1:]).timed == []


def test_without_runs_the_error_is_one_sentence():
    with pytest.raises(
        ExperimentError, match=r"^no experiment can be compared: run some with 'make sweep' or 'dvc exp run'$"
    ):
        page(Reading([], {}, {}))
    with pytest.raises(ExperimentError, match=r"a: it did not make data/plan\.json"):
        page(Reading([], {"a": "it did not make data/plan.json"}, {}))


def test_without_a_common_metric_the_error_is_one_sentence():
    run = record()
    for metrics in run.metrics.values():
        del metrics["accuracy"], metrics["loss"]
    with pytest.raises(ExperimentError, match="accuracy or perplexity or loss"):
        tables_of(outcomes.compare([run]))


def test_main_writes_both_files_and_lists_runs_that_are_left_out(monkeypatch, tmp_path, capsys):
    reading = Reading(
        [record("early"), record("late"), record("more", k=2)], {"half": "it did not make data/plan.json"}, {}
    )
    monkeypatch.setattr(compare, "read", lambda baseline: reading)
    compare.main(folder=str(tmp_path))
    with (tmp_path / "compare.csv").open(newline="") as file:
        assert [row["experiment"] for row in csv.DictReader(file)] == ["more", "late"]
    told = capsys.readouterr().out
    assert "half: it did not make data/plan.json" in told
    assert "early: has the same parameters as late" in told
    assert "early" in (tmp_path / "compare.html").read_text(encoding="utf-8")


def test_figures_are_drawn_for_many_settings_and_layers():
    runs = [record(f"{k}{c}", size=60, k=k, score__criterion=c, scores=[]) for k in range(2, 8) for c in "abcd"]
    found = outcomes.compare([*runs, record(size=60, method="tail")])
    for draw in (compare.draw_outcome, compare.draw_k, compare.draw_layers):
        first = draw(found)
        assert first.startswith(b"\x89PNG")
        assert first == draw(found), "equal inputs give equal bytes"
