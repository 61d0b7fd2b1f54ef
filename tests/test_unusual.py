"""Networks that do what is unusual but right: they are scored as their plain twins, or refused in a sentence."""

import copy
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sglp
from sglp.baselines.angular import distances
from sglp.baselines.block_influence import influences
from sglp.criteria.gradnorm import GradNorm
from sglp.errors import CheckpointError, LayerError, SGLPError
from sglp.example_input import example_input

SAMPLES, TOKENS, WIDTH = 32, 7, 8


class Block(nn.Module):
    def __init__(self, in_place=False, drop=0.0):
        super().__init__()
        self.inner, self.in_place, self.drop = nn.Linear(WIDTH, WIDTH), in_place, drop

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
        self.stem, self.head = nn.Linear(3, WIDTH), nn.Linear(WIDTH, 5)
        self.blocks = nn.ModuleList(Block(**block) for _ in range(4))
        self.tokens_first, self.between, self.numbered = tokens_first, between, numbered

    def forward(self, x):
        x = self.stem(x)
        x = x.transpose(0, 1) if self.tokens_first else x
        for number, block in enumerate(self.blocks):
            x = F.dropout(block(x), self.between)
            x = x + 1 if self.numbered and number == 2 else x
        return self.head((x.transpose(0, 1) if self.tokens_first else x).mean(dim=1))


def reader(**kwargs):
    torch.manual_seed(0)
    return Reader(**kwargs)


@pytest.fixture
def batch():
    drawn = torch.Generator().manual_seed(1)
    return torch.randn(SAMPLES, TOKENS, 3, generator=drawn), torch.randint(5, (SAMPLES,), generator=drawn)


def layers_of(network, batch):
    return sglp.find_layers(network, batch[0][:1])


@pytest.mark.parametrize("pooling", ["flatten", "mean", "last", "tokens"])
def test_tokens_may_come_before_samples(batch, pooling):
    plain, turned = reader(), reader(tokens_first=True)
    found = [
        next(sglp.gram_matrices(network, layers_of(network, batch), [batch], pooling)) for network in (plain, turned)
    ]
    assert found[0].shape[1] == (SAMPLES * TOKENS if pooling == "tokens" else SAMPLES)
    assert torch.equal(*found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("measure", [influences, distances])
@pytest.mark.parametrize("kwargs", [{"in_place": True}, {"tokens_first": True}])
def test_what_blocks_do_is_seen_whatever_they_do_it_to(batch, measure, kwargs, dtype):
    networks = [reader().to(dtype), reader(**kwargs).to(dtype)]
    inputs = batch[0].to(dtype)
    plain, other = (measure(network, sglp.find_layers(network, inputs[:1]), [inputs]) for network in networks)
    plain, other = (list(x.values()) if isinstance(x, dict) else x for x in (plain, other))
    assert other == pytest.approx(plain, rel=1e-6)
    assert max(plain) > 0.05


def test_the_last_token_is_read_where_tokens_come_first():
    class Texts(Reader):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.stem = nn.Embedding(11, WIDTH)

    ids = torch.randint(11, (SAMPLES, TOKENS), generator=torch.Generator().manual_seed(0))
    found = []
    for tokens_first in (False, True):
        torch.manual_seed(0)
        network = Texts(tokens_first=tokens_first)
        found.append(distances(network, sglp.find_layers(network, ids[:1]), [ids]))
    assert found[0] == pytest.approx(found[1])


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


def test_statistics_of_a_norm_that_runs_in_training_alone_stay():
    class Auxiliary(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.aux = nn.BatchNorm1d(3), nn.BatchNorm1d(3)

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
def test_networks_that_draw_in_eval_mode_have_layers_that_can_go(batch, kwargs):
    assert [layer.removable for layer in layers_of(reader(**kwargs), batch)] == [False, True, True, True, True]
    assert not any(layer.removable for layer in layers_of(reader(numbered=True), batch))


@pytest.mark.parametrize("method", ["sglp", "block_influence", "loss_greedy", "taylor", "cka_greedy", "angular"])
def test_a_stock_encoder_with_a_mask_of_padding(method):
    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
            self.embedding, self.encoder = nn.Embedding(20, 8), nn.TransformerEncoder(layer, 4)
            self.head = nn.Linear(8, 3)

        def forward(self, ids, lengths):
            padding = torch.arange(ids.shape[1]) >= lengths[:, None]
            return self.head(self.encoder(self.embedding(ids), src_key_padding_mask=padding)[:, 0])

    torch.manual_seed(0)
    network, fast = Encoder(), torch.backends.mha.get_fastpath_enabled()
    inputs = {"ids": torch.randint(20, (16, 6)), "lengths": torch.randint(2, 7, (16,))}
    sizes = {"calibration": (16, 16), "scoring": (16, 16)}
    found = sglp.compress(network, [(inputs, torch.randint(3, (16,)))], method=method, k=1, pooling="mean", **sizes)
    assert len(found.plan.removed) == 2
    assert torch.backends.mha.get_fastpath_enabled() == fast


def test_compiled_networks_are_refused(batch):
    called = reader()
    called.compile(backend="eager")
    for network, name in ((torch.compile(reader(), backend="eager"), "OptimizedModule"), (called, "Reader")):
        with pytest.raises(LayerError, match=f"^this {name} is compiled, and can't be watched so: give the module as"):
            layers_of(network, batch)


class Tables(nn.Module):
    """Blocks that share a table, which is no part of the state."""

    def __init__(self):
        super().__init__()
        self.blocks, self.head = nn.Sequential(*(Block() for _ in range(3))), nn.Linear(WIDTH, 5)
        self.register_buffer("table", torch.linspace(0, 1, WIDTH), persistent=False)

    def forward(self, x):
        return self.head(self.blocks(x) * self.table)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.float32])
def test_what_is_not_saved_comes_back_in_its_precision(dtype, tmp_path):
    factory = f"{__name__}:Tables"
    network = sglp.build(factory, seed=0).to(dtype).eval()
    sglp.save(network, tmp_path / "saved")
    loaded, inputs = sglp.load(tmp_path / "saved", trust=[factory]), torch.randn(4, WIDTH, dtype=dtype)
    assert loaded.table.dtype == dtype
    assert torch.equal(loaded(inputs), network(inputs)) or dtype == torch.float64  # whose table was made in float32
    record = tmp_path / "saved/architecture.json"
    assert ("precisions" in record.read_text()) == (dtype != torch.float32)
    record.write_text(record.read_text().replace(str(dtype).removeprefix("torch."), "load"))
    if dtype != torch.float32:
        with pytest.raises(CheckpointError, match=r"architecture\.json is broken: there is no precision load"):
            sglp.load(tmp_path / "saved", trust=[factory])


def test_a_half_precision_network_is_inspected_and_exported(tmp_path):
    network = sglp.build("sglp.networks.cifar_resnet:resnet", {"depth": 8, "in_channels": 1}, seed=0).bfloat16()
    sglp.save(network, tmp_path / "saved")
    example = example_input(sglp.load(tmp_path / "saved"), (1, 8, 8))
    assert example.dtype == torch.bfloat16


@pytest.mark.parametrize("kwargs", [{"method": "loss_greedy"}, {"method": "taylor"}, {"criterion": "loss"}])
def test_outputs_without_logits_get_a_sentence(batch, kwargs):
    class Pair(Reader):
        def forward(self, x):
            return super().forward(x), x

    torch.manual_seed(0)
    with pytest.raises(SGLPError, match=r"can't score this network: 'tuple' object has no attribute 'logits'$"):
        sglp.compress(Pair(), [batch], calibration=(16, 16), scoring=(16, 16), **kwargs)


def test_the_smallest_batch_of_the_calibration_is_checked(batch):
    with pytest.raises(SGLPError, match=r"calibration=\(10, 4\) is wrong: of its batches the smallest has 3 samples"):
        sglp.compress(reader(), [batch], calibration=(10, 4), scoring=(16, 16))
