"""`sglp.compress`: equal to the pipeline, for any network and any batches."""

import copy
import json
import math
import shutil

import cases
import numpy as np
import pipeline
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import sglp
from sglp.batches import even_slices, rebatch
from sglp.cost import count_macs
from sglp.errors import BudgetError, SGLPError
from sglp.running import check_float64
from sglp.tasks.data import find_data
from sglp.tasks.schemas.workload import Source
from stages.support.reconstruction import read_reconstructed

SMALL = {  # the sizes of the tiny project
    "calibration": (64, 32),
    "scoring": (16, 16),
    "recalibration": (64, 128),
    "reconstruction": (64, 16),
}


@pytest.fixture(scope="session")
def tiny(finished) -> tuple[nn.Module, list]:
    """The tiny project's dense network and training samples in the order of its draws, seven per batch."""
    workload = pipeline.read_yaml(finished / "models/tiny.yaml")
    network = sglp.load(finished / "data/dense", trust=[workload["architecture"]["factory"]])
    return network, drawn(workload, 70, 7)


def drawn(workload, samples, size) -> list:
    """Read the batches that the pipeline draws from the training split."""
    source, data, task = Source(**workload["data"]["source"]), workload["data"], find_data(workload["task"])
    split = task.open_split(source, data["train"], data["prepare"], None, None, None)
    return list(task.calibration_batches(split, samples, size, seed=0))


@pytest.mark.parametrize("size", [7, 16, 35, 48, 70, 80])
def test_batches_equal_the_pipelines(finished, tiny, size):
    pairs = zip(
        rebatch(tiny[1], 70, size), drawn(pipeline.read_yaml(finished / "models/tiny.yaml"), 70, size), strict=True
    )
    assert all(torch.equal(a, b) for ours, theirs in pairs for a, b in zip(ours, theirs, strict=True))


@given(st.integers(1, 300), st.integers(1, 80))
def test_no_batch_is_much_smaller_than_the_others(samples, size):
    numbers = np.arange(samples)
    parts = [numbers[rows] for rows in even_slices(samples, size)]
    assert np.array_equal(np.concatenate(parts), numbers)
    sizes = {len(part) for part in parts}
    assert (len(parts), max(sizes) - min(sizes) <= 1) == (math.ceil(samples / size), True)
    assert samples % size or sizes == {size}


@pytest.mark.parametrize(
    ("params", "arguments"),
    [
        ({}, {}),
        ({"k": "auto", "target": {"macs": 0.6}}, {"k": "auto", "target": {"macs": 0.6}}),
        (
            {"prune_ratio": 0.3, "score": {"criterion": "gradnorm", "search": "independent"}},
            {"prune_ratio": 0.3, "criterion": "gradnorm", "search": "independent"},
        ),
        ({"method": "cka_greedy"}, {"method": "cka_greedy"}),
    ],
)
def test_the_same_parameters_give_the_pipelines_network_bit_for_bit(
    finished, tiny, tmp_path, monkeypatch, params, arguments
):
    project = tmp_path / "project"
    shutil.copytree(finished, project)
    monkeypatch.chdir(project)
    if params:
        changed = pipeline.merged(pipeline.read_yaml(project / "params.yaml"), params)
        pipeline.write_yaml(project / "params.yaml", changed)
        for out in ("data/reconstructed", "data/pruned", "data/plan.json"):
            shutil.rmtree(project / out, ignore_errors=True)
        pipeline.run_stages(project, ["segment", "score", "prune", "reconstruct"])
    network, batches = tiny
    result = sglp.compress(network, batches, **SMALL, **arguments)
    assert result.plan == sglp.Plan.load("data/plan.json")
    assert result.plan.removed
    assert [list(segment) for segment in result.segments] == json.loads((project / "data/segments.json").read_text())
    tensors, ours = load_file("data/reconstructed/model.safetensors"), result.network.state_dict()
    assert tensors.keys() == ours.keys()
    assert all(torch.equal(value, ours[name]) for name, value in tensors.items())
    assert [row["layer"] for row in read_reconstructed()] == [one.layer for one in result.reconstructed]
    scoring = json.loads((project / "reports/scoring.json").read_text())
    assert scoring.get("target", {}).get("reached") == result.left


class Block(nn.Module):
    """A user's own block, with batch norm and dropout."""

    def __init__(self, width):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.2))

    def forward(self, x):
        return x + self.inner(x)


@pytest.fixture
def mlp():
    """A network of twelve custom blocks, in train mode except for one block."""
    torch.manual_seed(1)
    network = nn.Sequential(nn.Linear(64, 24), *(Block(24) for _ in range(12)), nn.Linear(24, 10)).train()
    network[3].eval()
    return network


@pytest.fixture
def data(digits):
    return TensorDataset(digits[0].flatten(1), digits[1])


def test_the_network_and_the_random_state_are_unchanged(mlp, data):
    loader = DataLoader(data, batch_size=32, shuffle=True)
    before, modes = copy.deepcopy(mlp.state_dict()), [module.training for module in mlp.modules()]
    state = torch.get_rng_state()
    result = sglp.compress(mlp, loader, **SMALL)
    assert torch.equal(torch.get_rng_state(), state)
    assert modes == [module.training for module in mlp.modules()]
    assert all(torch.equal(value, before[name]) for name, value in mlp.state_dict().items())
    assert not any("forward" in vars(m) or m._forward_hooks or m._forward_pre_hooks for m in mlp.modules())
    assert not result.network.training
    assert len(result.network) == 2 + 6 == len(result.plan.kept) + 1
    assert {p.data_ptr() for p in result.network.parameters()}.isdisjoint(p.data_ptr() for p in mlp.parameters())
    again = sglp.compress(mlp, loader, **SMALL)
    assert again.plan == result.plan
    assert np.array_equal(again.similarity, result.similarity), "the seed draws the samples of a loader that shuffles"
    assert not np.array_equal(sglp.compress(mlp, loader, **SMALL, seed=1).similarity, result.similarity)


def test_the_batch_size_of_the_loader_does_not_matter(mlp, data):
    def result(batch_size):
        result = sglp.compress(mlp, DataLoader(data, batch_size=batch_size), **SMALL)
        return result.plan, result.scores, result.similarity.tolist(), [p.tolist() for p in result.network.buffers()]

    assert result(1) == result(9) == result(64) == result(1797)


def test_no_more_batches_are_read_than_needed(mlp, data):
    taken = []

    def stream():
        for batch in DataLoader(data, batch_size=10):
            taken.append(len(batch[1]))
            yield batch

    sglp.compress(mlp, stream(), **SMALL)
    assert sum(taken) == 70  # seven batches of ten for 64 samples


def test_batch_norm_has_the_statistics_of_the_samples(mlp, data):
    result = sglp.compress(mlp, DataLoader(data, batch_size=50), **SMALL, criterion="fitted_loss")
    norm = result.network[1].inner[1]
    inputs = result.network[1].inner[0](result.network[0](data[:64][0]))
    torch.testing.assert_close(norm.running_mean, inputs.mean(dim=0))
    unchanged = sglp.compress(
        mlp,
        DataLoader(data, batch_size=50),
        **SMALL | {"recalibration": (0, 0)},
        criterion="fitted_loss",
        reconstruct=False,
    )
    assert torch.equal(unchanged.network[1].inner[1].running_mean, torch.zeros(24))


@pytest.mark.parametrize("target", [{"macs": 0.45}, {"parameters": 0.7}, {"latency": 0.8}])
def test_a_target_is_met(mlp, data, target, monkeypatch):
    monkeypatch.setattr("sglp.latency.SHORTEST", 0.002)
    result = sglp.compress(mlp, DataLoader(data, batch_size=64), **SMALL, target=target)
    ((kind, share),) = target.items()
    assert result.left <= share
    if kind == "macs":
        example = data[:1][0]
        assert result.left == count_macs(result.network, example) / count_macs(mlp, example)


def test_a_users_loss_is_used(data):
    """A regression, where cross-entropy would have no targets: the blocks should copy their input."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(64, 8), *(Bent(8) for _ in range(5)))
    with torch.no_grad():
        network[2].inner.weight.fill_(3.0)  # this block does harm
    inputs = data[:64][0]
    target = inputs @ network[0].weight.T + network[0].bias
    calls = []

    def loss(output, target):
        calls.append(1)
        return nn.functional.mse_loss(output, target.float())

    result = sglp.compress(network, [(inputs, target)], loss=loss, k=1, prune_ratio=0.2, **SMALL, criterion="loss")
    assert result.plan.removed == ("2",)
    assert calls


class Bent(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.inner = nn.Linear(width, width)
        nn.init.normal_(self.inner.weight, std=0.01)

    def forward(self, x):
        return x + torch.tanh(self.inner(x))


def test_language_models_and_dicts():
    case = cases.llama(6)
    ids = torch.randint(259, (20, 9), generator=torch.Generator().manual_seed(2))
    batches = [({"input_ids": part, "use_cache": False}, part.roll(-1, 1)) for part in ids.split(3)]
    result = sglp.compress(
        case.network, batches, k="auto", calibration=(16, 8), scoring=(8, 8), reconstruction=(20, 4), pooling="mean"
    )
    assert len(result.plan.removed) == 3
    assert any(one.kept and one.how == "closed_form" for one in result.reconstructed)
    assert result.network.config.num_hidden_layers == 3
    assert result.network(**batches[0][0]).logits.shape == (3, 9, 259)


def test_layers_can_be_chosen_by_path(mlp, data):
    result = sglp.compress(mlp, DataLoader(data, batch_size=64), **SMALL, k=1, paths=["1", "2", "3", "4"])
    assert [layer.name for layer in result.layers if layer.removable] == ["1", "2", "3", "4"]
    assert len(result.plan.removed) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prune_ratio": 1.5}, "prune_ratio=1.5 is impossible: it must be at least 0 and below 1"),
        ({"k": 20}, "k=20 segments can't be made of 13 layers: k must be 1 to 13"),
        ({"target": {"flops": 0.5}}, "it must be one of macs, parameters, latency"),
        ({"target": {"macs": 0.5}, "budget": [2, 2, 2], "search": "independent"}, "and a target can't both set"),
        ({"budget": [2, 2, 2]}, "with score.search=joint all segments share one budget"),
        ({"search": "wide"}, "search='wide' is unknown: it must be joint, sequential, independent"),
        ({"method": "tails"}, "method=tails is unknown: it must be sglp, angular"),
        ({"criterion": "best"}, "score.criterion=best is unknown: it must be"),
        ({"method": "tail", "search": "independent"}, "method=tail has no parameter search: only method=sglp has it"),
        ({"method": "tail", "criterion": "best"}, "method=tail has no parameter criterion: only method=sglp has it"),
        (
            {"method": "angular", "loss": nn.functional.mse_loss},
            "method=angular computes no loss: leave out loss, or use sglp, loss_greedy or taylor",
        ),
        ({"beam": 3}, "compress has no parameter beam; the options of method=sglp are search, budget"),
        ({"calibration": 64}, r"calibration=64 is wrong: it must be \(number of samples, batch size\)"),
        ({"calibration": (64, 3)}, r"calibration=\(64, 3\) is wrong: .* each at least 4"),
        (
            {"calibration": (5000, 128)},
            r"batches hold 1797 samples, too few for calibration=\(5000, ...\): ask for at most 1797",
        ),
        (
            {"calibration": (1800, 128), "recalibration": (1900, 64)},
            r"too few for calibration=\(1800, ...\) and recalibration=\(1900, ...\): ask for at most 1797",
        ),
        ({"scoring": (0, 16)}, r"scoring=\(0, 16\) is wrong: .* each at least 1"),
        ({"recalibration": (16, 0)}, r"recalibration=\(16, 0\) is wrong: .* each at least 1"),
        ({"criterion": "gradnorm"}, "search=joint compares layers across the whole network, but GradNorm scores one"),
        ({"paths": ["13"]}, r"no layer of this network can be removed \(13: changes the shape from 24 to 10, ...\)"),
        (
            {"loss": lambda output, target: output[target + 99], "criterion": "fitted_loss"},
            "the loss of the network's output can't be computed: ",
        ),
    ],
)
def test_a_wrong_argument_is_refused_before_any_work(mlp, data, arguments, message):
    passes = []
    mlp.register_forward_hook(lambda *_: passes.append(1))
    with pytest.raises(SGLPError, match=message) as caught:
        sglp.compress(mlp, DataLoader(data, batch_size=64), **SMALL | arguments)
    assert "\n" not in str(caught.value)
    assert len(passes) <= 7, "to find layers and try whether they can be removed"


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([{"input_ids": torch.zeros(64, 3)}], "a batch must be a pair (inputs, target), but one is a dict"),
        ([torch.zeros(64, 64)], "a batch must be a pair (inputs, target), but one is a Tensor"),
        ([], "the batches hold no samples"),
        (
            [(torch.zeros(10, 64), torch.zeros(10)), (torch.zeros(60, 65), torch.zeros(60))],
            "samples of the shapes [64] and [65] can't share a batch: pad them to one shape, or use the batch size",
        ),
    ],
)
def test_wrong_batches_are_refused(mlp, batches, message):
    with pytest.raises(SGLPError) as caught:
        sglp.compress(mlp, batches, **SMALL)
    assert str(caught.value).startswith(message)


def test_samples_of_different_shapes_can_be_in_different_batches(digits):
    """Batches of the requested size are not joined, so their sequences may differ in length."""
    case = cases.llama(5)
    batches = []
    for length in (7, 9):
        ids = torch.randint(259, (8, length), generator=torch.Generator().manual_seed(length))
        batches.append(({"input_ids": ids, "use_cache": False}, ids.roll(-1, 1)))
    result = sglp.compress(case.network, batches, k=2, calibration=(16, 8), scoring=(16, 8), pooling="mean")
    assert len(result.plan.removed) == 3


WRONG = {
    "k": ["3", 2.0, 2.5, True, None, 0, "Auto"],
    "prune_ratio": ["0.5", None, True, float("nan"), 1, -0.1],
    "seed": [None, "0", 0.5, -1, 2**63],
    "method": [None, 5, print],
    "criterion": [None, nn.functional.cross_entropy],
    "loss": [None, "mse"],
    "paths": [5, (), [5], {}],
    "pooling": ["max", None],
    "random_inits": [0, 1.5, "2", None],
    "beam_width": [0, None],
    "max_evaluations": [0, 1.0],
    "max_combinations": [0],
    "budget": [5, "12", [1.5, 2]],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_arguments_of_wrong_types_are_refused_before_a_sample_is_read(mlp, name, value):
    def never():
        pytest.fail("a batch was read")
        yield

    with pytest.raises(SGLPError, match=f"{name}=") as refusal:
        sglp.compress(mlp, never(), **SMALL | {name: value})
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("model", [None, "folder", nn.Module])
def test_what_is_no_network_is_refused(model):
    with pytest.raises(SGLPError, match=r"model=.* is wrong: it must be a torch\.nn\.Module"):
        sglp.compress(model, [])


def test_whole_numbers_of_numpy_are_whole_numbers(mlp, data):
    batches, number = list(DataLoader(data, batch_size=50)), np.int64
    sizes = {name: (number(a), number(b)) for name, (a, b) in SMALL.items()}
    given = {"k": number(2), "seed": number(1), "prune_ratio": np.float64(0.5), "random_inits": np.int32(1)}
    expected = sglp.compress(mlp, batches, k=2, seed=1, **SMALL, reconstruct=False)
    assert sglp.compress(mlp, batches, **sizes, **given, reconstruct=False).plan == expected.plan


def test_apple_gpus_are_refused_in_one_sentence():
    with pytest.raises(SGLPError, match="on an Apple GPU, which has no float64: move it to the CPU first"):
        check_float64(torch.device("mps"))


@pytest.mark.parametrize("search", ["joint", "sequential", "independent"])
@pytest.mark.parametrize("budget", [[30, 20, 10], [3, 2, 1, 1], [0, 4, 4], [2.0, 3, 3]])
def test_impossible_budgets_are_refused_by_score_combinations(mlp, data, budget, search):
    layers = sglp.find_layers(mlp, data[:2][0])
    with pytest.raises(BudgetError):
        sglp.score_combinations(mlp, layers, [(0, 3), (4, 8), (9, 12)], budget, [data[:16]], search=search)
