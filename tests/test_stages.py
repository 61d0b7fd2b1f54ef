"""Each stage declares everything that it reads."""

import shutil
import subprocess
import sys
import time

import pytest
import torch
from pipeline import (
    ROOT,
    command_environment,
    isolated,
    kill_and_run_again,
    merged,
    out_path,
    read_yaml,
    run_isolated,
    run_python,
    stage_entry,
    stage_names,
    write_yaml,
)
from safetensors.torch import load_file

from tools import dependencies
from tools.closure import closure

STAGES = stage_names(ROOT)
FILES = sorted({name.partition("@")[0] for name in STAGES})


def code(name: str) -> set[str]:
    """Return the code files that a stage declares."""
    entry = read_yaml(ROOT / "dvc.yaml")["stages"][name]
    return {dep for dep in entry.get("do", entry)["deps"] if dep.endswith(".py")}


def test_every_stage_runs_with_only_its_declared_inputs(finished):
    for stage in STAGES:  # each of them ran in a folder of its own
        folder = finished.parent / stage
        present = {path.relative_to(folder).as_posix() for path in folder.rglob("*.py")}
        assert present == code(stage.partition("@")[0]), stage
        assert all((finished / out_path(out)).exists() for out in stage_entry(finished, stage)["outs"])


def test_a_stage_writes_only_its_declared_outputs(finished):
    for stage in STAGES:
        folder = finished.parent / stage
        outs = [out_path(out) for out in stage_entry(finished, stage)["outs"]]
        inputs = [*stage_entry(finished, stage)["deps"], "dvc.yaml", "params.yaml", "models"]
        files = [p.relative_to(folder) for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts]
        extra = [f for f in files if not any(f.is_relative_to(path) for path in (*outs, *inputs))]
        assert not extra, f"{stage} also wrote {extra}"


@pytest.mark.parametrize("name", FILES)
def test_declared_code_is_the_import_closure(name):
    assert code(name) == closure(ROOT / f"stages/{name}.py", ROOT), "run `make deps` to write it into dvc.yaml"


def test_make_deps_changes_only_wrong_entries(tmp_path):
    for name in ("sglp", "stages"):
        shutil.copytree(ROOT / name, tmp_path / name)
    right = (ROOT / "dvc.yaml").read_text()
    (tmp_path / "dvc.yaml").write_text(right)
    dependencies.main(tmp_path)
    assert (tmp_path / "dvc.yaml").read_text() == right
    (tmp_path / "dvc.yaml").write_text(right.replace("      - sglp/segmentation.py\n", "", 1))
    dependencies.main(tmp_path)
    assert (tmp_path / "dvc.yaml").read_text() == right


def test_few_stages_depend_on_each_code_file():
    shared = set.intersection(*map(code, FILES))
    assert len(shared) <= 16
    assert len(code("segment")) <= 20
    assert len(code("cka")) <= 20
    assert len(code("report")) <= 29
    for name in ("cka", "segment", "prune", "score", "extract", "finetune", "report"):
        assert "sglp/tasks/hub.py" not in code(name)


@pytest.mark.parametrize("name", FILES)
def test_numeric_stages_depend_on_the_versions(name):
    entry = read_yaml(ROOT / "dvc.yaml")["stages"][name]
    assert "versions.txt" in entry.get("do", entry)["deps"]


def test_the_closure_includes_a_new_import(tmp_path):
    shutil.copytree(ROOT / "sglp", tmp_path / "sglp")
    shutil.copytree(ROOT / "stages", tmp_path / "stages")
    stage = tmp_path / "stages/segment.py"
    before = closure(stage, tmp_path)
    stage.write_text(stage.read_text() + "\n\ndef later():\n    import sglp.budget\n")
    assert closure(stage, tmp_path) - before == {"sglp/budget.py"}


def test_an_undeclared_dependency_is_missing_when_isolated(finished, tmp_path):
    project = tmp_path / "project"
    shutil.copytree(finished, project)
    content = read_yaml(project / "dvc.yaml")
    content["stages"]["segment"]["deps"].remove("data/similarity.csv")
    write_yaml(project / "dvc.yaml", content)
    assert "similarity.csv" in run_isolated(project, "segment", tmp_path / "segment", check=False).stderr


def test_undeclared_code_is_missing_when_isolated(finished, tmp_path):
    project = tmp_path / "project"
    shutil.copytree(finished, project)
    stage = project / "stages/segment.py"
    stage.write_text(stage.read_text().replace("def main", "import sglp.budget\n\n\ndef main"))
    done = run_isolated(project, "segment", tmp_path / "segment", check=False)
    assert "No module named 'sglp.budget'" in done.stderr


def test_an_undeclared_parameter_is_refused(finished, tmp_path):
    project = tmp_path / "project"
    shutil.copytree(finished, project)
    stage = project / "stages/segment.py"
    docstring = '"""Write the segments, and the loss for every k."""'
    stage.write_text(stage.read_text().replace(docstring, "params.prune_ratio"))
    done = run_python(project, "-m", "stages.segment", check=False)
    assert done.returncode == 1
    assert done.stderr.strip() == (
        "segment: the stage segment reads the parameter prune_ratio: add it to params in the stage's entry in dvc.yaml"
    )


def test_the_segment_stage_needs_no_torch(finished, tmp_path):
    code = (
        "import runpy, sys; runpy.run_module('stages.segment', run_name='__main__'); "
        "sys.exit(' '.join({'torch', 'pandas', 'transformers'} & set(sys.modules)))"
    )
    done = run_python(isolated(finished, "segment", tmp_path / "segment"), "-c", code, check=False)
    assert not done.stderr.strip()


def test_a_killed_finetune_resumes_to_the_same_weights(finished, tmp_path):
    folder = isolated(finished, "finetune", tmp_path / "finetune")
    cache = tmp_path / "cache"
    kill_and_run_again(folder, cache, after=21, steps=42)
    for out in ("data/finetuned/model.safetensors", "reports/training.csv"):
        assert (folder / out).read_bytes() == (finished / out).read_bytes()
    assert not [path for path in cache.glob("sglp/resume/*") if path.is_dir()], (
        "checkpoints are deleted when the stage succeeds"
    )


def test_without_reconstruction_the_pruned_network_is_copied(finished, tmp_path):
    folder = isolated(finished, "reconstruct", tmp_path / "reconstruct")
    for change in ({"reconstruct": {"method": "none"}}, {"prune": {"weights": "random"}}):
        params = merged(read_yaml(finished / "params.yaml"), change)
        write_yaml(folder / "params.yaml", params)
        run_python(folder, "-m", "stages.reconstruct")
        copied, pruned = (
            {p.name: p.read_bytes() for p in (folder / "data" / name).iterdir()} for name in ("reconstructed", "pruned")
        )
        assert copied == pruned
        assert (folder / "reports/reconstruction.csv").read_text() == "layer,target,how,before,after,kept\n"


@pytest.mark.slow
def test_a_killed_reconstruction_resumes_to_the_same_weights(finished, tmp_path):
    folder, cache = isolated(finished, "reconstruct", tmp_path / "reconstruct"), tmp_path / "cache"
    command = [sys.executable, "-m", "stages.reconstruct"]
    process = subprocess.Popen(command, cwd=folder, env=command_environment(cache), stderr=subprocess.DEVNULL)
    while len(list(cache.glob("sglp/resume/reconstruct-*/*.safetensors"))) < 2:
        assert process.poll() is None, "the stage ended before it could be killed"
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert not (folder / "data/reconstructed").exists()
    run_python(folder, *command[1:], cache=cache)
    for out in ("data/reconstructed/model.safetensors", "reports/reconstruction.csv"):
        assert (folder / out).read_bytes() == (finished / out).read_bytes()


def test_the_log_reaches_the_last_step(finished):
    rows = (finished / "reports/training.csv").read_text().splitlines()
    assert rows[0] == "step,epoch,loss,learning_rate,heldout_loss,heldout_accuracy"
    assert rows[-1].startswith("42,2")


def test_pruned_and_tuned_networks_differ(finished):
    pruned, tuned = (load_file(finished / f"data/{name}/model.safetensors") for name in ("pruned", "finetuned"))
    assert {name: value.shape for name, value in pruned.items()} == {name: value.shape for name, value in tuned.items()}
    trained = [name for name, value in pruned.items() if name.endswith("weight")]
    assert all(not torch.equal(pruned[name], tuned[name]) for name in trained)
