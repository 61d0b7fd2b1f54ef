"""Errors of refitted layers against numpy's least squares in float64, and against `reconstruct` itself."""

import copy

import numpy as np
import pytest
import torch
from hugging_face_families import tokens
from language import cast, tiny_llama
from networks import Listed, noise

import sglp
from sglp.errors import ScoringError
from sglp.reconstruction.error_matrix import reconstruction_errors
from sglp.reconstruction.reconstruct import reconstruct
from sglp.running import count_passes

RIDGE = 0.1


def llama_and_tokens(layers=5):
    return cast(tiny_llama(layers), torch.float64), tokens(length=12, batch=32, seed=1)


def in_batches(inputs, size):
    return [{key: value[i : i + size] for key, value in inputs.items()} for i in range(0, 32, size)]


def brute_force_error(dense, layers, i, j, ids, counts):
    """Refit layer i of the network without layers i+1..j with numpy; `counts` says which tokens count."""
    plan = sglp.Plan.without(layers, range(i + 1, j + 1))
    pruned = sglp.prune(dense, plan).eval()
    caught = {}
    handles = [
        dense.model.layers[j].register_forward_hook(lambda m, a, out: caught.update(target=out)),
        pruned.model.layers[i].register_forward_hook(lambda m, a, out: caught.update(output=out)),
        pruned.model.layers[i].mlp.down_proj.register_forward_pre_hook(lambda m, a: caught.update(given=a[0])),
    ]
    with torch.no_grad():
        for network in (dense, pruned):
            network(**ids, use_cache=False)
    for handle in handles:
        handle.remove()
    h, target, output = (caught[key].flatten(0, 1)[counts.flatten()].numpy() for key in ("given", "target", "output"))
    held_out = np.repeat(np.arange(32) >= 28, counts.sum(dim=1).numpy())
    seen = ~held_out
    root = 1 / np.linalg.norm(output[seen], axis=1, keepdims=True)
    lam = RIDGE * ((root * h[seen]) ** 2).sum(axis=0).mean()
    left = np.vstack([root * h[seen], np.sqrt(lam) * np.eye(h.shape[1])])
    right = np.vstack([root * (target - output)[seen], np.zeros((h.shape[1], target.shape[1]))])
    change = np.linalg.lstsq(left, right, rcond=None)[0]

    def error(produced):
        return (((target - produced) ** 2).sum(axis=1) / (target**2).sum(axis=1))[held_out].mean()

    return min(error(output + h @ change), error(output))


@pytest.mark.parametrize("padded", [False, True])
def test_every_error_is_that_of_least_squares(padded):
    dense, ids = llama_and_tokens()
    lengths = torch.randint(4, 13, (32, 1), generator=torch.Generator().manual_seed(5)) if padded else 12
    counts = (torch.arange(12) < lengths).expand(32, 12)
    inputs = {"input_ids": ids} | ({"attention_mask": counts.long()} if padded else {})
    layers = sglp.find_layers(dense, in_batches(inputs, 2)[0] | {"use_cache": False})
    errors = reconstruction_errors(dense, layers, in_batches(inputs, 4), longest=3, ridge=RIDGE)
    assert errors.shape == (5, 5)
    for i in range(5):
        for j in range(5):
            if i < j <= i + 3:
                assert errors[i, j] == pytest.approx(brute_force_error(dense, layers, i, j, inputs, counts), rel=1e-6)
            else:
                assert errors[i, j] == (0 if i == j else np.inf)


def test_padding_does_not_count():
    dense, ids = llama_and_tokens()
    mask = (torch.arange(12) < torch.randint(4, 13, (32, 1), generator=torch.Generator().manual_seed(5))).long()
    layers = sglp.find_layers(dense, {"input_ids": ids[:2], "use_cache": False})
    one, other = (
        reconstruction_errors(
            dense,
            layers,
            in_batches({"input_ids": torch.where(mask.bool(), ids, filler), "attention_mask": mask}, 4),
        )
        for filler in (1, 77)
    )
    assert np.allclose(one, other, rtol=1e-9, atol=0)


def test_one_pass_is_enough_and_the_network_stays_as_it_was():
    dense, ids = llama_and_tokens()
    state, cache = copy.deepcopy(dense.state_dict()), dense.config.use_cache
    layers = sglp.find_layers(dense, {"input_ids": ids[:2], "use_cache": False})
    with count_passes() as passes:
        reconstruction_errors(dense, layers, [({"input_ids": part}, None) for part in ids.split(4)])
    assert (passes.forward, passes.backward) == (9, 0)  # one of them of a single sample
    assert all(torch.equal(value, state[key]) for key, value in dense.state_dict().items())
    assert dense.config.use_cache == cache
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in dense.modules())


def test_errors_of_blocks_are_those_after_reconstruct(network, digits):
    images = digits[0][:64]
    sglp.recalibrate(network, [images])
    layers = sglp.find_layers(network, images[:2])
    assert [i for i, layer in enumerate(layers) if not layer.removable] == [0, 4, 7]
    before = copy.deepcopy(network.state_dict())
    errors = reconstruction_errors(network, layers, images.split(8), longest=2, steps=4)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    finite = {(0, 1), (0, 2), (1, 2), (1, 3), (2, 3), (4, 5), (4, 6), (5, 6), (7, 8), (7, 9), (8, 9)}
    assert {(i, j) for i in range(10) for j in range(10) if i != j and np.isfinite(errors[i, j])} == finite
    for i, j in finite:
        plan = sglp.Plan.without(layers, range(i + 1, j + 1))
        pruned = sglp.prune(network, plan).eval()
        found = reconstruct(network, pruned, plan, images.split(8), scope="gaps", steps=4)[0]
        assert (found.layer, found.target, found.how) == (layers[i].name, layers[j].name, "gradient")
        assert errors[i, j] == pytest.approx(found.after if found.kept else found.before, rel=1e-5)


def test_no_layer_stands_in_for_one_of_another_shape():
    """VGG's convolution after a pooling keeps its shape, but the convolution before the pooling has a larger one."""
    network = sglp.build("sglp.networks.cifar_vgg:vgg", {"in_channels": 1, "width": 2}, seed=0).eval()
    layers = sglp.find_layers(network, noise(2, 1, 32, 32))
    assert [i for i, layer in enumerate(layers) if layer.removable] == [1, 3, 5, 6, 8, 9, 10, 11, 12]
    errors = reconstruction_errors(network, layers, [noise(16, 1, 32, 32)], steps=1)
    pairs = {(i, j) for i in range(13) for j in range(i + 1, 13) if np.isfinite(errors[i, j])}
    assert pairs == {(0, 1), (2, 3), (4, 5), (4, 6), (5, 6), (7, 8), (7, 9), (8, 9), (10, 11), (10, 12), (11, 12)}


def test_a_layer_that_shares_its_parameters_is_not_fitted():
    network = Listed().eval()
    layers = sglp.find_layers(network, noise(2, 5))
    network.blocks[3].fc.weight = network.blocks[1].fc.weight
    batches = [noise(4, 5, seed=seed) for seed in range(8)]
    errors = reconstruction_errors(network, layers, batches, steps=5)
    with torch.no_grad():
        states = [batches[7]]
        for block in network.blocks:
            states.append(block(states[-1]))
    x = [state.numpy() for state in states[1:]]
    unfitted = [(((x[j] - x[i]) ** 2).sum(1) / (x[j] ** 2).sum(1)).mean() for i, j in ((1, 2), (1, 4), (3, 4), (2, 4))]
    assert [errors[1, 2], errors[1, 4], errors[3, 4]] == pytest.approx(unfitted[:3], rel=1e-5)
    assert errors[2, 4] < unfitted[3]


def test_a_batch_is_needed():
    network = Listed().eval()
    with pytest.raises(ScoringError, match="there is no batch to score layers with"):
        reconstruction_errors(network, sglp.find_layers(network, noise(2, 5)), [])


def test_activations_that_are_not_finite_are_refused():
    network = Listed().eval()
    layers = sglp.find_layers(network, noise(2, 5))
    with torch.no_grad():
        network.blocks[2].fc.bias.fill_(torch.inf)
    with pytest.raises(ScoringError, match=r"after blocks\.2 are not finite: no layer can be fitted to them"):
        reconstruction_errors(network, layers, [noise(8, 5)])
