"""ReplaceMe against least squares in numpy, and a network with the transform as an extra map."""

import copy

import numpy as np
import pytest
import torch
from hugging_face_families import example, make, outputs, plan, tokens
from language import cast, tiny_llama
from networks import Listed, noise
from torch import nn

import sglp
from sglp.reconstruction.reconstruct import reconstruct
from sglp.reconstruction.replace_me import transform


def batches_of(count, filler=None):
    ids = tokens(length=16, batch=count, seed=1)
    if filler is None:
        return [{"input_ids": ids[i : i + 4], "use_cache": False} for i in range(0, count, 4)]
    mask = (torch.arange(16) < torch.randint(6, 16, (count, 1), generator=torch.Generator().manual_seed(5))).long()
    ids = torch.where(mask.bool(), ids, filler)
    return [{"input_ids": ids[i : i + 4], "attention_mask": mask[i : i + 4]} for i in range(0, count, 4)]


def caught(network, layer, inputs, map_path):
    """Return the rows of a linear map's outputs and of a layer's outputs."""
    seen = {}
    handles = [
        network.get_submodule(f"{layer}.{map_path}").register_forward_hook(
            lambda m, a, out: seen.update(map=out.clone())
        ),
        network.get_submodule(layer).register_forward_hook(
            lambda m, a, out: seen.update(layer=out[0] if isinstance(out, tuple) else out)
        ),
    ]
    with torch.no_grad():
        network(**inputs)
    for handle in handles:
        handle.remove()
    return [seen[key].reshape(-1, seen[key].shape[-1]).double().numpy() for key in ("map", "layer")]


def test_the_output_is_that_of_a_network_with_the_transform_as_an_extra_map():
    """Two gaps: at the second the pruned network already has the first transform."""
    dense = cast(tiny_llama(7), torch.float64)
    batches = batches_of(32)
    layers = sglp.find_layers(dense, batches[0])
    removal = sglp.Plan.without(layers, [2, 3, 5])
    pruned = sglp.prune(dense, removal).eval()
    expected = copy.deepcopy(pruned)
    fitted = {"input_ids": torch.cat([batch["input_ids"] for batch in batches[:-1]]), "use_cache": False}
    for kept, number, target in ((1, 1, 3), (2, 4, 5)):
        _, goal = caught(dense, f"model.layers.{target}", fitted, "mlp.down_proj")
        outputs_of_map, output = caught(expected, f"model.layers.{kept}", fitted, "mlp.down_proj")
        T = torch.tensor(np.linalg.lstsq(outputs_of_map, goal - output + outputs_of_map, rcond=None)[0])
        block = expected.model.layers[kept].mlp
        extra = nn.Linear(16, 16, bias=False, dtype=torch.float64)
        with torch.no_grad():
            extra.weight.copy_(T.T)
        block.down_proj = nn.Sequential(block.down_proj, extra)
        assert removal.kept[kept] == f"model.layers.{number}"
    found = reconstruct(dense, pruned, removal, batches, method="replace_me")
    assert [(one.layer, one.target, one.how, one.kept) for one in found] == [
        ("model.layers.1", "model.layers.3", "replace_me", True),
        ("model.layers.4", "model.layers.5", "replace_me", True),
    ]
    actual = outputs(pruned, {"input_ids": tokens(seed=9), "use_cache": False})
    wanted = outputs(expected, {"input_ids": tokens(seed=9), "use_cache": False})
    assert torch.allclose(actual, wanted, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(
    ("family", "path"),
    [("GPT-2", "mlp.c_proj"), ("OPT", "fc2"), ("Falcon", "mlp.dense_4h_to_h"), ("GPT-NeoX", "mlp.dense_4h_to_h")],
)
def test_the_map_and_its_bias_are_transformed_in_other_families(family, path):
    dense = cast(make(family).eval(), torch.float64)
    removal = plan(family, (3,))
    pruned = sglp.prune(dense, removal).eval()
    before = copy.deepcopy(pruned)
    batches = [example(family) | {"input_ids": tokens(seed=seed)} for seed in range(8)]
    found = reconstruct(dense, pruned, removal, batches, method="replace_me", scope="all")
    assert [one.layer for one in found] == [removal.kept[2]]
    fitted = batches[0] | {"input_ids": torch.cat([batch["input_ids"] for batch in batches[:-1]])}
    _, goal = caught(dense, removal.removed[0], fitted, path)
    old, output = caught(before, removal.kept[2], fitted, path)
    new, _ = caught(pruned, removal.kept[2], fitted, path)
    T = np.linalg.lstsq(old, goal - output + old, rcond=None)[0]
    assert np.abs(new - old @ T).max() < 1e-6 * np.abs(old).max()


def test_padding_does_not_count():
    dense = cast(tiny_llama(4), torch.float64)
    weights = []
    for filler in (1, 77):
        batches = batches_of(32, filler)
        removal = sglp.Plan.without(sglp.find_layers(dense, batches[0]), [2])
        pruned = sglp.prune(dense, removal).eval()
        reconstruct(dense, pruned, removal, batches, method="replace_me")
        weights.append(pruned.model.layers[1].mlp.down_proj.weight.detach())
    assert torch.allclose(*weights, rtol=1e-7, atol=1e-9)
    assert not torch.allclose(weights[0], dense.model.layers[1].mlp.down_proj.weight, atol=1e-3)


def test_weights_are_kept_even_if_the_held_out_error_rises():
    """Four tokens can't determine a 16 x 16 transform."""
    dense = cast(tiny_llama(4), torch.float64)
    batches = [{"input_ids": tokens(length=4, batch=1, seed=seed), "use_cache": False} for seed in range(2)]
    removal = sglp.Plan.without(sglp.find_layers(dense, batches[0]), [2])
    pruned = sglp.prune(dense, removal).eval()
    [row] = reconstruct(dense, pruned, removal, batches, method="replace_me")
    assert row.kept
    assert row.after > row.before
    assert all(parameter.isfinite().all() for parameter in pruned.parameters())


def test_a_singular_system_has_the_smallest_solution():
    generator = np.random.default_rng(0)
    outputs_of_map = generator.normal(size=(50, 3)) @ generator.normal(size=(3, 8))
    residuals = generator.normal(size=(50, 8))
    weights = np.repeat([1.0, 0.0, 3.0], [20, 10, 20])
    rows = weights > 0
    goal = (residuals + outputs_of_map)[rows]
    expected = np.linalg.lstsq(outputs_of_map[rows], goal, rcond=1e-10)[0]
    parts = [
        tuple(torch.tensor(value[i : i + 10]) for value in (outputs_of_map, residuals, weights))
        for i in range(0, 50, 10)
    ]
    assert np.abs(transform(parts).numpy() - expected).max() < 1e-8


def test_layers_without_such_a_map_are_left(network, digits):
    layers = sglp.find_layers(network, digits[0][:2])
    removal = sglp.Plan.without(layers, [2, 8])
    pruned = sglp.prune(network, removal).eval()
    weights = [p.detach().clone() for p in pruned.parameters()]
    found = reconstruct(network, pruned, removal, digits[0][:64].split(8), method="replace_me")
    assert [(one.how, one.kept) for one in found] == [("", False)] * 2
    assert all(torch.equal(a, b) for a, b in zip(pruned.parameters(), weights, strict=True))


def test_a_gap_before_the_first_kept_layer_has_no_layer_to_transform():
    dense = Listed().eval()
    removal = sglp.Plan.without(sglp.find_layers(dense, noise(4, 5)), [0])
    assert reconstruct(dense, sglp.prune(dense, removal), removal, [noise(8, 5)], method="replace_me") == []
