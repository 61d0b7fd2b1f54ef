"""What the cache promises: a question re-runs what depends on it, and nobody in the team computes anything twice."""

import hashlib
import re
import subprocess
from pathlib import Path

import pytest
from pipeline import ROOT, command_environment, make_project, merged, read_yaml, stage_names, write_yaml
from ruamel.yaml import YAML

STAGES = stage_names(ROOT)
BEFORE_SEGMENT = {"pretrain", "extract", "cka"}


@pytest.mark.parametrize(
    "path", [*(ROOT / "models").glob("*.yaml"), ROOT / "params.yaml", ROOT / "dvc.yaml"], ids=lambda path: path.name
)
def test_dvc_reads_its_files_fast_and_no_otherwise(path):
    fast, slow = YAML(typ="safe"), YAML(typ="safe", pure=True)
    assert fast.Parser is not slow.Parser, "ruamel.yaml.clib is not installed"
    text = path.read_text(encoding="utf-8")
    assert repr(fast.load(text)) == repr(slow.load(text))


class Team:
    """Clones of one project, each with a user cache of its own."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.origin = make_project(folder / "origin")
        # A second workload and an early stop of the clock: these tests are about caching.
        tiny = read_yaml(self.origin / "models/tiny.yaml")
        smaller = merged(tiny, {"architecture": {"kwargs": {"depth": 14}}})
        write_yaml(self.origin / "models/smaller.yaml", smaller)
        (self.origin / ".gitignore").write_text("__pycache__/\n/data/\n/reports/\n/.usercache/\n")
        (self.origin / ".dvc/.gitignore").write_text("/config.local\n/tmp\n/cache\n")
        for command in ("git init -q -b main", "git add -A", "git commit -q -m start"):
            self.run(self.origin, command)

    def clone(self, name: str) -> Path:
        """A fresh clone."""
        self.run(self.folder, f"git clone -q {self.origin} {name}")
        return self.folder / name

    def run(self, where: Path, command: str) -> str:
        """Run a command, give what it printed."""
        environment = command_environment(self.folder / f"cache of {where.name}") | {
            "GIT_AUTHOR_NAME": "t",
            "GIT_AUTHOR_EMAIL": "t@t",
            "GIT_COMMITTER_NAME": "t",
            "GIT_COMMITTER_EMAIL": "t@t",
        }
        done = subprocess.run(command.split(), cwd=where, env=environment, capture_output=True, text=True, timeout=500)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def ran(self, where: Path, command: str) -> set[str]:
        """The stages that a command ran."""
        return set(re.findall(r"Running stage '(.+?)'", self.run(where, command)))

    def asked(self, where: Path, dials: dict, *targets: str, file: str = "params.yaml") -> set[str]:
        """The stages that run with other dials, which is what `dvc exp run -S` does in three times the seconds."""
        write_yaml(where / file, merged(read_yaml(where / file), dials))
        return self.ran(where, " ".join(["dvc repro", *targets]))


@pytest.fixture(scope="module")
def team(tmp_path_factory) -> Team:
    return Team(tmp_path_factory.mktemp("team"))


@pytest.fixture(scope="module")
def clone(team) -> Path:
    """A clone after a cold run."""
    folder = team.clone("first")
    assert team.ran(folder, "dvc repro") == set(STAGES)
    return folder


def outputs(folder: Path) -> dict[str, str]:
    """The checksum of every output in dvc.lock, of the stages that are bit-identical when run twice."""
    stages = read_yaml(folder / "dvc.lock")["stages"]
    return {
        out["path"]: out["md5"]
        for name, stage in stages.items()
        if name not in ("benchmark", "report")
        for out in stage["outs"]
    }


def test_nothing_runs_twice(team, clone):
    assert team.ran(clone, "dvc repro") == set()


def test_another_k_runs_segment_and_what_follows(team, clone):
    first = outputs(clone)
    ran = team.ran(clone, "dvc exp run -S k=2 evaluate@pruned")
    assert {"segment", "score"} <= ran <= {"segment", "score", "prune", "evaluate@pruned"}
    report = read_yaml(clone / "dvc.yaml")["stages"]["report"]
    assert {"data/segments.json", "data/scores.csv", "data/plan.json"} <= {*report["deps"]}, "it tells of another k"
    assert team.ran(clone, "dvc exp run -S k=3") == set()
    assert outputs(clone) == first


def test_the_same_plan_runs_nothing_after_score(team, clone):
    assert team.asked(clone, {"prune_ratio": 0.0}, "prune") == {"score", "prune"}
    assert team.asked(clone, {"k": 4}, "prune") == {"segment", "score"}
    assert team.asked(clone, {"k": 3, "prune_ratio": 0.5}) == set()


def test_a_method_without_segments_is_not_scored_again_for_another_k(team, clone):
    assert team.asked(clone, {"method": "tail"}, "score") == {"errors", "segment", "score"}
    assert team.asked(clone, {"k": 4}, "score") == {"segment"}
    assert team.asked(clone, {"method": "sglp", "k": 3}) == set()


def test_the_way_back_from_another_model_costs_nothing(team, clone):
    first = outputs(clone)
    assert team.asked(clone, {"model": "smaller"}, "cka") == BEFORE_SEGMENT
    assert team.asked(clone, {"model": "tiny"}) == set()
    assert outputs(clone) == first


def test_one_dial_of_the_recipe_runs_finetune_and_what_follows(team, clone):
    dial, after = {"finetune": {"label_smoothing": 0.1}}, ("evaluate@finetuned", "evaluate@pruned")
    assert team.asked(clone, dial, *after, file="models/tiny.yaml") == {"finetune", "evaluate@finetuned"}
    assert team.asked(clone, {"finetune": {"label_smoothing": 0.0}}, file="models/tiny.yaml") == set()


def test_without_reconstruction_its_parameters_change_nothing_after_it(team, clone):
    assert team.asked(clone, {"reconstruct": {"method": "none"}}, "finetune") == {"reconstruct", "finetune"}
    assert team.asked(clone, {"reconstruct": {"steps": 3}}, "finetune") == {"reconstruct"}
    assert team.asked(clone, {"reconstruct": {"method": "auto", "steps": 60}}) == set()


def test_the_run_cache_in_a_remote_saves_a_colleague_every_stage(team, clone):
    team.run(clone, f"dvc remote add --local -d team {team.folder / 'remote'}")
    team.run(clone, "dvc push --run-cache")
    colleague = team.clone("colleague")
    team.run(colleague, f"dvc remote add --local -d team {team.folder / 'remote'}")
    assert team.ran(colleague, "dvc repro --pull") == set()
    assert outputs(colleague) == outputs(clone)


def test_a_shared_cache_saves_a_colleague_every_stage(team, clone):
    colleague = team.clone("neighbour")
    team.run(colleague, f"dvc cache dir --local {clone / '.dvc/cache'}")
    assert team.ran(colleague, "dvc repro") == set()


def test_two_cold_runs_give_the_same_outputs(clone, finished):
    timed = "reports/scoring.json"  # holds seconds; only the report depends on it
    files = {path: md5 for path, md5 in outputs(clone).items() if not md5.endswith(".dir") and path != timed}
    assert len(files) >= 9
    assert files == {path: hashlib.md5((finished / path).read_bytes()).hexdigest() for path in files}
    for folder in ("dense", "grams", "pruned", "reconstructed", "finetuned"):
        ours = {p.name: p.read_bytes() for p in (clone / "data" / folder).iterdir()}
        assert ours == {p.name: p.read_bytes() for p in (finished / "data" / folder).iterdir()}
