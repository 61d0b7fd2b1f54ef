"""``sglp compress``: one command from a model to a smaller one, by the library's `compress` and nothing beside it."""

import inspect
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from language import byte_tokenizer, cast, prose, tiny_llama
from PIL import Image
from pipeline import ROOT
from torch import nn
from transformers import AutoModelForCausalLM

import sglp
from sglp.commands import compress as command
from sglp.commands.app import main
from sglp.commands.healing import RECIPE
from sglp.commands.image_samples import ImageSamples
from sglp.commands.text_samples import TextSamples

NETS = """
from torch import nn
class Block(nn.Module):
    def __init__(self): super().__init__(); self.conv = nn.Conv2d(4, 4, 3, padding=1); self.norm = nn.BatchNorm2d(4)
    def forward(self, x): return (x + self.norm(self.conv(x))).relu()
class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.blocks = nn.Sequential(*(Block() for _ in range(5)))
        self.head = nn.Linear(4, classes)
    def forward(self, x): return self.head(self.blocks(self.stem(x)).mean((2, 3)))
def build(classes=3): return Net(classes)
"""
TEXT_OPTIONS = ["--text", "texts.txt", "--length", "16", "--remove", "0.3"]
IMAGE_OPTIONS = ["--weights", "mine.safetensors", "--images", "photos", "--size", "8", "--remove", "0.4"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return tmp_path


@pytest.fixture
def llama(folder):
    """A saved language model with its tokenizer, and a text."""
    sglp.save(tiny_llama(6), folder / "llama", byte_tokenizer())
    (folder / "texts.txt").write_text(prose(400), encoding="utf-8")
    return "llama"


@pytest.fixture
def net(folder):
    """A factory of an image classifier, its weights, and a folder of images of three classes."""
    from safetensors.torch import save_file

    (folder / "nets_of_compress.py").write_text(NETS)
    sys.path.append(str(folder))
    network = sglp.build("nets_of_compress:build", seed=0)
    save_file(network.state_dict(), folder / "mine.safetensors")
    draw = np.random.default_rng(0)
    for name in ("ant", "bee", "cat"):
        (folder / "photos" / name).mkdir(parents=True)
        for i in range(20):
            Image.fromarray(draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(folder / f"photos/{name}/{i}.png")
    return "nets_of_compress:build"


def run(capsys, *arguments) -> dict:
    main(["compress", *arguments, "--json"])
    return json.loads(capsys.readouterr().out)


def refused(capsys, *arguments) -> str:
    before = sorted(Path().rglob("*"))
    with pytest.raises(SystemExit) as end:
        main(["compress", *arguments])
    assert end.value.code == 2
    printed = capsys.readouterr()
    assert not printed.out
    assert [path for path in sorted(Path().rglob("*")) if "__pycache__" not in path.parts] == before
    return printed.err.strip().splitlines()[-1]


def perplexity_by_hand(network, text: str) -> float:
    """Of the last tenth of the bytes, in windows of 16."""
    tokens = torch.tensor(byte_tokenizer()(text, add_special_tokens=False)["input_ids"])
    tail = tokens[len(tokens) - int(len(tokens) * 0.1) :]
    losses, done = [], 0
    for begin in range(0, len(tail), 15):
        window = tail[begin : begin + 16]
        if len(window) < 2 or done >= len(tail) - 1:
            break
        with torch.no_grad():
            logits = network(input_ids=window[None]).logits[0]
        new = F.cross_entropy(logits[:-1], window[1:], reduction="none")
        losses.append(new)
        done += len(new)
    return math.exp(float(torch.cat(losses).mean()))


def test_a_language_model_gets_a_folder_for_plain_from_pretrained(llama, folder, capsys):
    shown = run(capsys, llama, *TEXT_OPTIONS, "--out", "small")
    small = AutoModelForCausalLM.from_pretrained(folder / "small")
    assert small.config.num_hidden_layers == 4 == shown["small"]["layers"]
    assert shown["dense"]["layers"] == 6
    assert shown["small"]["parameters"] == sum(p.numel() for p in small.parameters())
    text = (folder / "texts.txt").read_text(encoding="utf-8")
    assert shown["small"]["quality"] == pytest.approx(perplexity_by_hand(small, text), rel=1e-5)
    assert shown["dense"]["quality"] == pytest.approx(perplexity_by_hand(tiny_llama(6), text), rel=1e-5)
    plan = sglp.Plan.load(folder / "small/plan.json")
    assert list(plan.removed) == shown["removed"]
    assert len(plan.removed) == 2
    card, page = ((folder / "small" / name).read_text(encoding="utf-8") for name in ("README.md", "report.html"))
    assert f"| perplexity | {shown['dense']['quality']:.2f} | {shown['small']['quality']:.2f} |" in card
    assert page.count("data:image/png;base64,") == 2
    assert not list(folder.glob(".*"))


def test_the_network_is_that_of_the_librarys_compress(llama, folder, capsys):
    run(capsys, llama, *TEXT_OPTIONS, "--out", "small", "--seed", "3")
    dense = tiny_llama(6)
    samples = TextSamples("texts.txt", "text", 16, dense, byte_tokenizer())
    sizes = samples.sizes
    by_library = sglp.compress(
        dense,
        samples.batches(3),
        prune_ratio=0.3,
        seed=3,
        calibration=sizes.calibration,
        scoring=sizes.scoring,
        reconstruction=sizes.reconstruction,
        pooling=sizes.pooling,
    )
    small = AutoModelForCausalLM.from_pretrained(folder / "small")
    state = by_library.network.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in small.state_dict().items())


def test_images_of_classes_are_measured_by_their_labels(net, folder, capsys):
    shown = run(capsys, net, *IMAGE_OPTIONS, "--out", "small")
    assert shown["measured"] == "accuracy"
    small = sglp.load(folder / "small", trust=True)
    assert len(small.blocks) == 3
    from sglp.commands.networks import View

    samples = ImageSamples("photos", View().changed(8, None, None), small, 0)
    right = [int(small(samples.images[i][0][None]).argmax()) == samples.images[i][1] for i in samples.held_out]
    assert shown["small"]["quality"] == pytest.approx(np.mean(right))
    assert len(right) == 6


def test_images_without_fitting_classes_are_measured_by_agreement(net, folder, capsys):
    (folder / "all").mkdir()
    for number, file in enumerate(sorted((folder / "photos").rglob("*.png"))):
        file.rename(folder / f"all/{number}.png")
    options = ["--images" if one == "--images" else "all" if one == "photos" else one for one in IMAGE_OPTIONS]
    shown = run(capsys, net, *options, "--out", "small")
    assert shown["measured"] == "agreement"
    assert shown["dense"]["quality"] == 1.0
    assert 0 <= shown["small"]["quality"] <= 1


def test_a_target_counts_instead_of_the_share(net, capsys):
    shown = run(capsys, net, *IMAGE_OPTIONS, "--target", "macs=0.7", "--dry-run")
    assert 0.5 < shown["small"]["macs"] / shown["dense"]["macs"] <= 0.7


def test_a_dry_run_writes_nothing_and_shows_the_plan(llama, folder, capsys):
    before = sorted(folder.rglob("*"))
    main(["compress", llama, *TEXT_OPTIONS, "--dry-run", "--out", "small"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["dense", "this", "network", "change"]
    assert lines[1].split() == ["layers", "6", "4", "-33.3", "%"]
    assert lines[-1].startswith("removed layers: model.layers.")
    assert sorted(folder.rglob("*")) == before


def test_healing_trains_what_is_left(llama, folder, capsys):
    tired = run(capsys, llama, *TEXT_OPTIONS, "--out", "tired")
    healed = run(capsys, llama, *TEXT_OPTIONS, "--out", "healed", "--heal", "20")
    assert healed["removed"] == tired["removed"]
    assert healed["small"]["quality"] < tired["small"]["quality"]
    AutoModelForCausalLM.from_pretrained(folder / "healed")


def test_without_reconstruction_kept_layers_are_those_of_the_dense_network(llama, folder, capsys):
    shown = run(capsys, llama, *TEXT_OPTIONS, "--out", "small", "--no-reconstruct")
    dense = tiny_llama(6)
    expected = sglp.prune(dense, sglp.Plan(shown["kept"], shown["removed"])).state_dict()
    state = AutoModelForCausalLM.from_pretrained(folder / "small").state_dict()
    assert all(torch.equal(state[name], value) for name, value in expected.items())


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "folder"])
def test_texts_come_in_the_usual_formats(llama, folder, capsys, kind):
    texts = [prose(40, seed) for seed in range(10)]
    if kind == "parquet":
        import pandas

        pandas.DataFrame({"words": texts}).to_parquet("texts.parquet")
        name = "texts.parquet"
    else:
        name = "texts.jsonl" if kind == "jsonl" else "many/texts.jsonl"
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text("".join(json.dumps({"words": text}) + "\n" for text in texts))
        name = name if kind == "jsonl" else "many"
    shown = run(capsys, llama, "--text", name, "--column", "words", "--length", "16", "--remove", "0.3", "--dry-run")
    assert shown["small"]["layers"] == 4


def test_bfloat16_weights_stay_bfloat16(folder, capsys):
    sglp.save(cast(tiny_llama(6), torch.bfloat16), folder / "llama", byte_tokenizer())
    (folder / "texts.txt").write_text(prose(400), encoding="utf-8")
    run(capsys, "llama", *TEXT_OPTIONS, "--out", "small")
    small = AutoModelForCausalLM.from_pretrained(folder / "small")
    assert {parameter.dtype for parameter in small.parameters()} == {torch.bfloat16}


def test_a_network_of_torchvision_takes_a_file_of_weights(net, capsys):
    from safetensors.torch import save_file
    from torchvision.models import resnet18

    torch.manual_seed(0)
    save_file(resnet18(num_classes=3).state_dict(), "resnet18.safetensors")
    options = ["--weights", "resnet18.safetensors", "--kwargs", '{"num_classes": 3}', "--images", "photos"]
    shown = run(capsys, "resnet18", *options, "--size", "32", "--remove", "0.5", "--dry-run")
    assert (shown["dense"]["layers"], shown["small"]["layers"]) == (9, 6)


REFUSED = {
    "nothing to compress with": ([], "pass either --text with texts for a language model, or --images"),
    "both": (["--text", "texts.txt", "--images", "photos"], "pass either --text"),
    "no place": (["--text", "texts.txt"], "pass --out with the folder to write, or --dry-run"),
    "a place that exists": (
        ["--text", "texts.txt", "--out", "llama"],
        "--out=llama exists: give a folder that does not",
    ),
    "an unwritable place": (
        ["--text", "texts.txt", "--out", "texts.txt/small"],
        "--out=texts.txt/small can't be written",
    ),
    "no text": (["--text", "none.txt", "--out", "small"], "--text=none.txt does not exist"),
    "an unknown format": (["--text", ".", "--out", "small"], "--text=. must be files of one format"),
    "a short text": (["--text", "short.txt", "--out", "small"], "short.txt is too short: it has 43 tokens"),
    "an unknown column": (
        ["--text", "texts.txt", "--column", "words", "--out", "small"],
        "texts.txt has no column 'words': it has text",
    ),
    "too long sequences": (
        ["--text", "texts.txt", "--length", "129", "--out", "small"],
        "takes sequences of at most 128 tokens",
    ),
    "an unreachable target": ([*TEXT_OPTIONS, "--target", "parameters=0.01", "--out", "small"], "target"),
    "an unknown target": ([*TEXT_OPTIONS, "--target", "flops=0.5", "--out", "small"], "flops"),
    "an unknown method": ([*TEXT_OPTIONS, "--method", "magic", "--out", "small"], "method"),
    "too many segments": ([*TEXT_OPTIONS, "--k", "70", "--out", "small"], "k"),
    "more steps than text": (
        [*TEXT_OPTIONS, "--heal", "500", "--out", "small"],
        "--heal=500 needs 2000 sequences of 16",
    ),
    "nothing removed": (["--text", "texts.txt", "--length", "16", "--remove", "1.5", "--out", "small"], "prune_ratio"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_one_sentence_and_leaves_nothing(llama, folder, capsys, case):
    (folder / "short.txt").write_text("a short text, of which a tenth is held out.")
    arguments, message = REFUSED[case]
    assert message in refused(capsys, llama, *arguments)


def test_unknown_networks_are_refused(net, llama, capsys):
    assert "nothing is not a folder here" in refused(capsys, "nothing", *IMAGE_OPTIONS, "--out", "small")
    assert "owner/none is not a folder here" in refused(capsys, "owner/none", *TEXT_OPTIONS, "--out", "small")
    bad = ["--weights", "none.pth", "--images", "photos", "--out", "small"]
    assert "--weights=none.pth is neither a file nor one of" in refused(capsys, "resnet18", *bad)
    assert "has random weights" in refused(capsys, net, "--images", "photos", "--out", "small")


def test_the_defaults_are_the_librarys_and_the_pipelines():
    ours = {name: one.default for name, one in inspect.signature(command.compress).parameters.items()}
    library = {name: one.default for name, one in inspect.signature(sglp.compress).parameters.items()}
    assert int(ours["k"]) == library["k"]
    assert ours["remove"] == library["prune_ratio"]
    assert {name: ours[name] for name in ("method", "seed", "reconstruct", "target")} == {
        name: library[name] for name in ("method", "seed", "reconstruct", "target")
    }
    pipeline = yaml.safe_load((ROOT / "params.yaml").read_text())
    assert [pipeline[name] for name in ("k", "prune_ratio", "method", "seed", "target")] == [
        library[name] for name in ("k", "prune_ratio", "method", "seed", "target")
    ]
    assert pipeline["score"]["criterion"] == library["criterion"]
    images = ImageSamples.sizes
    assert (images.calibration, images.scoring, images.pooling) == tuple(
        library[name] for name in ("calibration", "scoring", "pooling")
    )


def test_language_models_are_treated_as_in_the_workload_of_smollm2():
    workload = yaml.safe_load((ROOT / "models/smollm2-135m.yaml").read_text())
    sizes = TextSamples.sizes
    assert sizes.calibration == (workload["calibration"]["samples"], workload["calibration"]["batch_size"])
    assert sizes.reconstruction == (workload["reconstruction"]["samples"], workload["reconstruction"]["batch_size"])
    assert sizes.scoring == (workload["scoring"]["batch_size"],) * 2
    assert sizes.pooling == workload["calibration"]["pooling"]
    assert inspect.signature(command.compress).parameters["length"].default == workload["data"]["prepare"]["length"]
    recipe = workload["finetune"]
    assert {key: recipe[key] for key in RECIPE if key not in ("last_layers",)} == {
        key: value for key, value in RECIPE.items() if key not in ("last_layers",)
    }


def test_a_folder_of_a_vision_transformer_is_compressed_like_any_other(net, folder, capsys):
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=4, num_attention_heads=2, image_size=8, patch_size=4,
        num_labels=3,
    )  # fmt: skip
    torch.manual_seed(0)
    ViTForImageClassification(config).save_pretrained(folder / "vit")
    shown = run(capsys, "vit", "--images", "photos", "--remove", "0.5", "--out", "small")
    assert shown["small"]["layers"] < shown["dense"]["layers"]
    assert isinstance(ViTForImageClassification.from_pretrained(folder / "small"), nn.Module)
