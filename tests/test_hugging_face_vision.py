"""Pruned Hugging Face image classifiers load with `from_pretrained`, or a warning says why only `sglp.load` does it."""

import copy
import json
import types
import warnings

import pytest
import torch
import transformers as hf
from vision_families import FAMILIES, FLAT, PLAIN, half, made, plan

import sglp
from sglp.architecture import architecture_of
from sglp.errors import CheckpointError, NotPlainWarning, PlanError
from sglp.surgery.random_weights import reinitialized
from sglp.tasks.image_classification import building
from sglp.tasks.schemas.workload import Architecture, Weights


def logits(network, images):
    with torch.no_grad():
        return network.eval()(images).logits


def aligned(network):
    """A copy of a network in newly allocated memory; weights in a mapped file make CPUs sum in another order."""
    return copy.deepcopy(network)


def trained_a_step(network, images):
    torch.manual_seed(1)
    network.train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    torch.nn.functional.cross_entropy(network(images).logits, torch.tensor([1, 3])).backward()
    optimizer.step()
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def saved_quietly(network, folder):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sglp.save(network, folder)


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_are_the_layers_and_never_stages(family):
    layers = made(family)[2]
    assert (len(layers), sum(layer.removable for layer in layers)) == FAMILIES[family][3]


@pytest.mark.parametrize("family", PLAIN)
def test_plain_from_pretrained_loads_a_model_without_half_of_its_layers(family, tmp_path):
    small, images, bypassed = half(family)
    expected = logits(small, images)
    assert torch.equal(expected, logits(bypassed, images))
    assert not torch.allclose(expected, logits(made(family)[0], images))
    saved_quietly(small, tmp_path / "a")
    theirs = aligned(hf.AutoModelForImageClassification.from_pretrained(tmp_path / "a"))
    assert type(theirs) is type(small)
    assert torch.equal(logits(theirs, images), expected)
    ours = sglp.load(tmp_path / "a")
    assert torch.equal(logits(ours, images), expected)
    assert architecture_of(ours) == architecture_of(small)
    saved_quietly(ours, tmp_path / "b")
    if family != "SigLIP":  # transformers notes data types in the parts of a config when it loads
        assert files(tmp_path / "a") == files(tmp_path / "b")
    # Stochastic depth is the same as after loading the folder, too.
    steps = [trained_a_step(network, images) for network in (small, theirs, ours)]
    assert all(torch.equal(steps[0][name], other[name]) for other in steps[1:] for name in other)


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        ("Swin", r"swin\.encoder\.layers\.0\.blocks\.0\.shift_size is 2, but comes back as 0"),
        ("MobileNetV2", r"mobilenet_v2\.layer\.\d+ is None, but comes back as 'MobileNetV2InvertedResidual'"),
    ],
)
def test_a_model_that_no_config_describes_is_saved_for_our_own_load(family, reason, tmp_path):
    small, images, bypassed = half(family)
    expected = logits(small, images)
    assert torch.equal(expected, logits(bypassed, images))
    sentence = rf"^{type(small).__name__} would not be the same after from_pretrained: {reason}"
    with pytest.warns(NotPlainWarning, match=rf"{sentence}; only sglp\.load can read .*saved$"):
        sglp.save(small, tmp_path / "saved")
    assert sorted(files(tmp_path / "saved")) == ["README.md", "architecture.json", "model.safetensors"]
    with pytest.raises(ValueError, match="Unrecognized model"):  # never other weights without a warning
        hf.AutoModelForImageClassification.from_pretrained(tmp_path / "saved")
    ours = sglp.load(tmp_path / "saved")
    assert torch.equal(logits(ours, images), expected)
    assert architecture_of(ours) == architecture_of(small)
    card = files(tmp_path / "saved")["README.md"].decode()
    assert 'network = sglp.load("this folder")' in card
    assert f"Plain `from_pretrained` can't load this folder: {type(small).__name__} would not be" in card
    shapes = {name: tensor.shape for name, tensor in reinitialized(ours, seed=3).state_dict().items()}
    assert shapes == {name: tensor.shape for name, tensor in small.state_dict().items()}
    steps = [trained_a_step(network, images) for network in (small, ours)]
    assert all(torch.equal(steps[0][name], steps[1][name]) for name in steps[0])


def test_a_pair_of_windows_can_be_removed_from_a_plain_folder(tmp_path):
    network, images, layers = made("Swin")
    pair = ["swin.encoder.layers.1.blocks.2", "swin.encoder.layers.1.blocks.1"]
    small = sglp.prune(network, plan(layers, pair))
    assert small.config.depths == [2, 2]
    saved_quietly(small, tmp_path / "pair")
    theirs = aligned(hf.AutoModelForImageClassification.from_pretrained(tmp_path / "pair"))
    assert torch.equal(logits(theirs, images), logits(small, images))
    # A second round: layer names in our own folder are those of the dense network, too.
    once = sglp.load(tmp_path / "pair")
    layers = [layer for layer in sglp.find_layers(once, images) if not layer.is_stem]
    twice = sglp.prune(once, plan(layers, ["swin.encoder.layers.1.blocks.0"]))
    with pytest.warns(NotPlainWarning):
        sglp.save(twice, tmp_path / "twice")
    again = sglp.load(tmp_path / "twice")
    assert architecture_of(again).removed == (*pair, "swin.encoder.layers.1.blocks.0")
    assert torch.equal(logits(again, images), logits(twice, images))


def test_a_stage_can_be_emptied(tmp_path):
    network, images, layers = made("ConvNeXt")
    removed = [layer.name for layer in layers if ".stages.1." in layer.name]
    small = sglp.prune(network, plan(layers, removed))
    assert small.config.depths == [3, 0, 4]
    saved_quietly(small, tmp_path / "saved")
    theirs = aligned(hf.AutoModelForImageClassification.from_pretrained(tmp_path / "saved"))
    assert torch.equal(logits(theirs, images), logits(small, images))
    with pytest.raises(PlanError, match="can't lose all its 9 layers: keep at least one"):
        sglp.prune(network, plan(layers, [layer.name for layer in layers]))


@pytest.mark.parametrize("family", ["BEiT", "ConvNeXt", "PVTv2"])
def test_stochastic_depth_is_the_same_as_in_a_fresh_network_of_the_new_config(family):
    small = half(family)[0]
    fresh = type(small)(copy.deepcopy(small.config))
    rates = [module.drop_prob for name, module in small.named_modules() if hasattr(module, "drop_prob")]
    assert rates == [module.drop_prob for name, module in fresh.named_modules() if hasattr(module, "drop_prob")]
    assert max(rates) == pytest.approx(0.3)
    assert not any(parameter.is_meta for parameter in small.parameters())


def test_output_layers_of_a_backbone_are_renumbered():
    torch.manual_seed(0)
    network = hf.Dinov2Backbone(hf.Dinov2Config(**FLAT, mlp_ratio=2, out_indices=[0, 2, 3, 5])).eval()
    names = [f"encoder.layer.{number}" for number in range(5)]
    small = sglp.prune(network, sglp.Plan([names[1], *names[3:]], [names[0], names[2]]))
    assert small.config.stage_names == ["stem", "stage1", "stage2", "stage3"]
    assert small.config.out_indices == [0, 1, 3]  # the output after removed layer 3 is now the one after layer 2
    assert small.config.out_features == ["stem", "stage1", "stage3"]


def other_outputs():
    network = copy.deepcopy(made("ViT")[0])
    network.classifier.forward = types.MethodType(lambda self, x: -torch.nn.Linear.forward(self, x), network.classifier)
    return network


def another_shift():
    small = half("Swin")[0]
    small.swin.encoder.layers[1].blocks[0].shift_size = 1
    return small


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (
            other_outputs,
            "ViTForImageClassification would not be the same after .*: it gives other outputs$",
        ),
        (another_shift, r"SwinForImageClassification would not be the same after from_pretrained: .*shift_size is"),
    ],
)
def test_a_model_that_no_folder_restores_is_refused(network, message, tmp_path):
    with pytest.raises(CheckpointError, match=message):
        sglp.save(network(), tmp_path / "saved")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"factory": "transformers:pipeline"}, "built by transformers:pipeline, which is not a Hugging Face model"),
        ({"factory": "transformers:AutoModel"}, "built by transformers:AutoModel, which is not a Hugging Face model"),
        ({"kwargs": {}}, "is broken: its config can't build a SwinForImageClassification"),
        ({"kwargs": {"config": {"depths": "two"}}}, "its config can't build a SwinForImageClassification"),
        ({"removed": ["swin.encoder.layers.1.blocks.9"]}, "architecture.json is broken: it removes layers that"),
    ],
    ids=str,
)
def test_broken_folders_of_our_own_are_refused(change, message, tmp_path):
    with pytest.warns(NotPlainWarning):
        sglp.save(half("Swin")[0], tmp_path / "saved")
    path = tmp_path / "saved/architecture.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=message):
        sglp.load(tmp_path / "saved")


FACTORY = "sglp.tasks.vision_models:image_classifier"


def test_a_workload_takes_a_configuration_or_a_folder_for_from_pretrained(tmp_path):
    entries = {"model_type": "vit", **FLAT}
    dense = sglp.build(FACTORY, entries, seed=0).eval()
    images = made("ViT")[1]
    dense.save_pretrained(tmp_path / "theirs")
    arguments = Architecture(factory=FACTORY, kwargs={}), Weights(source="file", kwargs={}, train=False)
    network = building.build(*arguments, str(tmp_path / "theirs"), seed=0)
    assert torch.equal(logits(aligned(network), images), logits(dense, images))
    layers = [layer for layer in sglp.find_layers(network, images) if not layer.is_stem]
    sglp.save(sglp.prune(network, plan(layers, [layers[1].name])), tmp_path / "once")
    again = building.build(*arguments, str(tmp_path / "once"), seed=0)
    assert architecture_of(again).removed == (layers[1].name,)
    # With the configuration of the dense network, training starts from a saved one.
    arguments = Architecture(factory=FACTORY, kwargs=entries | {"num_labels": 7}), arguments[1]
    other = building.build(*arguments, str(tmp_path / "once"), seed=0)
    assert logits(other, images).shape == (2, 7)
    assert torch.equal(other.vit.layers[1].layernorm_before.weight, again.vit.layers[1].layernorm_before.weight)


def test_a_configuration_is_checked():
    with pytest.raises(sglp.SGLPError, match="do not make an image classifier: ViTConfig has no entry hidden_sizes"):
        sglp.build(FACTORY, {"model_type": "vit", "hidden_sizes": [3]})
    with pytest.raises(
        sglp.SGLPError, match=r"architecture\.kwargs has depths, but pretrained weights bring their own configuration"
    ):
        sglp.build(FACTORY, {"depths": [3]}, weights={"pretrained": "somewhere"})
