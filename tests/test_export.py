"""Exported files, run by other programs, compute the network's logits for batches of any size."""

import sys

import pytest
import torch
from language import cast, tiny_llama
from torch import nn
from transformers import (
    BertConfig,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertModel,
    RobertaConfig,
    RobertaModel,
    VideoMAEConfig,
    VideoMAEForVideoClassification,
    ViTConfig,
    ViTForImageClassification,
)
from transformers.utils import ModelOutput

import sglp
from sglp.errors import ArchitectureError, CheckpointError
from sglp.exporting import export as exporting
from sglp.exporting.export import export
from sglp.exporting.outputs import named_outputs
from tools.architecture_trials import TabularTransformer

onnxruntime = pytest.importorskip("onnxruntime")

SHAPE = (1, 8, 8)
VIT = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 12}


def without(network, example, *removed):
    layers = sglp.find_layers(network, example)
    return sglp.prune(network, sglp.Plan([layer.name for layer in layers if layer.name not in removed], removed))


@pytest.fixture
def pruned(network, digits):
    return without(network, digits[0][:2], "layer1.0", "layer3.1").eval()


def in_onnxruntime(path):
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def test_a_pruned_network_runs_in_onnxruntime(pruned, digits, tmp_path):
    sglp.save(pruned, tmp_path / "saved")
    export(tmp_path / "saved", tmp_path / "net.onnx", "onnx", SHAPE)
    session = in_onnxruntime(tmp_path / "net.onnx")
    assert [(i.name, i.shape[1:]) for i in session.get_inputs()] == [("input", [1, 8, 8])]
    for size in (1, 7, 64):
        with torch.no_grad():
            expected = pruned(digits[0][:size])
        (outputs,) = session.run(["logits"], {"input": digits[0][:size].numpy()})
        assert torch.from_numpy(outputs).sub(expected).abs().max() <= 1e-4 * expected.abs().max()
    assert {path.name for path in tmp_path.iterdir()} == {"saved", "net.onnx"}


def test_a_pruned_network_is_read_by_torch_to_the_bit(pruned, digits, tmp_path):
    pruned.train()
    export(pruned, tmp_path / "net.pt2", "torch-export", digits[0][:1])
    assert pruned.training
    pruned.eval()
    module = torch.export.load(tmp_path / "net.pt2").module()
    for x in (digits[0][:1], digits[0][:9]):
        assert torch.equal(module(x), pruned(x))
    assert __file__.encode() not in (tmp_path / "net.pt2").read_bytes()
    assert sglp.__file__.removesuffix("__init__.py").encode() not in (tmp_path / "net.pt2").read_bytes()


def test_a_language_model_takes_texts_of_any_number_and_length_and_may_be_of_half_precision(tmp_path):
    llama = without(tiny_llama(2), {"input_ids": torch.zeros(1, 8, dtype=torch.long)}, "model.layers.1")
    cast(llama, torch.bfloat16)
    export(llama, tmp_path / "net.pt2", "torch-export")
    module = torch.export.load(tmp_path / "net.pt2").module()
    for shape in ((1, 3), (2, 100)):
        ids = torch.randint(259, shape, generator=torch.Generator().manual_seed(0))
        assert torch.equal(module(input_ids=ids), llama(input_ids=ids).logits)


def test_a_language_model_runs_in_onnxruntime(tmp_path):
    llama = tiny_llama(2)
    export(llama, tmp_path / "net.onnx", "onnx")
    session = in_onnxruntime(tmp_path / "net.onnx")
    for shape in ((1, 3), (2, 100)):
        ids = torch.randint(259, shape, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            expected = llama(input_ids=ids).logits
        (outputs,) = session.run(["logits"], {"input_ids": ids.numpy()})
        assert torch.from_numpy(outputs).sub(expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize("to", ["torch-export", "onnx"])
def test_numbers_and_categories_with_different_values_per_column(tmp_path, to):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = TabularTransformer(numeric=4, categories=(3, 50), depth=2).eval()
    example = {"numeric": torch.randn(2, 4), "categorical": torch.tensor([[0, 41], [2, 49]])}
    export(network, tmp_path / "net", to, example)
    several = {"numeric": torch.randn(5, 4), "categorical": torch.tensor([[i % 3, 10 * i] for i in range(5)])}
    with torch.no_grad():
        expected = network(**several)
    if to == "onnx":
        (outputs,) = in_onnxruntime(tmp_path / "net").run(["logits"], {n: t.numpy() for n, t in several.items()})
        outputs = torch.from_numpy(outputs)
    else:
        outputs = torch.export.load(tmp_path / "net").module()(**several)
    assert (outputs - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize("image", [None, torch.zeros(1, 3, 12, 12)], ids=["config", "tensor"])
def test_images_of_a_hugging_face_model_have_the_size_and_the_name_in_its_config(tmp_path, image):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vit = ViTForImageClassification(ViTConfig(patch_size=4, **VIT)).eval()
    export(vit, tmp_path / "net.pt2", "torch-export", image)
    x = torch.randn(3, 3, 12, 12)
    assert torch.equal(torch.export.load(tmp_path / "net.pt2").module()(pixel_values=x), vit(x).logits)


def test_attention_with_a_fused_kernel_is_within_the_tolerance(tmp_path):
    class Columns(nn.Module):
        def __init__(self):
            super().__init__()
            layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
            self.embed, self.encoder, self.head = nn.Linear(1, 16), nn.TransformerEncoder(layer, 1), nn.Linear(16, 3)

        def forward(self, x):
            return self.head(self.encoder(self.embed(x[..., None])).mean(1))

    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Columns().eval()
    export(network, tmp_path / "net.pt2", "torch-export", (7,))
    x = torch.randn(5, 7)
    with torch.no_grad():
        assert torch.allclose(torch.export.load(tmp_path / "net.pt2").module()(x), network(x), atol=1e-5)


def test_export_to_gguf_calls_export_gguf(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(exporting, "export_gguf", lambda *arguments: calls.append(arguments))
    export("folder", "net.gguf", "gguf")
    assert calls == [("folder", "net.gguf")]


class OfTwo(nn.Module):
    """Takes only batches of two."""

    def forward(self, x):
        return x.view(2, 64)


class OfData(nn.Module):
    """Branches on the values."""

    def forward(self, x):
        return x.flatten(1) * 2 if x.sum() > 0 else x.flatten(1)


class Singular(nn.Module):
    """Computes singular values, which ONNX can't."""

    def forward(self, x):
        return torch.linalg.svdvals(x[:, 0])


class Silent(nn.Module):
    """Returns no tensor."""

    def forward(self, x):
        return None


class Infinite(nn.Module):
    """Divides by zero."""

    def forward(self, x):
        return x.flatten(1) / 0


REFUSED = {
    "no format": (
        nn.Flatten(),
        "tflite",
        SHAPE,
        "can't be exported to 'tflite': the formats are gguf, onnx, torc",
    ),
    "no folder": ("nowhere", "onnx", SHAPE, r"nowhere is not a saved network"),
    "no shape": (nn.Flatten(), "onnx", None, r"not known which inputs this Flatten takes: .* --input 3x224x224"),
    "a wrong shape": (nn.Linear(3, 2), "onnx", (4,), r"this Linear can't be run on inputs of the shape \[1, 4\]: "),
    "no tensor": (Silent(), "onnx", SHAPE, r"^this Silent returns a NoneType without tensors$"),
    "a list": (Silent(), "onnx", [torch.zeros(1, 8, 8)], "takes a list with one item per sample, whose length"),
    "a network for gguf": (nn.Flatten(), "gguf", None, r"GGUF is written from a folder .*: sglp\.save the network"),
    "one size of batch": (OfTwo(), "onnx", torch.zeros(2, 1, 8, 8), "can't trace this OfTwo for batches of any size: "),
    "a choice by values": (OfData(), "torch-export", SHAPE, "can't trace this OfData for batches of any size: "),
    "unknown operations": (Singular(), "onnx", SHAPE, r"torch\.onnx can't translate this network: .*svd"),
    "infinite outputs": (Infinite(), "torch-export", SHAPE, "its outputs on random inputs are not finite"),
    "half precision": (
        nn.Linear(3, 2).half(),
        "onnx",
        (3,),
        r"this Linear is float16: convert it to float32 first, with",
    ),
}


@pytest.mark.parametrize(("model", "to", "example", "message"), REFUSED.values(), ids=REFUSED)
def test_impossible_exports_are_refused_in_one_sentence(tmp_path, capfd, model, to, example, message):
    (tmp_path / "net.pt2").write_bytes(b"an older file")
    with pytest.raises((ArchitectureError, CheckpointError), match=message) as refusal:
        export(model, tmp_path / "net.pt2", to, example)
    assert "\n" not in str(refusal.value)
    assert [path.name for path in tmp_path.iterdir()] == ["net.pt2"]
    assert (tmp_path / "net.pt2").read_bytes() == b"an older file"
    assert "def forward" not in capfd.readouterr().err


@pytest.mark.parametrize("to", ["onnx", "torch-export"])
def test_a_file_with_other_outputs_does_not_appear(tmp_path, monkeypatch, to):
    original = exporting.trace_program

    def spoiled(network, example):
        program = original(network, example)
        program.state_dict["bias"] = nn.Parameter(program.state_dict["bias"] + 0.001)
        return program

    monkeypatch.setattr(exporting, "trace_program", spoiled)
    with pytest.raises(
        CheckpointError, match=rf"Linear exported to {to} gives other outputs on a batch of 1: .*is all"
    ):
        export(nn.Linear(3, 2), tmp_path / "net", to, (3,))
    assert not list(tmp_path.iterdir())


def test_weights_too_large_for_onnx_are_refused_before_tracing(tmp_path):
    with torch.device("meta"):
        large = nn.Linear(30_000, 20_000)
    with pytest.raises(CheckpointError, match=r"of this Linear take 2\.2 GiB: export it to torch-export"):
        exporting.FORMATS["onnx"].check(large)


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_named_with_what_installs_it(tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        CheckpointError, match=rf"export to onnx needs the package {package}: pip install 'sglp\[onnx\]'"
    ):
        export("nowhere", tmp_path / "net.onnx", "onnx", SHAPE)


def test_a_users_factory_runs_only_when_it_is_trusted(tmp_path, monkeypatch):
    (tmp_path / "users_nets_of_export.py").write_text("from torch import nn\ndef build(): return nn.Linear(3, 2)\n")
    monkeypatch.syspath_prepend(tmp_path)
    name = "users_nets_of_export:build"
    sglp.save(sglp.build(name), tmp_path / "saved")
    with pytest.raises(CheckpointError, match="not from a known library"):
        export(tmp_path / "saved", tmp_path / "net.pt2", "torch-export", (3,))
    export(tmp_path / "saved", tmp_path / "net.pt2", "torch-export", (3,), trust=[name])


@pytest.mark.slow
def test_a_pruned_resnet18_in_onnxruntime_has_the_same_outputs(tmp_path):
    dense = sglp.build("torchvision.models:resnet18", seed=0).eval()
    x = torch.randn(8, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    removed = [layer.name for layer in sglp.find_layers(dense, x[:1]) if layer.removable][::2]
    networks = {"dense": dense, "pruned": without(dense, x[:1], *removed).eval()}
    sessions = {}
    for name, network in networks.items():
        export(network, tmp_path / f"{name}.onnx", "onnx", x[:1])
        sessions[name] = in_onnxruntime(tmp_path / f"{name}.onnx")
        with torch.no_grad():
            expected = network(x)
        (outputs,) = sessions[name].run(["logits"], {"input": x.numpy()})
        difference = torch.from_numpy(outputs).sub(expected).abs().max() / expected.abs().max()
        assert difference <= 1e-4


CONFIG = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
TEXT = CONFIG | {"vocab_size": 30}
IDS = {"input_ids": torch.randint(1, 30, (2, 7), generator=torch.Generator().manual_seed(0))}


class Returning(nn.Module):
    """Returns what `make` builds of two tensors."""

    def __init__(self, make):
        super().__init__()
        self.make, self.a, self.b = make, nn.Conv2d(1, 3, 1), nn.Conv2d(1, 2, 1)

    def forward(self, x):
        return self.make(self.a(x), self.b(x))


MADE = {
    "a tuple": (lambda a, b: (a, b.flatten(1)), ["output_0", "output_1"]),
    "a dict": (lambda a, b: {"out": a, "aux": b}, ["out", "aux"]),
    "nested": (lambda a, b: {"out": a, "levels": [b, a.mean(dim=1)]}, ["out", "levels.0", "levels.1"]),
    "None too": (lambda a, b: (a, None, b), ["output_0", "output_2"]),
    "one twice": (lambda a, b: (a, a), ["output_0", "output_1"]),
    "an object": (lambda a, b: ModelOutput(states=a, pooled=b), ["states", "pooled"]),
    "numbers of classes": (lambda a, b: (a.argmax(dim=1), b > 0), ["output_0", "output_1"]),
}


@pytest.mark.parametrize("to", ["onnx", "torch-export"])
@pytest.mark.parametrize(("make", "names"), MADE.values(), ids=MADE)
def test_all_tensors_are_exported(tmp_path, digits, to, make, names):
    torch.manual_seed(0)
    network, x = Returning(make).eval(), digits[0][:5]
    export(network, tmp_path / "net", to, SHAPE)
    expected = named_outputs(network(x))
    assert list(expected) == names
    if to == "onnx":
        outputs = [
            torch.from_numpy(array) for array in in_onnxruntime(tmp_path / "net").run(names, {"input": x.numpy()})
        ]
    else:
        outputs = list(named_outputs(torch.export.load(tmp_path / "net").module()(x)).values())
    for output, tensor in zip(outputs, expected.values(), strict=True):
        torch.testing.assert_close(output, tensor, check_dtype=False)


ENCODERS = {
    "states and pooled": (lambda: BertModel(BertConfig(**TEXT)), None),
    "start and end of answers": (
        lambda: BertForQuestionAnswering(BertConfig(**TEXT)),
        IDS | {"attention_mask": torch.tensor([[1] * 7, [1] * 4 + [0] * 3])},
    ),
    "few positions": (lambda: BertForSequenceClassification(BertConfig(**TEXT, max_position_embeddings=20)), None),
    "positions after padding": (lambda: RobertaModel(RobertaConfig(**TEXT, max_position_embeddings=20)), None),
    "shared positions": (lambda: BertModel(BertConfig(**TEXT)), IDS | {"position_ids": torch.arange(7)[None]}),
}


@pytest.mark.parametrize(("build", "example"), ENCODERS.values(), ids=ENCODERS)
def test_encoders_take_texts_up_to_the_number_of_their_positions(tmp_path, build, example):
    torch.manual_seed(0)
    network = build().eval()
    export(network, tmp_path / "net.pt2", "torch-export", example)
    module = torch.export.load(tmp_path / "net.pt2").module()
    for samples, tokens in ((1, 9), (3, 18)):
        inputs = {"input_ids": torch.randint(2, 30, (samples, tokens))}
        if "attention_mask" in (example or {}):
            inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        if "position_ids" in (example or {}):
            inputs["position_ids"] = torch.arange(tokens)[None]
        expected, outputs = named_outputs(network(**inputs)), named_outputs(module(**inputs))
        for output, tensor in zip(outputs.values(), expected.values(), strict=True):
            torch.testing.assert_close(output, tensor)


def test_a_length_that_the_code_fixes_is_named(tmp_path):
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(30, 4)

        def forward(self, input_ids):
            return sum(self.embedding(input_ids[:, i]) for i in range(input_ids.shape[1]))

    with pytest.raises(CheckpointError, match=r"Fixed .*: its code works for one number of tokens only, the traced 7$"):
        export(Fixed(), tmp_path / "net.pt2", "torch-export", IDS)


def test_inputs_in_a_tuple_and_in_one_dict_are_exported(tmp_path):
    class Two(nn.Module):
        def forward(self, a, b):
            return a @ b.mT

    class OneDict(nn.Module):
        def forward(self, features):
            return features["x"] * features["scale"]

    a, b = torch.randn(2, 3, 4), torch.randn(2, 5, 4)
    for to in ("torch-export", "onnx"):
        export(Two(), tmp_path / "two", to, (a, b))
        export(OneDict(), tmp_path / "one", to, {"x": a, "scale": torch.ones(2, 1, 1)})
    session = in_onnxruntime(tmp_path / "two")
    (output,) = session.run(None, {"input_0": a.numpy(), "input_1": b.numpy()})
    torch.testing.assert_close(torch.from_numpy(output), a @ b.mT)


def test_inputs_that_do_not_follow_from_the_config_are_asked_for(tmp_path):
    video = VideoMAEForVideoClassification(VideoMAEConfig(image_size=16, patch_size=8, num_frames=4, **CONFIG))
    with pytest.raises(ArchitectureError, match="follow from its config, so pass the shape of one sample instead"):
        export(video, tmp_path / "net.pt2", "torch-export")
    assert not list(tmp_path.iterdir())
