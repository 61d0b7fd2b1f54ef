"""A project whose stages are one tiny script that logs its runs, for tests of what runs when."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from pipeline import ROOT, TINY_PARAMS, TINY_WORKLOAD, command_environment, copy, merged, read_yaml, write_yaml

from experiments.git import git

STAGE = """
import os, sys, time
from pathlib import Path

name, params, model = sys.argv[1], {}, Path("params.yaml").read_text().split("model: ")[1].split()[0]
for line in Path("params.yaml").read_text().splitlines():
    key, _, value = line.partition(": ")
    params[key] = value.split(" ")[0]


def note(what):
    with Path(os.environ["RAN"]).open("a") as file:
        file.write(f"{what} {name} {os.getpid()} {os.environ.get('CUDA_VISIBLE_DEVICES')}\\n")


def read(path):
    return Path(path).read_text()


note("begin")
k, ratio, seed = params["k"], params["prune_ratio"], params["seed"]
if name == "cka":
    project = next(path.parent for path in Path.cwd().parents if path.name == ".dvc")
    text, out = seed + read(project / "data/raw/mine.txt"), "data/similarity.csv"
elif name == "segment":
    text, out = k + read("data/similarity.csv"), "data/segments.json"
elif name == "score":
    if k == "7":
        sys.exit("score: k=7 is one too many")
    if k == "8":
        raise ValueError("eight")
    # Pairs of k give the same plan, and the method does not matter.
    text, out = f"{ratio} {params['method'] if k == '9' else ''} {int(k) // 2}", "data/plan.json"
elif name == "finetune":
    while Path(os.environ["RAN"]).with_name("hold").exists():
        time.sleep(0.01)
    time.sleep(float(os.environ.get("SECONDS", 0)))
    Path("data/finetuned").mkdir(parents=True)
    text, out = read("data/plan.json") + seed, "data/finetuned/model"
elif name == "evaluate@finetuned":
    text, out = read("data/finetuned/model"), "reports/metrics/finetuned.json"
elif name == "benchmark":
    text, out = str(time.time()), "reports/benchmark.json"
elif name == "report":
    text, out = read("reports/benchmark.json") + str(params), "reports/metrics.json"
Path(out).parent.mkdir(parents=True, exist_ok=True)
Path(out).write_text(text)
note("end")
"""
PIPELINE = {
    "cka": (["versions.txt"], ["seed", "model", {"models/${model}.yaml": ["calibration"]}], "data/similarity.csv"),
    "segment": (["data/similarity.csv"], ["k"], "data/segments.json"),
    "score": (["data/segments.json"], ["k", "method", "prune_ratio"], "data/plan.json"),
    "finetune": (["data/plan.json"], ["seed", {"models/${model}.yaml": ["finetune"]}], "data/finetuned"),
    "evaluate": (["data/${item}"], [], "reports/metrics/${item}.json"),
    "benchmark": (["data/finetuned"], [], "reports/benchmark.json"),
    "report": (
        ["reports/benchmark.json", "reports/metrics/finetuned.json"],
        ["k", "method", "prune_ratio", "seed"],
        "reports/metrics.json",
    ),
}


class FakeProject:
    """The project with a commit, and the log of its stages."""

    def __init__(self, folder: Path):
        self.folder, self.log = folder / "project", folder / "ran"
        for name in (".dvc/config", ".dvcignore", "versions.txt"):
            copy(ROOT / name, self.folder / name)
        write_yaml(self.folder / "params.yaml", merged(read_yaml(ROOT / "params.yaml"), TINY_PARAMS))
        self.replace("params.yaml", "seed: 0", "seed: 0 # mine")
        workload = merged(read_yaml(ROOT / "models/resnet56-digits.yaml"), TINY_WORKLOAD)
        write_yaml(self.folder / "models/tiny.yaml", workload)
        (self.folder / "stage.py").write_text(STAGE)
        stages = {name: _entry(name, *parts) for name, parts in PIPELINE.items()}
        write_yaml(self.folder / "dvc.yaml", {"stages": stages})
        (self.folder / "data/raw").mkdir(parents=True)
        (self.folder / "data/raw/mine.txt").write_text("git does not know this file")
        self.environment = {
            "RAN": str(self.log),
            "XDG_CACHE_HOME": str(folder / "cache"),
            "DVC_SITE_CACHE_DIR": str(folder / "site"),
            "GIT_CONFIG_GLOBAL": os.devnull,
            "PYTHONPATH": str(ROOT),
        }
        commit(self.folder)

    def enter(self, monkeypatch: pytest.MonkeyPatch) -> "FakeProject":
        """Make the project the working directory of this process, with its environment."""
        monkeypatch.chdir(self.folder)
        for name, value in self.environment.items():
            monkeypatch.setenv(name, value)
        return self

    def replace(self, path: str, old: str, new: str) -> None:
        """Replace text in a file."""
        text = (self.folder / path).read_text()
        assert old in text
        (self.folder / path).write_text(text.replace(old, new))

    def git(self, *arguments: str) -> str:
        """Run a git command and return its output."""
        return git(self.folder, *arguments)

    def finished(self, baseline: str = "HEAD") -> list[str]:
        """Return the names of the finished experiments on a commit."""
        commit = self.git("rev-parse", baseline)
        refs = f"refs/exps/{commit[:2]}/{commit[2:]}"
        return self.git("for-each-ref", "--format=%(refname:lstrip=-1)", refs).split()

    def start(self, *arguments: str) -> subprocess.Popen:
        """Start a sweep in its own process."""
        environment = command_environment(self.folder.parent / "cache") | self.environment
        command = [sys.executable, "-m", "experiments.sweep", *arguments]
        return subprocess.Popen(command, cwd=self.folder, env=environment, stderr=subprocess.PIPE, text=True)

    def ran(self, event: str = "begin", since: int = 0) -> Counter:
        """Count how often each stage began or ended."""
        return Counter(line.split()[1] for line in self.lines()[since:] if line.startswith(event))

    def lines(self) -> list[str]:
        """Return the lines of the log."""
        return self.log.read_text().splitlines() if self.log.exists() else []


def commit(folder: Path) -> None:
    """Commit all files of a project, in a new repository if it has none."""
    (folder / ".gitignore").write_text("__pycache__/\n/data/\n/reports/\n")
    (folder / ".dvc/.gitignore").write_text("/config.local\n/tmp\n/cache\n")
    for command in ("init -q -b main", "add -A", "-c user.name=t -c user.email=t@t commit -q -m code"):
        git(folder, *command.split())


def _entry(name: str, deps: list[str], params: list, out: str) -> dict:
    each = name == "evaluate"
    command = f"python stage.py {name}" + ("@${item}" if each else "")
    entry = {"cmd": command, "deps": ["stage.py", *deps], "params": params, "outs": [out]}
    entry = {key: value for key, value in entry.items() if value}
    return {"foreach": ["finetuned"], "do": entry} if each else entry
