"""A network can start from a saved one, pruned or not, and be trained further, also in half precision."""

from pathlib import Path

import pytest
import torch
from language import byte_tokenizer, tiny_llama
from pipeline import complaint, copy, kill_and_run_again, make_project, merged, read_yaml, run_module, write_yaml
from safetensors.torch import load_file
from torch import nn

import sglp
from sglp.architecture import architecture_of, remember
from sglp.checkpoints.warm_start import warm_start
from sglp.errors import CheckpointError
from sglp.running import call, logits_of
from sglp.tasks.causal_lm import building as causal_lm
from sglp.tasks.image_classification import building as image_classification
from sglp.tasks.image_classification import data as image_data
from sglp.tasks.image_classification import training as image_training
from sglp.tasks.schemas.image_classification import Finetuning
from sglp.tasks.schemas.workload import Architecture, Weights
from sglp.tasks.trainer.train import train
from stages.support.tables import read_rows
from stages.support.userfiles import checksum

RESNET = "sglp.networks.cifar_resnet:resnet"
CAUSAL_LM = "sglp.tasks.language_models:causal_lm"
FILE = Weights(source="file", kwargs={}, train=False)


def logits(network, example):
    with torch.no_grad():
        return logits_of(call(network.eval(), example))


def without(network, removed, example):
    names = [layer.name for layer in sglp.find_layers(network, example)]
    return sglp.prune(network, sglp.Plan([name for name in names if name not in removed], removed))


ROUNDS = {
    "cifar resnet": (
        image_classification,
        Architecture(factory=RESNET, kwargs={"depth": 20, "in_channels": 1}),
        torch.ones(2, 1, 8, 8),
    ),
    "resnet18": (
        image_classification,
        Architecture(factory="torchvision.models:resnet18", kwargs={"num_classes": 4}),
        torch.ones(2, 3, 32, 32),
    ),
    "llama": (causal_lm, Architecture(factory=CAUSAL_LM, kwargs={}), {"input_ids": torch.arange(12).view(2, 6)}),
}


@pytest.mark.parametrize("name", ROUNDS)
def test_three_rounds_are_as_one_to_the_bit(name, tmp_path):
    task, architecture, example = ROUNDS[name]
    if name == "llama":
        dense, tokenizer = tiny_llama(6), byte_tokenizer()
    else:
        dense, tokenizer = task.build(architecture, FILE, None, 0).eval(), None
    layers = sglp.find_layers(dense, example)
    sglp.save(dense, tmp_path / "0", tokenizer)
    removed: list[str] = []
    kept = [layer.name for layer in layers]
    for number in (1, 2, 3):
        network = task.build(architecture, FILE, str(tmp_path / str(number - 1)), seed=number).eval()
        now = sglp.find_layers(network, example)
        index = [i for i, layer in enumerate(now) if layer.removable][(0, 1, -1)[number - 1]]
        pruned = without(network, [now[index].name], example)
        removed.append(kept.pop(index))
        sglp.save(pruned, tmp_path / str(number), tokenizer)
        at_once = without(dense, removed, example)
        loaded = sglp.load(tmp_path / str(number))
        assert architecture_of(loaded).removed == tuple(removed)
        assert architecture_of(loaded).kept == tuple(kept)
        for other in (pruned, loaded, task.build(architecture, FILE, str(tmp_path / str(number)), seed=9).eval()):
            assert architecture_of(other) == architecture_of(loaded)
            assert list(other.state_dict()) == list(at_once.state_dict())
            assert torch.equal(logits(other, example), logits(at_once, example))
    assert len(set(removed)) == 3
    assert {layer.name for layer in layers} == {*removed, *kept}


@pytest.fixture
def pruned(network, layers, tmp_path) -> Path:
    """The folder of a network without two of its layers."""
    remember(network, sglp.Architecture(RESNET, {"depth": 20, "in_channels": 1, "num_classes": 10}))
    sglp.save(without(network, ["layer1.0", "layer3.1"], torch.ones(2, 1, 8, 8)), tmp_path / "pruned")
    return tmp_path / "pruned"


def test_with_another_number_of_classes_all_but_the_head_is_loaded(pruned, digits, capsys):
    architecture = Architecture(factory=RESNET, kwargs={"depth": 20, "in_channels": 1, "num_classes": 7})
    started = image_classification.build(architecture, FILE, str(pruned), seed=5).eval()
    assert capsys.readouterr().err == (
        f"{pruned} has other shapes for linear.weight, linear.bias: these start from random weights\n"
    )
    saved, fresh = sglp.load(pruned), sglp.build(RESNET, architecture.kwargs, seed=5)
    assert torch.equal(started.linear.weight, fresh.linear.weight)
    started.linear, saved.linear = nn.Identity(), nn.Identity()
    assert torch.equal(logits(started, digits[0][:8]), logits(saved, digits[0][:8]))
    assert architecture_of(started).kwargs == architecture.kwargs
    assert architecture_of(started).removed == ("layer1.0", "layer3.1")


def test_half_precision_is_kept_in_the_whole_network(pruned, tmp_path):
    sglp.save(sglp.load(pruned).to(torch.bfloat16), tmp_path / "half")
    dense = sglp.build(RESNET, {"depth": 20, "in_channels": 1, "num_classes": 3}, seed=0)
    started, fresh = warm_start(dense, tmp_path / "half")
    assert fresh == ["linear.weight", "linear.bias"]
    assert {p.dtype for p in started.parameters()} == {torch.bfloat16}


class Wide(nn.Sequential):
    """A stem, blocks and a head; `width` changes the shapes of the blocks, `classes` only that of the head."""

    def __init__(self, width: int, classes: int = 3):
        inside = [nn.Sequential(nn.Linear(8, width), nn.Linear(width, 8)) for _ in range(3)]
        super().__init__(nn.Linear(4, 8), *inside, nn.Linear(8, classes))


@pytest.mark.parametrize(
    ("factory", "kwargs", "sentence"),
    [
        ("torchvision.models:resnet18", {}, r"pruned holds a network of sglp\.\S+:resnet, so a network of torchvision"),
        (
            RESNET,
            {"depth": 14, "in_channels": 1},
            r"from \{'depth': 14, 'in_channels': 1\} it builds no module layer1\.2",
        ),
        (RESNET, {"depth": 26, "in_channels": 1}, r"it builds other modules \(only one .* has layer1\.2\.bn1\.bias"),
    ],
)
def test_networks_that_can_not_start_from_it(pruned, factory, kwargs, sentence):
    with pytest.raises(CheckpointError, match=sentence):
        warm_start(sglp.build(factory, kwargs, seed=0), pruned)


def test_a_network_in_which_almost_nothing_fits(tmp_path):
    wide = f"{__name__}:Wide"
    sglp.save(sglp.build(wide, {"width": 5}, seed=0), tmp_path / "saved")
    started, fresh = warm_start(sglp.build(wide, {"width": 5, "classes": 9}, seed=1), tmp_path / "saved")
    assert fresh == ["4.weight", "4.bias"]
    assert torch.equal(started[0].weight, sglp.load(tmp_path / "saved", trust=True)[0].weight)
    with pytest.raises(CheckpointError, match="it builds 9 of 16 parameters with another shape"):
        warm_start(sglp.build(wide, {"width": 6}, seed=1), tmp_path / "saved")


def test_a_folder_without_a_saved_network(tmp_path):
    architecture = Architecture(factory=RESNET, kwargs={"depth": 8})
    with pytest.raises(CheckpointError, match=r"is not a saved network: it has no architecture\.json"):
        image_classification.build(architecture, FILE, str(tmp_path), seed=0)


# --- stages -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def project(pruned, tmp_path, monkeypatch) -> Path:
    """A project with a workload that starts from the pruned network."""
    folder = make_project(tmp_path / "project")
    weights = {"source": "file", "kwargs": {}, "train": False}
    change(folder, {"weights": weights, "files": {"weights": {"path": str(pruned), "sha256": checksum(pruned)}}})
    monkeypatch.chdir(folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return folder


def change(project: Path, changes: dict) -> None:
    path = project / "models/tiny.yaml"
    write_yaml(path, merged(read_yaml(path), changes))


def test_an_untrained_start_is_the_saved_network_to_the_byte(project, pruned):
    run_module("stages.pretrain")
    for file in ("model.safetensors", "architecture.json"):
        assert (project / "data/dense" / file).read_bytes() == (pruned / file).read_bytes()


def test_training_begins_at_the_saved_network(project, pruned):
    recipe = {"learning_rate": 1e-9, "weight_decay": 0.0, "samples": 128}
    change(project, {"weights": {"train": True}, "pretrain": recipe})
    run_module("stages.pretrain")
    before, after = sglp.load(pruned), sglp.load("data/dense")
    assert architecture_of(after) == architecture_of(before)
    for old, new in zip(before.parameters(), after.parameters(), strict=True):
        torch.testing.assert_close(new, old, rtol=0, atol=1e-5)
    assert not torch.equal(after.bn1.running_mean, before.bn1.running_mean), "it saw training batches"


def test_another_number_of_classes_than_in_the_data(project):
    change(project, {"weights": {"train": True}, "architecture": {"kwargs": {"num_classes": 7}}})
    assert "data.prepare.classes=10 needs [samples, 10]" in complaint("stages.pretrain")
    assert not Path("data/dense").exists()


# --- half precision ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_bfloat16_killed_and_run_again_ends_in_the_same_float32_weights(project, network, pruned, tmp_path):
    sglp.save(network, "data/dense")
    copy(pruned, project / "data/pruned")
    change(project, {"finetune": {"precision": "bfloat16", "samples": 640}})
    run_module("stages.finetune")
    assert {t.dtype for t in load_file("data/finetuned/model.safetensors").values()} == {torch.float32, torch.int64}
    rows = read_rows("reports/training.csv")
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"])
    (project / "data/finetuned").rename(tmp_path / "undisturbed")
    kill_and_run_again(project, tmp_path / "another cache", after=9, steps=18)
    file = "model.safetensors"
    assert (project / "data/finetuned" / file).read_bytes() == (tmp_path / "undisturbed" / file).read_bytes()


def test_the_network_computes_in_float32_after_training_in_bfloat16(project, network, digits, tmp_path, monkeypatch):
    monkeypatch.setattr(image_training, "_has_bfloat16", lambda: True)
    recipe = read_yaml(project / "models/tiny.yaml")["finetune"] | {"precision": "bfloat16", "samples": 64, "epochs": 1}
    recipe = Finetuning.model_validate(recipe | {"distillation": 0.0})
    workload = read_yaml(project / "models/tiny.yaml")
    source = image_data.Source.model_validate(workload["data"]["source"])
    data = image_data.open_split(source, {"train": True}, workload["data"]["prepare"], None, None, None)
    dtypes = set()
    network.layer1.register_forward_hook(lambda module, inputs, output: dtypes.add(output.dtype))
    train(network, image_training, data, recipe, 0, tmp_path / "resume")
    assert torch.bfloat16 in dtypes
    again = sglp.build(RESNET, {"depth": 20, "in_channels": 1}, seed=1).eval()
    again.load_state_dict(network.state_dict())
    dtypes.clear()
    assert torch.equal(logits(network, digits[0][:8]), logits(again, digits[0][:8]))
    assert dtypes == {torch.float32}


@pytest.mark.parametrize(
    ("bfloat16", "warning"), [(True, ""), (False, "no instructions for bfloat16, so training uses float32")]
)
def test_bfloat16_is_float32_where_the_processor_would_imitate_it(project, monkeypatch, capsys, bfloat16, warning):
    recipe = Finetuning.model_validate(read_yaml(project / "models/tiny.yaml")["finetune"] | {"precision": "bfloat16"})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: bfloat16)
    assert image_training.trainer_arguments(recipe)["bf16"] is bfloat16
    assert warning in capsys.readouterr().err
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)  # nothing is fast then
    assert not image_training.trainer_arguments(recipe)["bf16"]
