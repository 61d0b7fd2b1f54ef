"""Reconstruction from folder to folder gives the same files as in memory, with one layer of each network at a time."""

import json
import os
import subprocess
import sys

import pytest
import torch
import transformers as hf
import vision_families as vision
from hugging_face_families import FAMILIES, example, files, make, plan, tokens
from language import byte_tokenizer, tiny_llama, write_llama
from networks import noise
from safetensors.torch import load_file, save_file

import sglp
from sglp.checkpoints.lazy_weights import LazyWeights
from sglp.checkpoints.open_folder import open_folder
from sglp.checkpoints.reconstruct_folder import reconstruct_folder
from sglp.checkpoints.tensor_files import StoredTensor
from sglp.errors import CheckpointError, PlanError, ScoringError


def layers(*removed, depth=6):
    names = [f"model.layers.{i}" for i in range(depth)]
    return sglp.Plan([name for i, name in enumerate(names) if i not in removed], [names[i] for i in removed])


def sequences(count=8, length=24, **more):
    return [{"input_ids": tokens(length, seed=seed), **more} for seed in range(count)]


def folders(network, removal, folder, tokenizer=None):
    sglp.save(network, folder / "dense", tokenizer)
    sglp.prune_folder(folder / "dense", removal, folder / "pruned")


def both_ways(folder, removal, batches, dtype=None, **options):
    """Reconstruct in memory and from folder to folder; return the rows, and the files written."""
    dense, pruned = (sglp.load(folder / name, dtype=dtype) for name in ("dense", "pruned"))
    for network in (dense, pruned):
        for tensor in (*network.parameters(), *network.buffers()):
            tensor.data = tensor.data.clone()  # mapped files lie anywhere in memory, and sums depend on it
    rows = sglp.reconstruct(dense, pruned, removal, batches, steps=4, **options)
    for name, parameter in sglp.load(folder / "pruned").named_parameters():
        changed = pruned.get_parameter(name)
        changed.data = changed.data.to(parameter.dtype)
    sglp.save(pruned, folder / "memory")
    before = {name: files(folder / name) for name in ("dense", "pruned")}
    assert rows == reconstruct_folder(
        folder / "dense", folder / "pruned", removal, folder / "new", batches, dtype=dtype, steps=4, **options
    )
    assert before == {name: files(folder / name) for name in ("dense", "pruned")}
    assert sorted(path.name for path in folder.iterdir()) == ["dense", "memory", "new", "pruned"]
    weights = "model.safetensors"
    assert files(folder / "new") == before["pruned"] | {weights: (folder / "memory" / weights).read_bytes()}
    return rows


@pytest.mark.parametrize("family", FAMILIES)
def test_the_folder_is_the_same_as_from_memory(family, tmp_path):
    removal = plan(family, (2, 3))
    folders(make(family), removal, tmp_path)
    batches = [example(family) | {"input_ids": tokens(seed=seed)} for seed in range(8)]
    both_ways(tmp_path, removal, batches)


@pytest.mark.parametrize(
    ("family", "scope"), [("ViT", "all"), ("ConvNeXt", "all"), ("ResNet", "all"), ("ResNet", "gaps")]
)
def test_models_that_read_images(family, scope, tmp_path):
    network, images, found = vision.made(family)
    removal = vision.plan(found, [layer.name for layer in found if layer.removable][1::3])
    folders(network, removal, tmp_path)
    rows = both_ways(tmp_path, removal, [noise(4, *images.shape[1:], seed=seed) for seed in range(8)], scope=scope)
    assert any(row.kept for row in rows)


@pytest.mark.parametrize(("family", "dtype"), [("Qwen2", torch.float32), ("Qwen2", None), ("Mixtral", torch.float32)])
def test_files_in_half_precision_stay_in_it(family, dtype, tmp_path):
    removal = plan(family, (1, 4))
    make(family).save_pretrained(tmp_path / "single")
    dense = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "single", dtype=torch.bfloat16)
    (tmp_path / "half").mkdir()
    folders(dense, removal, tmp_path / "half")
    rows = both_ways(tmp_path / "half", removal, sequences(use_cache=False), dtype)
    assert any(row.kept for row in rows)
    after = load_file(tmp_path / "half/new/model.safetensors")
    assert {tensor.dtype for tensor in after.values()} == {torch.bfloat16}


def test_precision_that_files_have_and_the_fit_has_not_is_kept_where_nothing_changes(tmp_path):
    removal = plan("Qwen2", (2, 3))
    folders(make("Qwen2"), removal, tmp_path)
    paths = (tmp_path / name for name in ("dense", "pruned", "new"))
    reconstruct_folder(*(next(paths), next(paths)), removal, next(paths), sequences(), dtype=torch.bfloat16, steps=2)
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("pruned", "new"))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert {name.split(".")[2] for name in changed} <= {"1", "2", "3"}


def test_one_layer_of_each_network_is_loaded_at_a_time_and_once(tmp_path, monkeypatch):
    dense = tiny_llama(8, tie_word_embeddings=True)
    removal = layers(3, 4, depth=8)
    folders(dense, removal, tmp_path, byte_tokenizer())
    hf.AutoModelForCausalLM.from_pretrained(tmp_path / "dense").save_pretrained(
        tmp_path / "shards", max_shard_size=9000
    )
    for path in (tmp_path / "dense").glob("*.safetensors"):
        path.unlink()
    for path in (tmp_path / "shards").glob("model*"):
        path.rename(tmp_path / "dense" / path.name)
    assert len(list((tmp_path / "dense").glob("*.safetensors"))) > 5

    present, at_most, read = set(), [], []
    load, unread = LazyWeights._load, StoredTensor.unread

    def loading(self, names):
        load(self, names)
        present.add(self)
        resident = [
            {
                name.split(".")[2]
                for name, p in weights.network.named_parameters()
                if ".layers." in name and not p.is_meta
            }
            for weights in present
        ]
        at_most.append(max(map(len, resident)))

    monkeypatch.setattr(LazyWeights, "_load", loading)
    monkeypatch.setattr(StoredTensor, "unread", lambda self: read.append(self.name) or unread(self))
    batches = [{"input_ids": batch} for batch in torch.randint(259, (16, 12)).split(2)]
    rows = reconstruct_folder(
        tmp_path / "dense", tmp_path / "pruned", removal, tmp_path / "new", batches, scope="gaps", shard=5000
    )
    assert [(row.layer, row.target) for row in rows] == [("model.layers.2", "model.layers.4")]
    assert len(present) == 2
    assert max(at_most) == 1
    expected = [name for name in load_file(tmp_path / "pruned/model.safetensors") if ".layers." in name]
    expected = [name for name in expected if int(name.split(".")[2]) <= 2]  # what follows is never reached
    from_dense = [
        name.replace(".layers.2.", f".layers.{i}.") for i in (3, 4) for name in expected if ".layers.2." in name
    ]
    assert sorted(read) == sorted(2 * (["model.embed_tokens.weight", *expected]) + from_dense)
    assert all(p.is_meta for weights in present for p in weights.network.parameters())
    shards = [load_file(path) for path in (tmp_path / "new").glob("*.safetensors")]
    assert len(shards) > 3
    in_memory = sglp.load(tmp_path / "pruned")
    sglp.reconstruct(sglp.load(tmp_path / "dense"), in_memory, removal, batches, scope="gaps")
    after = sglp.load(tmp_path / "new")
    assert all(torch.allclose(a, b) for a, b in zip(after.parameters(), in_memory.parameters(), strict=True))
    assert (tmp_path / "new/tokenizer_config.json").read_bytes() == (
        tmp_path / "dense/tokenizer_config.json"
    ).read_bytes()


@pytest.mark.parametrize("family", [*FAMILIES, "Swin", "SigLIP"])
def test_buffers_that_no_file_holds_are_those_of_from_pretrained(family, tmp_path):
    network = make(family) if family in FAMILIES else vision.made(family)[0]
    network.save_pretrained(tmp_path / "saved")
    with open_folder(tmp_path / "saved", False, "") as opened:
        LazyWeights(opened)
        ours = dict(opened.network.named_buffers())
    theirs = dict(sglp.load(tmp_path / "saved").named_buffers())
    assert ours.keys() == theirs.keys()
    unsaved = dict(opened.network.named_non_persistent_buffers())
    for name in unsaved:
        assert ours[name].dtype == theirs[name].dtype
        assert torch.equal(ours[name], theirs[name])


def test_a_folder_that_replaces_its_own_and_a_plan_without_gaps(tmp_path):
    folders(make("Qwen2"), layers(2, 3), tmp_path)
    rows = reconstruct_folder(tmp_path / "dense", tmp_path / "pruned", layers(2, 3), tmp_path / "new", sequences())
    assert rows == reconstruct_folder(
        tmp_path / "dense", tmp_path / "pruned", layers(2, 3), tmp_path / "pruned", sequences()
    )
    assert files(tmp_path / "pruned") == files(tmp_path / "new")
    dense = tmp_path / "dense"
    assert reconstruct_folder(dense, dense, layers(), tmp_path / "same", sequences()) == []
    assert files(tmp_path / "same") == files(dense)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dense", "new", "pruned", "same"]


def without_a_tensor(folder):
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def without_prefix(folder):
    tensors = {name.replace("model.", ""): t for name, t in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("damaged", "damage", "removal", "error", "message"),
    [
        ("dense", lambda f: (f / "config.json").unlink(), layers(2), CheckpointError, r"it has no config\.json"),
        ("pruned", lambda f: (f / "config.json").unlink(), layers(2), CheckpointError, r"it has no config\.json"),
        ("pruned", without_a_tensor, layers(2), CheckpointError, r"pruned does not hold the weights of .*up_proj"),
        ("dense", without_a_tensor, layers(2), CheckpointError, r"dense does not hold the weights of .*up_proj"),
        (
            "dense",
            without_prefix,
            layers(2),
            CheckpointError,
            r"dense does not hold the tensors that sglp\.save writes",
        ),
        ("pruned", lambda f: None, layers(3), PlanError, r"lacks model\.layers\.2, not model\.layers\.3$"),
        ("pruned", lambda f: (f / "architecture.json").unlink(), layers(2, 3), PlanError, "is not what the plan makes"),
        ("pruned", lambda f: None, layers(7, depth=8), PlanError, "has no module model.layers.6"),
    ],
)
def test_wrong_folders_are_refused_before_anything_is_written(damaged, damage, removal, error, message, tmp_path):
    folders(make("Llama"), layers(2), tmp_path)
    damage(tmp_path / damaged)
    with pytest.raises(error, match=message) as caught:
        reconstruct_folder(tmp_path / "dense", tmp_path / "pruned", removal, tmp_path / "new", sequences())
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dense", "pruned"]


def test_an_error_on_the_way_leaves_nothing_behind(tmp_path, monkeypatch):
    folders(make("Llama"), layers(2), tmp_path)
    arguments = (tmp_path / "dense", tmp_path / "pruned", layers(2), tmp_path / "new")
    with pytest.raises(ScoringError, match="there is no batch to reconstruct layers with"):
        reconstruct_folder(*arguments, [])
    with pytest.raises(IndexError):
        reconstruct_folder(*arguments, [{"input_ids": torch.full((8, 4), 1000)}])
    config = hf.DebertaV2Config(
        **{"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 48},
        **{"vocab_size": 96, "relative_attention": True, "position_buckets": 8, "pos_att_type": ["p2c", "c2p"]},
    )
    network = hf.DebertaV2ForMaskedLM(config).eval()
    removal = sglp.Plan.without(sglp.find_layers(network, sequences()[0]), [1])
    (tmp_path / "other").mkdir()
    folders(network, removal, tmp_path / "other")
    with pytest.raises(
        CheckpointError, match=r"uses the weights of a module that it does not call, .*: use sglp\.load"
    ):
        reconstruct_folder(tmp_path / "other/dense", tmp_path / "other/pruned", removal, tmp_path / "new", sequences())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dense", "other", "pruned"]


PEAK = """
import json, resource, sys, time
import torch, transformers.models.llama.modeling_llama
import sglp
from sglp.checkpoints.reconstruct_folder import reconstruct_folder

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10

folder, layers, removed = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
names = [f"model.layers.{i}" for i in range(layers)]
plan = sglp.Plan([n for i, n in enumerate(names) if i not in removed], [names[i] for i in removed])
ids = torch.randint(32000, (16, 128), generator=torch.Generator().manual_seed(0))
imported, start = peak(), time.perf_counter()
rows = reconstruct_folder(
    f"{folder}/dense", f"{folder}/pruned", plan, f"{folder}/new", [{"input_ids": one} for one in ids.split(1)],
    scope="gaps", dtype=torch.float32,
)
seconds = time.perf_counter() - start
print(json.dumps({"imported": imported, "peak": peak(), "seconds": seconds, "how": [row.how for row in rows]}))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="other systems report memory in other ways")
def test_four_gigabytes_are_reconstructed_within_one(tmp_path):
    size = write_llama(tmp_path / "dense", 40, hidden_size=2048, intermediate_size=5504, vocab_size=32000)
    assert size > 4e9
    removed = [12, 13, 25]
    sglp.prune_folder(tmp_path / "dense", layers(*removed, depth=40), tmp_path / "pruned")
    command = [sys.executable, "-c", PEAK, str(tmp_path), "40", json.dumps(removed)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    usage = json.loads(done.stdout)
    assert usage["how"] == ["closed_form"] * 2
    assert usage["peak"] - usage["imported"] < 1 << 30
