"""Networks of many libraries, and what must hold for each: the pruned network runs, trains, saves and loads."""

import gc
import random
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import transformers as hf
from torch import Tensor, nn

import sglp
from sglp.cost import count_macs
from sglp.errors import CheckpointError, LayerError, NotPlainWarning
from sglp.surgery.bypass import Bypass

SIZES = (32, 64, 128, 224, 299)
TIMM, TORCHVISION = "timm:create_model", "torchvision.models"
OWN = f"{__name__}:"
MOST_PARAMETERS = 30_000_000  # of a model that is drawn from timm's


class Network(NamedTuple):
    """A network to try: its factory or class, arguments, an example, and (layers, removable) if they are known."""

    name: str
    factory: str | type[hf.PreTrainedModel]
    kwargs: dict
    example: Tensor | dict
    expected: tuple[int, int] | None = None

    def make(self) -> nn.Module:
        """Build the network in eval mode, with random weights under which every layer has an effect."""
        torch.manual_seed(0)
        if isinstance(self.factory, str):
            network = sglp.build(self.factory, self.kwargs)
        else:
            config: Any = self.factory.config_class
            network = self.factory(config(**self.kwargs))
        with torch.no_grad():
            for parameter in network.parameters():  # norms and scales that do nothing would hide a layer
                if parameter.numel() > 1 and parameter.min() == parameter.max():
                    parameter.add_(0.2 * torch.randn_like(parameter))
        return network.eval()


class Outcome(NamedTuple):
    """The outcome of a trial.

    Attributes:
        name, size: the network, and the shape of a sample.
        layers, removable, removed: numbers of layers.
        before, after: MACs of the dense and the pruned network.
        sentence: why the network is refused, or "".
        fault: what went wrong, or "".
        exported: the formats in which the pruned network computes the same, and the reasons for the others.
    """

    name: str
    size: str
    layers: int = 0
    removable: int = 0
    removed: int = 0
    before: int = 0
    after: int = 0
    sentence: str = ""
    fault: str = ""
    exported: str = ""


class TabularTransformer(nn.Module):
    """A classifier of tables: each feature is a token, and the mean of the encoded tokens is classified."""

    def __init__(self, numeric=4, categories=(3, 5), width=16, depth=6):
        super().__init__()
        self.weight, self.bias = (nn.Parameter(torch.randn(numeric, width)) for _ in range(2))
        self.embeddings = nn.ModuleList(nn.Embedding(count, width) for count in categories)
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.head = nn.Linear(width, 3)

    def forward(self, numeric: Tensor, categorical: Tensor) -> Tensor:
        """Classify rows of features."""
        tokens = [embed(categorical[:, i, None]) for i, embed in enumerate(self.embeddings)]
        x = torch.cat([numeric[..., None] * self.weight + self.bias, *tokens], dim=1)
        return self.head(self.encoder(x).mean(dim=1))


def perceptron() -> nn.Sequential:
    """Build a multilayer perceptron with five equal hidden layers."""
    hidden = [module for _ in range(5) for module in (nn.Linear(12, 12), nn.ReLU())]
    return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), *hidden, nn.Linear(12, 3))


def noise(*shape: int) -> Tensor:
    """Draw the same noise every time."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def _image(size):
    return noise(2, 3, size, size)


def _torchvision(name, layers, removable, size=32, **kwargs):
    return Network(name, f"{TORCHVISION}:{name}", kwargs, _image(size), (layers, removable))


def _timm(name, layers, removable, size=64, **kwargs):
    return Network(f"timm {name}", TIMM, {"model_name": name, **kwargs}, _image(size), (layers, removable))


def _transformers(kind, layers, **config):
    images = {"pixel_values": _image(32)}
    name = f"transformers {kind.__name__.removesuffix('ForImageClassification')}"
    return Network(name, kind, {"image_size": 32, "num_labels": 5, **config}, images, (layers, layers))


def _mobilenet_v1():
    kind, config = hf.MobileNetV1ForImageClassification, {"depth_multiplier": 0.25, "num_labels": 5}
    return Network("transformers MobileNetV1", kind, config, {"pixel_values": _image(64)}, (27, 17))


_VIT = {"patch_size": 8, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 6, "num_attention_heads": 4}
_FEATURES = {"numeric": noise(2, 4), "categorical": torch.tensor([[0, 1], [2, 4]])}
# The test suite tries these; the others take longer.
SMALL = [
    _torchvision("resnet18", 8, 5),
    _torchvision("mobilenet_v2", 17, 10),
    _torchvision("mobilenet_v3_large", 15, 10),
    _torchvision("efficientnet_b0", 16, 9),
    _torchvision("regnet_y_400mf", 16, 12),
    _torchvision("mnasnet1_0", 16, 10),
    _timm("vit_tiny_patch16_224", 12, 12, img_size=64),
    _timm("convnext_atto", 12, 12),
    _transformers(hf.ViTForImageClassification, 6, **_VIT),
    _transformers(hf.DeiTForImageClassification, 6, **_VIT),
    _transformers(hf.ConvNextForImageClassification, 6, hidden_sizes=[8, 16], depths=[2, 4], num_stages=2),
    _transformers(
        hf.SwinForImageClassification, 6, embed_dim=8, depths=[2, 4], num_heads=[2, 2], window_size=4, patch_size=2
    ),
    _mobilenet_v1(),
    Network("CIFAR VGG-16-BN", "sglp.networks.cifar_vgg:vgg", {"depth": 16}, _image(32), (13, 9)),
    Network("tabular Transformer", f"{OWN}TabularTransformer", {}, _FEATURES, (6, 6)),
    Network("perceptron (nn.Sequential)", f"{OWN}perceptron", {}, noise(2, 6), (7, 5)),
]
LARGE = [
    _torchvision("resnet34", 16, 13),
    _torchvision("resnet50", 16, 12),
    _torchvision("resnet101", 33, 29),
    _torchvision("resnet152", 50, 46),
    _torchvision("resnext50_32x4d", 16, 12),
    _torchvision("wide_resnet50_2", 16, 12),
    _torchvision("vgg16_bn", 13, 9),
    _torchvision("efficientnet_v2_s", 40, 35),
    _torchvision("convnext_tiny", 18, 18),
    _torchvision("vit_b_16", 12, 12, image_size=32),
    _torchvision("swin_t", 12, 12),
    _timm("resnet26d", 8, 4),
    _timm("deit_tiny_patch16_224", 12, 12, img_size=64),
    _timm("mixer_s32_224", 8, 8, img_size=64),
    _timm("efficientformer_l1", 15, 15, size=224),
]


def all_of_torchvision() -> Iterator[Network]:
    """Yield all classification models of torchvision, at the smallest of SIZES that each takes."""
    import torchvision

    for name in torchvision.models.list_models(module=torchvision.models):
        options: list[tuple[dict, int]] = [({}, size) for size in SIZES]
        if name.startswith("vit_"):
            size = 2 * int(name.rpartition("_")[2])
            options = [({"image_size": size}, size)]
        elif name in ("googlenet", "inception_v3"):
            options = [({"init_weights": True}, size) for _, size in options]
        yield _fitting(name, f"{TORCHVISION}:{name}", options)


def some_of_timm(count=100, seed=0) -> Iterator[Network]:
    """Yield models of timm with at most MOST_PARAMETERS, in an order drawn by the seed."""
    import timm

    names = timm.list_models()
    random.Random(seed).shuffle(names)  # noqa: S311 - a draw, no secret
    for name in names:
        if count == 0:
            return
        with torch.device("meta"):
            network = timm.create_model(name)
        if sum(p.numel() for p in network.parameters()) > MOST_PARAMETERS:
            continue
        count -= 1
        config: Any = network.default_cfg
        sizes = (*SIZES[1:3], config["input_size"][-1])
        sized = [{"img_size": size} if config.get("fixed_input_size") else {} for size in sizes[:2]]
        options = zip([{"model_name": name, **more} for more in (*sized, {})], sizes, strict=True)
        yield _fitting(f"timm {name}", TIMM, list(options))


def _fitting(name, factory, options) -> Network:
    """Choose the first arguments and image size that a network takes, in eval and in train mode."""
    for kwargs, size in options[:-1]:
        network = Network(name, factory, kwargs, _image(size))
        try:
            module = sglp.build(factory, kwargs)
            with torch.no_grad():
                module.eval()(network.example)
                module.train()(network.example)
            return network
        except Exception:  # noqa: S112 - whatever it raises, this size is too small
            continue
    kwargs, size = options[-1]
    return Network(name, factory, kwargs, _image(size))


def outputs(network, example) -> list[Tensor]:
    """Compute the logits of all heads."""
    output = network(**example) if isinstance(example, dict) else network(example)
    if hasattr(output, "logits") and not isinstance(output, tuple):
        output = output.logits
    return [output] if isinstance(output, Tensor) else [head for head in output if head is not None]


def equal(first: list[Tensor], second: list[Tensor]) -> bool:
    """Compare lists of tensors, bit for bit."""
    return len(first) == len(second) and all(map(torch.equal, first, second))


def check(case: Network, formats: Sequence[str] = ()) -> Outcome:
    """Remove half of the removable layers; run, train, save, load and export the pruned network.

    Raises:
        AssertionError: something that must hold does not.
    """
    network, example = case.make(), case.example
    outcome = Outcome(case.name, "x".join(map(str, _first(example).shape[1:])))
    try:
        layers = sglp.find_layers(network, example)
    except LayerError as error:
        return outcome._replace(sentence=str(error))
    removable = [i for i, layer in enumerate(layers) if layer.removable]
    blocks = sum(not layer.is_stem for layer in layers)
    if not removable:
        return outcome._replace(layers=blocks, sentence=f"no layer can be removed ({layers[-1].reason})")
    removed = removable[1::2] or removable
    plan = sglp.Plan.without(layers, removed)
    before = count_macs(network, example)
    bypass = Bypass(network, layers, example)
    with torch.no_grad():
        dense = outputs(network, example)
        with bypass.without(removed):
            expected = outputs(network, example)
    small = sglp.prune(network, plan)
    del network, bypass
    with torch.no_grad():
        logits = outputs(small, example)
    assert all(head.isfinite().all() for head in logits)
    assert equal(logits, expected), "it is not the dense network with those layers bypassed"
    assert not equal(logits, dense), "the removed layers had no effect"
    after = count_macs(small, example)
    with tempfile.TemporaryDirectory() as folder:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotPlainWarning)
            sglp.save(small, f"{folder}/small")
        _trains(small, example)
        del small
        gc.collect()
        loaded = sglp.load(f"{folder}/small", trust=[str(case.factory)] if str(case.factory).startswith(OWN) else False)
        with torch.no_grad():
            assert equal(outputs(loaded, example), logits), "it gives other logits after reload"
        exported = [_exported(loaded, example, f"{folder}/exported", to) for to in formats]
    outcome = outcome._replace(
        layers=blocks, removable=len(removable), removed=len(removed), before=before, after=after
    )
    return outcome._replace(exported=", ".join(exported))


def _exported(network, example, path, to) -> str:
    """Export to a format; return its name, or the reason in brackets why it is not possible."""
    try:
        sglp.export(network, path, to, example)
    except CheckpointError as error:
        return f"({to}: {error})"
    return to


def _first(example) -> Tensor:
    return next(iter(example.values())) if isinstance(example, dict) else example


def _trains(network, example) -> None:
    """Take a training step: every parameter must get a finite gradient."""
    network.train()
    heads = outputs(network, example)
    torch.stack([F.cross_entropy(head, torch.arange(len(head)) % 2) for head in heads]).sum().backward()
    without = [name for name, p in network.named_parameters() if p.requires_grad and p.grad is None]
    assert not without, f"no gradient reaches {without[0]}"
    assert all(p.grad.isfinite().all() for p in network.parameters() if p.grad is not None), "a gradient is not finite"
    torch.optim.SGD(network.parameters(), lr=1e-3).step()
