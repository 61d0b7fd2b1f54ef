"""Hugging Face models inside other modules lose layers as they would alone; `save` gets at what is inside."""

import copy

import peft
import pytest
import torch
import transformers as hf
from hugging_face_families import DEPTH, GROUPED, VOCABULARY, example, made, make, outputs, plan, tokens
from torch import nn
from torch.optim.swa_utils import AveragedModel

import sglp
from sglp.architecture import architecture_of
from sglp.errors import CheckpointError, LayerError, PlanError

REMOVED = (0, 2, 3)
pytestmark = [  # of peft
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*fan_in_fan_out:UserWarning"),
]


class Own(nn.Module):
    """A user's module, with the model where Lightning has it too."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, **inputs):
        return self.model(**inputs)


class Pipeline(nn.Module):
    """Two models in a row: the second one reads the states of the first."""

    def __init__(self, first, second):
        super().__init__()
        self.first, self.second = first, second

    def forward(self, input_ids):
        states = self.first(input_ids=input_ids, use_cache=False).last_hidden_state
        return self.second(inputs_embeds=states).last_hidden_state


def with_lora(network, **settings):
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj", "c_attn"], init_lora_weights=False, **settings)
    return peft.get_peft_model(network, config).eval()


WRAPPERS = {
    "DataParallel": (nn.DataParallel, "module"),
    "AveragedModel": (AveragedModel, "module"),
    "own": (Own, "model"),
    "PEFT": (with_lora, "base_model.model"),
    "PEFT in DataParallel": (lambda model: nn.DataParallel(with_lora(model)), "module.base_model.model"),
    "own in own": (lambda model: Own(Own(model)), "model.model"),
}


def is_as_alone(small, family, removed=REMOVED):
    """Check that a model from inside of a wrapper has config, indices and a cache like one that was pruned alone."""
    assert small.config.num_hidden_layers == DEPTH - len(removed)
    indices = [m.layer_idx for m in small.modules() if hasattr(m, "layer_idx")]
    assert sorted(set(indices)) == list(range(DEPTH - len(removed)))
    ids = tokens(12)
    with torch.no_grad():
        whole = small(ids, use_cache=False).logits
        first = small(ids[:, :6], use_cache=True)
        rest = small(ids[:, 6:], past_key_values=first.past_key_values, use_cache=True).logits
    assert torch.allclose(rest, whole[:, 6:], atol=1e-4 * float(whole.abs().max()))


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("family", ["GPT-2", "Gemma3"])
def test_a_wrapped_model_is_pruned_as_it_would_be_alone(wrapper, family):
    wrap, path = WRAPPERS[wrapper]
    network = wrap(make(family)).eval()
    names = [layer.name for layer in sglp.find_layers(network, example(family))]
    assert names == [f"{path}.{name}" for name in (*plan(family, ()).kept,)]
    small = sglp.prune(network, sglp.Plan([names[1], *names[4:]], [names[i] for i in REMOVED])).eval()
    inner = small.get_submodule(path)
    is_as_alone(inner, family)
    assert getattr(inner.config, "layer_types", None) == getattr(
        sglp.prune(made(family), plan(family, REMOVED)).config, "layer_types", None
    )
    assert architecture_of(inner).removed == plan(family, REMOVED).removed
    assert network.get_submodule(path).config.num_hidden_layers == DEPTH


def test_a_merged_adapter_is_saved(tmp_path):
    small = sglp.prune(wrapped := with_lora(make("Llama")), named(wrapped, REMOVED))
    with pytest.raises(CheckpointError, match=r"^this PeftModel has adapters of PEFT, .* merge them first"):
        sglp.save(small, tmp_path / "saved")
    expected = outputs(small, example("Llama"))
    merged = small.merge_and_unload().eval()
    assert torch.allclose(outputs(merged, example("Llama")), expected, atol=1e-4 * float(expected.abs().max()))
    sglp.save(merged, tmp_path / "saved")
    loaded = sglp.load(tmp_path / "saved")
    assert torch.equal(outputs(loaded, example("Llama")), outputs(merged, example("Llama")))


def named(network, removed):
    layers = sglp.find_layers(network, example("Llama"))
    return sglp.Plan.without(layers, removed)


def test_an_adapter_of_some_layers_follows_them():
    network = with_lora(make("Llama"), layers_to_transform=[1, 3, 4], layers_pattern="layers")
    small = sglp.prune(network, named(network, REMOVED))
    assert small.peft_config["default"].layers_to_transform == [0, 1]
    assert network.peft_config["default"].layers_to_transform == [1, 3, 4]


def test_an_adapter_that_names_single_layers_is_refused():
    config = peft.LoraConfig(r=2, target_modules=["model.layers.2.self_attn.q_proj"])
    network = peft.get_peft_model(make("Llama"), config)
    message = r"^the adapter 'default' names single layers in its target_modules.*: merge it"
    with pytest.raises(LayerError, match=message):
        sglp.find_layers(network, example("Llama"))
    with pytest.raises(PlanError, match=message):
        sglp.prune(network, sglp.Plan([], ["base_model.model.model.layers.0"]))


def test_a_network_that_distributed_training_keeps_track_of_is_refused(tmp_path):
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        network = nn.parallel.DistributedDataParallel(make("Llama"))
        with pytest.raises(LayerError, match=r"^DistributedDataParallel keeps track .*: pass its \.module and wrap"):
            sglp.find_layers(network, example("Llama"))
        sglp.save(network, tmp_path / "saved")
    finally:
        torch.distributed.destroy_process_group()
    assert torch.equal(
        outputs(sglp.load(tmp_path / "saved"), example("Llama")), outputs(made("Llama"), example("Llama"))
    )


def test_two_models_in_one_module_both_lose_layers():
    torch.manual_seed(0)
    first = hf.LlamaModel(hf.LlamaConfig(**GROUPED))
    network = Pipeline(first, hf.BertModel(hf.BertConfig(**GROUPED), add_pooling_layer=False)).eval()
    inputs = {"input_ids": tokens()}
    layers = sglp.find_layers(network, inputs)
    names = [f"first.layers.{i}" for i in range(DEPTH)] + [f"second.encoder.layer.{i}" for i in range(DEPTH)]
    assert [(layer.name, layer.removable) for layer in layers] == [(name, True) for name in names]
    small = sglp.prune(network, sglp.Plan.without(layers, [1, 2, 6])).eval()
    assert (small.first.config.num_hidden_layers, small.second.config.num_hidden_layers) == (4, 5)
    assert [layer.self_attn.layer_idx for layer in small.first.layers] == [0, 1, 2, 3]
    for path in (names[1], names[2], names[6]):
        network.get_submodule(path).register_forward_hook(lambda module, args, output: args[0])
    with torch.no_grad():
        assert torch.equal(small(**inputs), network(**inputs))


def test_a_model_whose_layers_need_each_other_keeps_them_beside_another_one():
    torch.manual_seed(0)
    albert = hf.AlbertModel(hf.AlbertConfig(**GROUPED, embedding_size=16), add_pooling_layer=False)
    network = Pipeline(hf.LlamaModel(hf.LlamaConfig(**GROUPED)), albert).eval()
    network.second.embeddings.word_embeddings = nn.Embedding(VOCABULARY, 16)
    network.second.embeddings.forward = lambda *_, inputs_embeds=None, **__: inputs_embeds[..., :16]
    layers = sglp.find_layers(network, {"input_ids": tokens()})
    assert [layer.name for layer in layers if layer.removable] == [f"first.layers.{i}" for i in range(DEPTH)]


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda net: nn.DataParallel(nn.DataParallel(net))])
def test_the_network_inside_of_data_parallel_is_saved(wrap, tmp_path):
    network = wrap(sglp.build("sglp.networks.cifar_resnet:resnet", {"depth": 14}, seed=0)).eval()
    images = torch.randn(2, 3, 8, 8)
    layers = sglp.find_layers(network, images)
    removable = [i for i, layer in enumerate(layers) if layer.removable]
    small = sglp.prune(network, sglp.Plan.without(layers, removable[:2])).eval()
    sglp.save(small, tmp_path / "saved")
    loaded = sglp.load(tmp_path / "saved")
    assert torch.equal(loaded(images), small(images))
    assert len(architecture_of(loaded).removed) == 2
    assert not architecture_of(loaded).removed[0].startswith("module")


def test_the_model_inside_a_users_module_is_asked_for(tmp_path):
    with pytest.raises(CheckpointError, match=r"^this Own is not a Hugging Face model itself: save .* \(model\)$"):
        sglp.save(Own(make("Llama")), tmp_path / "saved")
    assert not list(tmp_path.iterdir())


def test_an_injected_adapter_is_named_in_the_refusal(tmp_path):
    network = make("Llama")
    network.add_adapter(peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    small = sglp.prune(network, plan("Llama", REMOVED))
    is_as_alone(small.eval(), "Llama")
    with pytest.raises(CheckpointError, match="has adapters of PEFT"):
        sglp.save(small, tmp_path / "saved")
    small.delete_adapter("default")
    expected = outputs(sglp.prune(made("Llama"), plan("Llama", REMOVED)), example("Llama"))
    assert torch.equal(outputs(copy.deepcopy(small), example("Llama")), expected)
