"""LoRP against its definition in numpy, plain hooks, and scikit-learn's spectral clustering."""

import cases
import numpy as np
import pytest
import torch
from sklearn.cluster import SpectralClustering
from sklearn.metrics import adjusted_rand_score

import sglp
from sglp.errors import BudgetError
from sglp.scoring.baselines.lorp import clusters_of, redundancies, removal_order
from sglp.scoring.input_similarity import input_similarity
from sglp.scoring.spectral import spectral_clusters


def cosine_matrix(rng, num_layers, drift):
    """Return cosines between states that drift from layer to layer, by a lot where a phase ends."""
    states = [rng.normal(size=30)]
    for i in range(num_layers - 1):
        states.append(states[-1] + drift * (4 if i % 7 == 6 else 1) * rng.normal(size=30))
    units = np.stack(states) / np.linalg.norm(states, axis=1, keepdims=True)
    return units @ units.T


def inputs_of_blocks(case):
    """Return the inputs of all layers but the stem: for each layer, one array for each batch."""
    network = case.network
    llama = hasattr(network, "model")
    blocks = network.model.layers if llama else [*network.layer1, *network.layer2, *network.layer3]
    inputs = [[] for _ in blocks]
    handles = [
        block.register_forward_pre_hook(lambda m, args, i=i: inputs[i].append(args[0].numpy()))
        for i, block in enumerate(blocks)
    ]
    for batch, _ in case.batches:
        cases.run(network, batch)
    for handle in handles:
        handle.remove()
    return inputs


def cosines_by_hand(inputs, masks=None):
    """Return the mean cosine over tokens, or over samples, of each pair of layers, by loops."""
    values = np.eye(len(inputs))
    for i in range(len(inputs)):
        for j in range(i):
            cosines = []
            for number, (a, b) in enumerate(zip(inputs[i], inputs[j], strict=True)):
                if a.shape != b.shape:
                    continue
                a, b = (x.reshape(-1, x.shape[-1]) if x.ndim == 3 else x.reshape(len(x), -1) for x in (a, b))
                each = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
                cosines.extend(each if masks is None else each[masks[number].reshape(-1)])
            values[i, j] = values[j, i] = np.mean(cosines) if cosines else 0
    return values


def order_by_hand(S, labels, eligible):
    """Return the removal order by the paper's rule."""
    groups = {label: [i for i in range(len(S)) if labels[i] == label] for label in labels}
    groups = sorted(groups.values())  # by depth

    def redundancy(i, group):
        others = [S[i][j] for j in group if j != i]
        return sum(others) / len(others) if others else -1

    def spread(group):
        values = [S[i][j] for i in group for j in group if i < j]
        return sum(values) / len(values) if values else -np.inf

    gone = []
    for group in groups:
        inside = [i for i in group if i in eligible and 0 < i < len(S) - 1]
        if inside:
            gone.append(max(inside, key=lambda i: redundancy(i, group)))
    while True:
        open_groups = [
            group for group in groups if any(i in eligible and 0 < i < len(S) - 1 and i not in gone for i in group)
        ]
        if not open_groups:
            break
        group = max(open_groups, key=lambda group: spread([i for i in group if i not in gone]))
        inside = [i for i in group if i in eligible and 0 < i < len(S) - 1 and i not in gone]
        gone.append(max(inside, key=lambda i: redundancy(i, group)))
    ends = {i: redundancy(i, next(group for group in groups if i in group)) for i in {0, len(S) - 1} & eligible}
    return gone + sorted(ends, key=ends.get, reverse=True)


@pytest.mark.parametrize("name", ["cnn", "llama"])
def test_lorp_is_the_published_rule(name, network, digits):
    case = cases.cnn(network, digits) if name == "cnn" else cases.llama(9)
    first = 1 if name == "cnn" else 0  # the stem is not a block
    S = cosines_by_hand(inputs_of_blocks(case))
    blocks = [layer for layer in case.layers if not layer.is_stem]
    assert np.abs(input_similarity(case.network, blocks, case.batches) - S).max() < 1e-9
    score = -np.log2(S[np.triu_indices(len(S), 1)].mean())
    count = 2 if score >= 1 else 3 if score >= 0.7 else 4
    model = SpectralClustering(count, affinity="precomputed", random_state=0)
    labels = model.fit_predict((S + 1) / 2).tolist()
    assert adjusted_rand_score(labels, clusters_of(S)) == 1
    expected = [first + i for i in order_by_hand(S, labels, {i - first for i in case.removable})]
    for keep in range(len(case.layers) - len(case.removable) or 1, len(case.layers) + 1):
        plan, rows = case.run("lorp", keep)
        num_removed = len(case.layers) - keep
        assert [row.layer for row in rows][:num_removed] == expected[:num_removed]
        assert case.removed_by(plan) == set(expected[:num_removed])
    scores = {row.layer: row.score for row in rows}
    for i in case.removable:
        others = [j for j in range(len(S)) if labels[j] == labels[i - first] and j != i - first]
        assert scores[i] == pytest.approx(1 - S[i - first, others].mean() if others else 2, abs=1e-9)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("count", [2, 3, 4])
def test_clusters_are_those_of_scikit_learn(seed, count):
    """Or better ones in the sense of k-means: scikit-learn starts from ten random sets of centres."""
    rng = np.random.default_rng(seed)
    S = cosine_matrix(rng, int(rng.integers(8, 40)), 0.3)
    affinity = (S + 1) / 2
    labels = spectral_clusters(affinity, count)
    assert sorted(set(labels)) == list(range(count))
    assert [labels.index(k) for k in range(count)] == sorted(labels.index(k) for k in range(count))
    expected = SpectralClustering(count, affinity="precomputed", random_state=0, n_init=100).fit_predict(affinity)
    assert adjusted_rand_score(labels, expected) == 1


@pytest.mark.parametrize("seed", range(30))
def test_the_order_of_removal_is_the_papers(seed):
    rng = np.random.default_rng(seed)
    num_layers = int(rng.integers(1, 16))
    S = cosine_matrix(rng, num_layers, 0.4)
    drawn = rng.integers(0, 4, num_layers).tolist()
    labels = [list(dict.fromkeys(drawn)).index(label) for label in drawn]  # clusters are numbered by depth
    removable = (rng.random(num_layers) < 0.8).tolist()
    order = removal_order(S, labels, redundancies(S, labels), removable)
    assert order == order_by_hand(S.tolist(), labels, {i for i in range(num_layers) if removable[i]})
    assert sorted(order) == [i for i in range(num_layers) if removable[i]]


@pytest.mark.parametrize(
    ("mean", "count"), [(-0.1, 2), (0.0, 2), (0.49, 2), (0.51, 3), (0.61, 3), (0.62, 4), (0.99, 4)]
)
def test_the_number_of_clusters_follows_from_the_locality_score(mean, count):
    """With these phases of layers any number of clusters up to five can be told apart."""
    phases = np.repeat(np.arange(5), 4)
    S = np.where(phases[:, None] == phases, 1.0, -1.0) * 0.01
    S += mean - S[np.triu_indices(20, 1)].mean()
    np.fill_diagonal(S, 1)
    assert len(set(clusters_of(S))) == count


def test_padding_does_not_count():
    case = cases.llama()
    masks = [torch.ones(3, 9, dtype=torch.long), torch.ones(2, 9, dtype=torch.long)]
    masks[0][0, 5:] = masks[1][1, 2:] = 0
    batches = [(inputs | {"attention_mask": mask}, y) for (inputs, y), mask in zip(case.batches, masks, strict=True)]
    padded = case._replace(batches=batches)
    expected = cosines_by_hand(inputs_of_blocks(padded), [mask.bool().numpy() for mask in masks])
    assert np.abs(input_similarity(case.network, case.layers, batches) - expected).max() < 1e-9
    assert np.abs(input_similarity(case.network, case.layers, case.batches) - expected).max() > 1e-6


def test_the_ends_are_removed_last():
    case = cases.llama(6)
    for keep in range(1, 7):
        plan, _ = case.run("lorp", keep)
        assert ({0, 5} & case.removed_by(plan) == set()) == (keep >= 2)
    with pytest.raises(BudgetError):
        case.run("lorp", 0)


def test_equal_layers_end_in_some_cluster():
    """Layers that return their input have similarity 1 to all others: no clusters can be told apart."""
    network = torch.nn.Sequential(*(torch.nn.Identity() for _ in range(4)), torch.nn.Linear(3, 3)).eval()
    layers = [sglp.Layer(str(i), True, "", 1, 1) for i in range(4)]
    cosines = input_similarity(network, layers, [torch.randn(5, 3, generator=torch.Generator().manual_seed(0))])
    assert np.abs(cosines - 1).max() < 1e-6
    clusters = clusters_of(cosines)
    assert sorted(removal_order(cosines, clusters, redundancies(cosines, clusters), [True] * 4)) == [0, 1, 2, 3]
