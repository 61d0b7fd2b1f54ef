"""Saved networks load bit for bit, and broken or untrusted folders are refused in one sentence."""

import copy
import json
import pickle
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import sglp
from sglp.architecture import architecture_of
from sglp.checkpoints import checkpoint
from sglp.errors import CheckpointError, SGLPError

RESNET = "sglp.networks.cifar_resnet:resnet"
REAL = Path(__file__).resolve().parents[2] / "shared/models/resnet56-cifar10.th"


def logits(model, x):
    with torch.no_grad():
        return model.eval()(x)


def without(network, *removed):
    layers = sglp.find_layers(network, torch.zeros(2, 1, 8, 8))
    return sglp.prune(network, sglp.Plan([layer.name for layer in layers if layer.name not in removed], removed))


@pytest.fixture
def saved(network, tmp_path):
    sglp.save(network, tmp_path / "saved")
    return tmp_path / "saved"


def change(folder, **content):
    """Change entries of a saved network's architecture.json."""
    path = folder / "architecture.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | content))


VARIANTS = {
    "dense": lambda network: network,
    "pruned": lambda network: without(network, "layer1.0", "layer3.1"),
    "pruned twice": lambda network: without(without(network, "layer1.0", "layer3.1"), "layer1.0", "layer3.1"),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_saved_network_gives_the_same_logits_to_the_bit(network, digits, tmp_path, variant):
    model = VARIANTS[variant](network)
    sglp.save(model, tmp_path / "saved")
    loaded = sglp.load(tmp_path / "saved")
    assert torch.equal(logits(loaded, digits[0][:64]), logits(model, digits[0][:64]))
    assert list(loaded.state_dict()) == list(model.state_dict())
    assert not any(module.training for module in loaded.modules())
    assert architecture_of(loaded) == architecture_of(model)


def test_a_loaded_network_can_be_pruned_and_saved_again(network, digits, tmp_path):
    sglp.save(without(network, "layer1.0"), tmp_path / "once")
    sglp.save(without(sglp.load(tmp_path / "once"), "layer1.0"), tmp_path / "twice")
    expected = without(network, "layer1.0", "layer1.1")
    assert torch.equal(logits(sglp.load(tmp_path / "twice"), digits[0][:8]), logits(expected, digits[0][:8]))


def test_names_in_the_file_are_from_the_dense_network(network, tmp_path):
    sglp.save(VARIANTS["pruned twice"](network), tmp_path / "saved")
    content = json.loads((tmp_path / "saved/architecture.json").read_text())
    assert content["removed"] == ["layer1.0", "layer3.1", "layer1.1", "layer3.2"]
    assert content["kept"] == ["conv1+bn1", "layer1.2", "layer2.0", "layer2.1", "layer2.2", "layer3.0"]
    assert (content["factory"], content["kwargs"]) == (RESNET, {"depth": 20, "in_channels": 1})


def test_a_folder_holds_no_pickles(saved):
    assert sorted(path.name for path in saved.iterdir()) == ["README.md", "architecture.json", "model.safetensors"]
    assert set(load_file(saved / "model.safetensors"))
    json.loads((saved / "architecture.json").read_text())


def test_the_same_network_is_the_same_bytes(network, saved, tmp_path):
    sglp.save(sglp.load(saved), tmp_path / "again")
    for name in ("README.md", "architecture.json", "model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (saved / name).read_bytes()


def test_loading_leaves_the_global_random_state_alone(saved):
    torch.manual_seed(9)
    before = torch.get_rng_state()
    sglp.load(saved)
    assert torch.equal(torch.get_rng_state(), before)


def test_an_existing_folder_is_replaced(network, saved):
    (saved / "old.txt").write_text("old")
    sglp.save(without(network, "layer1.1"), saved)
    assert sorted(path.name for path in saved.iterdir()) == ["README.md", "architecture.json", "model.safetensors"]
    assert architecture_of(sglp.load(saved)).removed == ("layer1.1",)


def test_a_save_that_fails_leaves_the_old_folder(network, saved, digits, monkeypatch):
    expected = logits(network, digits[0][:8])

    def fail(*arguments):
        raise OSError("no space left")

    monkeypatch.setattr(checkpoint, "save_file", fail)
    with pytest.raises(OSError, match="no space"):
        sglp.save(without(network, "layer1.1"), saved)
    assert torch.equal(logits(sglp.load(saved), digits[0][:8]), expected)
    assert [path.name for path in saved.parent.iterdir()] == ["saved"]


def test_a_file_is_not_replaced_by_a_folder(network, tmp_path):
    (tmp_path / "weights").write_text("mine")
    with pytest.raises(SGLPError, match="weights is a file: give a folder"):
        sglp.save(network, tmp_path / "weights")
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]
    assert (tmp_path / "weights").read_text() == "mine"


def test_networks_of_unknown_origin_are_not_saved(tmp_path):
    with pytest.raises(CheckpointError, match=r"not known how this Sequential was built: build it with sglp\.build"):
        sglp.save(nn.Sequential(nn.Linear(2, 2)), tmp_path / "saved")
    assert not list(tmp_path.iterdir())


def test_a_network_that_was_changed_is_not_saved(network, tmp_path):
    """It could not be loaded."""
    message = (
        r"^this CifarResNet has linear.weight \[5, 64\], but the network that .*:resnet builds from {.*} has "
        r"linear.weight \[10, 64\]: pass the right arguments to sglp.build instead of changing the network$"
    )
    network.linear = nn.Linear(64, 5)
    with pytest.raises(CheckpointError, match=message):
        sglp.save(network, tmp_path / "changed")
    network.linear = nn.Sequential(nn.Linear(64, 10))
    with pytest.raises(CheckpointError, match=r"has no linear.weight, but the .* has linear.weight \[10, 64\]: pass"):
        sglp.save(network, tmp_path / "changed")
    assert not list(tmp_path.iterdir())


def counting(width):
    """A factory that computes with values, which tensors on the meta device lack."""
    return nn.Linear(width, int(torch.ones(width).sum()))


def test_a_factory_that_computes_with_values_is_called_on_the_cpu(tmp_path):
    network = sglp.build(f"{__name__}:counting", {"width": 3}, seed=0)
    sglp.save(network, tmp_path / "same")
    network.bias = None
    with pytest.raises(CheckpointError, match=r"this Linear has no bias, but the network that .* has bias"):
        sglp.save(network, tmp_path / "changed")
    assert [folder.name for folder in tmp_path.iterdir()] == ["same"]


def test_arguments_that_json_can_not_hold_are_refused(tmp_path):
    model = sglp.build("torchvision.models:squeezenet1_1", {"num_classes": torch.tensor(2)}, seed=0)
    with pytest.raises(CheckpointError, match="num_classes"):
        sglp.save(model, tmp_path / "saved")


class Tied(nn.Module):
    """An embedding and a head that share their weight, as in language models, and views that share memory."""

    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("table", torch.arange(12.0).view(3, 4))
        self.register_buffer("row", self.table[0])
        self.register_buffer("turned", self.table.T)

    def forward(self, x):
        return self.head(self.embedding(x) * self.row)


def test_tied_parameters_survive(tmp_path):
    model = sglp.build(f"{__name__}:Tied", seed=0)
    sglp.save(model, tmp_path / "saved")
    loaded = sglp.load(tmp_path / "saved", trust=True)
    assert loaded.head.weight is loaded.embedding.weight
    assert torch.equal(logits(loaded, torch.arange(7)), logits(model, torch.arange(7)))
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
    stored = load_file(tmp_path / "saved/model.safetensors")
    assert len({"embedding.weight", "head.weight"} & set(stored)) == 1


USERS_NETWORK = """
from torch import nn

def build(width):
    return nn.Sequential(nn.Linear(4, width), nn.Linear(width, 4))
"""


def test_a_users_factory_runs_only_if_it_is_trusted(tmp_path, monkeypatch):
    (tmp_path / "users_network.py").write_text(USERS_NETWORK)
    monkeypatch.syspath_prepend(tmp_path)
    model, x = sglp.build("users_network:build", {"width": 5}, seed=0), torch.ones(2, 4)
    sglp.save(model, tmp_path / "saved")
    with pytest.raises(
        CheckpointError,
        match=r"users_network:build, which is not from a known library .*trust=\['users_network:build'\]",
    ):
        sglp.load(tmp_path / "saved")
    assert torch.equal(logits(sglp.load(tmp_path / "saved", trust=True), x), logits(model, x))


@pytest.mark.parametrize(
    "factory",
    [
        "torch:load",
        "torch.hub:load",
        "os:system",
        "builtins:eval",
        "torchvision.models:_api",
        "torchvision.models._api:get_model",
        "torchvision.models._utils:IntermediateLayerGetter",
        "torchvision.models:list_models",
        "torchvision.models.resnet:nn",
        "torchvision.datasets:MNIST",
        "sglp.networks.cifar_resnet:F",
        "sglp.checkpoints.checkpoint:load",
        "not a name",
    ],
)
def test_other_code_is_refused(saved, factory):
    change(saved, factory=factory)
    with pytest.raises(CheckpointError, match="not from a known library"):
        sglp.load(saved)


FAKE_TIMM = {
    "__init__.py": "",
    "models/__init__.py": "from timm.models._hub import load_custom_from_hf\n",
    "models/_hub.py": "def load_custom_from_hf(path):\n    open(path, 'w').close()\n",
    "models/small.py": "from torch import nn\n\ndef small(path):\n    return nn.Linear(2, 2)\n",
    "utils/__init__.py": "",
    "utils/summary.py": "def update_summary(path):\n    open(path, 'w').close()\n",
}


@pytest.fixture
def fake_timm(tmp_path, monkeypatch):
    for name, code in FAKE_TIMM.items():
        path = tmp_path / "site/timm" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(code)
    monkeypatch.syspath_prepend(tmp_path / "site")
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "timm"]:
        del sys.modules[name]


@pytest.mark.parametrize(
    "factory",
    ["timm.models._hub:load_custom_from_hf", "timm.models:load_custom_from_hf", "timm.utils.summary:update_summary"],
)
def test_helpers_of_a_known_library_are_refused(fake_timm, saved, tmp_path, factory):
    change(saved, factory=factory, kwargs={"path": str(tmp_path / "written")})
    with pytest.raises(SGLPError):
        sglp.load(saved)
    assert not (tmp_path / "written").exists()


def test_networks_of_timm_are_known(fake_timm, tmp_path):
    model = sglp.build("timm.models.small:small", {"path": ""}, seed=0)
    sglp.save(model, tmp_path / "saved")
    assert torch.equal(logits(sglp.load(tmp_path / "saved"), torch.ones(2, 2)), logits(model, torch.ones(2, 2)))


def test_a_module_that_is_named_like_a_known_library_is_not_imported(saved, tmp_path, monkeypatch):
    """The import alone would run its code."""
    (tmp_path / "timm_like.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    monkeypatch.syspath_prepend(tmp_path)
    change(saved, factory="timm_like:build")
    with pytest.raises(SGLPError):
        sglp.load(saved)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("argument", ["weights", "pretrained", "checkpoint_path"])
def test_a_folder_can_not_make_a_factory_fetch_weights(saved, argument):
    change(saved, factory="torchvision.models:resnet18", kwargs={argument: "DEFAULT"})
    with pytest.raises(SGLPError, match=f"'{argument}' .* fetches weights"):
        sglp.load(saved)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "{}",
        '{"factory": "sglp.networks.cifar_resnet:resnet"}',
        b"\xff\xfe\x00",
    ],
)
def test_a_broken_architecture_is_refused(saved, text):
    path = saved / "architecture.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(CheckpointError, match=r"architecture\.json is broken"):
        sglp.load(saved)


@pytest.mark.parametrize(
    "content",
    [
        {"factory": 3},
        {"factory": None},
        {"kwargs": [1]},
        {"kwargs": 5},
        {"kept": None},
        {"removed": ["layer9.0"]},
        {"removed": [3]},
        {"shared": []},
        {"versions": None},
    ],
    ids=str,
)
def test_an_architecture_of_wrong_content_is_refused(saved, content):
    change(saved, **content)
    with pytest.raises(CheckpointError, match=r"architecture\.json"):
        sglp.load(saved)


def test_missing_files_are_named(saved, tmp_path):
    with pytest.raises(CheckpointError, match=r"nowhere is not a saved network: it has no architecture\.json"):
        sglp.load(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"is not a saved network"):
        sglp.load(saved / "model.safetensors")
    (saved / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"no weight file at .*saved/model\.safetensors"):
        sglp.load(saved)


@pytest.mark.parametrize("length", [0, 4, 100, 50_000, -1])
def test_truncated_weights_are_refused(saved, length):
    path = saved / "model.safetensors"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(CheckpointError, match=r"saved/model\.safetensors is broken"):
        sglp.load(saved)


def test_weights_of_another_network_are_refused(saved):
    change(saved, kwargs={"depth": 14, "in_channels": 1})
    with pytest.raises(CheckpointError, match=r"saved/model\.safetensors does not hold this network's weights: \S"):
        sglp.load(saved)


# --- load_weights -----------------------------------------------------------------------------------------------------


@pytest.fixture
def empty():
    return sglp.build(RESNET, {"depth": 20, "in_channels": 1}, seed=99)


def prefixed(prefix):
    return lambda state: {f"{prefix}{name}": tensor for name, tensor in state.items()}


FORMS = {
    "plain": lambda state: state,
    "module.": prefixed("module."),
    "_orig_mod.": prefixed("_orig_mod."),
    "compiled in parallel": prefixed("module._orig_mod."),
    "parallel in compiled": prefixed("_orig_mod.module."),
    "state_dict": lambda state: {"state_dict": prefixed("module.")(state), "epoch": 3},
    "model_state_dict": lambda state: {"model_state_dict": state, "best": 0.9},
    "model": lambda state: {"model": state, "optimizer": {"state": {}}},
    "net": lambda state: {"net": prefixed("module.")(state), "acc": 91.2},
}


@pytest.mark.parametrize("form", FORMS)
def test_weights_of_training_scripts_are_understood(network, empty, digits, tmp_path, form):
    torch.save(FORMS[form](network.state_dict()), tmp_path / "weights.pt")
    sglp.load_weights(empty, tmp_path / "weights.pt")
    assert torch.equal(logits(empty, digits[0][:8]), logits(network, digits[0][:8]))


@pytest.mark.parametrize("prefix", ["", "module."])
def test_weights_in_safetensors_are_understood(network, empty, digits, tmp_path, prefix):
    save_file(prefixed(prefix)(network.state_dict()), tmp_path / "weights.safetensors")
    sglp.load_weights(empty, str(tmp_path / "weights.safetensors"))
    assert torch.equal(logits(empty, digits[0][:8]), logits(network, digits[0][:8]))


def test_a_network_may_have_a_child_called_module(tmp_path):
    class Wrapper(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = nn.Linear(3, 3)

    torch.manual_seed(0)
    model, other = Wrapper(), Wrapper()
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    sglp.load_weights(other, tmp_path / "weights.pt")
    assert torch.equal(other.module.weight, model.module.weight)


class Code:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("write", [torch.save, lambda thing, path: path.write_bytes(pickle.dumps(thing, protocol=2))])
def test_code_in_a_pickle_does_not_run(network, tmp_path, write):
    write({"conv1.weight": Code(tmp_path / "ran")}, tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match=r"weights\.pt is broken, or holds more than weights"):
        sglp.load_weights(network, tmp_path / "weights.pt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"<!DOCTYPE html>", b"PK\x03\x04 no zip", bytes(range(256)), b"\x80\x02}."], ids=repr
)
@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
def test_files_without_weights_are_refused(network, tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        sglp.load_weights(network, tmp_path / name)


def test_a_truncated_file_of_torch_is_refused(network, tmp_path):
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    whole = (tmp_path / "weights.pt").read_bytes()
    for length in (len(whole) // 2, len(whole) - 1):
        (tmp_path / "weights.pt").write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"weights\.pt is broken"):
            sglp.load_weights(network, tmp_path / "weights.pt")


def test_weights_that_do_not_fit_are_reported_in_one_sentence(network, digits, tmp_path):
    before, state = logits(network, digits[0][:8]), network.state_dict()
    wrong = {
        "missing": ({k: v for k, v in state.items() if k != "linear.bias"}, "linear.bias"),
        "unexpected": (state | {"extra.weight": torch.zeros(2)}, "extra.weight"),
        "shape": (state | {"linear.bias": torch.zeros(3)}, "linear.bias"),
        "other": (nn.Linear(2, 2).state_dict(), "conv1.weight"),
    }
    for name, (content, fault) in wrong.items():
        torch.save(content, tmp_path / f"{name}.pt")
        with pytest.raises(CheckpointError) as caught:
            sglp.load_weights(network, tmp_path / f"{name}.pt")
        message = str(caught.value)
        assert f"{name}.pt does not hold this network's weights: " in message
        assert fault in message
        assert "\n" not in message
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(CheckpointError, match=r"list\.pt holds a list, but a weight file holds named tensors"):
        sglp.load_weights(network, tmp_path / "list.pt")
    with pytest.raises(CheckpointError, match=r"no weight file at .*nowhere\.pt"):
        sglp.load_weights(network, tmp_path / "nowhere.pt")
    assert torch.equal(logits(network, digits[0][:8]), before)


@pytest.mark.skipif(not REAL.exists(), reason=f"the published checkpoint is not at {REAL}")
def test_the_widely_used_checkpoint_loads(tmp_path):
    model = sglp.build(RESNET, {"depth": 56}, seed=0)
    drawn = copy.deepcopy(model.state_dict())
    sglp.load_weights(model, REAL)
    stored = torch.load(REAL, map_location="cpu", weights_only=True)["state_dict"]
    loaded = model.state_dict()
    assert all(torch.equal(loaded[name.removeprefix("module.")], tensor) for name, tensor in stored.items())
    assert {n for n in loaded if f"module.{n}" not in stored} == {n for n in loaded if "num_batches_tracked" in n}
    assert not torch.equal(model.conv1.weight, drawn["conv1.weight"])
    sglp.save(model, tmp_path / "saved")
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(logits(sglp.load(tmp_path / "saved"), x), logits(model, x))


def test_half_precision_comes_back_as_it_was_saved(network, tmp_path):
    half = network.to(torch.bfloat16)
    sglp.save(half, tmp_path / "half")
    again = sglp.load(tmp_path / "half")
    assert {name: value.dtype for name, value in again.state_dict().items()} == {
        name: value.dtype for name, value in half.state_dict().items()
    }
    x = torch.ones(2, 1, 8, 8, dtype=torch.bfloat16)
    assert torch.equal(half(x), again(x))
