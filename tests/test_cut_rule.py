"""Blocks are found and removed wherever they run: in the parent's residual stream, with conditions, beside skips.

The oracle is the network's own forward with the blocks left out (`skip`).
"""

import pytest
import torch
import torch.nn.functional as F
from networks import noise, plan_without
from torch import nn
from torch.utils.checkpoint import checkpoint

import sglp
from sglp.errors import LayerError
from sglp.observing import observe_after
from sglp.surgery.bypass import Bypass

WIDTH = 8


def call(network, inputs, **options):
    with torch.no_grad():
        output = network(**inputs, **options) if isinstance(inputs, dict) else network(inputs, **options)
    return list(output) if isinstance(output, tuple | list) else [output]


def same(first, second):
    return len(first) == len(second) and all(map(torch.equal, first, second))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        q, k, v = self.qkv(self.norm(x)).chunk(3, dim=-1)
        return self.out((q @ k.mT).softmax(-1) @ v)


class FeedForward(nn.Sequential):
    def __init__(self):
        super().__init__(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 12), nn.GELU(), nn.Linear(12, WIDTH))


class Parent(nn.Module):
    """A parent that adds the outputs of its blocks to a residual stream."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.stem, self.head = nn.Linear(6, WIDTH), nn.Linear(WIDTH, 5)
        if kind == "pairs":
            self.blocks = nn.ModuleList(nn.ModuleList([Attention(), FeedForward()]) for _ in range(4))
        elif kind == "norms":
            self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(4))
            self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU()) for _ in range(4))
        elif kind == "lstm":
            self.blocks = nn.ModuleList(nn.LSTM(WIDTH, WIDTH, batch_first=True) for _ in range(4))
        else:
            for i in range(4):
                self.add_module(f"block{i}", FeedForward())

    def forward(self, x, skip=()):
        x = self.stem(x)
        for i in range(len(self.blocks) if hasattr(self, "blocks") else 4):
            if i in skip:
                continue
            if self.kind == "pairs":
                attention, forward = self.blocks[i]
                x = forward(y) + y if (y := attention(x) + x) is not None else x
            elif self.kind == "norms":
                x = x + self.blocks[i](self.norms[i](x))
            elif self.kind == "lstm":
                x = x + self.blocks[i](x)[0]
            else:
                x = x + getattr(self, f"block{i}")(x)
        return self.head(x.mean(dim=1))


NAMES = {
    "pairs": "blocks.{0}.0:branch+blocks.{0}.1:branch",
    "norms": "norms.{0}+blocks.{0}:branch",
    "lstm": "blocks.{0}:branch",
    "attributes": "block{0}:branch",
}


@pytest.fixture(params=list(NAMES))
def parent(request):
    torch.manual_seed(0)
    return Parent(request.param).eval()


@pytest.mark.parametrize("skip", [[1], [0, 3], [0, 1, 2]])
def test_branches_that_a_parent_adds_are_removed(parent, skip):
    x = noise(3, 4, 6)
    expected = call(parent, x, skip=skip)
    layers = sglp.find_layers(parent, x)
    assert [layer.name for layer in layers] == ["stem", *(NAMES[parent.kind].format(i) for i in range(4))]
    assert [layer.removable for layer in layers] == [False, *[True] * 4]
    with Bypass(parent, layers, x).without([i + 1 for i in skip]):
        assert same(call(parent, x), expected)
    small = sglp.prune(parent, plan_without(layers, [layers[i + 1].name for i in skip]))
    assert same(call(small, x), expected)
    if len(skip) < 3:  # the pruned network can be pruned again
        again = [layer for layer in sglp.find_layers(small, x) if layer.removable]
        assert len(again) == 4 - len(skip)


def test_names_of_branches_are_patterns(parent):
    x = noise(3, 4, 6)
    layers = [layer for layer in sglp.find_layers(parent, x) if layer.removable]
    siblings = [layer for layer in layers if parent.kind != "norms"]
    if siblings:
        assert sglp.find_layers(parent, x, [layer.name for layer in siblings]) == siblings


def test_the_activation_after_a_branch_is_the_input_of_the_next(parent):
    x = noise(3, 4, 6)
    layers = sglp.find_layers(parent, x)
    seen = []
    handles = observe_after(parent, layers[1].name, lambda value: seen.append(value.clone()))
    following = parent.get_submodule(layers[2].modules[0])
    handles.append(following.register_forward_pre_hook(lambda module, args: seen.append(args[0].clone())))
    call(parent, x)
    for handle in handles:
        handle.remove()
    assert torch.equal(*seen)


@pytest.mark.parametrize("method", ["sglp", "block_influence", "angular", "reconstruction_error"])
def test_networks_of_branches_are_compressed(parent, method):
    x, y = noise(32, 4, 6), torch.arange(32) % 5
    sizes = {"calibration": (32, 16), "scoring": (16, 16)}
    result = sglp.compress(parent, [(x, y)], k=1, method=method, **sizes)
    assert len(result.plan.removed) == 2
    assert all(fit.after <= fit.before for fit in result.reconstructed)
    assert any(fit.after < fit.before for fit in result.reconstructed)


def test_branches_inside_blocks_are_no_layers():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = nn.ModuleList([Attention(), FeedForward()])

        def forward(self, x):
            for part in self.parts:
                x = x + part(x)
            return x

    network = nn.Sequential(*(Block() for _ in range(3)))
    assert [layer.name for layer in sglp.find_layers(network, noise(2, 4, WIDTH))] == ["0", "1", "2"]


class Conditioned(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention, self.scale = Attention(), nn.Linear(WIDTH, 2 * WIDTH)

    def forward(self, x, condition, mask=None):
        scale, shift = self.scale(F.silu(condition))[:, None].chunk(2, dim=-1)
        change = self.attention(x * (1 + scale) + shift)
        return x + (change if mask is None else change * mask[..., None])


class Diffusion(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.head, self.classes = nn.Linear(6, WIDTH), nn.Linear(WIDTH, 6), nn.Embedding(10, WIDTH)
        self.time = nn.Linear(2, WIDTH)
        self.blocks = nn.ModuleList(Conditioned() for _ in range(4))

    def forward(self, x, t, y, mask=None, skip=()):
        times = torch.stack([t.float().cos(), t.float().sin()], dim=-1)
        condition, x = self.time(times) + self.classes(y), self.stem(x)
        for i, block in enumerate(self.blocks):
            x = x if i in skip else block(x, condition, mask=mask)
        return self.head(x)


@pytest.mark.parametrize("t", [torch.tensor([3, 40]), torch.tensor([0.3, 0.9])], ids=["integers", "floats"])
@pytest.mark.parametrize("mask", [None, torch.tensor([[1.0, 1, 1, 0], [1, 1, 1, 1]])], ids=["", "mask"])
def test_blocks_with_conditions_are_removed(t, mask):
    torch.manual_seed(0)
    network = Diffusion().eval()
    inputs = {"x": noise(2, 4, 6), "t": t, "y": torch.tensor([1, 2])} | ({} if mask is None else {"mask": mask})
    layers = sglp.find_layers(network, inputs)
    assert [layer.name for layer in layers if layer.removable] == [f"blocks.{i}" for i in range(4)]
    small = sglp.prune(network, plan_without(layers, ["blocks.1", "blocks.3"]))
    assert same(call(small, inputs), call(network, inputs, skip=[1, 3]))


class TwoStreams(nn.Module):
    def __init__(self, swapped=False, dims=WIDTH):
        super().__init__()
        self.first, self.second, self.swapped = nn.Linear(dims, dims), nn.Linear(dims, dims), swapped

    def forward(self, a, extra, b):
        mean = torch.cat([a, b], dim=1).mean(dim=1, keepdim=True)
        a, b = a + self.first(a + mean).relu(), b + self.second(b + mean).relu()
        return (b, a) if self.swapped else (a, b)


class Streams(nn.Module):
    def __init__(self, swapped):
        super().__init__()
        self.stem, self.words, self.head = nn.Linear(6, WIDTH), nn.Embedding(9, WIDTH), nn.Linear(WIDTH, 5)
        self.blocks = nn.ModuleList(TwoStreams(swapped) for _ in range(4))
        self.swapped = swapped

    def forward(self, x, ids, skip=()):
        a, b = self.stem(x), self.words(ids)
        for i, block in enumerate(self.blocks):
            if i not in skip:
                a, b = block(a, ids, b)[:: -1 if self.swapped else 1]
        return self.head(a.mean(dim=1)), self.head(b.mean(dim=1))


@pytest.mark.parametrize("swapped", [False, True])
def test_blocks_of_two_streams_hand_both_on(swapped):
    torch.manual_seed(0)
    network, inputs = Streams(swapped).eval(), {"x": noise(2, 4, 6), "ids": torch.arange(14).view(2, 7) % 9}
    layers = sglp.find_layers(network, inputs)
    assert [layer.name for layer in layers if layer.removable] == [f"blocks.{i}" for i in range(4)]
    expected = call(network, inputs, skip=[0, 2])
    with Bypass(network, layers, inputs).without([0, 2]):
        assert same(call(network, inputs), expected)
    assert same(call(sglp.prune(network, plan_without(layers, ["blocks.0", "blocks.2"])), inputs), expected)


def test_a_block_that_returns_something_new_is_not_removable():
    class Features(Conditioned):
        def forward(self, x):
            return super().forward(x, x.mean(dim=1)), x[..., :3] * 2

    class Uses(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList(Features() for _ in range(3))

        def forward(self, x):
            for block in self.blocks:
                x, feature = block(x)
            return x, feature  # of the last block

    layers = sglp.find_layers(Uses(), noise(2, 4, WIDTH))
    assert [layer.removable for layer in layers] == [True, True, False]
    assert layers[2].reason.startswith("returns a tensor besides the first one that none of its inputs can take")


class Residual(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)

    def forward(self, x):
        return x + self.norm(self.conv(x)).relu()


class UNet(nn.Module):
    """A U-Net whose decoder adds the skip; it returns (an auxiliary output, the output)."""

    def __init__(self):
        super().__init__()
        self.stem, self.down, self.up = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 16, 2, 2), nn.ConvTranspose2d(16, 8, 2, 2)
        self.left = nn.ModuleList(Residual(8) for _ in range(2))
        self.middle = nn.Sequential(Residual(16), Residual(16))
        self.right = nn.Sequential(Residual(8), Residual(8))
        self.head = nn.Conv2d(8, 3, 1)

    def forward(self, x):
        x = self.stem(x)
        for block in self.left:
            x = block(x)
        middle = self.middle(self.down(x))
        return middle.mean(dim=(2, 3)), self.head(self.right(x + self.up(middle)))


@pytest.mark.parametrize("wrapped", [False, True])
def test_blocks_beside_a_skip_are_removed(wrapped):
    torch.manual_seed(0)
    network = (nn.Sequential(UNet()) if wrapped else UNet()).eval()
    prefix = "0." if wrapped else ""
    x = noise(2, 3, 8, 8)
    layers = sglp.find_layers(network, x)
    names = [f"{prefix}{part}.{i}" for part in ("left", "middle", "right") for i in range(2)]
    assert [layer.name for layer in layers if layer.removable] == names
    small = sglp.prune(network, plan_without(layers, [f"{prefix}left.0", f"{prefix}middle.1"]))
    inner = network[0] if wrapped else network
    inner.left[0] = inner.middle[1] = nn.Identity()
    assert same(call(small, x), call(network, x))


class Towers(nn.Module):
    """Two towers of one width that run one after the other on different inputs."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(*(Residual(4) for _ in range(3)))
        self.second = nn.Sequential(*(Residual(4) for _ in range(3)))
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        both = [self.first(x[:, :4]), self.second(x[:, 4:])]
        return self.head(torch.cat(both, dim=1).mean(dim=(2, 3)))


def test_a_layer_is_not_refitted_to_another_tower():
    torch.manual_seed(0)
    network, x = Towers().eval(), noise(16, 8, 5, 5)
    layers = sglp.find_layers(network, x)
    assert [layer.name for layer in layers] == [f"{tower}.{i}" for tower in ("first", "second") for i in range(3)]
    plan = plan_without(layers, ["second.0", "second.1"])
    rows = sglp.reconstruct(network, sglp.prune(network, plan), plan, [x[:8], x[8:]], steps=2)
    assert [(row.layer, row.target) for row in rows] == [("second.2", "second.2")]
    errors = sglp.reconstruction.error_matrix.reconstruction_errors(network, layers, [x[:8], x[8:]], steps=0)
    assert torch.tensor(errors).isfinite().sum() == 2 * 6  # the upper triangles of both towers


class Checkpointed(nn.Sequential):
    def forward(self, x):
        for block in self:
            x = checkpoint(block, x, use_reentrant=True)
        return x


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_blocks_under_a_reentrant_checkpoint_are_found():
    layers = sglp.find_layers(Checkpointed(*(Residual(4) for _ in range(3))), noise(2, 4, 5, 5))
    assert [layer.name for layer in layers if layer.removable] == ["0", "1", "2"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda network, x: torch.jit.script(network), r"holds a module of torch\.jit \(scripted or traced\)"),
        (lambda network, x: torch.jit.trace(network, x), r"holds a module of torch\.jit \(scripted or traced\)"),
        (lambda network, x: nn.Sequential(torch.jit.trace(network, x)), r"holds a module of torch\.jit"),
        (lambda network, x: torch.fx.symbolic_trace(network), r"traced by torch\.fx or torch\.export"),
        (lambda network, x: torch.export.export(network, (x,)).module(), r"traced by torch\.fx or torch\.export"),
    ],
    ids=["scripted", "traced", "wrapped", "fx", "exported"],
)
def test_networks_that_cannot_be_observed_are_refused(change, message):
    network, x = nn.Sequential(*(Residual(4) for _ in range(3))).eval(), noise(2, 4, 5, 5)
    with pytest.raises(LayerError, match=message):
        sglp.find_layers(change(network, x), x)


def test_two_towers_are_refused_with_the_patterns_to_choose_from():
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    part = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
    text = {**part, "vocab_size": 20, "max_position_embeddings": 8}
    config = CLIPConfig(text_config=text, vision_config={**part, "image_size": 8, "patch_size": 4}, projection_dim=4)
    inputs = {"input_ids": torch.arange(12).view(2, 6), "pixel_values": noise(2, 3, 8, 8)}
    network = CLIPModel(config).eval()
    with pytest.raises(LayerError, match=r"^CLIPModel has 2 stacks of layers side by side.*text_model"):
        sglp.find_layers(network, inputs)
    layers = sglp.find_layers(network, inputs, "text_model.encoder.layers.*")
    assert [layer.removable for layer in layers] == [True] * 3


def test_a_network_of_branches_is_saved_and_loaded(parent, tmp_path):
    factory, x = f"{__name__}:Parent", noise(3, 4, 6)
    network = sglp.build(factory, {"kind": parent.kind}, seed=0).eval()
    layers = sglp.find_layers(network, x)
    small = sglp.prune(network, plan_without(layers, [layers[1].name, layers[3].name]))
    sglp.save(small, tmp_path / "saved")
    assert same(call(sglp.load(tmp_path / "saved", trust=[factory]), x), call(small, x))
    again = [layer for layer in sglp.find_layers(small, x) if layer.removable]
    smaller = sglp.prune(small, sglp.Plan([again[0].name], [again[1].name]))
    sglp.save(smaller, tmp_path / "again")
    assert same(call(sglp.load(tmp_path / "again", trust=[factory]), x), call(smaller, x))
    assert same(call(smaller, x), call(network, x, skip=[0, 2, 3]))


def test_a_network_of_branches_is_exported(parent, tmp_path):
    if parent.kind == "lstm":
        pytest.skip("torch.export writes no LSTM with batches of any size")
    x = noise(3, 4, 6)
    layers = sglp.find_layers(parent, x)
    sglp.export(sglp.prune(parent, plan_without(layers, [layers[2].name])), tmp_path / "file.pt2", "torch-export", x)


@pytest.mark.filterwarnings("ignore")  # torch deprecates its own quantization
def test_quantized_networks_are_found_or_refused():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(WIDTH, WIDTH)

        def forward(self, x):
            return x + self.inner(x).relu()

    def quantized(network):
        return torch.ao.quantization.quantize_dynamic(network, {nn.Linear}, dtype=torch.qint8)

    blocks = quantized(nn.Sequential(*(Block() for _ in range(3))))
    assert sum(layer.removable for layer in sglp.find_layers(blocks, noise(2, WIDTH))) == 3
    plain = quantized(nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(3))))
    with pytest.raises(LayerError, match="its weights are quantized, so autograd can't follow the flow"):
        sglp.find_layers(plain, noise(2, WIDTH))
