"""Prune&Comp against its definition, and a network whose stream is multiplied by the scales at its gaps."""

import copy

import numpy as np
import pytest
import torch
from hugging_face_families import DECODERS, FAMILIES, example, make, outputs, plan, tokens
from language import cast, tiny_llama
from networks import Listed, noise

import sglp
from sglp.errors import ScoringError
from sglp.reconstruction.gap_scales import gaps_of
from sglp.reconstruction.reconstruct import reconstruct

PRE_NORM = ["Llama", "Mistral", "Qwen2", "Qwen3", "Phi3", "GPT-2", "GPT-Neo", "OPT", "GPT-NeoX", "Falcon"]
# In the others norms follow the maps, or experts share the tokens.
REFUSED = [family for family in FAMILIES if family not in PRE_NORM]


def exact(network):
    """Make norms ignore the size of their input."""
    for module in network.modules():
        for name in ("eps", "variance_epsilon"):
            if hasattr(module, name):
                setattr(module, name, 1e-30)
    return cast(network, torch.float64).eval()


def states(network, order, inputs):
    """Return the inputs of all layers and the output of the last, as numpy arrays [samples, tokens, channels]."""
    found = []

    def enter(module, args, kwargs):
        found.append((args[0] if args else kwargs["hidden_states"]).detach().clone())

    handles = [network.get_submodule(path).register_forward_pre_hook(enter, with_kwargs=True) for path in order]
    last = network.get_submodule(order[-1])
    handles.append(
        last.register_forward_hook(lambda m, a, out: found.append((out[0] if isinstance(out, tuple) else out).clone()))
    )
    with torch.no_grad():
        network(**inputs)
    for handle in handles:
        handle.remove()
    return [state.double().numpy() for state in found]


def scale_by_hand(before, after, mask):
    ratios = []
    for x, y, counting in zip(before, after, mask, strict=True):
        x, y = np.abs(x[counting]).mean(axis=0), np.abs(y[counting]).mean(axis=0)
        ratios.extend(y / x)
    return np.mean(ratios)


def multiplied(network, path, scale):
    """Multiply the input of a layer."""

    def enter(module, args, kwargs):
        if args:
            return (args[0] * scale, *args[1:]), kwargs
        return args, kwargs | {"hidden_states": kwargs["hidden_states"] * scale}

    network.get_submodule(path).register_forward_pre_hook(enter, with_kwargs=True)


@pytest.mark.parametrize("removed", [(2, 3, 5), (0, 4)])
@pytest.mark.parametrize("family", PRE_NORM)
def test_the_function_is_that_of_a_network_with_scales_at_its_gaps(family, removed):
    """The scale of a gap after the last kept layer has no effect, as the final norm ignores it."""
    dense = exact(make(family))
    removal = plan(family, removed)
    pruned = sglp.prune(dense, removal).eval()
    expected = copy.deepcopy(pruned)
    batches = [example(family) | {"input_ids": tokens(seed=seed)} for seed in range(8)]
    found = reconstruct(dense, pruned, removal, batches, method="prune_comp")

    order = plan(family, ()).kept
    fitted = batches[0] | {"input_ids": torch.cat([batch["input_ids"] for batch in batches[:-1]])}
    dense_states = states(dense, order, fitted)
    everything = np.ones(dense_states[0].shape[:2], dtype=bool)
    total = 1.0
    for first, last in [(2, 3), (5, 5)] if 2 in removed else [(0, 0), (4, 4)]:
        scale = scale_by_hand(dense_states[first], dense_states[last + 1], everything)
        total *= scale
        following = [i for i in range(last + 1, 6) if i not in removed]
        if following:
            multiplied(expected, order[sum(i not in removed for i in range(following[0]))], scale)
    held = batches[-1]
    wanted, actual = outputs(expected, held), outputs(pruned, held)
    largest = float(wanted.abs().max())
    assert torch.allclose(actual, wanted, rtol=0, atol=1e-5 * largest)  # the norms of Llama compute in float32
    assert not torch.allclose(outputs(sglp.prune(dense, removal), held), wanted, rtol=0, atol=1e-3 * largest)
    first = states(pruned, order[: 6 - len(removed)], held)[0]
    assert np.allclose(first, total * states(dense, order, held)[0], rtol=1e-9)
    assert [(one.layer, one.target) for one in found] == (
        [(order[1], order[3]), (order[4], order[5])] if 2 in removed else [("", order[0]), (order[3], order[4])]
    )
    assert all(one.kept and one.how == "prune_comp" for one in found)


def test_errors_and_padding():
    dense = exact(tiny_llama(5))
    ids = tokens(length=16, batch=32, seed=4)
    mask = (torch.arange(16) < torch.randint(6, 16, (32, 1), generator=torch.Generator().manual_seed(5))).long()
    embeddings = []
    for filler in (1, 77):
        padded = torch.where(mask.bool(), ids, filler)
        batches = [{"input_ids": padded[i : i + 4], "attention_mask": mask[i : i + 4]} for i in range(0, 32, 4)]
        removal = sglp.Plan.without(sglp.find_layers(dense, batches[0]), [2, 3])
        dense.model.embed_tokens.weight.data[1] = 0  # as the embedding of padding can be
        pruned = sglp.prune(dense, removal).eval()
        [row] = reconstruct(dense, pruned, removal, batches, method="prune_comp", scope="gaps")
        embeddings.append(pruned.model.embed_tokens.weight.detach())
        order = [f"model.layers.{i}" for i in range(5)]
        found = states(dense, order, {"input_ids": padded, "attention_mask": mask})
        before, after = found[2], found[4]
        scale = scale_by_hand(before[:28], after[:28], mask[:28].bool().numpy())
        assert np.allclose(embeddings[-1], scale * dense.model.embed_tokens.weight.detach().numpy(), rtol=1e-9)
        real = mask[28:].bool().numpy()
        x, y = before[28:][real], after[28:][real]
        for actual, factor in ((row.before, 1), (row.after, scale)):
            expected = np.mean(((factor * x - y) ** 2).sum(axis=1) / (y**2).sum(axis=1))
            assert actual == pytest.approx(expected, rel=1e-6)
    assert torch.allclose(*embeddings, rtol=1e-9)


@pytest.mark.parametrize("family", REFUSED)
def test_other_networks_are_refused_and_unchanged(family):
    dense = make(family).eval()
    removal = plan(family, (2, 3))
    pruned = sglp.prune(dense, removal).eval()
    state = copy.deepcopy(pruned.state_dict())
    batches = [example(family) | {"input_ids": tokens(seed=seed)} for seed in range(8)]
    with pytest.raises(ScoringError, match=r"^prune_comp can't scale the residual stream of .* share no weights"):
        reconstruct(dense, pruned, removal, batches, method="prune_comp")
    assert all(torch.equal(value, state[key]) for key, value in pruned.state_dict().items())
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in (*dense.modules(), *pruned.modules()))


def test_networks_without_tokens_and_layers_that_share_weights_are_refused():
    dense = Listed().eval()
    removal = sglp.Plan.without(sglp.find_layers(dense, noise(4, 5)), [1])
    with pytest.raises(ScoringError, match="prune_comp can't scale the residual stream of Listed"):
        reconstruct(dense, sglp.prune(dense, removal), removal, [noise(8, 5)], method="prune_comp")
    llama = tiny_llama(4)
    llama.model.layers[0].mlp.down_proj.weight = llama.model.layers[1].mlp.down_proj.weight
    inputs = {"input_ids": tokens(), "use_cache": False}
    removal = sglp.Plan.without(sglp.find_layers(llama, inputs), [2])
    with pytest.raises(ScoringError, match="share no weights"):
        reconstruct(llama, sglp.prune(llama, removal), removal, [inputs], method="prune_comp")


@pytest.mark.parametrize("family", ["Llama", "GPT-2", "OPT"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_usual_norms_and_precisions_are_accepted(family, dtype, tmp_path):
    dense = cast(make(family), dtype).eval()
    removal = plan(family, (2,))
    pruned = sglp.prune(dense, removal).eval()
    batches = [example(family) | {"input_ids": tokens(seed=seed)} for seed in range(8)]
    assert len(reconstruct(dense, pruned, removal, batches, method="prune_comp")) == 1
    assert {p.dtype for p in pruned.parameters()} == {dtype}
    assert torch.equal(outputs(dense, batches[0]), outputs(cast(make(family), dtype), batches[0]))
    sglp.save(pruned, tmp_path / "a")
    loaded = DECODERS[family][0].from_pretrained(tmp_path / "a", dtype=dtype)
    assert torch.equal(outputs(loaded, batches[0]), outputs(pruned, batches[0]))


def test_activations_that_are_not_finite_are_refused():
    dense = tiny_llama(4)
    inputs = {"input_ids": tokens(), "use_cache": False}
    removal = sglp.Plan.without(sglp.find_layers(dense, inputs), [2])
    pruned = sglp.prune(dense, removal).eval()
    state = copy.deepcopy(pruned.state_dict())
    with torch.no_grad():
        dense.model.layers[2].mlp.down_proj.weight.fill_(float("nan"))
    with pytest.raises(ScoringError, match=r"mean activation after model\.layers\.2 is nan times the one before"):
        reconstruct(dense, pruned, removal, [inputs], method="prune_comp")
    assert all(torch.equal(value, state[key]) for key, value in pruned.state_dict().items())


def test_gaps_are_runs_of_removed_layers():
    order = list("abcdefg")
    assert [tuple(gap) for gap in gaps_of(order, set("adeg"))] == [("", "a", "a"), ("c", "d", "e"), ("f", "g", "g")]
    assert gaps_of(order, set()) == []
