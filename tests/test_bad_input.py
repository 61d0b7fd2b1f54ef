"""Bad input is reported in one clear sentence without a traceback, before any work is done."""

import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pipeline import complaint, make_project, merged, read_yaml, run_module, run_python, write_yaml


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """A tiny project, which is the current folder."""
    folder = make_project(tmp_path / "project")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "path", list(sys.path))  # the user's code is added to it
    return folder


def change_params(project: Path, changes: dict) -> None:
    write_yaml(project / "params.yaml", merged(read_yaml(project / "params.yaml"), changes))


def change_workload(project: Path, changes: dict) -> None:
    path = project / "models/tiny.yaml"
    write_yaml(path, merged(read_yaml(path), changes))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"k": 0}, "params.yaml: k=0 is wrong: it must be greater than or equal to 1"),
        ({"k": "five"}, "params.yaml: k='five' is wrong: it must be a valid integer or 'auto'"),
        ({"prune_ratio": 1.0}, "params.yaml: prune_ratio=1.0 is wrong: it must be less than 1"),
        ({"seed": True}, "params.yaml: seed=True is wrong: it must be a valid integer"),
        (
            {"cka": {"estimator": "fair"}},
            "params.yaml: cka.estimator='fair' is wrong: it must be 'unbiased' or 'biased'",
        ),
        ({"method": "sglpp"}, "method=sglpp is unknown: it must be sglp, angular, "),
        ({"score": {"criterion": "best"}}, "score.criterion=best is unknown: it must be cka_output, fitted_cka, "),
        (
            {"score": {"budget": [2, 1]}},
            "score.budget=[2, 1] says what each segment keeps, but with score.search=joint",
        ),
        ({"model": "nope"}, "model=nope is unknown: models/nope.yaml does not exist; the available workloads are tiny"),
    ],
)
def test_a_wrong_value_is_reported_with_its_file_and_key(project, changes, sentence):
    change_params(project, changes)
    assert sentence in complaint("tools.check")


def test_an_unknown_key_is_reported_with_the_valid_keys(project):
    content = read_yaml(project / "params.yaml")
    content["cka"]["estimater"] = content["cka"].pop("estimator")
    write_yaml(project / "params.yaml", content)
    sentence = complaint("tools.check")
    assert "params.yaml: cka.estimater is not a valid key" in sentence
    assert "estimator, kernel" in sentence


def test_an_unknown_key_in_a_group_that_can_be_null(project):
    content = read_yaml(project / "models/tiny.yaml")
    content["evaluation"]["robustness"]["fsgm"] = content["evaluation"]["robustness"].pop("fgsm")
    write_yaml(project / "models/tiny.yaml", content)
    sentence = complaint("tools.check")
    assert "models/tiny.yaml: evaluation.robustness.fsgm is not a valid key; the valid keys are fgsm, pgd" in sentence


def test_a_missing_key_is_reported(project):
    content = read_yaml(project / "models/tiny.yaml")
    del content["finetune"]["epochs"]
    write_yaml(project / "models/tiny.yaml", content)
    assert complaint("tools.check") == "models/tiny.yaml: the key finetune.epochs is missing"


def test_invalid_yaml(project):
    (project / "params.yaml").write_text("k: [1")
    assert "params.yaml is not valid YAML" in complaint("tools.check")


@pytest.mark.parametrize(("text", "problem"), [("", "is empty"), ("- k", "holds a list")])
def test_a_file_without_keys(project, text, problem):
    (project / "params.yaml").write_text(text)
    assert complaint("tools.check") == f"params.yaml {problem}: it must hold keys with values, such as 'seed: 0'"


def test_more_segments_than_layers(project):
    change_params(project, {"k": 9})
    (project / "data").mkdir()
    rows = [f"{i},{j},{float(i == j)}" for i in range(3) for j in range(3)]
    (project / "data/similarity.csv").write_text("\n".join(["row,column,similarity", *rows]) + "\n")
    sentence = complaint("stages.segment")
    assert sentence == "segment: k=9 segments can't be made of 3 layers: k must be 1 to 3"
    assert not (project / "data/segments.json").exists()


@pytest.fixture
def checkpoint(project) -> Path:
    """A user's file with weights of the tiny network; the workload has its path and checksum."""
    import sglp

    workload = read_yaml(project / "models/tiny.yaml")
    network = sglp.build(workload["architecture"]["factory"], workload["architecture"]["kwargs"], seed=0)
    path = project / "weights.pt"
    torch.save({"state_dict": network.state_dict()}, path)
    change_workload(
        project, {"weights": {"source": "file", "train": False}, "files": {"weights": {"path": "weights.pt"}}}
    )
    run_module("tools.checksums", "models/tiny.yaml")
    return path


def test_a_weights_file_is_used(project, checkpoint):
    run_module("stages.pretrain")
    assert (project / "data/dense/model.safetensors").exists()


def test_missing_weights(project, checkpoint):
    checkpoint.unlink()
    for module in ("tools.check", "stages.pretrain"):
        assert "models/tiny.yaml: files.weights.path=weights.pt does not exist" in complaint(module)


def test_a_replaced_file_has_the_wrong_sha256(project, checkpoint):
    checkpoint.write_bytes(checkpoint.read_bytes()[:-100])
    sentence = complaint("stages.pretrain")
    assert "weights.pt has the sha256" in sentence
    assert "run 'python -m tools.checksums models/tiny.yaml'" in sentence


def test_corrupted_weights(project, checkpoint):
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    run_module("tools.checksums", "models/tiny.yaml")
    assert "weights.pt is broken" in complaint("stages.pretrain")


def test_weights_of_another_architecture(project, checkpoint):
    change_workload(project, {"architecture": {"kwargs": {"depth": 14}}})
    sentence = complaint("stages.pretrain")
    assert "weights.pt does not hold this network's weights" in sentence
    assert not (project / "data/dense").exists()


def test_no_checksum(project, checkpoint):
    change_workload(project, {"files": {"weights": {"sha256": None}}})
    for module in ("tools.check", "stages.pretrain"):
        assert "models/tiny.yaml: files.weights.sha256 is not set: run" in complaint(module)


CHAIN = """
from torch import nn


def chain():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 10))
"""


def test_nothing_removable(project):
    (project / "chain.py").write_text(CHAIN)
    change_workload(
        project,
        {"architecture": {"factory": "chain:chain", "kwargs": {}}, "files": {"code": {"path": "chain.py"}}},
    )
    # `merged` merges groups, so the arguments of the other factory must be removed separately.
    content = read_yaml(project / "models/tiny.yaml")
    content["architecture"]["kwargs"] = {}
    write_yaml(project / "models/tiny.yaml", content)
    run_module("tools.checksums", "models/tiny.yaml")
    run_module("stages.pretrain")
    sentence = complaint("stages.extract")
    assert "no layer of this network can be removed" in sentence
    assert "changes the shape from 64 to 32" in sentence
    assert not (project / "data/grams").exists()


def test_a_factory_that_does_not_exist(project):
    change_workload(project, {"architecture": {"factory": "sglp.networks.cifar_resnet:resnext"}})
    assert "the module sglp.networks.cifar_resnet has no resnext" in complaint("stages.pretrain")


def use_images(project: Path, count: int, label: int) -> None:
    """Make the workload use a parquet file of grey images that all have the same label."""
    import datasets

    images = [Image.fromarray(np.full((8, 8), i, dtype=np.uint8)) for i in range(count)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    table = datasets.Dataset.from_dict({"image": images, "label": [label] * count}, features=features)
    table.to_parquet(project / "train.parquet")
    content = read_yaml(project / "models/tiny.yaml")
    content["data"]["source"] = {"loader": "datasets", "name": "parquet", "revision": None}
    content["data"]["train"], content["data"]["test"] = {}, {"split": "train"}
    content["files"]["train"]["path"] = "train.parquet"
    write_yaml(project / "models/tiny.yaml", content)
    run_module("tools.checksums", "models/tiny.yaml")


def test_labels_out_of_range(project):
    use_images(project, 4, 12)
    sentence = complaint("stages.pretrain")
    assert "train.parquet has the label 12, but data.prepare.classes=10 allows 0 to 9" in sentence


def test_an_empty_data_set(project):
    use_images(project, 0, 0)
    assert "train.parquet has no samples" in complaint("stages.pretrain")


def test_too_few_samples(project):
    use_images(project, 6, 3)
    run_module("stages.pretrain")
    assert "64 samples are needed, but" in complaint("stages.extract")


def test_a_stage_writes_one_line_to_stderr(project):
    change_params(project, {"k": 0})
    done = run_python(project, "-m", "stages.segment", check=False)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("segment: params.yaml: k=0 is wrong")


def test_a_python_without_sglp_is_reported(project, tmp_path):
    venv.create(tmp_path / "bare", with_pip=False)
    python = tmp_path / "bare/bin/python"
    done = subprocess.run([python, "-m", "stages.segment"], cwd=project, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith(f"sglp is not installed for {python}: activate the project's environment")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"pretrain": {"warmup_epochs": 1}}, "models/tiny.yaml: pretrain: warmup_epochs=1 must be below epochs=1"),
        (
            {"finetune": {"keep": "best", "holdout": 0.0}},
            "models/tiny.yaml: finetune: keep: best needs a holdout above 0",
        ),
        ({"weights": {"source": "factory"}}, "models/tiny.yaml: weights: kwargs={} does not fit source: factory"),
        ({"weights": {"train": False}}, "models/tiny.yaml: weights: source: random needs train: true"),
        (
            {"data": {"source": {"loader": "datasets", "name": "me/images"}}},
            "models/tiny.yaml: data.source: a data set on the hub needs a commit as revision",
        ),
        (
            {"data": {"test": {"train": True}}},
            "models/tiny.yaml: data.train and data.test overlap",
        ),
        (
            {"data": {"prepare": {"mean": [0.1, 0.2]}}},
            "mean and std have 2 and 1 values: each needs 1, one per channel",
        ),
        (
            {"finetune": {"augment": [{"RandomCorp": {}}]}},
            "'RandomCorp' is not a transform of torchvision.transforms.v2",
        ),
        ({"finetune": {"augment": [{"RandomCrop": {}}]}}, "the transform RandomCrop can't take {}"),
        (
            {"finetune": {"augment": [{"RandomErasing": {"value": "random"}}]}},
            "RandomErasing can't take value: random",
        ),
        ({"finetune": {"optimizer": "adamw"}}, "models/tiny.yaml: finetune: momentum=0.9 is only for sgd"),
    ],
)
def test_a_wrong_workload_is_reported_before_anything_runs(project, changes, sentence):
    change_workload(project, changes)
    assert sentence in complaint("tools.check")


def test_a_crop_larger_than_the_images(project):
    change_workload(project, {"pretrain": {"augment": [{"RandomCrop": {"size": 32}}]}})
    assert "can't be prepared: Required crop size (32, 32) is larger" in complaint("stages.pretrain")


def test_images_that_do_not_fit_the_network(project):
    change_workload(project, {"architecture": {"kwargs": {"in_channels": 3}}})
    assert "the network can't take inputs of the shape [1, 1, 8, 8]" in complaint("stages.pretrain")


def test_code_in_the_projects_folder_without_a_checksum(project, monkeypatch):
    monkeypatch.syspath_prepend(project)
    (project / "lurking.py").write_text(CHAIN)
    change_workload(project, {"architecture": {"factory": "lurking:chain"}})
    assert "lurking (lurking.py) is code in the project's folder without a checksum" in complaint("stages.pretrain")


def test_code_without_a_checksum_in_a_folder_without_init(project, monkeypatch):
    monkeypatch.syspath_prepend(project)
    (project / "lurking_nets").mkdir()
    (project / "lurking_nets/nets.py").write_text(CHAIN)
    change_workload(project, {"architecture": {"factory": "lurking_nets.nets:chain"}})
    assert "lurking_nets.nets (nets.py) is code in the project's folder without a checksum" in complaint(
        "stages.pretrain"
    )


def test_code_that_imports_a_file_beside_it(project, monkeypatch):
    monkeypatch.syspath_prepend(project)
    (project / "beside.py").write_text(CHAIN)
    (project / "fronting.py").write_text("from beside import chain\n")
    change_workload(
        project, {"architecture": {"factory": "fronting:chain"}, "files": {"code": {"path": "fronting.py"}}}
    )
    run_module("tools.checksums", "models/tiny.yaml")
    assert "beside (beside.py) is code in the project's folder without a checksum: put it and" in complaint(
        "stages.pretrain"
    )


def test_code_in_a_package_with_a_checksum(project, monkeypatch):
    monkeypatch.syspath_prepend(project)
    (project / "my_package").mkdir()
    (project / "my_package/__init__.py").write_text("")
    (project / "my_package/beside.py").write_text(CHAIN)
    (project / "my_package/nets.py").write_text("from my_package.beside import chain\n")
    content = read_yaml(project / "models/tiny.yaml")
    content["architecture"] = {"factory": "my_package.nets:chain", "kwargs": {}}
    content["files"]["code"]["path"] = "my_package"
    write_yaml(project / "models/tiny.yaml", content)
    run_module("tools.checksums", "models/tiny.yaml")
    run_module("stages.pretrain")


def test_only_the_workloads_factory_is_trusted(project):
    run_module("stages.pretrain")
    path = project / "data/dense/architecture.json"
    path.write_text(path.read_text().replace("sglp.networks.cifar_resnet:resnet", "os:system"))
    assert "data/dense is built by os:system, which is not from a known library" in complaint("stages.extract")


def test_installed_versions_that_differ_from_the_recorded_ones(project):
    (project / "versions.txt").write_text("no-such-library==1.0.0\ntorch==1.0.0\n")  # the first is not installed
    assert "versions.txt requires torch==1.0.0, but torch" in complaint("stages.segment")


def test_versions_of_all_libraries_that_affect_results_are_recorded(project):
    recorded = (project / "versions.txt").read_text()
    (project / "versions.txt").unlink()
    run_module("tools.versions")
    assert (project / "versions.txt").read_text() == recorded
    names = {line.partition("==")[0] for line in recorded.split()}
    assert {"accelerate", "datasets", "gguf", "scikit-learn", "timm", "torch"} < names


def test_a_diverged_training_writes_no_network(project):
    change_workload(project, {"pretrain": {"learning_rate": 1e20}})
    assert "training diverged" in complaint("stages.pretrain")
    assert not (project / "data/dense").exists()
