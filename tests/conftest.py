"""What tests share: a small trained network and its data, and a tiny project whose stages all ran."""

import copy
import os
import shutil
import sys
from pathlib import Path

import pipeline
import pytest
import torch
import torch.nn.functional as F
from filelock import FileLock

import sglp

# Networks this small gain nothing from more threads, and lose minutes where other programs run beside.
torch.set_num_threads(1)

# They take minutes, and one of them alone at the end would leave all workers but its own without work.
FIRST = ("test_dvc.py", "test_workloads.py", "test_processes.py", "test_sweep.py", "test_stages.py")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--rewrite-golden", action="store_true", help="write tests/golden anew")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in FIRST)


@pytest.fixture(scope="session")
def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """The embedded digits: images [1797, 1, 8, 8] in -1..1 and their classes."""
    from sklearn.datasets import load_digits

    images, targets = load_digits(return_X_y=True)
    return torch.tensor(images / 8 - 1, dtype=torch.float32).view(-1, 1, 8, 8), torch.tensor(targets)


@pytest.fixture(scope="session")
def _trained(digits):
    images, targets = digits
    network = sglp.build("sglp.networks.cifar_resnet:resnet", {"depth": 20, "in_channels": 1}, seed=0)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    for start in range(0, 1280, 64):
        F.cross_entropy(network(images[start : start + 64]), targets[start : start + 64]).backward()
        optimizer.step()
        optimizer.zero_grad()
    return network.eval()


@pytest.fixture
def network(_trained):
    """A ResNet-20 that was trained on digits for a moment: the stem and nine blocks, seven of them removable."""
    return copy.deepcopy(_trained)


@pytest.fixture
def layers(network, digits):
    return sglp.find_layers(network, digits[0][:2])


@pytest.fixture
def foreign(tmp_path, monkeypatch) -> Path:
    """A folder of a language model that brings code of its own."""
    from hugging_face_families import save_with_code

    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("sys.path", [*sys.path])
    save_with_code(tmp_path / "foreign")
    return tmp_path / "foreign"


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    """The tiny project after all its stages ran, each in a folder of its own with only what it declares.

    It takes a minute, so that all workers of a test run share one; tests only read it.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "isolated"
    with FileLock(f"{folder}.lock"):
        if not (folder / "finished").exists():
            shutil.rmtree(folder, ignore_errors=True)  # what another worker failed at
            _run_all_stages(pipeline.make_project(folder / "project"))
            (folder / "finished").touch()
    return folder / "project"


def _run_all_stages(project: Path) -> None:
    for stage in pipeline.stage_names(project):
        folder = project.parent / stage
        pipeline.run_isolated(project, stage, folder)
        for out in map(pipeline.out_path, pipeline.stage_entry(project, stage)["outs"]):
            assert (folder / out).exists(), f"{stage} did not write {out}"
            pipeline.copy(folder / out, project / out)
