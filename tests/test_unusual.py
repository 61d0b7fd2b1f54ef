"""Unusual but valid networks: they are scored like equivalent plain networks, or refused with a clear message."""

import copy
from collections import namedtuple
from contextlib import nullcontext
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sglp
from sglp.errors import CheckpointError, LayerError, PlanError, SGLPError, SimilarityError
from sglp.exporting.example_input import example_input
from sglp.scoring.baselines.angular import distances
from sglp.scoring.baselines.block_influence import influences
from sglp.scoring.criteria.gradnorm import GradNorm
from sglp.surgery.bypass import Bypass

SAMPLES, TOKENS, WIDTH = 32, 7, 8


class Block(nn.Module):
    def __init__(self, in_place=False, drop=0.0):
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH)
        self.in_place, self.drop = in_place, drop

    def forward(self, x):
        change = F.dropout(self.inner(x), self.drop)  # in eval mode too
        if self.in_place:
            x += change
            return x
        return x + change


class Reader(nn.Module):
    """Blocks over [samples, tokens, channels], or over [tokens, samples, channels]."""

    def __init__(self, tokens_first=False, between=0.0, numbered=False, **block):
        super().__init__()
        self.stem = nn.Linear(3, WIDTH)
        self.head = nn.Linear(WIDTH, 5)
        self.blocks = nn.ModuleList(Block(**block) for _ in range(4))
        self.tokens_first, self.between, self.numbered = tokens_first, between, numbered

    def forward(self, x):
        x = self.stem(x)
        x = x.transpose(0, 1) if self.tokens_first else x
        for i, block in enumerate(self.blocks):
            x = F.dropout(block(x), self.between)
            x = x + 1 if self.numbered and i == 2 else x
        return self.head((x.transpose(0, 1) if self.tokens_first else x).mean(dim=1))


def reader(**kwargs):
    torch.manual_seed(0)
    return Reader(**kwargs)


@pytest.fixture
def batch():
    rng = torch.Generator().manual_seed(1)
    return torch.randn(SAMPLES, TOKENS, 3, generator=rng), torch.randint(5, (SAMPLES,), generator=rng)


def layers_of(network, batch):
    return sglp.find_layers(network, batch[0][:1])


@pytest.mark.parametrize("pooling", ["flatten", "mean", "last", "tokens"])
def test_tokens_may_come_before_samples(batch, pooling):
    networks = (reader(), reader(tokens_first=True))
    grams = [next(sglp.gram_matrices(network, layers_of(network, batch), [batch], pooling)) for network in networks]
    assert grams[0].shape[1] == (SAMPLES * TOKENS if pooling == "tokens" else SAMPLES)
    assert torch.equal(*grams)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("measure", [influences, distances])
@pytest.mark.parametrize("kwargs", [{"in_place": True}, {"tokens_first": True}])
def test_blocks_that_work_in_place_or_on_tokens_first_are_measured_alike(batch, measure, kwargs, dtype):
    networks = [reader().to(dtype), reader(**kwargs).to(dtype)]
    inputs = batch[0].to(dtype)
    plain, other = (measure(network, sglp.find_layers(network, inputs[:1]), [inputs]) for network in networks)
    plain, other = (list(x.values()) if isinstance(x, dict) else x for x in (plain, other))
    assert other == pytest.approx(plain, rel=1e-6)
    assert max(plain) > 0.05


def test_the_last_token_is_read_if_tokens_come_first():
    class Texts(Reader):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.stem = nn.Embedding(11, WIDTH)

    ids = torch.randint(11, (SAMPLES, TOKENS), generator=torch.Generator().manual_seed(0))
    results = []
    for tokens_first in (False, True):
        torch.manual_seed(0)
        network = Texts(tokens_first=tokens_first)
        results.append(distances(network, sglp.find_layers(network, ids[:1]), [ids]))
    assert results[0] == pytest.approx(results[1])


def test_gradnorm_is_the_same_inside_autocast(batch):
    network = reader()
    layers = layers_of(network, batch)
    scores = []
    for place in (nullcontext(), torch.autocast("cpu", torch.bfloat16)):
        with place:
            criterion = GradNorm(network, layers, [batch])
            scores.append([criterion([i]) for i in range(1, 5)])
    assert len(set(scores[1])) == 4
    assert scores[1] == pytest.approx(scores[0], rel=0.05)


def test_statistics_of_a_norm_that_runs_only_in_training_are_kept():
    class Auxiliary(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(3)
            self.aux = nn.BatchNorm1d(3)

        def forward(self, x):
            return self.norm(x) + (self.aux(x) if self.training else 0)

    network, inputs = Auxiliary(), torch.randn(64, 3) * 3 + 2
    for _ in range(50):
        network(inputs)
    before = copy.deepcopy(network.aux.state_dict())
    sglp.recalibrate(network, [inputs])
    assert all(torch.equal(value, before[name]) for name, value in network.aux.state_dict().items())
    assert torch.allclose(network.norm.running_mean, inputs.mean(dim=0), atol=1e-6)
    assert network.norm.num_batches_tracked == 1


@pytest.mark.parametrize("kwargs", [{"drop": 0.1}, {"between": 0.1}])
def test_networks_that_are_random_in_eval_mode_have_removable_layers(batch, kwargs):
    assert [layer.removable for layer in layers_of(reader(**kwargs), batch)] == [False, True, True, True, True]
    assert not any(layer.removable for layer in layers_of(reader(numbered=True), batch))


@pytest.mark.parametrize("method", ["sglp", "block_influence", "loss_greedy", "taylor", "cka_greedy", "angular"])
def test_a_stock_encoder_with_a_mask_of_padding(method):
    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
            self.embedding = nn.Embedding(20, 8)
            self.encoder = nn.TransformerEncoder(layer, 4)
            self.head = nn.Linear(8, 3)

        def forward(self, ids, lengths):
            padding = torch.arange(ids.shape[1]) >= lengths[:, None]
            return self.head(self.encoder(self.embedding(ids), src_key_padding_mask=padding)[:, 0])

    torch.manual_seed(0)
    network = Encoder()
    fast = torch.backends.mha.get_fastpath_enabled()
    inputs = {"ids": torch.randint(20, (16, 6)), "lengths": torch.randint(2, 7, (16,))}
    sizes = {"calibration": (16, 16), "scoring": (16, 16)}
    result = sglp.compress(network, [(inputs, torch.randint(3, (16,)))], method=method, k=1, pooling="mean", **sizes)
    assert len(result.plan.removed) == 2
    assert torch.backends.mha.get_fastpath_enabled() == fast


class ByHand(nn.Module):
    """Blocks that are registered by name, and called by name or through another reference, or read."""

    def __init__(self, access):
        super().__init__()
        self.stem = nn.Linear(3, WIDTH)
        self.head = nn.Linear(WIDTH, 5)
        self.access = access
        self.run = []
        for i in range(4):
            self.add_module(f"block{i}", Block())
            self.run.append(getattr(self, f"block{i}"))
        self.both = lambda x: self.block1(self.block0(x))

    def forward(self, x):
        x = self.stem(x)
        if self.access == "a list":
            for block in self.run:
                x = block(x)
        elif self.access == "a copy's lambda":
            x = self.block3(self.block2(self.both(x)))
        else:
            x = x.to(self.block0.inner.weight.dtype) if self.access == "read" else x
            x = self.block3(self.block2(self.block1(self.block0(x))))
        return self.head(x.mean(dim=1))


@pytest.mark.parametrize(("access", "removable"), [("name", "0123"), ("a list", ""), ("read", "123")])
def test_layers_that_surgery_would_not_reach_are_not_removable(batch, access, removable):
    torch.manual_seed(0)
    network = ByHand(access)
    before = dict(network.named_modules())
    layers = layers_of(network, batch)
    assert [layer.name for layer in layers if layer.removable] == [f"block{i}" for i in removable]
    reasons = {layer.reason for layer in layers if not layer.removable} - {"stem"}
    assert reasons <= {"its parent reads its attributes, or calls it through another reference"}
    assert dict(network.named_modules()) == before


def test_a_pruned_network_that_differs_from_what_was_scored_is_refused(batch):
    # The lambda refers to the original network, also in a copy.
    torch.manual_seed(0)
    network = ByHand("a copy's lambda")
    with pytest.raises(
        PlanError, match=r"ByHand without block0, block1.* computes something else than with these layers bypassed"
    ):
        sglp.compress(network, [batch], k=1, prune_ratio=0.9, calibration=(32, 32), scoring=(32, 32))


def test_a_list_whose_first_layer_is_read_keeps_a_layer(batch):
    class Stock(nn.Module):
        def __init__(self):
            super().__init__()
            layer = nn.TransformerEncoderLayer(WIDTH, 2, 16, dropout=0.0, batch_first=True)
            self.stem = nn.Linear(3, WIDTH)
            self.head = nn.Linear(WIDTH, 5)
            self.encoder = nn.TransformerEncoder(layer, 4)

        def forward(self, x):
            return self.head(self.encoder(self.stem(x)).mean(dim=1))

    torch.manual_seed(0)
    network = Stock()
    sizes = {"calibration": (32, 32), "scoring": (32, 32)}
    with pytest.raises(
        PlanError, match=r"^Stock without encoder.layers.0, .* does not run: its code depends on one of"
    ):
        sglp.compress(network, [batch], k=1, prune_ratio=1 - 1e-9, **sizes)
    result = sglp.compress(network, [batch], k=1, prune_ratio=0.75, **sizes)
    assert len(result.plan.removed) == 3
    assert result.network(batch[0]).shape == (SAMPLES, 5)


def test_a_list_whose_last_item_is_used_differently_is_not_removable():
    class Perceptron(nn.Module):
        def __init__(self):
            super().__init__()
            self.inp = nn.Linear(6, 8)
            self.head = nn.Linear(8, 3)
            self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))

        def forward(self, x):
            x = F.relu(self.inp(x))
            for i, layer in enumerate(self.layers):
                x = F.relu(layer(x)) if i < len(self.layers) - 1 else layer(x)
            return self.head(x)

    torch.manual_seed(0)
    assert not any(layer.removable for layer in sglp.find_layers(Perceptron(), torch.randn(4, 6)))


HiddenAndLoss = namedtuple("HiddenAndLoss", "hidden loss")


@pytest.mark.parametrize("kind", [tuple, list, HiddenAndLoss])
def test_blocks_may_return_an_auxiliary_loss(batch, kind):
    class Experts(Block):
        def forward(self, x):
            x = super().forward(x)
            pair = (x, (x**2).mean())
            return HiddenAndLoss(*pair) if kind is HiddenAndLoss else kind(pair)

    class Mixture(Reader):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList(Experts() for _ in range(4))

        def forward(self, x):
            x, self.loss = self.stem(x), 0.0
            for block in self.blocks:
                output = block(x)
                x, loss = (output.hidden, output.loss) if kind is HiddenAndLoss else output
                self.loss += loss
            return self.head(x.mean(dim=1))

    torch.manual_seed(0)
    network = Mixture().eval()
    layers = layers_of(network, batch)
    assert [layer.removable for layer in layers] == [False, True, True, True, True]
    pruned = sglp.prune(network, sglp.Plan(["stem", "blocks.0", "blocks.2"], ["blocks.1", "blocks.3"]))
    with Bypass(network, layers, batch[0]).without([2, 4]), torch.no_grad():
        expected, loss = network(batch[0]), network.loss
    with torch.no_grad():
        assert torch.equal(pruned(batch[0]), expected)
    assert torch.equal(pruned.loss, loss)
    with Bypass(network, layers, batch[0]).without([2]):
        network.blocks[1](batch[0])[1].add_(1)  # a parent may do so, which must not change the next output
        assert network.blocks[1](batch[0])[1] == 0


@pytest.mark.parametrize("tokens", [SAMPLES - 1, SAMPLES])
def test_the_numbers_of_tokens_and_samples_may_be_equal(tokens):
    inputs = torch.randn(SAMPLES, tokens, 3, generator=torch.Generator().manual_seed(2))
    networks = (reader(), reader(tokens_first=True))
    layers = [sglp.find_layers(network, inputs[:1]) for network in networks]
    grams = [next(sglp.gram_matrices(*pair, [inputs])) for pair in zip(networks, layers, strict=True)]
    assert torch.equal(*grams)
    results = [distances(*pair, [inputs]) for pair in zip(networks, layers, strict=True)]
    assert results[0] == pytest.approx(results[1])


def test_layers_that_do_not_run_or_return_no_tensor_have_no_similarity(batch):
    class Skips(Reader):
        def forward(self, x):
            self.blocks[1].skipped = len(x) == 4
            x = self.stem(x)
            for block in self.blocks:
                x = x if getattr(block, "skipped", False) else block(x)
            return self.head(x.mean(dim=1))

    network = Skips()
    grams = sglp.gram_matrices(network, layers_of(network, batch), [batch[0], batch[0][:4]])
    next(grams)
    with pytest.raises(SimilarityError, match=r"^the layer blocks\.1 did not run on a batch, so it can't be compared"):
        next(grams)

    class Wrapped(Block):
        def forward(self, x):
            return Answer(super().forward(x))

    class Wraps(Reader):
        def forward(self, x):
            x = self.stem(x)
            for block in self.blocks:
                x = block(x).x
            return self.head(x.mean(dim=1))

    network = Wraps()
    network.blocks = nn.ModuleList(Wrapped() for _ in range(3))
    layers = sglp.find_layers(network, batch[0][:1], paths="blocks.*")
    assert not any(layer.removable for layer in layers)
    with pytest.raises(SimilarityError, match=r"^the layer blocks\.0 returns no tensor, but a Answer$"):
        next(sglp.gram_matrices(network, layers, [batch[0]]))


@dataclass
class Answer:
    x: torch.Tensor


class Merging(nn.Linear):
    """A layer as in loralib: eval mode merges the low-rank change into the weight, train mode unmerges it."""

    def __init__(self):
        super().__init__(WIDTH, WIDTH)
        self.down = nn.Parameter(torch.randn(2, WIDTH))
        self.up = nn.Parameter(torch.ones(WIDTH, 2))
        self.merged = False

    def train(self, mode=True):
        super().train(mode)
        if mode == self.merged:
            self.weight.data += (-1 if mode else 1) * (self.up @ self.down)
            self.merged = not mode
        return self

    def forward(self, x):
        return super().forward(x) + (0 if self.merged else x @ self.down.T @ self.up.T)


def test_weights_that_eval_mode_merges_are_unmerged_again(batch):
    network = reader()
    for block in network.blocks:
        block.inner = Merging()
    network.blocks[2].eval()  # users may do so
    before = [block.inner.weight.clone() for block in network.blocks]
    layers_of(network, batch)
    for i, (block, weight) in enumerate(zip(network.blocks, before, strict=True)):
        assert block.training == block.inner.training == (i != 2)
        assert block.inner.merged == (i == 2)
        assert torch.allclose(block.inner.weight, weight, atol=1e-5)


def test_inputs_whose_first_value_is_not_a_tensor(batch):
    class Switched(Reader):
        def forward(self, double, x, scale):
            return super().forward(x) * (2 if double else 1) * scale

    torch.manual_seed(0)
    plans = []
    for inputs in (
        {"double": True, "scale": torch.tensor(2), "x": batch[0]},
        {"x": batch[0], "scale": torch.tensor(2), "double": True},
    ):
        torch.manual_seed(0)
        sizes = {"calibration": (32, 32), "scoring": (32, 32)}
        plans.append(sglp.compress(Switched(), [(inputs, batch[1])], k=1, **sizes).plan)
    assert plans[0] == plans[1]


def test_inference_mode_is_refused(batch):
    with (
        torch.inference_mode(),
        pytest.raises(LayerError, match=r"which torch\.inference_mode\(\) turns off: call this"),
    ):
        layers_of(reader(), batch)


def test_compiled_networks_are_refused(batch):
    called = reader()
    called.compile(backend="eager")
    for network, name in ((torch.compile(reader(), backend="eager"), "OptimizedModule"), (called, "Reader")):
        with pytest.raises(
            LayerError, match=f"^this {name} is compiled, so its modules can't be observed: pass the module as"
        ):
            layers_of(network, batch)


class Tables(nn.Module):
    """Blocks and a table that is not saved with the state."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.Sequential(*(Block() for _ in range(3)))
        self.head = nn.Linear(WIDTH, 5)
        self.register_buffer("table", torch.linspace(0, 1, WIDTH), persistent=False)

    def forward(self, x):
        return self.head(self.blocks(x) * self.table)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.float32])
def test_a_buffer_that_is_not_saved_is_restored_in_its_precision(dtype, tmp_path):
    factory = f"{__name__}:Tables"
    network = sglp.build(factory, seed=0).to(dtype).eval()
    sglp.save(network, tmp_path / "saved")
    loaded = sglp.load(tmp_path / "saved", trust=[factory])
    inputs = torch.randn(4, WIDTH, dtype=dtype)
    assert loaded.table.dtype == dtype
    assert torch.equal(loaded(inputs), network(inputs)) or dtype == torch.float64  # its table was made in float32
    record = tmp_path / "saved/architecture.json"
    assert ("precisions" in record.read_text()) == (dtype != torch.float32)
    record.write_text(record.read_text().replace(str(dtype).removeprefix("torch."), "load"))
    if dtype != torch.float32:
        with pytest.raises(CheckpointError, match=r"architecture\.json is broken: the precision load of table does"):
            sglp.load(tmp_path / "saved", trust=[factory])


def test_a_half_precision_network_is_inspected_and_exported(tmp_path):
    network = sglp.build("sglp.networks.cifar_resnet:resnet", {"depth": 8, "in_channels": 1}, seed=0).bfloat16()
    sglp.save(network, tmp_path / "saved")
    example = example_input(sglp.load(tmp_path / "saved"), (1, 8, 8))
    assert example.dtype == torch.bfloat16


@pytest.mark.parametrize("kwargs", [{"method": "loss_greedy"}, {"method": "taylor"}, {"criterion": "loss"}])
def test_outputs_without_logits_are_refused(batch, kwargs):
    class Pair(Reader):
        def forward(self, x):
            return super().forward(x), x

    torch.manual_seed(0)
    with pytest.raises(SGLPError, match=r"the network returns a tuple, in which cross-entropy finds no logits: give"):
        sglp.compress(Pair(), [batch], calibration=(16, 16), scoring=(16, 16), **kwargs)


def test_the_smallest_batch_of_the_calibration_is_checked(batch):
    with pytest.raises(SGLPError, match=r"calibration=\(10, 4\) is wrong: its smallest batch has 3 samples"):
        sglp.compress(reader(), [batch], calibration=(10, 4), scoring=(16, 16))
