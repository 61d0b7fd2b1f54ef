"""The pipeline for language models: the shipped workloads at tiny size, a kill in healing, bad input."""

import json
import time
from pathlib import Path

import pytest
import torch
from language import byte_tokenizer, prose, tiny_llama
from pipeline import (
    ROOT,
    complaint,
    isolated,
    kill_and_run_again,
    make_project,
    merged,
    read_yaml,
    run_module,
    run_stages,
    stage_names,
    write_yaml,
)
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, Qwen3Config

import sglp

TINY_PARAMS = {"model": "tiny", "k": 2, "prune_ratio": 0.25, "benchmark": {"repeats": 2}}
SMALL = {
    "data": {"prepare": {"length": 32}},
    "calibration": {"samples": 8, "batch_size": 4},
    "scoring": {"batch_size": 2},
    "pretrain": {"samples": 64, "batch_size": 16, "epochs": 1},
    "finetune": {"samples": 32, "batch_size": 4},
    "evaluation": {"length": 32, "stride": 16, "tokens": 400, "batch_size": 4, "tasks": [], "max_new_tokens": 4},
    "benchmark": {"batch_sizes": [1], "prompt_tokens": 8, "new_tokens": 4},
}


def tiny_project(folder: Path, workload: dict) -> Path:
    project = make_project(folder)
    write_yaml(project / "params.yaml", merged(read_yaml(ROOT / "params.yaml"), TINY_PARAMS))
    write_yaml(project / "models/tiny.yaml", merged(workload, SMALL))
    return project


def shipped(name: str) -> dict:
    return read_yaml(ROOT / f"models/{name}.yaml")


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Path:
    """A tiny Llama that went through the whole pipeline."""
    project = tiny_project(tmp_path_factory.mktemp("language") / "project", shipped("llama-tiny"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        patch.setenv("XDG_CACHE_HOME", str(project.parent / "cache"))
        run_stages(project, stage_names(project))
    return project


def test_the_result_is_a_plain_folder_of_transformers(done):
    dense, tuned = (AutoModelForCausalLM.from_pretrained(done / "data" / name) for name in ("dense", "finetuned"))
    assert (dense.config.num_hidden_layers, tuned.config.num_hidden_layers) == (8, 6)
    tokenizer = AutoTokenizer.from_pretrained(done / "data/finetuned")
    ids = tokenizer("the quick", return_tensors="pt", add_special_tokens=False)["input_ids"]
    assert torch.equal(tuned(ids).logits, sglp.load(done / "data/finetuned")(ids).logits)
    assert tuned.generate(ids, max_new_tokens=3, min_new_tokens=3, do_sample=False).shape[1] == ids.shape[1] + 3


def test_the_report_tells_of_all_three_networks(done):
    markdown, html = (done / "reports/report.md").read_text(), (done / "reports/report.html").read_text()
    metrics = json.loads((done / "reports/metrics.json").read_text())
    for row in (
        "| perplexity |",
        "| MACs per token |",
        "| throughput, prefill, batch 1 |",
        "| throughput, decode, batch 1 |",
    ):
        assert row in markdown
    assert "2 of 8 layers are removed" in markdown
    assert markdown.count("> **The capital of France is**") == 1
    assert html.count("<td>The capital of France is</td>") == 1
    assert metrics["pruned"]["perplexity"] != metrics["finetuned"]["perplexity"]


@pytest.mark.slow
def test_killed_in_healing_and_run_again_gives_the_same_weights(done, tmp_path):
    folder, cache = isolated(done, "finetune", tmp_path / "finetune"), tmp_path / "cache"
    kill_and_run_again(folder, cache, after=2, steps=8)
    for out in ("data/finetuned/model.safetensors", "reports/training.csv"):
        assert (folder / out).read_bytes() == (done / out).read_bytes()


def weights_folder(folder: Path, kind: str) -> Path:
    """A tiny model of this kind as somebody else saved it."""
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = {"llama": LlamaConfig, "qwen3": Qwen3Config}[kind](
        vocab_size=259, num_hidden_layers=8, head_dim=8, **sizes
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("name", "kind", "tuning"), [("llama3.1-8b-instruct", "llama", "lora"), ("qwen3-4b", "qwen3", "partial")]
)
def test_shipped_workloads_run_on_models_of_their_kind(name, kind, tuning, tmp_path, monkeypatch):
    workload = shipped(name)
    assert len(workload["weights"]["kwargs"]["revision"]) == 40
    workload["weights"] = {"source": "file", "kwargs": {}, "train": False}
    workload["files"]["weights"]["path"] = str(weights_folder(tmp_path / "weights", kind))
    for first, split in enumerate(("train", "test")):
        rows = [json.dumps({"text": prose(400, 4 * first + seed)}) for seed in range(4)]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(rows) + "\n")
        workload["files"][split]["path"] = str(tmp_path / f"{split}.jsonl")
    workload["data"]["source"] = {"loader": "datasets", "name": "json", "revision": None}
    workload["data"] |= {"train": {}, "test": {}}
    workload["finetune"] |= {"tuning": tuning, "last_layers": 1, "distillation": 0.5}
    project = tiny_project(tmp_path / "project", workload)
    monkeypatch.chdir(project)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    run_module("tools.checksums", "models/tiny.yaml")
    run_stages(project, [stage for stage in stage_names(project) if stage not in ("benchmark", "report")])
    tuned = AutoModelForCausalLM.from_pretrained(project / "data/finetuned")
    assert tuned.dtype == torch.bfloat16, "as the weights that came"
    assert tuned.config.num_hidden_layers == 6


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """A project whose weights come from a file."""
    workload = shipped("llama-tiny")
    workload["architecture"]["kwargs"] = {}
    workload["weights"] = {"source": "file", "kwargs": {}, "train": False}
    folder = tiny_project(tmp_path / "project", workload)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return folder


def change(project: Path, changes: dict) -> None:
    path = project / "models/tiny.yaml"
    content = merged(read_yaml(path), changes)
    if "weights" in changes:  # its kwargs are a free mapping
        content["weights"] = changes["weights"]
    write_yaml(path, content)


def use_weights(project: Path, folder: Path) -> None:
    change(project, {"files": {"weights": {"path": str(folder)}}})
    run_module("tools.checksums", "models/tiny.yaml")


def test_not_enough_text(project):
    tiny_llama().save_pretrained(project.parent / "weights")
    use_weights(project, project.parent / "weights")
    change(project, {"calibration": {"samples": 10**6}})
    run_module("stages.pretrain")
    assert "1000000 samples are needed, but there are only" in complaint("stages.extract")
    change(project, {"evaluation": {"tokens": 10**9}})
    assert "evaluation.tokens=1000000000 is too many" in complaint("stages.evaluate", "dense")


def test_a_sequence_longer_than_the_models_positions(project):
    tiny_llama().save_pretrained(project.parent / "weights")
    use_weights(project, project.parent / "weights")
    change(project, {"data": {"prepare": {"length": 129}}})
    assert "data.prepare.length=129 is too long: LlamaForCausalLM takes sequences of at most 128 tokens" in complaint(
        "stages.pretrain"
    )
    assert not Path("data/dense").exists()


def test_a_hub_name_without_a_hub(project, monkeypatch):
    # A port on which nobody listens.
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    kwargs = {"pretrained": "somebody/some-model", "revision": "0" * 40}
    change(project, {"weights": {"source": "factory", "kwargs": kwargs, "train": False}})
    start = time.monotonic()
    sentence = complaint("stages.pretrain")
    assert "somebody/some-model is not a folder here and can't be downloaded from the hub" in sentence
    assert "set files.weights.path to it, with weights.source: file and weights.kwargs: {}" in sentence
    assert time.monotonic() - start < 20


def test_weights_that_need_code_of_their_own(project):
    folder = project.parent / "weights"
    folder.mkdir()
    code = {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}
    (folder / "config.json").write_text(json.dumps({"model_type": "strange", "auto_map": code}))
    use_weights(project, folder)
    assert "needs code that comes with it: write architecture.kwargs.trust_remote_code: true" in complaint(
        "stages.pretrain"
    )


CODE = """
from transformers import LlamaConfig, LlamaForCausalLM


class StrangeConfig(LlamaConfig):
    model_type = "strange"


class Strange(LlamaForCausalLM):
    config_class = StrangeConfig
"""


def test_a_model_with_code_of_its_own_goes_all_the_way_where_that_is_allowed(project, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(project.parent / "modules"))
    folder = project.parent / "weights"
    tiny_llama(8).save_pretrained(folder)
    (folder / "strange.py").write_text(CODE)
    config = json.loads((folder / "config.json").read_text())
    code = {"AutoConfig": "strange.StrangeConfig", "AutoModelForCausalLM": "strange.Strange"}
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "strange", "auto_map": code}))
    use_weights(project, folder)
    path = project / "models/tiny.yaml"
    content = read_yaml(path)
    content["architecture"]["kwargs"] = {"trust_remote_code": True}
    write_yaml(path, content)
    run_stages(project, [s for s in stage_names(project) if s not in ("benchmark", "report", "evaluate@dense")])
    tuned = AutoModelForCausalLM.from_pretrained(project / "data/finetuned", trust_remote_code=True)
    assert (type(tuned).__name__, tuned.config.num_hidden_layers) == ("Strange", 6)


def test_kwargs_that_would_be_ignored(project):
    tiny_llama().save_pretrained(project.parent / "weights")
    use_weights(project, project.parent / "weights")
    path = project / "models/tiny.yaml"
    content = read_yaml(path)
    content["architecture"]["kwargs"] = {"hidden_size": 999}
    write_yaml(path, content)
    assert "architecture.kwargs has hidden_size, but pretrained weights bring their own configuration" in complaint(
        "stages.pretrain"
    )
    content["architecture"]["kwargs"] = {"model_type": "llama", "hiden_size": 16}
    content["weights"] = {"source": "random", "kwargs": {}, "train": True}
    content["files"]["weights"] = {"path": None, "sha256": None}
    write_yaml(path, content)
    assert "do not make a language model: LlamaConfig has no entry hiden_size" in complaint("stages.pretrain")


def test_a_folder_without_weights(project):
    folder = project.parent / "weights"
    folder.mkdir()
    (folder / "notes.txt").write_text("none yet")
    use_weights(project, folder)
    assert "must hold config.json and safetensors, or one GGUF file; it holds neither" in complaint("stages.pretrain")


def test_targets_of_lora_that_are_not_there(done, tmp_path, monkeypatch):
    folder = isolated(done, "finetune", tmp_path / "finetune")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    change(folder, {"finetune": {"lora": {"targets": ["c_attn"]}}})
    assert "finetune.lora.targets: the network has no layer c_attn; its linear layers" in complaint("stages.finetune")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"finetune": {"tuning": "prompt"}}, "models/tiny.yaml: finetune.tuning='prompt' is wrong"),
        ({"evaluation": {"stride": 64}}, "models/tiny.yaml: evaluation: stride=64 must be at most length=32"),
        (
            {"weights": {"source": "factory", "kwargs": {"pretrained": "me/model"}, "train": False}},
            "weights.kwargs={'pretrained': 'me/model'} is wrong: it must have pretrained (a name on the hub) and",
        ),
        (
            {
                "weights": {
                    "source": "factory",
                    "kwargs": {"pretrained": "models", "revision": "0" * 40},
                    "train": False,
                }
            },
            "for a local folder, set weights.source: file and files.weights.path",
        ),
        (
            {"calibration": {"pooling": "tokens", "batch_size": 100}},
            "calibration.pooling=tokens compares all 3200 tokens of a batch with each other",
        ),
        ({"task": "masked_lm"}, "models/tiny.yaml: task='masked_lm' is wrong: it must be 'image_classification'"),
    ],
)
def test_a_wrong_workload(project, changes, sentence):
    change(project, changes)
    assert sentence in complaint("tools.check")
