"""Fine-tuning with the Trainer against a plain PyTorch loop that gives the same weights."""

import math
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sglp
from benchmarks.side_by_side import Row, in_turn
from sglp.tasks.image_classification import data as task
from sglp.tasks.image_classification import training
from sglp.tasks.image_classification.images import Images
from sglp.tasks.schemas.image_classification import Finetuning
from sglp.tasks.schemas.workload import Recipe, Source
from sglp.tasks.trainer.train import train

TITLE = "Fine-tuning"
ROUNDS = 3
SEED = 0


def measure(small: bool) -> list[Row]:
    """Time fine-tuning a ResNet on the digits, with data loading, checkpoints and a log, against the bare steps."""
    depth, samples, epochs, rounds = (8, 64, 1, 1) if small else (56, 1024, 2, ROUNDS)
    data, recipe = _digits(), _recipe(samples, epochs)
    count = f"{samples} samples, {epochs} epochs, batches of {recipe.batch_size}"

    def network() -> nn.Module:
        return sglp.build("sglp.networks.cifar_resnet:resnet", {"depth": depth, "in_channels": 1}, seed=SEED)

    def ours() -> nn.Module:
        with tempfile.TemporaryDirectory() as folder:
            trained = network()
            train(trained, training, data, recipe, SEED, Path(folder))
            return trained

    inputs, labels = data.batch(np.sort(np.random.default_rng(SEED).permutation(len(data))[:samples]).tolist())

    def plain() -> nn.Module:
        # Another memory format changes the order of summation in convolutions: after 32 steps weights differ by 0.3.
        layout = torch.channels_last
        return _plain(network().to(memory_format=layout), inputs.to(memory_format=layout), labels, recipe)

    for (name, own), other in zip(ours().named_parameters(), plain().parameters(), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-3, atol=1e-4, msg=partial(_named, name))
    work = f"ResNet-{depth} on the digits, {count}: `sglp.tasks.trainer.train.train`"
    note = "the loop has all images as one tensor in memory, and writes no checkpoints or log"
    return [Row(work, "a plain loop, also channels-last", in_turn(ours, plain, rounds), note=note)]


def _named(name: str, text: str) -> str:
    return f"{name}: {text}"


def _plain(network: nn.Module, inputs: Tensor, labels: Tensor, recipe: Recipe) -> nn.Module:
    """Train with SGD with momentum and a cosine schedule, in the Trainer's order of samples."""
    steps = recipe.epochs * math.ceil(len(inputs) / recipe.batch_size)
    optimizer = torch.optim.SGD(
        network.parameters(), lr=recipe.learning_rate, momentum=recipe.momentum, weight_decay=recipe.weight_decay
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / steps)))
    network.train()
    for epoch in range(recipe.epochs):
        order = torch.from_numpy(np.random.default_rng([SEED, epoch]).permutation(len(inputs)))
        for chosen in order.split(recipe.batch_size):
            F.cross_entropy(network(inputs[chosen]), labels[chosen]).backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    return network.eval()


def _digits() -> Images:
    prepare = {"image_column": "image", "label_column": "label", "classes": 10, "channels": 1, "transforms": []}
    source = Source(loader="sglp.tasks.digits:Digits", name=None, revision=None)
    return task.open_split(source, {"train": True}, prepare | {"mean": [0.305], "std": [0.376]}, None, None, None)


def _recipe(samples: int, epochs: int) -> Recipe:
    sgd = {"optimizer": "sgd", "learning_rate": 0.05, "momentum": 0.9, "weight_decay": 5e-4, "batch_size": 64}
    other = {"warmup_epochs": 0.0, "label_smoothing": 0.0, "precision": "float32", "augment": [], "holdout": 0.0}
    chosen = {"samples": samples, "epochs": epochs, "keep": "last", "distillation": 0.0, "temperature": 2.0}
    return Finetuning.model_validate(sgd | other | chosen)
