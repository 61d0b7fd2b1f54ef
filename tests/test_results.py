"""The page of results: the runs of results.yaml are valid, and the tables have their outcome."""

import json
import re
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
from pipeline import ROOT
from synthetic_runs import record

from experiments import results, runs
from experiments.errors import RunError
from experiments.grid import check
from experiments.outcomes import compare as results_of
from experiments.records import ExperimentError
from experiments.results import Part, compared, parts, rows
from experiments.snapshot import Snapshot


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A copy of this project's files in a new repository."""
    folder = tmp_path / "project"
    for name in ("experiments", "models", "docs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, folder / name)
    who = (("config", "user.name", "a"), ("config", "user.email", "a@b"))
    for command in (("init", "-q"), *who, ("add", "."), ("commit", "-qm", "all")):
        subprocess.run(["git", *command], cwd=folder, check=True)
    monkeypatch.chdir(folder)
    return folder


def test_every_run_of_results_yaml_is_valid(project):
    snapshot = Snapshot.take()
    found = parts(snapshot)
    points = [params for part in found for split in part.points.values() for params in split.values()]
    check(points, snapshot, files_too=False)
    assert len(points) > 50


def test_defaults_are_chosen_on_other_samples_than_the_test_split(project):
    snapshot = Snapshot.take()
    for part in parts(snapshot):
        for split, points in part.points.items():
            for params in points.values():
                (_, workload) = snapshot.values(params).values()
                trained_on, measured_on = (workload["files"][name]["sha256"] for name in ("train", "test"))
                assert trained_on is None or (trained_on == measured_on) == (split == "heldout")
                if split == "heldout":
                    trained, measured = (images(workload["data"][name]["split"]) for name in ("train", "test"))
                    assert not trained & measured


def images(split: str) -> set[int]:
    """Return the images of train[A:B]."""
    first, last = re.fullmatch(r"train\[(\d*):(\d+)\]", split).groups()
    return set(range(int(first or 0), int(last)))


def runs_of(split, qualities, **params):
    """Make runs of one setting with a seed each."""
    changes = {"workload.data.test.split": split}
    made = [record(f"{split}-{i} {params} {split}", quality=q, seed=i, **params) for i, q in enumerate(qualities)]
    return [one._replace(params=one.params | changes) for one in made]


def table(**splits):
    """Make the table of a part with these runs, as dicts."""
    records = {runs.identity(one.name): one for group in splits.values() for one in group}
    part = Part("title", "text", {split: {one.name: {} for one in group} for split, group in splits.items()})
    ((_, of_model),) = compared(part, records).items()
    found = rows(of_model)
    return [dict(zip(found.columns, row, strict=True)) for row in found.rows]


def test_a_row_has_means_over_seeds_on_both_kinds_of_samples():
    heldout = runs_of("a", [0.8, 0.9], score__criterion="loss") + runs_of("a", [0.7, 0.72, 0.77], method="random")
    test = runs_of("b", [0.6, 0.64], score__criterion="loss")
    dense, best, chance = table(heldout=heldout, test=test)
    assert dense["accuracy, held out"] == dense["accuracy, test"] == "95.00 %"
    assert best["setting"].startswith("sglp")
    assert (best["runs"], chance["runs"]) == ("2", "3 / 0")
    assert best["accuracy, held out"] == "85.00 ± 7.07 %"
    assert best["accuracy, test"] == "62.00 ± 2.83 %"
    assert chance["accuracy, test"] == ""
    assert best["MACs"] == "50.0 %"
    assert best["passes"] == "10 + 5"


def test_settings_are_compared_seed_by_seed():
    found = runs_of("a", [0.8, 0.9], score__criterion="loss") + runs_of("a", [0.7, 0.72, 0.77], method="random")
    _, best, chance = table(heldout=found)
    error = statistics.stdev([80 - 70, 90 - 72]) / 2**0.5
    assert best["against random, held out"] == f"{(10 + 18) / 2:+.2f} ± {error:.2f} (2)"
    assert chance["against the best, held out"] == f"{-(10 + 18) / 2:+.2f} ± {error:.2f} (2)"
    assert chance["against random, held out"] == best["against the best, held out"] == ""


def test_lucky_seeds_of_all_settings_do_not_make_the_best():
    found = runs_of("a", [0.9, 0.5, 0.5], score__criterion="loss") + runs_of("a", [0.8], method="random")
    _, first, second = table(heldout=found)
    assert first["setting"].startswith("sglp"), "0.9 against 0.8 for the seed that both have"
    assert first["accuracy, held out"].startswith("63.33")
    assert second["against the best, held out"] == "-10.00 (1)"


def test_settings_of_another_depth_are_not_compared():
    found = runs_of("a", [0.8], score__criterion="loss") + runs_of("a", [0.7], method="random", prune_ratio=0.25)
    for row in table(heldout=found):
        assert row["against random, held out"] == row["against the best, held out"] == ""


def test_every_split_has_its_number_of_runs():
    heldout, test = (
        runs_of("a", [0.8, 0.82, 0.84], score__criterion="loss"),
        runs_of("b", [0.6], score__criterion="loss"),
    )
    _, row = table(heldout=heldout, test=test)
    assert row["runs"] == "3 / 1"
    assert (row["accuracy, held out"], row["accuracy, test"]) == ("82.00 ± 2.00 %", "60.00 %")
    _, row = table(test=test)
    assert row["runs"] == "1"
    assert row["pruned, test"]


def test_runs_of_another_dense_network_are_not_compared():
    found = runs_of("a", [0.8, 0.9], score__criterion="loss") + runs_of("a", [0.7, 0.7], method="random")
    found[0].metrics["dense"]["accuracy"] = 0.94
    dense, best, chance = table(heldout=found)
    assert dense["accuracy, held out"] == "95.00 % or 94.00 %"
    assert best["accuracy, held out"] == "85.00 ± 7.07 %"
    assert best["against random, held out"] == "+20.00 (1)"
    assert chance["against the best, held out"] == "-20.00 (1)"


def test_a_run_with_two_names_counts_once():
    made = runs_of("a", [0.8, 0.9], score__criterion="loss")
    names = [prefix + runs.identity(one.name) for one in made for prefix in ("k=3-", "by=fisher-")]
    part = Part("title", "text", {"heldout": {name: {} for name in names}})
    found = compared(part, {runs.identity(one.name): one for one in made})
    assert len(found["net"]["heldout"].records) == 2
    assert results._missing(part, {}) == 2


def test_robustness_has_a_table_of_its_own():
    heldout = runs_of("a", [0.8])
    made = runs_of("b", [0.6, 0.7], score__criterion="loss") + runs_of("b", [0.5], method="random")
    for number, one in enumerate(made):
        for metrics in one.metrics.values():
            metrics |= {"robustness.samples": 100, "robustness.pgd.0.01": 0.1 * number + 0.2}
            metrics |= {"robustness.corruptions.3.mean": 0.5, "robustness.corruptions.3.fog": 0.4}
    found = results.robustness({name: results_of(group) for name, group in (("heldout", heldout), ("test", made))})
    assert found.columns == ["setting", "pgd 0.01", "corruptions 3, mean"]
    assert [row[1:] for row in found.rows] == [
        ["20.00 %", "50.00 %"],
        ["25.00 ± 7.07 %", "50.00 ± 0.00 %"],
        ["40.00 %", "50.00 %"],
    ]
    # Two dense networks: the table has both, in the order of their qualities.
    made[0].metrics["dense"] |= {"accuracy": 0.99, "robustness.pgd.0.01": 0.1}
    assert results.robustness({"test": results_of(made)}).rows[0][1:] == ["10.00 % or 30.00 %", "50.00 %"]
    del made[0].metrics["finetuned"]["robustness.pgd.0.01"]
    assert results.robustness({"test": results_of(made)}).columns == ["setting", "corruptions 3, mean"]
    assert results.robustness({"heldout": results_of(heldout)}).rows == []


def test_differences_are_those_of_the_test_split():
    heldout = runs_of("a", [0.8], score__criterion="loss") + runs_of("a", [0.7], method="random")
    test = runs_of("b", [0.6], score__criterion="loss") + runs_of("b", [0.55], method="random")
    _, best, chance = table(heldout=heldout, test=test)
    assert best["against random, test"] == "+5.00 (1)"
    assert chance["against the best, test"] == "-5.00 (1)"


def test_every_model_has_a_table_of_its_own():
    made = {f"run-{size}": record(f"run-{size}", model=model, size=size) for model, size in (("a", 4), ("b", 6))}
    part = Part("title", "text", {"heldout": {name: {} for name in made}})
    found = compared(part, {runs.identity(name): one for name, one in made.items()})
    sizes = {model: rows(of).rows[0][-4:-2] for model, of in found.items()}
    assert sizes == {"a": ["4.00 k", "400"], "b": ["6.00 k", "600"]}


def test_a_run_that_another_part_named_is_found():
    one = runs_of("a", [0.8], score__criterion="loss")[0]
    part = Part("title", "text", {"heldout": {f"another-{runs.identity(one.name)}": {}, "unknown-1": {}}})
    records = {runs.identity(one.name): one}
    assert list(compared(part, records)) == ["net"]
    assert results._missing(part, records) == 1


def test_a_part_without_runs_has_no_table():
    assert compared(Part("title", "text", {"heldout": {"a": {}}}), {}) == {}


def test_seeds_come_before_parts_and_splits_of_a_network_follow_each_other():
    def points(part, split):
        return {f"{part}-{split}-{seed}": {"seed": seed} for seed in range(2)}

    found = [
        Part("a", "", {"heldout": points("a", "heldout"), "test": points("a", "test")}),
        Part("b", "", {"test": points("b", "test")}),
    ]
    both = [list(step) for step in results._steps(found, ("heldout", "test"))]
    assert both == [["a-heldout-0", "a-test-0"], ["b-test-0"], ["a-heldout-1", "a-test-1"], ["b-test-1"]]
    assert [list(step) for step in results._steps(found, ("heldout",))] == [["a-heldout-0"], ["a-heldout-1"]]


def test_a_network_is_evaluated_on_every_split_before_the_next_one():
    points = {split: {f"{split}-{k}": {"k": k, "seed": 3} for k in range(2)} for split in ("heldout", "test")}
    (step,) = results._steps([Part("a", "", points)], ("heldout", "test"))
    assert list(step) == ["heldout-0", "test-0", "heldout-1", "test-1"]


@pytest.fixture
def measured(project, monkeypatch):
    """A project with four runs; returns what `sweep` ran, step by step."""
    (project / "experiments/results.yaml").write_text(
        "base: {model: resnet20-digits}\nheldout: {}\n"
        "parts: [{title: A part, text: Of it., splits: [test], grids: ['seed=0,1 k=2,3']}]\n"
    )
    subprocess.run(["git", "commit", "-qam", "four"], cwd=project, check=True)
    ran = []

    def side_by_side(points, snapshot, workers):
        ran.append(sorted(params["k"] for params in points.values()))
        yield from ((name, {}) for name in points)

    monkeypatch.setattr(results, "side_by_side", side_by_side)
    monkeypatch.setattr(results, "record_of", lambda name, params, checksums, snapshot: record(name))
    monkeypatch.setattr(sys, "argv", ["results"])
    return ran


def main() -> object:
    with pytest.raises(SystemExit) as stopped:
        results.main()
    return stopped.value.code


def test_known_runs_are_not_repeated_in_another_clone(project, measured):
    assert main() == 0
    assert measured == [[2, 3], [2, 3]]
    page = results.PAGE.read_text()
    assert "| sglp · k=2 | 2 | 90.00 ± 0.00 % |" in page
    assert "are missing" not in page
    measured.clear()
    subprocess.run(["git", "commit", "-qm", "later", "--allow-empty"], cwd=project, check=True)
    results.PAGE.unlink()
    assert main() == 0
    assert measured == [[], []]
    assert results.PAGE.read_text() == page


def test_uncommitted_changes_do_not_change_figures(project, measured):
    assert main() == 0
    measured.clear()
    for path, old, new in (("params.yaml", "seed: 0", "seed: 1"), ("dvc.yaml", "stages:", "# mine\nstages:")):
        text = (project / path).read_text()
        assert old in text
        (project / path).write_text(text.replace(old, new))
    (project / "models/resnet20-digits.yaml").write_text("nonsense: true\n")
    assert main() == 0
    assert measured == [[], []]


def test_an_uncommitted_workload_is_refused(project, measured):
    path = project / "models/resnet20-digits.yaml"
    path.write_text(path.read_text().replace("epochs: ", "epochs: 1"))
    assert main().startswith("results: models/resnet20-digits.yaml has uncommitted changes")
    assert measured == []


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("splits: [test], ", "", "no sample of resnet20-digits is held out"),
        (
            "grids: ['",
            "foresight: true, grids: ['models/resnet20-digits.yaml:pretrain.epochs=1 ",
            "changes the dense network",
        ),
        ("parts: [", "parts: {", "experiments/results.yaml is not valid YAML: "),
    ],
)
def test_an_invalid_part_is_one_sentence(project, measured, old, new, sentence):
    path = project / "experiments/results.yaml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    said = main()
    assert said.startswith("results: experiments/results.yaml")
    assert sentence in said
    assert "\n" not in said
    assert measured == []


@pytest.mark.parametrize(("arguments", "needed"), [(["heldout"], False), (["test"], True), ([], True)])
def test_only_the_runs_of_a_split_are_checked(project, monkeypatch, arguments, needed):
    """The language model is measured only on the test split."""
    (project / "docs/results.jsonl").unlink()
    models = set()

    def check(points, snapshot):
        models.update(point["model"] for point in points)
        raise RunError("enough")

    monkeypatch.setattr(results, "check", check)
    monkeypatch.setattr(sys, "argv", ["results", *arguments])
    assert main() == "results: enough"
    assert "resnet56-cifar10-jpeg" in models
    assert ("smollm2-135m-wikitext2" in models) == needed


def test_a_run_with_lost_outputs_does_not_stop_others(project, measured, monkeypatch, capsys):
    def record_of(name, params, checksums, snapshot):
        if params["k"] == 2:
            raise ExperimentError("data/plan.json is not in the cache")
        return record(name)

    monkeypatch.setattr(results, "record_of", record_of)
    assert main() == 1
    assert measured == [[2, 3], [2, 3]]
    assert capsys.readouterr().out.count("failed: data/plan.json is not in the cache") == 2
    assert "2 runs of this part are missing" in results.PAGE.read_text()


@pytest.mark.parametrize("workers", ["0", "-1", "two"])
def test_workers_must_be_a_number(project, monkeypatch, capsys, workers):
    monkeypatch.setattr(sys, "argv", ["results", f"--workers={workers}"])
    assert main() == 2
    assert f"{workers} is wrong: it must be a whole number, 1 or more" in capsys.readouterr().err


def test_every_line_of_the_ledger_belongs_to_a_run_of_results_yaml(project):
    """A renamed or added parameter changes the identities of runs: the ledger must follow."""
    lines = [json.loads(line)["run"] for line in Path("docs/results.jsonl").read_text().splitlines()]
    points = {
        runs.identity(name) for part in parts(Snapshot.take()) for names in part.points.values() for name in names
    }
    assert len(lines) > 200
    assert [line for line in lines if runs.identity(line) not in points] == []
