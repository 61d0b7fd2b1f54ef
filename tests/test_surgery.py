"""A pruned network computes the same as the dense network with the removed layers bypassed."""

import copy
import functools

import pytest
import torch
from networks import (
    Attributes,
    Block,
    Halved,
    Keywords,
    Listed,
    Pair,
    Pairs,
    Unpacked,
    logits,
    noise,
    plan_without,
    units,
)
from torch import nn

import sglp
from sglp.architecture import architecture_of
from sglp.cost import count_macs, count_parameters
from sglp.errors import PlanError
from sglp.surgery.random_weights import init_seed, reinitialized
from sglp.target import RemainingCost

RESNET = "sglp.networks.cifar_resnet:resnet"


def bypassed(model, plan):
    """Return a copy of the dense network in which removed layers return their inputs."""
    model = copy.deepcopy(model)
    for path in [path for name in plan.removed for path in name.split("+")]:
        model.get_submodule(path).forward = functools.partial(main_input, isinstance(model, Unpacked))
    return model.eval()


def main_input(in_pair, *args, **kwargs):
    first = args[0] if args else kwargs.get("hidden_states", kwargs.get("x"))
    return (first, None) if in_pair else first


def llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=4, vocab_size=50))


VECTOR, IMAGE, TOKENS = noise(4, 5), noise(4, 3, 8, 8), {"input_ids": torch.arange(12).view(2, 6)}
CASES = {
    "ModuleList": (Listed, VECTOR, ("blocks.0", "blocks.3"), ["blocks.0", "blocks.1", "blocks.2"]),
    "attributes": (Attributes, VECTOR, ("two",), ["one", "three"]),
    "Sequential with its own forward": (Halved, VECTOR, ("1", "2"), ["0", "3"]),
    "keyword arguments": (Keywords, VECTOR, ("two", "three"), ["one"]),
    "items that return more": (Unpacked, VECTOR, ("blocks.0", "blocks.3"), [f"blocks.{i}" for i in range(3)]),
    "units": (units, IMAGE, ("3+4+5", "9+10+11"), ["0+1+2", "3+4+5"]),
    "pairs": (Pairs, VECTOR, ("1", "3"), ["0", "1"]),
    "language model": (llama, TOKENS, ("model.layers.1", "model.layers.2"), ["model.layers.0", "model.layers.1"]),
}


@pytest.mark.parametrize(("make", "example", "removed", "remaining"), CASES.values(), ids=CASES)
def test_a_pruned_network_is_the_dense_one_with_layers_bypassed(make, example, removed, remaining):
    torch.manual_seed(0)
    model = make().eval()
    plan = plan_without(sglp.find_layers(model, example), removed)
    state = copy.deepcopy(model.state_dict())
    pruned = sglp.prune(model, plan)
    assert torch.equal(logits(pruned, example), logits(bypassed(model, plan), example))
    assert not torch.allclose(logits(pruned, example), logits(model, example))
    assert [layer.name for layer in sglp.find_layers(pruned, example)] == remaining
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "convnext_tiny", "swin_t"])
def test_all_removable_layers_of_torchvision_networks_can_be_removed(name):
    model, example = sglp.build(f"torchvision.models:{name}", seed=0).eval(), noise(2, 3, 32, 32)
    layers = sglp.find_layers(model, example)
    plan = plan_without(layers, [layer.name for layer in layers if layer.removable])
    pruned = sglp.prune(model, plan)
    assert torch.equal(logits(pruned, example), logits(bypassed(model, plan), example))
    removed = sum(layer.parameters for layer in layers if layer.removable)
    assert count_parameters(pruned) == count_parameters(model) - removed


def blocks_beyond(kept):
    return [f"layer{stage + 1}.{block}" for stage, count in enumerate(kept) for block in range(count, 9)]


@pytest.mark.parametrize(
    ("kept", "published", "parameters", "macs"),
    [
        ((4, 3, 4), (0.348, 49.99), 348_378, 49_988_224),
        ((5, 3, 4), (0.353, 54.71), 353_050, 54_706_816),
        ((5, 4, 4), (0.372, 59.43), 371_610, 59_425_408),
        ((6, 4, 4), (0.376, 64.14), 376_282, 64_144_000),
        ((6, 5, 4), (0.395, 68.86), 394_842, 68_862_592),
    ],
)
def test_pruned_resnet56_has_the_published_size(kept, published, parameters, macs):
    model, example = sglp.build(RESNET, {"depth": 56}, seed=0), noise(1, 3, 32, 32)
    plan = plan_without(sglp.find_layers(model, example), blocks_beyond(kept))
    pruned = sglp.prune(model, plan)
    assert (count_parameters(pruned), count_macs(pruned, example)) == (parameters, macs)
    assert (round(parameters / 1e6, 3), round(macs / 1e6, 2)) == published
    assert torch.equal(logits(pruned, example), logits(bypassed(model, plan), example))


def test_blocks_from_the_middle_of_stages_can_be_removed(network, layers, digits):
    removed = ("layer1.0", "layer1.2", "layer2.1", "layer3.2")
    plan = plan_without(layers, removed)
    pruned = sglp.prune(network, plan)
    x = digits[0][:16]
    assert torch.equal(logits(pruned, x), logits(bypassed(network, plan), x))
    indices = [[name for name, _ in stage.named_children()] for stage in (pruned.layer1, pruned.layer2, pruned.layer3)]
    assert indices == [["0"], ["0", "1"], ["0", "1"]]


def test_the_given_network_shares_nothing_with_the_pruned_one(network, layers):
    state = copy.deepcopy(network.state_dict())
    pruned = sglp.prune(network, plan_without(layers, ["layer1.1"]))
    with torch.no_grad():
        for tensor in [*pruned.parameters(), *pruned.buffers()]:
            tensor.fill_(1)
    assert list(network.state_dict()) == list(state)
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())


def test_mode_and_frozen_parameters_are_kept(network, layers):
    network.train().layer3.requires_grad_(False)
    pruned = sglp.prune(network, plan_without(layers, ["layer3.1"]))
    assert all(module.training for module in pruned.modules())
    assert {name for name, p in pruned.named_parameters() if not p.requires_grad} == {
        name for name, _ in pruned.named_parameters() if name.startswith("layer3.")
    }


def test_a_block_called_by_attribute_becomes_an_identity():
    pruned = sglp.prune(Attributes(), sglp.Plan(["one", "three"], ["two"]))
    assert isinstance(pruned.two, nn.Identity)
    assert count_parameters(pruned) == 60


def test_a_block_that_returns_more_than_its_input_is_not_removable():
    """The parent, which pruning does not change, unpacks the block's output."""

    class Parent(Attributes):
        def __init__(self):
            super().__init__()
            self.two = Pair()

        def forward(self, x):
            x, _ = self.two(self.one(x))
            return self.three(x)

    layers = sglp.find_layers(Parent(), VECTOR, ["one", "two", "three"])
    assert [layer.reason for layer in layers] == ["", "takes a tensor and returns a tuple of 2", ""]


def test_a_plan_that_removes_nothing_changes_nothing(network, layers, digits):
    pruned = sglp.prune(network, plan_without(layers, []))
    assert torch.equal(logits(pruned, digits[0][:8]), logits(network, digits[0][:8]))


def test_layers_pruned_in_two_rounds_have_their_dense_names(network, layers, digits):
    once = sglp.prune(network, plan_without(layers, ["layer1.0", "layer3.1"]))
    second = plan_without(sglp.find_layers(once, digits[0][:2]), ["layer1.1", "layer2.2"])
    twice = sglp.prune(once, second)
    together = sglp.prune(network, plan_without(layers, ["layer1.0", "layer1.2", "layer2.2", "layer3.1"]))
    assert torch.equal(logits(twice, digits[0][:8]), logits(together, digits[0][:8]))
    assert set(architecture_of(twice).removed) == {"layer1.0", "layer1.2", "layer2.2", "layer3.1"}
    assert architecture_of(twice).kept == architecture_of(together).kept


@pytest.mark.parametrize(
    ("first", "second", "dense"),
    [
        (["layer1.0"], ["layer1.0"], "layer1.1"),
        (["layer1.1"], ["layer1.0"], "layer1.0"),
        (["layer1.0", "layer1.1"], ["layer1.0"], "layer1.2"),
        (["layer2.1"], ["layer1.1"], "layer1.1"),
        (["layer3.1"], ["layer3.1"], "layer3.2"),
    ],
)
def test_names_in_a_second_round_count_layers_removed_before(network, layers, digits, first, second, dense):
    once = sglp.prune(network, plan_without(layers, first))
    twice = sglp.prune(once, plan_without(sglp.find_layers(once, digits[0][:2]), second))
    assert architecture_of(twice).removed == (*first, dense)


def test_children_that_are_not_renumbered_keep_their_names_in_a_second_round():
    model = sglp.build(f"{__name__}:Halved", seed=0)
    once = sglp.prune(model, sglp.Plan(["0", "2", "3"], ["1"]))
    twice = sglp.prune(once, sglp.Plan(["0", "3"], ["2"]))
    assert architecture_of(twice).removed == ("1", "2")
    assert architecture_of(twice).kept == ("0", "3")


class Named(nn.Module):
    """Blocks that are registered by name, and again in the container that runs them."""

    def __init__(self, container):
        super().__init__()
        self.first, self.second, self.third = blocks = Block(), Block(), Block()
        self.again, self.container = self.second, container
        self.body = nn.ModuleList(blocks) if container == "list" else nn.Sequential(*blocks)
        self.stem = nn.Linear(5, 5)
        self.head = nn.Linear(5, 2)

    def forward(self, x):
        x = self.stem(x)
        if self.container == "called":
            return self.head(self.body(x))
        for block in self.body:
            x = block(x)
        return self.head(x)


@pytest.mark.parametrize("container", ["list", "sequential", "called"])
def test_a_module_is_removed_under_all_its_names(container):
    torch.manual_seed(0)
    model = Named(container)
    x = noise(3, 5)
    layers = sglp.find_layers(model, x)
    assert [layer.name for layer in layers] == ["stem", "first", "second", "third"]
    plan = plan_without(layers, ["second"])
    small = sglp.prune(model, plan)
    target = torch.tensor([0, 1, 1])
    assert torch.equal(logits(small, x), logits(bypassed(model, plan), x))
    assert len(small.body) == 2
    assert count_parameters(model) - count_parameters(small) == layers[2].parameters == 30
    assert RemainingCost("parameters", model, layers, x).share(plan) == count_parameters(small) / count_parameters(
        model
    )
    score = sglp.find_criterion("loss")(model, layers, [(x, target)])
    assert score((), ()) == pytest.approx(-nn.functional.cross_entropy(logits(model, x), target).item())
    assert score((), (2,)) == pytest.approx(-nn.functional.cross_entropy(logits(small, x), target).item())


def test_a_shared_activation_is_kept_elsewhere():
    torch.manual_seed(0)
    relu = nn.ReLU()
    model, x = nn.Sequential(nn.Linear(5, 5), relu, nn.Linear(5, 5), relu, nn.Linear(5, 5)), noise(3, 5)
    for layer in sglp.find_layers(model, x):
        plan = sglp.Plan([], [layer.name])
        assert torch.equal(logits(sglp.prune(model, plan), x), logits(bypassed(model, plan), x))


@pytest.mark.parametrize(("make", "removed"), [("units", ["0+1+2", "6+7+8"]), ("Listed", ["blocks.1", "blocks.3"])])
def test_a_reinitialized_pruned_network_has_the_weights_of_a_reinitialized_dense_one(make, removed):
    model = sglp.build(f"{__name__}:{make}", seed=0)
    layers = sglp.find_layers(model, IMAGE if make == "units" else VECTOR)
    fresh = reinitialized(sglp.prune(model, plan_without(layers, removed)), seed=3)
    expected = sglp.prune(
        sglp.build(f"{__name__}:{make}", seed=init_seed(3)), plan_without(layers, removed)
    ).state_dict()
    assert list(fresh.state_dict()) == list(expected)
    assert all(torch.equal(value, expected[key]) for key, value in fresh.state_dict().items())


@pytest.mark.parametrize(
    ("kept", "removed", "message"),
    [
        (["layer1.0"], ["layer9.1"], "names the layer layer9.1, but CifarResNet has no module layer9.1"),
        (["conv1+bn7"], ["layer1.1"], r"names the layer conv1\+bn7, but CifarResNet has no module bn7"),
    ],
)
def test_plans_for_other_networks_are_refused(network, kept, removed, message):
    with pytest.raises(PlanError, match=message):
        sglp.prune(network, sglp.Plan(kept, removed))


def test_a_network_that_stores_tensors_with_a_graph_is_refused(network, digits):
    network.seen = network(digits[0][:2])
    with pytest.raises(PlanError, match=r"^this CifarResNet can't be copied: Only Tensors created explicitly"):
        sglp.prune(network, sglp.Plan(["conv1+bn1"], ["layer1.1"]))


@pytest.mark.parametrize(("kept", "removed"), [(["a", "b"], ["b"]), (["b", "b"], []), ([], ["b", "a", "b"])])
def test_a_plan_names_each_layer_once(kept, removed):
    with pytest.raises(PlanError, match="each layer once, but this one repeats b"):
        sglp.Plan(kept, removed)


def test_a_plan_survives_its_file_and_gives_the_same_bytes(tmp_path):
    plan = sglp.Plan(["conv1+bn1", "layer1.0"], ("layer1.1",))
    plan.save(tmp_path / "a.json")
    sglp.Plan(plan.kept, list(plan.removed)).save(tmp_path / "b.json")
    assert sglp.Plan.load(tmp_path / "a.json") == plan
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"kept": []}', '{"kept": null, "removed": []}', '{"kept": "ab", "removed": []}']
)
def test_files_that_are_not_plans_are_refused(tmp_path, text):
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(PlanError, match=r"plan\.json is not a plan"):
        sglp.Plan.load(tmp_path / "plan.json")
