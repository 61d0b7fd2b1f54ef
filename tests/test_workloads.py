"""Every shipped workload is valid and runs, at tiny size; so does a user's own network."""

import functools
import gzip
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pipeline import (
    ROOT,
    complaint,
    make_project,
    merged,
    read_yaml,
    run_module,
    run_stages,
    stage_entry,
    stage_names,
    write_yaml,
)

import sglp
from sglp.batches import even_slices
from sglp.tasks.schemas import schema_of
from stages.support.layers import read_layers
from stages.support.params import ParameterError, check

TASKS = {path.stem: read_yaml(path)["task"] for path in sorted((ROOT / "models").glob("*.yaml"))}
WORKLOADS = [name for name, task in TASKS.items() if task == "image_classification"]
# Networks and images like those of resnet18-imagenette, but larger.
SLOW: tuple[str, ...] = ("resnet34-imagewoof", "resnet50-imagenet")
# They differ from resnet20-cifar10 in depth or in the number of classes, or are the network of the tiny project.
SLOW += tuple(f"resnet{depth}" for depth in ("32-cifar10", "44-cifar10", "56-cifar10", "110-cifar10", "56-cifar100"))
SLOW += ("resnet56-digits", "resnet20-digits", "resnet56-cifar10-jpeg")
SAMPLES = 8
DIALS = {
    "prune_ratio": 0.1,
    "k": 2,
    "method": "tail",
    "prune": {"recalibration_samples": SAMPLES},
    "reconstruct": {"steps": 2},
}
ALIAS = {"split": "train[:100%]"}  # the same images, under another name
SIZES = {
    "calibration": {"samples": SAMPLES, "batch_size": SAMPLES},
    "scoring": {"batch_size": 4, "max_combinations": 0},
    "reconstruction": {"samples": SAMPLES, "batch_size": 2},
    "evaluation": {"batch_size": SAMPLES},
}


def images(size: tuple[int, int], channels: int) -> list[np.ndarray]:
    shape = (size[1], size[0]) if channels == 1 else (size[1], size[0], channels)
    return list(np.random.default_rng(0).integers(0, 256, (SAMPLES, *shape), dtype=np.uint8))


def tiny_data(workload: dict, folder: Path) -> dict:
    """The workload with a handful of random images of the kind that it reads."""
    source, prepare = workload["data"]["source"], workload["data"]["prepare"]
    labels = [i % 4 for i in range(SAMPLES)]
    if source["loader"] == "sglp.tasks.digits:Digits":
        return workload
    if source["loader"] == "torchvision.datasets:FashionMNIST":
        raw = folder / "FashionMNIST/raw"
        raw.mkdir(parents=True)
        pixels = np.stack(images((28, 28), 1))
        for split in ("train", "t10k"):
            header = struct.pack(">IIII", 2051, SAMPLES, 28, 28)
            for name, content in (
                (f"{split}-images-idx3-ubyte", header + pixels.tobytes()),
                (f"{split}-labels-idx1-ubyte", struct.pack(">II", 2049, SAMPLES) + bytes(labels)),
            ):
                (raw / name).write_bytes(content)
                (raw / f"{name}.gz").write_bytes(gzip.compress(content))
    elif source["name"] == "imagefolder":
        for i, pixels in enumerate(images((60, 48), 3)):
            path = folder / f"class{labels[i]}/{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    else:
        import datasets

        assert source["name"] == "parquet" or source["revision"], "a data set on the hub is pinned to a revision"
        columns = {
            prepare["image_column"]: [Image.fromarray(p) for p in images((32, 32), 3)],
            prepare["label_column"]: labels,
        }
        features = datasets.Features(
            {prepare["image_column"]: datasets.Image(), prepare["label_column"]: datasets.Value("int64")}
        )
        folder.mkdir(parents=True)
        datasets.Dataset.from_dict(columns, features=features).to_parquet(folder / "images.parquet")
        workload["data"] |= {"train": {}, "test": ALIAS}
        workload["data"]["source"] |= {"name": "parquet", "revision": None}
        folder = folder / "images.parquet"
    if source["name"] == "imagefolder":
        workload["data"]["test"] = ALIAS
        prepare["classes"] = 4
    for split in ("train", "test"):
        workload["files"][split] = {"path": str(folder), "sha256": None}
    return workload


def run_pipeline(project: Path, workload: dict) -> None:
    """All stages but benchmark and report, in this process."""
    write_yaml(project / "models/tiny.yaml", workload)
    run_module("tools.checksums", "models/tiny.yaml")
    run_stages(project, [stage for stage in stage_names(project) if stage not in ("benchmark", "report")])


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    folder = make_project(tmp_path / "project")
    write_yaml(folder / "params.yaml", merged(read_yaml(folder / "params.yaml"), DIALS))
    monkeypatch.chdir(folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    return folder


@functools.cache
def keys_of_workloads() -> set[str]:
    """The keys of workload files that dvc.yaml lists."""
    listed = (stage_entry(ROOT, stage).get("params", []) for stage in stage_names(ROOT))
    return {
        key for items in listed for item in items if isinstance(item, dict) for keys in item.values() for key in keys
    }


@pytest.mark.parametrize("name", TASKS)
def test_every_workload_has_every_key(name):
    # DVC refuses a parameter that is listed in dvc.yaml and missing in the file.
    workload = read_yaml(ROOT / f"models/{name}.yaml")
    assert len(keys_of_workloads()) >= 19
    for key in keys_of_workloads():
        value = workload
        for part in key.split("."):
            value = value[part]


@pytest.mark.parametrize("name", TASKS)
def test_every_workload_is_valid(name):
    path = ROOT / f"models/{name}.yaml"
    content = read_yaml(path)
    check(schema_of(content), content, path)


# After a few steps batch norm's statistics are far from those of the data, and what is left at the end may be nothing.
@pytest.mark.filterwarnings("ignore::sglp.errors.DeadLayerWarning")
@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in WORKLOADS])
def test_every_workload_runs(name, project):
    workload = read_yaml(ROOT / f"models/{name}.yaml")
    if workload["weights"]["source"] == "factory":
        import torchvision

        make = workload["architecture"]["factory"].partition(":")[2]
        known = torchvision.models.get_model_weights(make).__members__
        assert workload["weights"]["kwargs"]["weights"] in known
    workload["weights"] = {"source": "random", "kwargs": {}, "train": True}
    workload["files"]["weights"] = {"path": None, "sha256": None}
    workload = tiny_data(workload, project.parent / "raw")
    short = {"epochs": 1, "warmup_epochs": 0, "samples": SAMPLES}
    workload = merged(workload, {"pretrain": short, "finetune": short} | SIZES)
    if workload["evaluation"]["robustness"] is not None:
        workload["evaluation"]["robustness"] |= {"samples": 2, "pgd_steps": 1}
    run_pipeline(project, workload)
    dense, tuned = sglp.load(project / "data/dense"), sglp.load(project / "data/finetuned")
    assert sum(p.numel() for p in tuned.parameters()) < sum(p.numel() for p in dense.parameters())


def refusal(name: str, changes: dict) -> str | None:
    """What is said of a shipped workload with other values, by keys with dots; None where it is valid."""
    path = ROOT / f"models/{name}.yaml"
    content = read_yaml(path)
    for key, value in changes.items():
        *groups, last = key.split(".")
        group = content
        for part in groups:
            group = group[part]
        group[last] = value
    try:
        check(schema_of(content), content, path)
    except ParameterError as error:
        return str(error)


@pytest.mark.parametrize(
    ("name", "factory"),
    [
        ("qwen3-4b", "sglp.tasks.language_models:causal_lm"),
        ("vit-digits", "sglp.tasks.vision_models:image_classifier"),
    ],
)
def test_weights_from_the_hub_are_pinned_to_a_commit(name, factory, monkeypatch):
    monkeypatch.chdir(ROOT)  # where there is a folder of the name "models"
    for pretrained, revision in (
        ("me/model", "main"),
        ("me/model", None),
        ("models", "0" * 40),
        ("me/model", "0" * 40),
    ):
        kwargs = {"pretrained": pretrained} | ({"revision": revision} if revision else {})
        said = refusal(
            name,
            {
                "architecture": {"factory": factory, "kwargs": {}},
                "weights": {"source": "factory", "kwargs": kwargs, "train": False},
            },
        )
        if (pretrained, revision) == ("me/model", "0" * 40):
            assert said is None
        else:
            assert f"weights.kwargs={kwargs} is wrong: it must have pretrained (a name on the hub) and revision" in said


@pytest.mark.parametrize("key", ["root", "data_dir", "data_files"])
def test_data_without_a_checksum(key):
    said = refusal("resnet20-fashion-mnist", {f"data.test.{key}": "data/raw"})
    assert f"{key} has no checksum: set files.train.path and files.test.path instead" in said


@pytest.mark.parametrize(
    ("train", "test", "overlap"),
    [
        ("train", "train[:5000]", True),
        ("train[:40000]", "train[39999:]", True),
        ("train[10:20]", "train[:11]", True),
        ("train[:50%]", "train[:50%]", True),
        ("train[:40000]", "train[40000:45000]", False),
        ("train", "test", False),
        ("train[:50%]", "train[50%:]", False),
    ],
)
def test_splits_that_share_samples(train, test, overlap):
    said = refusal("resnet56-cifar10", {"data.train.split": train, "data.test.split": test})
    assert (said is not None and "data.train and data.test overlap" in said) == overlap
    elsewhere = {"data.train": {"split": train}, "data.test": {"split": test, "name": "other"}}
    assert refusal("resnet56-cifar10", elsewhere) is None


@pytest.mark.parametrize(("samples", "size"), [(64, 32), (65, 32), (8, 4), (9, 4), (9, 5), (5, 4), (11, 4), (4, 4)])
def test_cka_needs_four_samples_in_every_batch(samples, size):
    said = refusal("resnet20-digits", {"calibration.samples": samples, "calibration.batch_size": size})
    smallest = min(part.stop - part.start for part in even_slices(samples, size))
    assert (said is None) == (smallest >= 4)
    assert said is None or f"gives a batch of {smallest}, which is too small" in said


def test_all_code_of_tasks_is_declared():
    there = {path.relative_to(ROOT).as_posix() for path in (ROOT / "sglp/tasks").rglob("*.py")}
    stages = ("pretrain", "evaluate", "benchmark")
    making, judging, timing = ({dep for dep in stage_entry(ROOT, stage)["deps"] if dep in there} for stage in stages)
    # The command line alone opens folders with weights.
    assert there - making - judging - timing == {"sglp/tasks/opening.py"}
    assert {path for path in judging - making if "robustness" in path or "evaluation" in path}
    assert not {path for path in making | timing if "robustness" in path or "evaluation" in path}


@pytest.mark.parametrize("layers", [[], "", 5, [1], ["layer1.*", ""], True, {"layer1": 1}])
def test_layers_are_null_or_patterns(layers):
    path = ROOT / "models/resnet20-digits.yaml"
    content = read_yaml(path)
    for right in (None, "layer1.*", ["layer1.*", "layer3.2"]):
        check(schema_of(content), content | {"layers": right}, path)
    with pytest.raises(
        ParameterError, match=r"digits\.yaml: layers.*: it must be null, a pattern of module paths, or a"
    ):
        check(schema_of(content), content | {"layers": layers}, path)


def test_a_workload_says_which_modules_are_its_layers(project):
    def names() -> list[str]:
        run_stages(project, ["extract"])
        return [layer.name for layer in read_layers("data/layers.csv")]

    workload = read_yaml(project / "models/tiny.yaml")
    workload["pretrain"] |= {"samples": SAMPLES}
    write_yaml(project / "models/tiny.yaml", workload)
    run_stages(project, ["pretrain"])
    blocks = [f"layer{stage}.{block}" for stage in (1, 2, 3) for block in range(3)]
    assert names() == ["conv1+bn1", *blocks]
    write_yaml(project / "models/tiny.yaml", workload | {"layers": ["layer3.*", "layer1.1"]})
    assert names() == ["layer1.1", *blocks[6:]]
    write_yaml(project / "models/tiny.yaml", workload | {"layers": "blocks.*"})
    assert "extract: the pattern 'blocks.*' matches no module of CifarResNet" in complaint("stages.extract")


NETS = """
from torch import nn


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x):
        return x + self.down(self.up(self.norm(x)).relu())


def build(width, blocks):
    middle = nn.Sequential(*(Block(width) for _ in range(blocks)))
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), middle, nn.Linear(width, 10))
"""


def test_a_users_own_network_with_their_weights(project, monkeypatch):
    (project.parent / "my_nets.py").write_text(NETS)
    monkeypatch.syspath_prepend(project.parent)
    monkeypatch.delitem(sys.modules, "my_nets", raising=False)
    trained = sglp.build("my_nets:build", {"width": 24, "blocks": 6}, seed=3)
    torch.save(trained.state_dict(), project.parent / "mine.pt")
    workload = read_yaml(project / "models/tiny.yaml")
    workload["architecture"] = {"factory": "my_nets:build", "kwargs": {"width": 24, "blocks": 6}}
    workload["weights"] = {"source": "file", "kwargs": {}, "train": False}
    workload["files"]["weights"]["path"] = "../mine.pt"
    workload["files"]["code"]["path"] = "../my_nets.py"
    params = read_yaml(project / "params.yaml")
    write_yaml(project / "params.yaml", params | {"prune_ratio": 0.5})
    run_pipeline(project, workload)
    dense, pruned = sglp.load("data/dense", trust=True), sglp.load("data/pruned", trust=True)
    x = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(dense(x), trained.eval()(x))
    assert (len(dense[2]), len(pruned[2])) == (6, 3)
    with pytest.raises(sglp.SGLPError, match="my_nets:build, which is not from a known library"):
        sglp.load("data/pruned")
