"""A pruned Hugging Face model is an ordinary one, and plain `from_pretrained` loads it."""

import copy
import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
import transformers as hf
from hugging_face_families import (
    DECODERS,
    DEPTH,
    FAMILIES,
    GROUPED,
    HEADS,
    LENGTH,
    MIXED,
    REMOVED,
    VOCABULARY,
    WIDE,
    bypassed,
    example,
    files,
    made,
    make,
    names,
    outputs,
    plan,
    pruned,
    tokens,
)
from language import cast
from safetensors.torch import load_file, save_file

import sglp
from sglp.architecture import architecture_of
from sglp.errors import CheckpointError, LayerError, PlanError
from sglp.hugging_face.pretrained import dequantized
from sglp.running import device_of
from sglp.surgery.random_weights import reinitialized


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_are_the_modules_of_the_stack(family):
    layers = sglp.find_layers(made(family), example(family))
    assert [layer.name for layer in layers] == names(family)
    assert all(layer.removable for layer in layers)


@pytest.mark.parametrize("removed", REMOVED, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_pruned_network_is_the_dense_one_with_layers_bypassed(family, removed):
    dense, inputs = make(family), example(family)
    before, config = outputs(dense, inputs), dense.config.to_json_string(use_diff=False)
    small = sglp.prune(dense, plan(family, removed))
    assert dense.config.to_json_string(use_diff=False) == config
    assert torch.equal(outputs(dense, inputs), before)
    expected = outputs(bypassed(dense, names(family, removed)), inputs)
    assert torch.equal(outputs(small, inputs), expected)
    assert not torch.allclose(expected, before)
    assert [layer.name for layer in sglp.find_layers(small, inputs)] == names(family, range(DEPTH - len(removed)))


@pytest.mark.parametrize("family", FAMILIES)
def test_all_modules_share_the_one_new_config(family):
    small = pruned(family)
    assert small.config.num_hidden_layers == DEPTH - len(REMOVED[0])
    assert all(module.config is small.config for module in small.modules() if hasattr(module, "config"))


@pytest.mark.parametrize("removed", REMOVED, ids=str)
@pytest.mark.parametrize("family", DECODERS)
def test_the_cache_changes_nothing(family, removed):
    small, ids = pruned(family, removed).eval(), tokens()
    with torch.no_grad():
        whole = small(ids, use_cache=False).logits
        step = small(ids[:, :10], use_cache=True)
        logits = [step.logits]
        for i in range(10, LENGTH):
            step = small(ids[:, i : i + 1], past_key_values=step.past_key_values, use_cache=True)
            logits.append(step.logits)
    assert torch.allclose(torch.cat(logits, dim=1), whole, atol=1e-4)


@pytest.mark.parametrize("family", DECODERS)
def test_generate_is_the_greedy_loop(family):
    small, ids = pruned(family).eval(), tokens(length=12)
    generated = small.generate(ids, max_new_tokens=10, do_sample=False, attention_mask=torch.ones_like(ids))
    for _ in range(10):
        ids = torch.cat([ids, outputs(small, {"input_ids": ids, "use_cache": False})[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(generated, ids)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_network_is_a_folder_for_from_pretrained(family, tmp_path):
    small, inputs = pruned(family), example(family)
    expected = outputs(small, inputs)
    sglp.save(small, tmp_path / "a")
    reader = hf.AutoModelForCausalLM if family in DECODERS else FAMILIES[family][0]
    theirs = reader.from_pretrained(tmp_path / "a")
    assert type(theirs) is type(small)
    assert torch.equal(outputs(theirs, inputs), expected)
    ours = sglp.load(tmp_path / "a")
    assert not any(module.training for module in ours.modules())
    assert torch.equal(ours(**inputs)[0], expected)
    assert architecture_of(ours) == architecture_of(small)
    sglp.save(ours, tmp_path / "b")
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert sorted(files(tmp_path / "a")) == sorted(
        ["README.md", "architecture.json", "config.json", "model.safetensors"]
        + (["generation_config.json"] if small.can_generate() else [])
    )


@pytest.mark.parametrize("family", ["Mistral", "Qwen2", "Gemma2", "Gemma3", "Phi3", "GPT-Neo"])
def test_the_sequences_are_long_enough_to_tell_windows_apart(family):
    network, inputs = make(family), example(family)
    before = outputs(network, inputs)
    kind, config = type(network), copy.deepcopy(network.config)
    config.sliding_window = config.window_size = LENGTH
    other = kind(config)
    other.load_state_dict(network.state_dict())
    assert not torch.allclose(outputs(other, inputs), before)


@pytest.mark.parametrize(
    ("family", "name", "expected"),
    [
        ("Gemma3", "layer_types", ["sliding_attention", "sliding_attention", "full_attention"]),
        ("Qwen2", "layer_types", ["full_attention", "sliding_attention", "sliding_attention"]),
        ("GPT-Neo", "attention_layers", ["local", "global", "local"]),
        ("GPT-Neo", "attention_types", [[["local"], 1], [["global"], 1], [["local"], 1]]),
        ("Qwen2-MoE", "mlp_only_layers", [0, 1]),
        ("DeepSeek-V3", "first_k_dense_replace", 1),
        ("GPT-2", "n_layer", 3),
    ],
)
def test_per_layer_entries_of_the_config_are_updated(family, name, expected):
    assert getattr(pruned(family).config, name) == expected


def test_config_lists_that_are_not_per_layer_are_kept():
    network = make("Llama")
    network.config.eos_token_id = list(range(DEPTH))
    network.config.architectures = ["LlamaForCausalLM"] * DEPTH
    network.config.widths = tuple(range(DEPTH))
    small = sglp.prune(network, plan("Llama", (0, 2)))
    assert small.config.eos_token_id == list(range(DEPTH))
    assert small.config.architectures == ["LlamaForCausalLM"] * DEPTH
    assert small.config.widths == (1, 3, 4, 5)


def test_layers_that_count_from_one_are_renumbered_too():
    network = make("Llama")
    for number, layer in enumerate(network.model.layers):
        layer.layer_number, layer.block_idx, layer.layer_id_of_another = number + 1, number, number
    layers = sglp.prune(network, plan("Llama", (0, 2, 3))).model.layers
    assert [(x.layer_number, x.block_idx, x.layer_id_of_another) for x in layers] == [(1, 0, 1), (2, 1, 4), (3, 2, 5)]
    assert [layer.self_attn.layer_idx for layer in layers] == [0, 1, 2]


@pytest.mark.parametrize("kind", ["full_attention", "sliding_attention"])
@pytest.mark.parametrize("family", ["Gemma3", "Qwen2"])
def test_all_layers_of_one_kind_can_be_removed(family, kind, tmp_path):
    removed = [i for i, other in enumerate(made(family).config.layer_types) if other == kind]
    small = pruned(family, removed)
    expected = outputs(bypassed(make(family), names(family, removed)), example(family))
    assert torch.equal(outputs(small, example(family)), expected)
    sglp.save(small, tmp_path / "small")
    assert torch.equal(outputs(sglp.load(tmp_path / "small"), example(family)), expected)


def test_layers_of_the_text_part_of_a_multimodal_model_can_be_removed(tmp_path):
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
    vision = hf.CLIPVisionConfig(**sizes, image_size=8, patch_size=4)
    config = hf.LlavaConfig(text_config=hf.LlamaConfig(**GROUPED), vision_config=vision, image_token_index=95)
    config.text_config._name_or_path = str(tmp_path / "text")
    torch.manual_seed(0)
    dense = hf.LlavaForConditionalGeneration(config).eval()
    inputs = {"input_ids": tokens().clamp(max=90), "use_cache": False}
    layers = [layer.name for layer in sglp.find_layers(dense, inputs)]
    assert layers == [f"model.language_model.layers.{i}" for i in range(DEPTH)]
    small = sglp.prune(dense, sglp.Plan([layers[1], *layers[3:]], [layers[0], layers[2]]))
    assert (small.config.text_config.num_hidden_layers, small.config.vision_config.num_hidden_layers) == (4, 3)
    assert small.model.language_model.config is small.config.text_config
    expected = outputs(bypassed(dense, [layers[0], layers[2]]), inputs)
    assert torch.equal(outputs(small, inputs), expected)
    sglp.save(small, tmp_path / "small")
    assert str(tmp_path).encode() not in files(tmp_path / "small")["config.json"]
    theirs = hf.AutoModelForImageTextToText.from_pretrained(tmp_path / "small")
    assert torch.equal(outputs(theirs, inputs), expected)


def test_a_layer_with_two_residuals_is_one_layer():
    class Attended(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = torch.nn.Linear(6, 6)

        def forward(self, x):
            return x + self.fc(x)

    class Layer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.attended, self.wide, self.narrow = Attended(), torch.nn.Linear(6, 9), torch.nn.Linear(9, 6)

        def forward(self, x):
            x = self.attended(x)
            return x + self.narrow(self.wide(x).relu())

    layers = sglp.find_layers(torch.nn.Sequential(Layer(), Layer()), torch.zeros(2, 6))
    assert [layer.name for layer in layers] == ["0", "1"]


def test_rounds_of_pruning_and_saving_keep_the_names_of_the_dense_network(tmp_path):
    sglp.save(pruned("Gemma3", (0, 3)), tmp_path / "once")
    twice = sglp.prune(sglp.load(tmp_path / "once"), plan("Gemma3", (1, 2), depth=4))
    together = pruned("Gemma3", (0, 2, 3, 4))
    assert architecture_of(twice).removed == tuple(names("Gemma3", (0, 3, 2, 4)))
    assert architecture_of(twice).kept == architecture_of(together).kept == tuple(names("Gemma3", (1, 5)))
    assert torch.equal(outputs(twice, example("Gemma3")), outputs(together, example("Gemma3")))
    sglp.save(twice, tmp_path / "twice")
    assert architecture_of(sglp.load(tmp_path / "twice")) == architecture_of(twice)


def test_saving_leaves_the_network_unchanged(tmp_path):
    network = make("GPT-2").train()
    network.transformer.h[1].eval().requires_grad_(False)
    modes = [module.training for module in network.modules()]
    config, random = network.config.to_dict(), torch.get_rng_state()
    sglp.save(network, tmp_path / "dense")
    assert [module.training for module in network.modules()] == modes
    assert network.config.to_dict() == config
    assert torch.equal(torch.get_rng_state(), random)
    assert architecture_of(sglp.load(tmp_path / "dense")).removed == ()


def test_a_model_from_a_factory_is_saved_as_a_hugging_face_model(tmp_path):
    network = sglp.build(f"{__name__}:make", {"family": "Llama"})
    sglp.save(sglp.prune(network, plan("Llama", (1,))), tmp_path / "small")
    architecture = architecture_of(sglp.load(tmp_path / "small"))
    assert (architecture.factory, architecture.removed) == ("transformers:LlamaForCausalLM", ("model.layers.1",))


def test_half_precision_is_kept_and_another_can_be_chosen(tmp_path):
    make("Gemma2").save_pretrained(tmp_path / "dense")
    half = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "dense", dtype=torch.bfloat16)
    small = sglp.prune(half, plan("Gemma2", (0, 3)))
    sglp.save(small, tmp_path / "small")
    loaded = sglp.load(tmp_path / "small")
    assert loaded.dtype == torch.bfloat16
    assert torch.equal(outputs(loaded, example("Gemma2")), outputs(small, example("Gemma2")))
    assert sglp.load(tmp_path / "small", dtype=torch.float32, device_map={"": "cpu"}).dtype == torch.float32


def test_no_saved_file_contains_a_local_path(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    make("Llama").save_pretrained(tmp_path / "dense")
    hf.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="a").save_pretrained(tmp_path / "dense")
    network = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "dense")
    tokenizer = hf.AutoTokenizer.from_pretrained(tmp_path / "dense")
    sglp.save(network, tmp_path / "saved", tokenizer=tokenizer)
    assert hf.AutoTokenizer.from_pretrained(tmp_path / "saved")("a b b")["input_ids"] == [0, 1, 1]
    assert not [name for name, content in files(tmp_path / "saved").items() if str(tmp_path).encode() in content]


def test_the_hub_name_of_the_dense_network_is_kept(tmp_path):
    network = make("Llama")
    network.config._name_or_path = "some-one/Llama-0.1"
    sglp.save(sglp.prune(network, plan("Llama", (0,))), tmp_path / "once")
    twice = sglp.prune(sglp.load(tmp_path / "once"), plan("Llama", (0,), depth=5))
    assert architecture_of(twice).base_model == "some-one/Llama-0.1"
    sglp.save(twice, tmp_path / "twice")
    assert b"base_model: some-one/Llama-0.1\n" in files(tmp_path / "twice")["README.md"]


@pytest.mark.parametrize("name", ["", "./some/where", "gpt2", "a/b/c", "~/model", "tests/conftest.py"])
def test_folders_are_not_taken_for_hub_names(name):
    network = make("Llama")
    network.config._name_or_path = name
    assert architecture_of(network).base_model == ""


def test_the_device_map_of_accelerate_is_updated():
    network = make("Llama")
    places = {"model.layers.0": 0, "model.layers.1": "cpu", "model.layers.2.mlp": 1, "model.layers.3": "disk"}
    network.hf_device_map = {"model.embed_tokens": 0, **places}
    small = sglp.prune(network, plan("Llama", (0, 1)))
    expected = {"model.embed_tokens": 0, "model.layers.0.mlp": 1, "model.layers.1": "disk"}
    assert (small.hf_device_map, network.hf_device_map) == (expected, {"model.embed_tokens": 0, **places})


def test_an_offloaded_network_has_a_device_and_its_layers():
    from accelerate import cpu_offload

    network = cpu_offload(make("Llama"), execution_device=torch.device("cpu"))
    assert {p.device.type for p in network.parameters()} == {"meta"}
    assert device_of(network) == torch.device("cpu")
    layers = sglp.find_layers(network, example("Llama"))
    assert [layer.name for layer in layers] == names("Llama")
    batches = [example("Llama")]
    offloaded, plain_ones = (next(sglp.gram_matrices(n, layers, batches, "mean")) for n in (network, make("Llama")))
    assert torch.equal(offloaded, plain_ones)


@pytest.mark.parametrize("family", ["Gemma3", "BERT", "Mixtral"])
def test_a_reinitialised_model_has_the_same_shapes_and_other_weights(family):
    small = cast(pruned(family), torch.bfloat16).requires_grad_(False)
    layer = small.get_submodule(FAMILIES[family][2])[1].float()  # as some networks keep some in single precision
    assert {p.dtype for p in layer.parameters()} == {torch.float32}
    state, random = copy.deepcopy(small.state_dict()), torch.get_rng_state()
    random_state, same, other = (reinitialized(small, seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), random)
    assert random_state.keys() == state.keys()
    assert all((t.shape, t.dtype) == (state[name].shape, state[name].dtype) for name, t in random_state.items())
    matrices = [name for name, tensor in state.items() if tensor.ndim > 1 and "position_ids" not in name]
    assert all(torch.equal(random_state[name], same[name]) for name in random_state)
    assert not any(torch.equal(random_state[name], weights[name]) for weights in (other, state) for name in matrices)
    assert all(torch.equal(tensor, state[name]) for name, tensor in small.state_dict().items())


def test_a_reinitialised_model_can_be_trained_and_pruned_further():
    small = pruned("Gemma3").requires_grad_(False)
    random_model = reinitialized(small, seed=0)
    assert all(p.requires_grad for p in random_model.parameters())
    assert random_model.config.layer_types == small.config.layer_types
    assert random_model.config is not small.config
    smaller = sglp.prune(random_model, plan("Gemma3", (0,), depth=3))
    assert architecture_of(smaller).kept == tuple(names("Gemma3", (4, 5)))


def test_the_device_of_a_network_is_where_accelerate_runs_it():
    network = make("Llama")
    network._hf_hook = SimpleNamespace(execution_device="cuda:1")
    assert device_of(network) == torch.device("cuda:1")


def test_a_reinitialised_model_is_built_in_its_own_precision():
    precisions = []

    class Watched(hf.LlamaForCausalLM):
        def __init__(self, config):
            precisions.append(torch.get_default_dtype())
            super().__init__(config)

    reinitialized(cast(Watched(hf.LlamaConfig(**GROUPED)), torch.bfloat16), seed=0)
    assert precisions == [torch.float32, torch.bfloat16]
    assert torch.get_default_dtype() == torch.float32


def gemma3n():
    sizes = {**HEADS, "layer_types": MIXED, "laurel_rank": 4, "activation_sparsity_pattern": [0.0] * DEPTH}
    inputs = {"altup_num_inputs": 2, "vocab_size_per_layer_input": VOCABULARY, "hidden_size_per_layer_input": 8}
    return hf.Gemma3nForCausalLM(hf.Gemma3nTextConfig(**sizes, **inputs, num_kv_shared_layers=2))


def albert():
    return hf.AlbertModel(hf.AlbertConfig(**WIDE, embedding_size=16))


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (
            gemma3n,
            r"^Gemma3nForCausalLM can't lose layers: its last 2 layers read the keys and values of earlier ones "
            r"\(num_kv_shared_layers\)$",
        ),
        (albert, r"^AlbertModel can't lose layers: its layers are a few modules that run several times"),
    ],
)
def test_networks_whose_layers_need_each_other_are_refused(network, message):
    network = network()
    with pytest.raises(LayerError, match=message):
        sglp.find_layers(network, {"input_ids": tokens()})
    paths = [name for name, _ in network.named_modules() if name]
    with pytest.raises(PlanError, match=message):
        sglp.prune(network, sglp.Plan(paths[1:2], paths[:1]))


@pytest.mark.parametrize(
    ("network", "removed"),
    [
        (lambda: make("Llama"), ["model.layers.0.mlp"]),
        (lambda: make("Llama"), ["model.layers.0", "model.norm"]),
        (lambda: make("Llama"), ["lm_head"]),
    ],
)
def test_modules_that_the_config_does_not_count_can_not_be_removed(network, removed):
    with pytest.raises(PlanError, match=f"can't lose {' and '.join(removed)}: only layers of one list"):
        sglp.prune(network(), sglp.Plan([], removed))


def test_at_least_one_layer_is_kept():
    with pytest.raises(PlanError, match="can't lose all its 6 layers: keep at least one"):
        pruned("Llama", range(DEPTH))


def another_window():
    network = make("Qwen2")
    network.model.layers[4].self_attn.sliding_window = 40
    return network


def another_rotation():
    network = make("Llama")
    network.model.rotary_emb.inv_freq.mul_(1.5)
    return network


def another_activation():
    network = make("Llama")
    network.model.layers[2].mlp.act_fn = torch.nn.ReLU()
    return network


class Mine(hf.LlamaForCausalLM):
    """A class that transformers does not have."""


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (another_window, r"model\.layers\.4\.self_attn\.sliding_window is 40, but comes back as 8$"),
        (another_rotation, r"model\.rotary_emb\.inv_freq comes back with other values"),
        (another_activation, r"model\.layers\.2\.mlp\.act_fn is 'ReLU', but comes back as 'SiLUActivation'"),
        (
            lambda: make("Llama").to(torch.bfloat16),
            r"rotary_emb\.inv_freq is bfloat16 4, but comes back as float32 4: \.to\(",
        ),
        (lambda: Mine(hf.LlamaConfig(**GROUPED)), "Mine can't be saved .* has no attribute Mine"),
    ],
)
def test_a_model_that_would_not_be_the_same_after_loading_is_not_saved(network, message, tmp_path):
    sglp.save(make("Llama"), tmp_path / "saved")
    before = files(tmp_path / "saved")
    with pytest.raises(CheckpointError, match=message):
        sglp.save(network(), tmp_path / "saved")
    assert files(tmp_path / "saved") == before
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


def quantized():
    """A model as transformers makes it from a GGUF file, with unpacked weights."""
    from transformers.quantizers.quantizer_gguf import GgufHfQuantizer

    network = make("Llama")
    network.hf_quantizer = GgufHfQuantizer(hf.GgufConfig())
    network.is_quantized, network.quantization_method = True, network.hf_quantizer.quantization_config.quant_method
    network.config.quantization_config = network.hf_quantizer.quantization_config
    return network


def test_attributes_of_a_quantized_file_are_dropped(tmp_path):
    network = quantized()
    with pytest.raises(ValueError, match="not serializable"):
        network.save_pretrained(tmp_path / "theirs")
    sglp.save(sglp.prune(network, plan("Llama", (2,))), tmp_path / "small")
    assert b"quant" not in files(tmp_path / "small")["config.json"]
    assert network.is_quantized
    assert dequantized(network) is network
    network.save_pretrained(tmp_path / "theirs")
    assert torch.equal(
        outputs(sglp.load(tmp_path / "small"), example("Llama")), outputs(pruned("Llama", (2,)), example("Llama"))
    )


def test_quantized_weights_are_refused(tmp_path):
    network = quantized()
    network.lm_head.weight = torch.nn.Parameter(torch.zeros(VOCABULARY, 32, dtype=torch.int8), requires_grad=False)
    with pytest.raises(CheckpointError, match=r"the weights of this LlamaForCausalLM are quantized \(gguf\): load it"):
        sglp.save(network, tmp_path / "saved")
    assert not list(tmp_path.iterdir())


def test_code_in_a_folder_runs_only_when_it_is_trusted(foreign, tmp_path):
    network = hf.AutoModelForCausalLM.from_pretrained(foreign, trust_remote_code=True)
    small = sglp.prune(network, plan("Llama", (1, 4)))
    sglp.save(small, tmp_path / "small")
    for trust in (False, ["transformers:AutoModelForCausalLM"]):
        with pytest.raises(CheckpointError, match=r"contains its own code .* pass trust=True if you trust it"):
            sglp.load(tmp_path / "small", trust=trust)
    loaded = sglp.load(tmp_path / "small", trust=True)
    assert type(loaded).__name__ == "TinyForCausalLM"
    assert torch.equal(outputs(loaded, example("Llama")), outputs(pruned("Llama", (1, 4)), example("Llama")))
    assert architecture_of(loaded).removed == ("model.layers.1", "model.layers.4")


def test_names_of_old_code_are_not_saved(tmp_path):
    network = make("Llama")
    network.config.auto_map = {"AutoModelForCausalLM": "some-one/llama--modeling.LlamaForCausalLM"}
    sglp.save(network, tmp_path / "saved")
    assert type(sglp.load(tmp_path / "saved")) is hf.LlamaForCausalLM


def without_a_tensor(folder):
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def of_another_factory(name):
    def damage(folder):
        content = json.loads((folder / "architecture.json").read_text())
        (folder / "architecture.json").write_text(json.dumps(content | {"factory": name}))

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without_a_tensor, r"missing keys model\.layers\.1\.mlp\.up_proj\.weight"),
        (
            lambda folder: (folder / "model.safetensors").write_bytes(b"no weights"),
            "can't be loaded as LlamaForCausalLM",
        ),
        (lambda folder: (folder / "model.safetensors").unlink(), "can't be loaded as LlamaForCausalLM"),
        (lambda folder: (folder / "config.json").write_text("[]"), "config.json is broken"),
        (
            of_another_factory("transformers:pipeline"),
            "built by transformers:pipeline, which is not a Hugging Face model",
        ),
        (
            of_another_factory("transformers:AutoModel"),
            "built by transformers:AutoModel, which is not a Hugging Face model",
        ),
        (of_another_factory("os:system"), "built by os:system, which is not a Hugging Face model"),
    ],
)
def test_broken_folders_are_refused(damage, message, tmp_path):
    sglp.save(make("Llama"), tmp_path / "saved")
    damage(tmp_path / "saved")
    with pytest.raises(CheckpointError, match=message):
        sglp.load(tmp_path / "saved")


@pytest.mark.parametrize("arguments", [{"dtype": torch.float16}, {"device_map": "auto"}])
def test_other_networks_take_no_arguments_of_transformers(arguments, tmp_path):
    network = sglp.build("sglp.networks.cifar_resnet:resnet", {"depth": 8}, seed=0)
    sglp.save(network, tmp_path / "saved")
    with pytest.raises(
        CheckpointError, match="is not a folder for from_pretrained: load it without dtype and device_map"
    ):
        sglp.load(tmp_path / "saved", **arguments)
    with pytest.raises(
        CheckpointError, match="a tokenizer can be saved with a Hugging Face model, not with a CifarResNet"
    ):
        sglp.save(network, tmp_path / "saved", tokenizer=object())


def test_other_networks_do_not_import_transformers(tmp_path):
    code = """
import sys, torch, sglp
from sglp.surgery.random_weights import reinitialized
network = sglp.build("sglp.networks.cifar_resnet:resnet", {"depth": 8}, seed=0)
names = [layer.name for layer in sglp.find_layers(network, torch.zeros(1, 3, 8, 8))]
sglp.save(sglp.prune(network, sglp.Plan(names[2:], names[1:2])), "saved")
reinitialized(sglp.load("saved"), seed=0)
print("transformers" in sys.modules)
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_progress_bars_are_disabled_without_a_terminal(tmp_path, capfd):
    sglp.save(make("Llama"), tmp_path / "saved")
    sglp.load(tmp_path / "saved")
    assert "it/s" not in "".join(capfd.readouterr())
    assert hf.utils.logging.is_progress_bar_enabled()
