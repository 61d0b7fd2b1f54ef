"""Similarities compared with their definitions in float64, and Gram matrices."""

import copy
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sglp import cka_matrix, find_layers, gram_matrices
from sglp.errors import DeadLayerWarning, SimilarityError
from sglp.layer import Layer


def unbiased_hsic(K, L):
    """Song et al. 2012, term by term."""
    n, ones = len(K), torch.ones(len(K), dtype=torch.float64)
    K, L = K - K.diag().diag(), L - L.diag().diag()
    product = (K @ L).trace()
    sums = (ones @ K @ ones) * (ones @ L @ ones) / ((n - 1) * (n - 2))
    return (product + sums - 2 / (n - 2) * (ones @ K @ L @ ones)) / (n * (n - 3))


def biased_hsic(K, L):
    n = len(K)
    H = torch.eye(n, dtype=torch.float64) - torch.full((n, n), 1 / n, dtype=torch.float64)
    return (K @ H @ L @ H).trace() / (n - 1) ** 2


HSIC = {"unbiased": unbiased_hsic, "biased": biased_hsic}
ESTIMATORS = pytest.mark.parametrize("estimator", HSIC)
KERNELS = pytest.mark.parametrize("kernel", ["linear", "rbf"])


def cka_by_definition(blocks, estimator):
    """Average each HSIC term over the batches, then take the ratio."""
    terms = [[[HSIC[estimator](K, L) for L in block] for K in block] for block in blocks]
    hsic = torch.tensor(terms, dtype=torch.float64).mean(dim=0)
    return hsic / hsic.diag().outer(hsic.diag()).sqrt()


def gaussian(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def grams_of(activations):
    return torch.stack([X @ X.T for X in activations])


def related_activations(n=20, seed=0):
    """Draw four layers that are similar to different degrees and not centred."""
    base = gaussian(n, 6, seed=seed)
    return [base + share * gaussian(n, 6, seed=seed + 1 + i) + 3 for i, share in enumerate((0.1, 0.5, 1, 4))]


def hooked_grams(network, names, batch):
    """Compute uncentred Gram matrices of the stem (the first block's input) and of the blocks' outputs."""
    seen = {}
    handles = [
        network.get_submodule(name).register_forward_hook(
            lambda module, args, output, name=name: seen.update({name: output.clone()})
        )
        for name in names
    ]
    first = network.get_submodule(names[0])
    handles.append(first.register_forward_pre_hook(lambda module, args: seen.update(stem=args[0].clone())))
    with torch.no_grad():
        network.eval()(batch)
    for handle in handles:
        handle.remove()
    return grams_of([seen[name].double().flatten(1) for name in ("stem", *names)])


@ESTIMATORS
def test_cka_of_a_network_equals_its_definition(network, layers, digits, estimator):
    batches = [digits[0][:24], digits[0][24:40]]
    names = [layer.name for layer in layers[1:]]
    expected = cka_by_definition([hooked_grams(network, names, batch) for batch in batches], estimator)
    actual = cka_matrix(gram_matrices(network, layers, batches), estimator)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-9)


@ESTIMATORS
@pytest.mark.parametrize("samples", [(20,), (20, 20, 20), (20, 9, 31)], ids=str)
def test_cka_of_gram_matrices_equals_its_definition(estimator, samples):
    blocks = [grams_of(related_activations(n, seed=10 * i)) for i, n in enumerate(samples)]
    expected = cka_by_definition(blocks, estimator)
    torch.testing.assert_close(cka_matrix(blocks, estimator), expected, rtol=0, atol=1e-9)


def test_minibatch_cka_is_not_a_mean_of_ratios():
    blocks = [grams_of(related_activations(n, seed=10 * n)) for n in (5, 30)]
    mean = torch.stack([cka_by_definition([block], "biased") for block in blocks]).mean(dim=0)
    assert (cka_matrix(blocks, "biased") - mean).abs().max() > 1e-3


@ESTIMATORS
def test_rbf_cka_equals_its_definition(estimator):
    activations = related_activations(21)
    kernels = []
    for X in activations:
        distances = (X[:, None] - X[None]).norm(dim=-1)
        pairs = distances[torch.ones_like(distances).triu(1).bool()]
        assert len(pairs) % 2 == 0
        median = pairs.median()  # the lower of the two middle ones
        kernels.append(torch.exp(-(distances**2) / (2 * median**2)))
    expected = cka_by_definition([torch.stack(kernels)], estimator)
    actual = cka_matrix([grams_of(activations)], estimator, "rbf")
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("n", "biased"), [(32, 0.985), (128, 0.942), (1024, 0.667)])
def test_only_the_biased_estimator_finds_independent_wide_layers_similar(n, biased):
    block = grams_of([gaussian(n, 2048, seed=1), gaussian(n, 2048, seed=2)])
    assert cka_matrix([block], "biased")[0, 1] == pytest.approx(biased, abs=0.003)
    assert abs(cka_matrix([block], "unbiased")[0, 1]) < 0.05


@ESTIMATORS
@KERNELS
def test_cka_ignores_rotation_scale_and_shift(estimator, kernel):
    activations = related_activations()
    rotation = torch.linalg.qr(gaussian(6, 6, seed=9)).Q
    moved = [activations[0] @ rotation * 7 + 2, *activations[1:]]
    expected = cka_matrix([grams_of(activations)], estimator, kernel)
    actual = cka_matrix([grams_of(moved)], estimator, kernel)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-9)


def test_cka_sees_a_stretch():
    activations = related_activations()
    stretched = [activations[0] * torch.tensor([9, 1, 1, 1, 1, 1]), *activations[1:]]
    change = cka_matrix([grams_of(activations)]) - cka_matrix([grams_of(stretched)])
    assert change[0, 1].abs() > 0.01


@ESTIMATORS
@KERNELS
def test_similarity_is_symmetric_with_ones_on_the_diagonal(estimator, kernel):
    similarity = cka_matrix([grams_of(related_activations())], estimator, kernel)
    torch.testing.assert_close(similarity, similarity.T, rtol=0, atol=1e-15)
    assert (similarity.diag() == 1).all()
    assert similarity[0, 1] > similarity[0, 2] > similarity[0, 3]


@ESTIMATORS
@KERNELS
def test_a_dead_layer_is_named_and_similar_to_no_other(estimator, kernel):
    activations = related_activations()
    block = grams_of([activations[0], torch.zeros(20, 6, dtype=torch.float64), activations[1]])
    with pytest.warns(DeadLayerWarning, match=r"output of layer2\.4 is the same for all samples"):
        similarity = cka_matrix([block], estimator, kernel, names=["conv1", "layer2.4", "layer3.0"])
    assert similarity[1].tolist() == similarity[:, 1].tolist() == [0, 1, 0]
    without = cka_matrix([block[[0, 2]]], estimator, kernel)
    torch.testing.assert_close(similarity[0, 2], without[0, 1], rtol=1e-12, atol=0)


def test_a_layer_that_is_constant_but_for_rounding_is_dead():
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 8))
    with torch.no_grad():
        model[1].weight.zero_()
        model[2].bias.fill_(1000)
    x = gaussian(16, 4).float()
    layers = find_layers(model, x)
    with pytest.warns(DeadLayerWarning, match="output of 1, 2 is the same for all samples"):
        similarity = cka_matrix(gram_matrices(model, layers, [x]), names=[layer.name for layer in layers])
    assert torch.equal(similarity, torch.eye(3, dtype=torch.float64))


def with_nan():
    block = grams_of(related_activations())
    block[1, 2, 3] = torch.nan
    return [block]


@pytest.mark.parametrize(
    ("blocks", "arguments", "message"),
    [
        (with_nan(), {}, "not finite"),
        ([grams_of(related_activations(3))], {}, "3 samples is too small: unbiased CKA needs at least 4"),
        (
            [grams_of(related_activations(1))],
            {"estimator": "biased"},
            "1 samples is too small: biased CKA needs at least 2",
        ),
        ([grams_of(related_activations()), grams_of(related_activations(3))], {}, "3 samples is too small"),
        ([], {}, "no batch"),
        ([grams_of(related_activations())], {"estimator": "best"}, "estimator='best' is unknown.*'unbiased'"),
        ([grams_of(related_activations())], {"kernel": "cubic"}, "kernel='cubic' is unknown.*'linear'"),
    ],
)
def test_impossible_similarities_are_refused(blocks, arguments, message):
    with pytest.raises(SimilarityError, match=message):
        cka_matrix(blocks, **arguments)


@pytest.mark.parametrize("samples", [4, 5])
def test_the_smallest_batches_are_enough(samples):
    activations = [gaussian(samples, 9, seed=1), gaussian(samples, 9, seed=2)]
    expected = unbiased_hsic(*grams_of(activations))
    own = [unbiased_hsic(K, K) for K in grams_of(activations)]
    actual = cka_matrix([grams_of(activations)])[0, 1]
    assert actual == pytest.approx(float(expected / (own[0] * own[1]).sqrt()), abs=1e-9)


def test_pooling_is_a_mean_over_space_or_tokens():
    class Tokens(nn.Module):
        def forward(self, x):
            return x.flatten(2).mT

    conv, norm = nn.Conv2d(2, 3, 1), nn.LayerNorm(3)
    model = nn.Sequential(conv, Tokens(), norm)
    x = gaussian(5, 2, 4, 4).float()
    space = conv(x).double()
    tokens = norm(space.float().flatten(2).mT).double()
    layers = find_layers(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)), torch.zeros(1, 3))
    renamed = [type(layer)(name, True, "", 0, 0) for layer, name in zip(layers, ["0", "2"], strict=True)]
    for pooling, features in {
        "mean": [space.mean(dim=(2, 3)), tokens.mean(dim=1)],
        "flatten": [space.flatten(1), tokens.flatten(1)],
    }.items():
        (block,) = gram_matrices(model, renamed, [x], pooling)
        centred = [f - f.mean(dim=0) for f in features]
        torch.testing.assert_close(block, grams_of(centred).detach(), rtol=1e-6, atol=1e-8)


class Returns(nn.Module):
    """A layer that returns a fixed activation."""

    def __init__(self, activation):
        super().__init__()
        self.activation = activation

    def forward(self, x):
        return self.activation


def grams_through_a_network(activations, pooling="flatten"):
    network = nn.Sequential(*(Returns(activation) for activation in activations))
    layers = [Layer(str(i), True, "", 0, 0) for i in range(len(activations))]
    (block,) = gram_matrices(network, layers, [torch.zeros(len(activations[0]), 1)], pooling)
    return block


def wide_activations(samples=40):
    """Draw three layers of 5,000 features that are similar to different degrees."""
    base = gaussian(samples, 5000)
    return [base + share * gaussian(samples, 5000, seed=seed) for seed, share in enumerate((0.3, 1, 4), start=1)]


def with_large(layers, where, factor):
    layers = [layer.clone() for layer in layers]
    for layer in layers:
        layer[where] *= factor
    return layers


HARD = {
    "a large common offset": lambda layers: [layer + 1e4 for layer in layers],
    "outlier channels": lambda layers: with_large(layers, (slice(None), slice(0, 5000, 997)), 1000),
    "an outlier sample": lambda layers: with_large(layers, 3, 1000),
    "scales of 1e-6": lambda layers: [layer * 1e-6 for layer in layers],
    "scales of 1e6": lambda layers: [layer * 1e6 for layer in layers],
    "unequal scales": lambda layers: [layer * scale for layer, scale in zip(layers, (1e-6, 1, 1e6), strict=True)],
    "a nearly dead layer": lambda layers: [layers[0] * 1e-3 + 100, *layers[1:]],
    "almost nothing in common": lambda layers: [gaussian(*layer.shape, seed=7 + i) for i, layer in enumerate(layers)],
}


@ESTIMATORS
@pytest.mark.parametrize("samples", [4, 40])
@pytest.mark.parametrize(
    ("hard", "dtype"),
    [(hard, torch.float32) for hard in HARD]
    # bfloat16 loses small differences.
    + [(hard, torch.bfloat16) for hard in HARD if hard not in ("a large common offset", "a nearly dead layer")],
    ids=str,
)
def test_hard_activations_have_the_similarities_of_the_definition(hard, dtype, samples, estimator):
    activations = [layer.to(dtype) for layer in HARD[hard](wide_activations(samples))]
    # The terms of the definition cancel, even in float64, unless the common offset is subtracted. The median ignores
    # the outlier.
    shifted = [layer.double() - layer.double().median(dim=0).values for layer in activations]
    expected = cka_by_definition([grams_of(shifted)], estimator)
    actual = cka_matrix([grams_through_a_network(activations)], estimator)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("shape", [(1, 5), (31, 2047), (33, 2049), (100, 1), (300, 4200)], ids=str)
def test_gram_matrices_of_any_size_are_symmetric_and_of_centred_features(shape):
    activation = gaussian(*shape).float() + 3
    (gram,) = grams_through_a_network([activation])
    centred = activation.double() - activation.double().mean(dim=0)
    torch.testing.assert_close(gram, centred @ centred.T, rtol=1e-12, atol=1e-10)
    assert torch.equal(gram, gram.T)


def test_a_layer_with_one_varying_feature_is_alive_but_rounding_does_not_count():
    same = torch.full((16, 5000), 1000.0)
    rounded = same * (1 + 2**-23 * gaussian(16, 5000).sign().float())
    living = same.clone()
    living[:, 77] += torch.linspace(-0.01, 0.01, 16)
    assert not torch.equal(rounded, same)
    dead, alive = grams_through_a_network([rounded, living])
    assert (dead == 0).all()
    assert (alive.diagonal() > 0).all()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_values_that_are_not_finite_are_refused(value):
    activations = [layer.float() for layer in wide_activations(6)]
    activations[1][2, 3] = value
    with pytest.raises(SimilarityError, match="not finite"):
        cka_matrix([grams_through_a_network(activations)])


@ESTIMATORS
@KERNELS
def test_gram_matrices_are_unchanged(estimator, kernel):
    block = grams_of(related_activations())
    before = block.clone()
    cka_matrix([block], estimator, kernel)
    assert torch.equal(block, before)


def test_unknown_pooling_is_refused(network, layers, digits):
    with pytest.raises(SimilarityError, match="pooling='max' is unknown"):
        list(gram_matrices(network, layers, [digits[0][:4]], "max"))


def test_batches_are_read_one_at_a_time_and_their_activations_dropped(network, layers, digits):
    pulled, alive = [], []
    network.layer2[1].register_forward_hook(lambda module, args, output: alive.append(weakref.ref(output)))

    def batches():
        for start in (0, 8, 16):
            pulled.append(start)
            yield digits[0][start : start + 8]

    blocks = gram_matrices(network, layers, batches())
    assert pulled == []
    assert next(blocks).shape == (10, 8, 8)
    assert pulled == [0]
    next(blocks)
    assert pulled == [0, 8]
    assert [activation() for activation in alive] == [None, None]


def test_a_network_is_unchanged_between_batches(network, layers, digits):
    """If the caller fails between batches, the traceback keeps the generator suspended."""
    network.train()
    network.layer2.eval()
    modes = [module.training for module in network.modules()]
    state = copy.deepcopy(network.state_dict())
    blocks = gram_matrices(network, layers, [digits[0][:8]] * 2)
    next(blocks)
    assert [module.training for module in network.modules()] == modes
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())


def test_the_stem_is_the_input_of_the_first_block(network, layers, digits):
    x = digits[0][:8]
    (block,) = gram_matrices(network, layers, [x])
    stem = F.relu(network.bn1(network.conv1(x))).detach().double().flatten(1)
    centred = stem - stem.mean(dim=0)
    torch.testing.assert_close(block[0], centred @ centred.T, rtol=1e-12, atol=1e-12)


def test_pairs_and_keyword_arguments_are_batches(network, layers, digits):
    x, target = digits[0][:8], digits[1][:8]
    (plain,) = gram_matrices(network, layers, [x])
    for batch in ((x, target), {"x": x}, ({"x": x}, target)):
        (block,) = gram_matrices(network, layers, [batch])
        assert torch.equal(block, plain)


def test_an_in_place_operation_after_a_layer_does_not_change_its_gram_matrix():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, x):
            return self.b(F.relu(self.a(x), inplace=True))

    model, x = Net(), gaussian(8, 6).float()
    layers = find_layers(model, x)
    assert [layer.name for layer in layers] == ["a", "b"]
    (block,) = gram_matrices(model, layers, [x])
    before_relu = model.a(x).detach().double()
    centred = before_relu - before_relu.mean(dim=0)
    torch.testing.assert_close(block[0], centred @ centred.T, rtol=1e-12, atol=1e-12)


def test_tokens_can_be_pooled_in_four_ways():
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(6, 6), torch.nn.Linear(6, 6))
    layers = [Layer("0", True, "", 1, 1), Layer("1", True, "", 1, 1)]
    x = torch.randn(5, 4, 6)
    with torch.no_grad():
        outputs = [network[0](x).double(), network(x).double()]
    poolings = {
        "flatten": lambda y: y.flatten(1),
        "mean": lambda y: y.mean(dim=1),
        "last": lambda y: y[:, -1],
        "tokens": lambda y: y.reshape(20, 6),
    }
    for name, pool in poolings.items():
        (grams,) = gram_matrices(network, layers, [x], name)
        for gram, output in zip(grams, outputs, strict=True):
            features = pool(output) - pool(output).mean(dim=0)
            assert torch.allclose(gram, features @ features.T, atol=1e-9)


def test_pooling_of_tokens_needs_tokens(network, layers, digits):
    with pytest.raises(SimilarityError, match=r"pooling='last' needs tokens .* has the shape \[8, 16, 8, 8\]"):
        list(gram_matrices(network, layers, [digits[0][:8]], "last"))


def test_layers_that_a_single_sample_activates_have_no_unbiased_similarity():
    # In exact arithmetic U-centring gives zeros; rounding errors would be scaled up to an arbitrary similarity.
    drawn = torch.Generator().manual_seed(0)
    first, second = torch.zeros(64, 50), torch.zeros(64, 40)
    first[3], second[3] = torch.rand(50, generator=drawn), torch.rand(40, generator=drawn)
    features = [first, second, torch.randn(64, 30, generator=drawn)]
    centred = [f.double() - f.double().mean(dim=0) for f in features]
    block = torch.stack([f @ f.T for f in centred])
    with pytest.warns(DeadLayerWarning, match="output of layer 0, layer 1 is the same for all samples"):
        similarity = cka_matrix([block])
    assert torch.equal(similarity, torch.eye(3, dtype=torch.float64))
    assert cka_matrix([block], estimator="biased")[0, 1] == pytest.approx(1)
