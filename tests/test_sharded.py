"""Pruning a folder without loading it gives the same files as load, prune and save, in much less memory."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
import transformers as hf
import vision_families as vision
from hugging_face_families import FAMILIES, GROUPED, HEADS, REMOVED, example, files, make, outputs, plan
from language import byte_tokenizer, tiny_llama, write_llama
from pipeline import ROOT, make_project, merged, read_yaml, run_module, write_yaml
from safetensors.torch import load_file, save_file

import sglp
from sglp.architecture import architecture_of
from sglp.checkpoints.prune_folder import prune_folder
from sglp.checkpoints.tensor_files import StoredTensor, stored_tensors, write_tensors
from sglp.errors import CheckpointError, PlanError

TIED = {**HEADS, "num_hidden_layers": 13, "tie_word_embeddings": True}


def stack(network, removed, path="model.layers"):
    names = [f"{path}.{i}" for i in range(len(network.get_submodule(path)))]
    return sglp.Plan([n for i, n in enumerate(names) if i not in removed], [names[i] for i in removed])


def both_ways(network, plan, folder, tokenizer=None, **trust):
    """The files of the pruned network from `save`, and those from `prune_folder`."""
    sglp.save(network, folder / "dense", tokenizer)
    before = files(folder / "dense")
    sglp.save(sglp.prune(sglp.load(folder / "dense", **trust), plan), folder / "saved", tokenizer)
    prune_folder(folder / "dense", plan, folder / "copied", **trust)
    assert files(folder / "dense") == before
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == ["copied", "dense", "saved"]
    return files(folder / "saved"), files(folder / "copied")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_folder_is_the_same_as_from_load_prune_and_save(family, tmp_path):
    removed = REMOVED[0]
    saved, copied = both_ways(make(family), plan(family, removed), tmp_path)
    assert copied == saved
    small = sglp.load(tmp_path / "copied")
    expected = sglp.prune(make(family), plan(family, removed))
    assert torch.equal(outputs(small, example(family)), outputs(expected, example(family)))
    assert architecture_of(small) == architecture_of(expected)


@pytest.mark.parametrize("family", ["ViT", "SigLIP", "ConvNeXt", "ResNet"])
def test_models_that_read_images(family, tmp_path):
    network, _, layers = vision.made(family)
    removed = [layer.name for layer in layers if layer.removable][::2]
    saved, copied = both_ways(network, vision.plan(layers, removed), tmp_path)
    assert copied == saved


@pytest.mark.parametrize("family", ["Llama", "Mixtral", "ViT", "ResNet"])
def test_folders_that_transformers_wrote(family, tmp_path):
    if family in FAMILIES:
        network, removal = make(family), plan(family, REMOVED[0])
    else:
        network, _, layers = vision.made(family)
        removal = vision.plan(layers, [layer.name for layer in layers if layer.removable][::2])
    network.save_pretrained(tmp_path / "dense", max_shard_size=30_000)
    before = files(tmp_path / "dense")
    loaded = sglp.load(tmp_path / "dense")
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), network.parameters(), strict=True))
    theirs = type(network).from_pretrained(tmp_path / "dense")
    assert architecture_of(loaded) == architecture_of(theirs)
    sglp.save(sglp.prune(theirs, removal), tmp_path / "saved")
    prune_folder(tmp_path / "dense", removal, tmp_path / "copied")
    assert files(tmp_path / "copied") == files(tmp_path / "saved")
    assert files(tmp_path / "dense") == before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["Llama", "Gemma3"])
def test_half_precision_is_kept(family, dtype, tmp_path):
    make(family).save_pretrained(tmp_path / "single")
    dense = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "single", dtype=dtype)
    saved, copied = both_ways(dense, plan(family, REMOVED[1]), tmp_path / "half")
    assert copied == saved
    assert {tensor.dtype for tensor in load_file(tmp_path / "half/copied/model.safetensors").values()} == {dtype}


def test_tied_embeddings_layers_of_two_digits_and_the_tokenizer(tmp_path):
    dense = hf.Qwen3ForCausalLM(hf.Qwen3Config(**TIED))
    dense.generation_config.max_new_tokens = 7
    saved, copied = both_ways(dense, stack(dense, (0, 9, 11)), tmp_path, byte_tokenizer())
    assert copied == saved
    assert "lm_head.weight" not in load_file(tmp_path / "copied" / "model.safetensors")
    assert hf.GenerationConfig.from_pretrained(tmp_path / "copied").max_new_tokens == 7


def test_the_text_part_of_a_multimodal_model(tmp_path):
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
    pictures = hf.CLIPVisionConfig(**sizes, image_size=8, patch_size=4)
    config = hf.LlavaConfig(text_config=hf.LlamaConfig(**GROUPED), vision_config=pictures, image_token_index=95)
    dense = hf.LlavaForConditionalGeneration(config)
    saved, copied = both_ways(dense, stack(dense, (0, 2), "model.language_model.layers"), tmp_path)
    assert copied == saved


def test_names_that_transformers_changes_on_loading_are_kept_in_the_files(tmp_path):
    config = hf.Qwen3_5TextConfig(
        **HEADS, linear_num_value_heads=4, linear_num_key_heads=2, linear_key_head_dim=8, linear_value_head_dim=8
    )
    dense = hf.Qwen3_5ForCausalLM(config)
    sglp.save(dense, tmp_path / "text")
    tensors = load_file(tmp_path / "text" / "model.safetensors")
    whole = {name.replace("model.", "model.language_model.", 1): tensor for name, tensor in tensors.items()}
    save_file(whole, tmp_path / "text" / "model.safetensors", metadata={"format": "pt"})
    saved, copied = both_ways(sglp.load(tmp_path / "text"), stack(dense, (1, 4)), tmp_path / "of_both")
    assert copied == saved
    assert any(name.startswith("model.language_model.layers.3.") for name in stored_names(tmp_path / "of_both/copied"))


def stored_names(folder):
    with stored_tensors(folder) as stored:
        return list(stored)


def test_rounds_of_pruning_that_replace_their_own_folder(tmp_path):
    sglp.save(make("Llama"), tmp_path / "dense")
    prune_folder(tmp_path / "dense", plan("Llama", (0, 3)), tmp_path / "dense")
    prune_folder(tmp_path / "dense", plan("Llama", (1,), depth=4), tmp_path / "dense")
    once = sglp.prune(make("Llama"), plan("Llama", (0, 2, 3)))
    twice = sglp.load(tmp_path / "dense")
    assert torch.equal(outputs(twice, example("Llama")), outputs(once, example("Llama")))
    assert architecture_of(twice).removed == ("model.layers.0", "model.layers.3", "model.layers.2")


def test_shards_are_those_that_transformers_writes(tmp_path):
    sglp.save(make("Llama"), tmp_path / "whole")
    make("Llama").save_pretrained(tmp_path / "dense", max_shard_size=30_000)
    shutil.copy(tmp_path / "whole" / "architecture.json", tmp_path / "dense")
    small = sglp.prune(sglp.load(tmp_path / "dense"), plan("Llama", (0, 2)))
    small.save_pretrained(tmp_path / "theirs", max_shard_size=20_000)
    prune_folder(tmp_path / "dense", plan("Llama", (0, 2)), tmp_path / "ours", shard=20_000)
    ours, theirs = files(tmp_path / "ours"), files(tmp_path / "theirs")
    assert len(ours) > 8
    assert {name: content for name, content in ours.items() if name in theirs} == theirs
    assert set(ours) - set(theirs) == {"README.md", "architecture.json"}


def test_experts_are_spread_over_shards(tmp_path):
    sglp.save(make("Mixtral"), tmp_path / "dense")
    prune_folder(tmp_path / "dense", plan("Mixtral", (0, 2)), tmp_path / "small", shard=20_000)
    small = sglp.prune(make("Mixtral"), plan("Mixtral", (0, 2)))
    reloaded = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "small")
    assert torch.equal(outputs(reloaded, example("Mixtral")), outputs(small, example("Mixtral")))
    shards = [load_file(path).values() for path in (tmp_path / "small").glob("*.safetensors")]
    sizes = [sum(tensor.nbytes for tensor in tensors) for tensors in shards]
    assert len(sizes) > 10
    assert max(sizes) <= 20_000


def test_tensors_of_any_type_and_shape_come_back(tmp_path):
    tensors = {
        "odd": torch.tensor([True, False, True]),
        "wide": torch.randn(3, 2, dtype=torch.float64),
        "scalar": torch.tensor(2.5, dtype=torch.bfloat16),
        "nothing": torch.empty(0, 4),
        "small": torch.randn(5).to(torch.float8_e4m3fn),
        "whole": torch.arange(7, dtype=torch.int64),
        "half": torch.randn(2, 2, 3).half(),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "new").mkdir()
    with stored_tensors(tmp_path) as stored:
        write_tensors(tmp_path / "new", {f"new.{name}": stored[name] for name in tensors})
    read = load_file(tmp_path / "new" / "model.safetensors")
    assert {name: (t.dtype, t.shape) for name, t in read.items()} == {
        f"new.{name}": (t.dtype, t.shape) for name, t in tensors.items()
    }
    assert all(read[f"new.{name}"].float().equal(tensor.float()) for name, tensor in tensors.items())


def test_files_are_those_of_safetensors_to_the_byte(tmp_path):
    types = {"b": torch.uint8, "c": torch.float16, "a": torch.float32, "e": torch.float64, "d": torch.float64}
    tensors = {name: torch.randint(9, (3, 5)).to(dtype) for name, dtype in types.items()}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "new").mkdir()
    with stored_tensors(tmp_path) as stored:
        write_tensors(tmp_path / "new", stored)
    assert files(tmp_path / "new")["model.safetensors"] == (tmp_path / "model.safetensors").read_bytes()


def test_tensors_of_removed_layers_are_never_read(tmp_path, monkeypatch):
    sglp.save(make("Llama"), tmp_path / "dense")
    read = []
    monkeypatch.setattr(StoredTensor, "read", lambda self: read.append(self.name) or self.file.get_tensor(self.name))
    prune_folder(tmp_path / "dense", plan("Llama", (0, 3)), tmp_path / "small")
    assert len(read) == len(set(read)) == len(stored_names(tmp_path / "small"))
    assert not [name for name in read if name.startswith(("model.layers.0.", "model.layers.3."))]


def test_unknown_data_types_are_refused(tmp_path):
    header = json.dumps({"a": {"dtype": "F8_E8M0", "shape": [2], "data_offsets": [0, 2]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"00")
    with (
        pytest.raises(CheckpointError, match=r"^a in .* has the unknown data type F8_E8M0: it must be one of F64, "),
        stored_tensors(tmp_path),
    ):
        pass


def test_code_in_a_folder_runs_only_when_it_is_trusted(foreign, tmp_path):
    network = hf.AutoModelForCausalLM.from_pretrained(foreign, trust_remote_code=True)
    saved, copied = both_ways(network, plan("Llama", (1, 4)), tmp_path / "both", trust=True)
    assert copied == saved
    assert "tiny.py" in copied
    with pytest.raises(CheckpointError, match=r"contains its own code .* pass trust=True if you trust it"):
        prune_folder(tmp_path / "both" / "dense", plan("Llama", (1, 4)), tmp_path / "other")
    assert not (tmp_path / "other").exists()


def renamed(old, new):
    def damage(folder):
        tensors = load_file(folder / "model.safetensors")
        named = {name.replace(old, new): tensor for name, tensor in tensors.items()}
        save_file(named, folder / "model.safetensors", metadata={"format": "pt"})

    return damage


def in_another_precision(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].half()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def with_an_index_alone(content):
    def damage(folder):
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors.index.json").write_text(content)

    return damage


def without_a_class(folder):
    """Remove the class from the config, and architecture.json."""
    (folder / "architecture.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "architectures"}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (renamed("layers.2.mlp.up", "layers.2.mlp.upper"), r"does not hold the weights of its LlamaForCausalLM: miss"),
        (renamed("model.norm", "model.layers.6.norm"), r"does not hold the weights of its LlamaForCausalLM"),
        (
            renamed("model.", ""),
            r"does not hold the tensors that sglp\.save writes for a LlamaForCausalLM \(model\.\S+ is missing\): use",
        ),
        (in_another_precision, r"\(model\.norm\.weight is F16 \[32\]\): use sglp\.load, sglp\.prune and sglp\.save$"),
        (
            lambda folder: (folder / "config.json").unlink(),
            r"is not a folder for from_pretrained \(it has no config\.json",
        ),
        (lambda folder: (folder / "config.json").write_text("[]"), "config.json is broken"),
        (without_a_class, "is not a saved network: it has no architecture.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), r"has no weights: neither model\.safetensors nor mod"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"no"), r"model\.safetensors is missing or broken"),
        (with_an_index_alone('{"weight_map": {"a": "gone.safetensors"}}'), r"gone\.safetensors is missing or broken"),
        (with_an_index_alone("[]"), r"index\.json is broken: it does not say which file holds which tensor$"),
    ],
)
def test_broken_folders_are_refused_before_anything_is_written(damage, message, tmp_path):
    sglp.save(make("Llama"), tmp_path / "dense")
    damage(tmp_path / "dense")
    with pytest.raises(CheckpointError, match=message) as caught:
        prune_folder(tmp_path / "dense", plan("Llama", (0,)), tmp_path / "small")
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["dense"]


def test_plans_of_other_networks_are_refused(tmp_path):
    sglp.save(make("Llama"), tmp_path / "dense")
    for removed, message in ([range(7)], "has no module model.layers.6"), ([range(6)], "can't lose all its 6 layers"):
        with pytest.raises(PlanError, match=message):
            prune_folder(tmp_path / "dense", plan("Llama", *removed, depth=len(*removed)), tmp_path / "small")
    assert [path.name for path in tmp_path.iterdir()] == ["dense"]


def a_layer_of_mobilenet():
    network, _, layers = vision.made("MobileNetV2")
    return network, vision.plan(layers, [next(layer.name for layer in layers if layer.removable)])


def every_other_layer_of_swin():
    network, _, layers = vision.made("Swin")
    return network, vision.plan(layers, [layer.name for layer in layers if layer.removable][::2])


def every_second_layer_with_experts():
    kinds = {"num_experts_per_tok": 2, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 8}
    config = hf.Qwen2MoeConfig(**GROUPED, **kinds, num_experts=4, decoder_sparse_step=2)
    network = hf.Qwen2MoeForCausalLM(config)
    return network, stack(network, (0,))


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (a_layer_of_mobilenet, r"^no config of MobileNetV2ForImageClassification can describe it without mobilenet"),
        (every_other_layer_of_swin, r"shift_size is 2, but comes back as 0$"),
    ],
)
def test_models_that_no_config_describes_are_refused(case, message, tmp_path):
    network, plan = case()
    sglp.save(network, tmp_path / "dense")
    with pytest.raises(CheckpointError, match=message):
        prune_folder(tmp_path / "dense", plan, tmp_path / "small")
    assert [path.name for path in tmp_path.iterdir()] == ["dense"]


def test_experts_in_every_second_layer_are_listed_in_the_config(tmp_path):
    network, plan = every_second_layer_with_experts()
    sglp.save(network, tmp_path / "dense")
    prune_folder(tmp_path / "dense", plan, tmp_path / "small")
    small = hf.Qwen2MoeForCausalLM.from_pretrained(tmp_path / "small").eval()
    ids = torch.arange(12)[None]
    with torch.no_grad():
        expected = sglp.prune(network, plan).eval()(input_ids=ids, use_cache=False).logits
        assert torch.equal(small(input_ids=ids, use_cache=False).logits, expected)


def test_files_that_can_not_be_written_are_copied(tmp_path):
    sglp.save(make("Llama"), tmp_path / "dense", byte_tokenizer())
    for file in (tmp_path / "dense").iterdir():
        file.chmod(0o444)  # like shared files in a cache
    prune_folder(tmp_path / "dense", plan("Llama", (0,)), tmp_path / "small")
    assert all(file.stat().st_mode & 0o200 for file in (tmp_path / "small").iterdir())


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A language-model project, before its stage prune."""
    folder = make_project(tmp_path / "project")
    shutil.copy(ROOT / "models/llama-tiny.yaml", folder / "models/tiny.yaml")
    monkeypatch.chdir(folder)
    dense = tiny_llama(layers=5, seed=3, tie_word_embeddings=True)
    sglp.save(dense, "data/dense", byte_tokenizer())
    stack(dense, (1, 3)).save("data/plan.json")
    return folder


def test_the_stage_writes_the_same_files_without_loading(project, monkeypatch):
    tokenizer = hf.AutoTokenizer.from_pretrained("data/dense")
    sglp.save(sglp.prune(sglp.load("data/dense"), sglp.Plan.load("data/plan.json")), "expected", tokenizer)
    with monkeypatch.context() as patch:
        patch.setattr("sglp.checkpoints.checkpoint.load_pretrained", lambda *args: pytest.fail("it loads the network"))
        run_module("stages.prune")
    dense, pruned, expected = (files(project / folder) for folder in ("data/dense", "data/pruned", "expected"))
    # A tokenizer that was loaded and saved records how it was loaded; a copied one does not.
    name = "tokenizer_config.json"
    assert json.loads(pruned[name]).items() <= json.loads(expected[name]).items()
    assert pruned == expected | {name: dense[name]}
    assert hf.AutoTokenizer.from_pretrained("data/pruned").get_vocab() == tokenizer.get_vocab()


def test_the_stage_reinitialises_the_weights(project):
    write_yaml(project / "params.yaml", merged(read_yaml(project / "params.yaml"), {"prune": {"weights": "random"}}))
    run_module("stages.prune")
    dense, random = (load_file(project / "data" / name / "model.safetensors") for name in ("dense", "pruned"))
    assert not torch.equal(random["model.layers.0.mlp.up_proj.weight"], dense["model.layers.0.mlp.up_proj.weight"])


# RLIMIT_DATA limits all private memory that the process allocates, used or not, and files that it maps as loading does.
# The reported resident memory also counts pages of libraries.
LIMITED = """
import json, resource, sys
import sglp, sglp.checkpoints.prune_folder, transformers.models.llama.modeling_llama

def status(key):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith(key))

folder, target, layers, limit, more = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
imported = status("VmData"), status("VmHWM")
bytes_at_most = limit or imported[0] + more
resource.setrlimit(resource.RLIMIT_DATA, (bytes_at_most, bytes_at_most))
names = [f"model.layers.{i}" for i in range(layers)]
sglp.checkpoints.prune_folder.prune_folder(folder, sglp.Plan(names[1::2], names[::2]), target)
grown = status("VmHWM") - imported[1]
try:
    sglp.prune(sglp.load(folder), sglp.Plan(names[1::2], names[::2]))
    loads = True
except (sglp.SGLPError, MemoryError, RuntimeError):
    loads = False
print(json.dumps({"grown": grown, "loads": loads, "peak": imported[1] + grown}))
"""


def pruned_within(folder, layers, limit=0, more=0):
    arguments = map(str, (folder / "dense", folder / "small", layers, limit, more))
    command = [sys.executable, "-c", LIMITED, *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def check_tensors(folder, layers):
    with stored_tensors(folder / "dense") as dense, stored_tensors(folder / "small") as small:
        assert len({name.split(".")[2] for name in small if ".layers." in name}) == layers // 2
        for name, tensor in small.items():
            parts = name.split(".")
            if ".layers." in name:
                parts[2] = str(2 * int(parts[2]) + 1)
            assert torch.equal(tensor.read(), dense[".".join(parts)].read())


@pytest.mark.skipif(sys.platform != "linux", reason="other systems limit memory in other ways")
def test_a_model_larger_than_memory_is_pruned(tmp_path):
    size = write_llama(tmp_path / "dense", 12, hidden_size=512, intermediate_size=1024, vocab_size=8000)
    assert size > 75e6
    usage = pruned_within(tmp_path, 12, more=40 << 20)
    assert not usage["loads"], "the limit is too high to show anything"
    assert usage["grown"] < size / 2
    check_tensors(tmp_path, 12)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="other systems limit memory in other ways")
def test_four_gigabytes_are_pruned_within_one(tmp_path):
    size = write_llama(tmp_path / "dense", 30, hidden_size=2048, intermediate_size=8192, vocab_size=16000)
    assert size > 4e9
    usage = pruned_within(tmp_path, 30, limit=1 << 30)
    assert not usage["loads"]
    assert usage["peak"] < 1 << 30
    check_tensors(tmp_path, 30)
