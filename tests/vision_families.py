"""Tiny image classifiers of Hugging Face, and what tests do with them."""

import copy
import functools

import torch
import transformers as hf

import sglp

FLAT = {"hidden_size": 16, "num_hidden_layers": 5, "num_attention_heads": 2, "intermediate_size": 24}
FLAT |= {"image_size": 16, "patch_size": 4, "num_labels": 5}
STAGES = {"depths": [3, 2, 4], "hidden_sizes": [8, 16, 24], "num_labels": 5}
WINDOWS = {"image_size": 32, "patch_size": 2, "embed_dim": 8, "depths": [2, 4], "num_heads": [2, 4], "window_size": 4}
LABELS, RATE = {"num_labels": 5}, {"drop_path_rate": 0.3}
PLAIN = {  # class, its config, the size of an image, how many layers it finds and how many of them can go
    "ViT": (hf.ViTForImageClassification, FLAT, 16, (5, 5)),
    "DeiT": (hf.DeiTForImageClassification, FLAT, 16, (5, 5)),
    "BEiT": (hf.BeitForImageClassification, FLAT | RATE, 16, (5, 5)),
    "DINOv2": (hf.Dinov2ForImageClassification, FLAT | {"mlp_ratio": 2}, 16, (5, 5)),
    "SigLIP": (hf.SiglipForImageClassification, {"vision_config": FLAT, "num_labels": 5}, 16, (5, 5)),
    "ConvNeXt": (hf.ConvNextForImageClassification, STAGES | RATE | {"num_stages": 3, "image_size": 32}, 32, (9, 9)),
    "ConvNeXtV2": (hf.ConvNextV2ForImageClassification, STAGES | {"num_stages": 3, "image_size": 32}, 32, (9, 9)),
    "ResNet": (hf.ResNetForImageClassification, STAGES | {"embedding_size": 8, "layer_type": "basic"}, 64, (9, 7)),
    "RegNet": (hf.RegNetForImageClassification, STAGES | {"embedding_size": 8, "groups_width": 4}, 64, (9, 6)),
    "PVTv2": (
        hf.PvtV2ForImageClassification,
        RATE | {"depths": [2, 2, 3, 2], "hidden_sizes": [8, 16, 24, 32], "num_attention_heads": [1, 2, 4, 8]} | LABELS,
        32,
        (9, 9),
    ),
}
OWN = {
    "Swin": (hf.SwinForImageClassification, WINDOWS | {"num_labels": 5}, 32, (6, 6)),
    "MobileNetV2": (hf.MobileNetV2ForImageClassification, {"depth_multiplier": 0.25, "num_labels": 5}, 32, (16, 10)),
}
FAMILIES = PLAIN | OWN


@functools.cache
def made(family):
    kind, arguments, size, _ = FAMILIES[family]
    torch.manual_seed(0)
    network = kind(kind.config_class(**arguments)).eval()
    with torch.no_grad():  # norms, biases and scales that do nothing would hide a layer in the wrong place
        for parameter in network.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter)) if parameter.ndim == 1 else parameter.mul_(3)
    images = torch.randn(2, 3, size, size)
    layers = [layer for layer in sglp.find_layers(network, images) if not layer.is_stem]
    return network, images, layers


def plan(layers, removed):
    return sglp.Plan([layer.name for layer in layers if layer.name not in removed], removed)


def half(family):
    """A network without every other layer that can go, from the first on, and the dense one with these bypassed."""
    network, images, layers = made(family)
    removed = [layer.name for layer in layers if layer.removable][::2]
    bypassed = copy.deepcopy(network)
    for path in removed:
        bypassed.get_submodule(path).register_forward_hook(
            lambda module, args, output: args[0] if isinstance(output, torch.Tensor) else (args[0], *output[1:])
        )
    return sglp.prune(network, plan(layers, removed)), images, bypassed
