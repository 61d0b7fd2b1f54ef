"""Inputs of every form are passed on as they are given, and only what belongs to the samples is cut."""

from itertools import pairwise

import pytest
import torch
from torch import nn

import sglp
from sglp.arguments import as_arguments
from sglp.batches import rebatch, whole_if_needed
from sglp.cutting import first_sample, part_of, size_of
from sglp.errors import DataError, SimilarityError

SIZES = {"k": 1, "calibration": (32, 16), "scoring": (16, 8)}


class Block(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.inner = nn.Linear(width, width)

    def forward(self, x):
        return x + self.inner(x).relu()


def blocks(width=8):
    return nn.Sequential(*[Block(width) for _ in range(4)])


class Siamese(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.blocks, self.head = nn.Linear(4, 8), blocks(), nn.Linear(8, 5)

    def forward(self, a, b):
        return self.head(self.blocks(self.stem(a)) - self.blocks(self.stem(b)))


class Pair(Siamese):
    def forward(self, pair):
        a, b = pair
        return self.head(self.blocks(self.stem(a) + self.stem(b)))


class Two(Siamese):
    def forward(self, a, b):
        return self.head(self.blocks(self.stem(a) + self.stem(b)))


class Optional(Siamese):
    def forward(self, a, b=None):
        return self.head(self.blocks(self.stem(a) + self.stem(b)))


class Sentences(nn.Module):
    """Takes one dict, as sentence encoders do."""

    def __init__(self):
        super().__init__()
        self.embedding, self.blocks, self.head = nn.Embedding(30, 8), blocks(), nn.Linear(8, 5)

    def forward(self, features):
        mask = features["attention_mask"][..., None]
        return self.head((self.blocks(self.embedding(features["input_ids"])) * mask).sum(dim=1) / mask.sum(dim=1))


class Detector(nn.Module):
    """Takes a list of images of any sizes."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 1), nn.Linear(8, 5)
        self.blocks = blocks()

    def forward(self, images, targets=None):
        pooled = torch.stack([self.stem(image[None]).mean(dim=(2, 3))[0] for image in images])
        return self.head(self.blocks(pooled))


class Graphs(nn.Module):
    """Mean over neighbours, then over the nodes of a graph."""

    def __init__(self):
        super().__init__()
        self.stem, self.blocks, self.head = nn.Linear(4, 8), blocks(), nn.Linear(8, 5)

    def forward(self, x, edge_index, batch):
        x = self.stem(x)
        x = x + torch.zeros_like(x).index_add(0, edge_index[1], x[edge_index[0]])
        x = self.blocks(x)
        sums = torch.zeros(int(batch.max()) + 1, 8).index_add(0, batch, x)
        return self.head(sums)


class Packed(nn.Module):
    """Texts one after another in one tensor, with their cumulated lengths."""

    def __init__(self):
        super().__init__()
        self.stem, self.blocks, self.head = nn.Linear(4, 8), blocks(), nn.Linear(8, 5)

    def forward(self, x, cumulated):
        x = self.blocks(self.stem(x))
        parts = [x[a:b].mean(dim=0) for a, b in pairwise(cumulated.tolist())]
        return self.head(torch.stack(parts))


class Masked(nn.Module):
    """A mask [tokens, tokens] or [1, 1, tokens, tokens] and positions [1, tokens] for all samples."""

    def __init__(self):
        super().__init__()
        self.embedding, self.places = nn.Embedding(30, 8), nn.Embedding(16, 8)
        self.blocks, self.head = blocks(), nn.Linear(8, 30)

    def forward(self, ids, mask, positions):
        x = self.embedding(ids) + self.places(positions)
        x = mask.view(mask.shape[-2:]).to(x) @ x
        return self.head(self.blocks(x))


def graph(seed, graphs=16, nodes=3):
    drawn = torch.Generator().manual_seed(seed)
    count = graphs * nodes
    edges = torch.randint(count, (2, 2 * count + seed), generator=drawn)
    x = torch.randn(count, 4, generator=drawn)
    return {"x": x, "edge_index": edges, "batch": torch.arange(graphs).repeat_interleave(nodes)}


PLACES, CAUSAL = torch.arange(12)[None], torch.ones(12, 12).tril()


def texts(positions=PLACES, mask=CAUSAL, samples=32):
    return {"ids": torch.randint(30, (samples, 12)), "mask": mask, "positions": positions}


def images(count, as_type=list):
    return as_type(torch.randn(3, 4 + i % 3, 5) for i in range(count))


def classes(count):
    return torch.randint(5, (count,))


torch.manual_seed(0)
A, B = torch.randn(32, 4), torch.randn(32, 4)
VISIBLE = (torch.arange(6) < torch.randint(2, 7, (32, 1))).long()
SENTENCES = {"input_ids": torch.randint(30, (32, 6)), "attention_mask": VISIBLE}
FORMS = {
    "a tuple": (Two, [((A, B), classes(32))]),
    "a list, as the default collate makes it": (Two, [([A, B], classes(32))]),
    "a tuple of an optional argument": (Optional, [((A, B), classes(32))]),
    "a tuple as one argument": (Pair, [((A, B), classes(32))]),
    "a list as one argument": (Pair, [([A, B], classes(32))]),
    "one dict": (Sentences, [(SENTENCES, classes(32))]),
    "a list of images": (Detector, [(images(16), classes(16)), (images(16), classes(16))]),
    "a tuple of images": (Detector, [(images(16, tuple), classes(16)), (images(16, tuple), classes(16))]),
    "graphs": (Graphs, [(graph(0), classes(16)), (graph(1), classes(16))]),
    "graphs in one batch": (Graphs, [(graph(0, 40), classes(40))]),
    "packed texts": (Packed, [((torch.randn(40, 4), torch.arange(0, 41, 5)), classes(8)) for _ in range(5)]),
    "a shared mask [tokens, tokens]": (Masked, [(texts(), torch.randint(30, (32, 12)))]),
    "a shared mask in two batches": (Masked, [(texts(samples=16), torch.randint(30, (16, 12))) for _ in range(2)]),
    "a shared mask [1, 1, tokens, tokens]": (
        Masked,
        [(texts(mask=torch.ones(1, 1, 12, 12).tril()), torch.randint(30, (32, 12)))],
    ),
    "positions [tokens]": (Masked, [(texts(torch.arange(12)), torch.randint(30, (32, 12)))]),
}


@pytest.mark.parametrize(("kind", "batches"), FORMS.values(), ids=FORMS)
def test_networks_of_every_form_of_inputs_are_compressed(kind, batches):
    torch.manual_seed(0)
    network = kind().eval()
    names = {layer.name for layer in sglp.find_layers(network, batches[0][0])}
    assert {f"blocks.{i}" for i in range(4)} <= names
    result = sglp.compress(network, batches, **SIZES)
    assert len(result.plan.removed) == 2
    for method in ("block_influence", "angular", "cka", "reconstruction_error"):
        assert len(sglp.compress(network, batches, method=method, **SIZES, reconstruct=False).plan.removed) == 2
    sglp.recalibrate(result.network, batches)


def test_shared_tensors_give_the_plan_of_those_of_each_sample():
    torch.manual_seed(0)
    network, target = Masked().eval(), torch.randint(30, (32, 12))
    shared = texts()
    each = shared | {"positions": torch.arange(12).expand(32, -1)}
    results = [sglp.compress(network, [(inputs, target)], **SIZES) for inputs in (shared, each)]
    assert results[0].plan == results[1].plan
    assert (results[0].similarity == results[1].similarity).all()


def test_arguments_follow_from_the_signature():
    pair = (A, B)
    assert as_arguments(Two(), pair) == pair
    assert as_arguments(Pair(), pair) == (pair,)
    assert as_arguments(Sentences(), SENTENCES) == (SENTENCES,)
    assert as_arguments(Two(), {"a": A, "b": B}).keys() == {"a", "b"}
    assert isinstance(as_arguments(Detector(), images(2, tuple)), list)
    for form in (pair, [A, B]):
        once = as_arguments(Two(), form)
        assert as_arguments(Two(), once) == once


def test_the_mask_of_positional_arguments_is_found():
    class Text(nn.Module):
        def forward(self, input_ids, attention_mask):
            return input_ids

    found = as_arguments(Text(), (A, B))
    assert found.keys() == {"input_ids", "attention_mask"}


def test_samples_are_counted_and_cut():
    inputs = texts(samples=5)
    assert size_of(inputs) == 5 == size_of((A[:5], B[:5])) == size_of(images(5))
    assert first_sample((A, torch.arange(8)[None]))[1].shape == (1, 8)
    assert len(part_of(images(5), 1, 3)) == 2
    assert first_sample(graph(0))["x"].shape == (48, 4)  # can't be cut


def test_batches_of_graphs_are_used_as_they_are():
    batches = [(graph(seed), classes(16)) for seed in range(4)]
    whole = whole_if_needed(batches, lambda sample, inputs: pytest.fail("edges differ between batches"))
    cut = list(rebatch(whole, 60, 7))
    assert [len(inputs["x"]) for inputs, _ in cut] == [48, 48]


def test_shared_tensors_that_differ_are_not_joined():
    batches = [({"x": A, "scale": torch.tensor([[float(i)]])}, classes(32)) for i in range(2)]
    with pytest.raises(DataError, match=r"shape \[1, 1\] is shared by the samples of a batch, but differs between"):
        list(rebatch(batches, 64, 64))


def test_folded_batches_with_as_many_channels_as_samples_are_not_transposed():
    class Folded(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 1)

        def forward(self, x):
            return self.b(self.a(x.flatten(0, 1)))

    network, layers = Folded(), [sglp.Layer(name, True, "", 0, 0) for name in "ab"]
    for samples in (15, 16):
        (grams,) = sglp.gram_matrices(network, layers, [torch.randn(samples, 5, 16, 2, 2)])
        assert grams.shape == (2, samples * 5, samples * 5)


def test_layers_with_different_numbers_of_rows_are_refused():
    network = nn.Sequential(nn.Linear(4, 4), nn.Flatten(0, 1))
    layers = [sglp.Layer(name, True, "", 0, 0) for name in "01"]
    with pytest.raises(SimilarityError, match=r"different numbers of rows can't be compared \(6 for 0 and 18 for 1\)"):
        list(sglp.gram_matrices(network, layers, [torch.randn(6, 3, 4)]))


def test_a_network_that_does_not_run_on_the_batches_is_refused_with_the_shapes():
    with pytest.raises(DataError, match=r"this Two can't be run on the first sample of the batches \(x: \[1, 4\]\): "):
        sglp.compress(Two(), [({"x": A}, classes(32))], **SIZES)
