"""Work with the same results in one or several processes: ``torchrun --nproc-per-node 2 tests/shared_work.py FILE``."""

import json
import sys
from dataclasses import astuple
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from language import byte_tokenizer, cast, tiny_llama
from torch import nn

import sglp
from sglp.distributed import processes
from sglp.distributed.all_reduce import all_reduce_sum
from sglp.distributed.whole_batch import whole_batch
from sglp.scoring.criteria.fitted_loss import FittedLoss
from sglp.tasks.causal_lm import training as causal_lm
from sglp.tasks.causal_lm.perplexity import perplexity
from sglp.tasks.causal_lm.texts import Texts
from sglp.tasks.evaluation import find_evaluation
from sglp.tasks.image_classification import data as image_data
from sglp.tasks.image_classification import training as image_classification
from sglp.tasks.image_classification.images import Images
from sglp.tasks.schemas.causal_lm import Finetuning as TextRecipe
from sglp.tasks.schemas.causal_lm import TextPreparation
from sglp.tasks.schemas.image_classification import Finetuning as ImageRecipe
from sglp.tasks.schemas.image_classification import ImagePreparation
from sglp.tasks.schemas.workload import Source
from sglp.tasks.trainer.train import train

PREPARE = ImagePreparation(
    image_column="image", label_column="label", classes=10, channels=1, transforms=[], mean=[0.3], std=[0.4]
)
RECIPE = {
    "optimizer": "sgd",
    "learning_rate": 0.05,
    "momentum": 0.9,
    "weight_decay": 0.01,
    "epochs": 2,
    "warmup_epochs": 0.5,
    "label_smoothing": 0.1,
    "distillation": 0.3,
    "temperature": 2.0,
}


def everything() -> dict[str, list]:
    """Run all shared work and return the results by name; every process returns all results."""
    images = Images(_source("sglp.tasks.digits:Digits"), {"train": True}, PREPARE)
    text = TextPreparation(text_column="text", separator="\n", length=32, tokenizer="bytes")
    texts = Texts(_source("sglp.tasks.topics:Topics"), {"train": True}, text, byte_tokenizer())
    return {
        "map": processes.shared_map(lambda item: item**2, range(5)),
        "few": processes.shared_map(lambda item: item**2, range(1)),
        "first": [processes.from_rank_zero(lambda: processes.rank())],
        "norm 5": batch_norm(5),
        "norm without bias": batch_norm(5, bias=False),
        "norm 1": batch_norm(1),
        **trained_images(images),
        **trained_texts(texts),
        **evaluated(images),
        "perplexity": list(perplexity(tiny_llama(), texts.tokens[:500], 48, 20, 3).values()),
        "calibration": calibrated(images),
        "scores": scored(images),
        **reconstructed(images),
        "reconstructed folder": reconstructed_folder(texts.tokens),
    }


def batch_norm(samples: int, bias: bool = True) -> list:
    """Compute outputs, gradients and running statistics; each process has a part of the samples, possibly none."""
    generator = torch.Generator().manual_seed(0)
    inputs, pull = (torch.randn(2, samples, 3, 4, 5, generator=generator, dtype=torch.float64) + 3).unbind()
    norm = nn.BatchNorm2d(3).double()
    if not bias:
        norm.bias = None
    nn.init.uniform_(norm.weight, generator=generator)
    part = processes.part(samples)
    own = (inputs[part] if len(inputs[part]) else torch.full_like(inputs[:1], 7)).requires_grad_()
    with whole_batch(counts=len(inputs[part]) > 0):
        outputs = norm(own)
    (outputs[: len(pull[part])] * pull[part]).sum().backward()
    own_rows = [outputs.detach()[: len(pull[part])].tolist(), own.grad[: len(pull[part])].tolist()]
    all_rows = processes.shared_map(lambda _: own_rows, range(processes.count()))
    sums = [all_reduce_sum(p.grad).tolist() for p in norm.parameters()]
    return [[row for rows in column for row in rows] for column in zip(*all_rows, strict=True)] + [
        *sums,
        norm.running_mean.tolist(),
        norm.running_var.tolist(),
    ]


def reconstructed_folder(ids: torch.Tensor) -> list:
    """Reconstruct a language model from folder to folder, and return the new weights."""
    dense = cast(tiny_llama(5), torch.float64)
    names = [f"model.layers.{i}" for i in range(5)]
    plan = sglp.Plan([*names[:2], *names[3:]], names[2:3])
    batches = [{"input_ids": batch} for batch in ids[: 8 * 7 * 16].reshape(8, 7, 16)]
    with processes.entered_by_rank_zero(TemporaryDirectory()) as name:
        folder = Path(name)
        if processes.rank() == 0:
            sglp.save(dense, folder / "dense")
            sglp.prune_folder(folder / "dense", plan, folder / "pruned")
        processes.wait()
        rows = sglp.reconstruct_folder(folder / "dense", folder / "pruned", plan, folder / "new", batches)
        processes.wait()
        assert sorted(path.name for path in folder.iterdir()) == ["dense", "new", "pruned"]
        weights = [tensor.tolist() for tensor in sglp.load(folder / "new").state_dict().values()]
    return [weights, [[row.before, row.after, row.kept] for row in rows]]


class Double(nn.Module):
    def forward(self, inputs):
        return inputs.double()


def small(seed: int) -> nn.Module:
    """Build a network in float64, so that rounding errors stay small."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = (nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))
        return nn.Sequential(Double(), *(layer.double() for layer in layers))


def trained_images(images: Images) -> dict[str, list]:
    """Train on 17 samples in batches of 4, the last of a single sample, with 4 samples held out."""
    changes = {"samples": 21, "batch_size": 4, "holdout": 0.19, "keep": "last", "precision": "float32"}
    recipe = ImageRecipe.model_validate(RECIPE | changes | {"augment": [{"RandomCrop": {"size": 8, "padding": 1}}]})
    network = small(0)
    return _trained("images", network, image_classification, images, recipe, small(1).eval())


def trained_texts(texts: Texts) -> dict[str, list]:
    """Train with accumulated gradients; the last step has one batch with a single sample."""
    changes = {
        "samples": 12,
        "batch_size": 2,
        "holdout": 0.2,
        "keep": "best",
        "gradient_accumulation_steps": 2,
        "tuning": "full",
    }
    lora = {"r": 4, "alpha": 8.0, "dropout": 0.0, "targets": "all-linear"}
    changes |= {"gradient_checkpointing": False, "lora": lora, "last_layers": 1}
    recipe = TextRecipe.model_validate(
        RECIPE | changes | {"optimizer": "adamw", "momentum": 0.0, "learning_rate": 1e-3}
    )
    return _trained("texts", tiny_llama(), causal_lm, texts, recipe, tiny_llama(seed=9))


def _trained(name: str, network, task, data, recipe, teacher) -> dict[str, list]:
    with processes.entered_by_rank_zero(TemporaryDirectory()) as folder:
        rows = train(network, task, data, recipe, 0, Path(folder), teacher)
    weights = [tensor.tolist() for tensor in network.state_dict().values()]
    return {f"{name}: weights": weights, f"{name}: rows": [list(row.values()) for row in rows]}


def evaluated(images: Images) -> dict[str, list]:
    """Evaluate accuracy, loss and robustness."""
    attacks = {"samples": 21, "fgsm": [0.1], "pgd": [0.1], "pgd_steps": 2, "severities": [2]}
    settings = {"batch_size": 8, "robustness": attacks}
    network = sglp.build("sglp.networks.cifar_resnet:resnet", {"depth": 8, "in_channels": 1}, seed=0)
    images.labels = images.labels[:50]
    metrics, _ = find_evaluation("image_classification").evaluate(network, images, settings)
    return {"evaluation": [metrics]}


def calibrated(images: Images) -> list:
    """Draw calibration batches in parts and return the labels of all of them."""
    part = processes.part(3)
    own = [labels.tolist() for _, labels in image_data.calibration_batches(images, 22, 8, 0, part)]
    parts = processes.shared_map(lambda _: own, range(processes.count()))
    return [labels for batches in parts for labels in batches]


def scored(images: Images) -> list:
    """Score with every search and fitted losses, which processes share candidate by candidate."""
    network = sglp.build("sglp.networks.cifar_resnet:resnet", {"depth": 14, "in_channels": 1}, seed=0).eval()
    batches = list(image_data.calibration_batches(images, 16, 16, 0))
    layers = sglp.find_layers(network, batches[0][0])
    segments = [(0, 2), (3, len(layers) - 1)]
    budget = [2, len(layers) - 5]
    return [
        [list(astuple(row)) for row in sglp.score_combinations(
            network, layers, segments, budget, batches, criterion=FittedLoss, search=search
        )]
        for search in ("joint", "sequential", "independent")
    ]  # fmt: skip


def reconstructed(images: Images) -> dict[str, list]:
    """Reconstruct a convolutional network by gradient and a language model in closed form, in float64."""
    resnet = sglp.build("sglp.networks.cifar_resnet:resnet", {"depth": 14, "in_channels": 1}, seed=0).double().eval()
    pixels = [batch.double() for batch, _ in image_data.calibration_batches(images, 40, 5, 0)]
    ids = torch.randint(259, (96, 16), generator=torch.Generator().manual_seed(3))
    texts = [{"input_ids": part, "use_cache": False} for part in ids.split(12)]
    results: dict[str, list] = {}
    for name, dense, batches in (("resnet", resnet, pixels), ("llama", tiny_llama(4).double().eval(), texts)):
        layers = sglp.find_layers(dense, batches[0])
        plan = sglp.Plan.without(layers, [i for i, layer in enumerate(layers) if layer.removable][1:3])
        pruned = sglp.prune(dense, plan).eval()
        rows = sglp.reconstruct(dense, pruned, plan, batches, steps=3)
        results[f"reconstructed {name}"] = [value.tolist() for value in pruned.state_dict().values()]
        results[f"reconstructed {name}: how"] = [[row.layer, row.how, row.kept] for row in rows]
        results[f"reconstructed {name}: errors"] = [[row.before, row.after] for row in rows]
    return results


def _source(loader: str) -> Source:
    return Source(loader=loader, name=None, revision=None)


if __name__ == "__main__":
    torch.set_num_threads(1)
    with processes.joined():
        results = everything()
        if processes.rank() == 0:
            Path(sys.argv[1]).write_text(json.dumps(results), encoding="utf-8")
