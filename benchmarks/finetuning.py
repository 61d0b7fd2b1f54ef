"""Fine-tuning through the Trainer against a plain PyTorch loop, which ends in the same weights."""

import math
import tempfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import sglp
from benchmarks.side_by_side import Row, in_turn
from sglp.tasks.image_classification import data as task
from sglp.tasks.image_classification import training
from sglp.tasks.schemas.image_classification import Finetuning
from sglp.tasks.schemas.workload import Recipe, Source
from sglp.tasks.trainer.train import train

TITLE = "Fine-tuning"
ROUNDS = 3
SEED = 0


def measure(small: bool) -> list[Row]:
    """A ResNet on the digits: images decoded and normalised one by one, checkpoints, a log; and the bare steps."""
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
        # In another memory format convolutions add up in another order, and after 32 steps weights are 0.3 apart.
        layout = torch.channels_last
        return _plain(network().to(memory_format=layout), inputs.to(memory_format=layout), labels, recipe)

    for (name, own), other in zip(ours().named_parameters(), plain().parameters(), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-3, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")
    work = f"ResNet-{depth} on the digits, {count}: `sglp.tasks.trainer.train.train`"
    note = "the loop has all images as one tensor in memory, and writes neither checkpoints nor a log"
    return [Row(work, "a plain loop, channels last too", in_turn(ours, plain, rounds), note=note)]


def _plain(network: nn.Module, inputs, labels, recipe: Recipe) -> nn.Module:
    """SGD with momentum and a cosine schedule, in the Trainer's order of samples."""
    size, steps = recipe.batch_size, recipe.epochs * math.ceil(len(inputs) / recipe.batch_size)
    settings = {"lr": recipe.learning_rate, "momentum": recipe.momentum, "weight_decay": recipe.weight_decay}
    optimizer = torch.optim.SGD(network.parameters(), **settings)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / steps)))
    network.train()
    for epoch in range(recipe.epochs):
        order = torch.from_numpy(np.random.default_rng([SEED, epoch]).permutation(len(inputs)))
        for chosen in order.split(size):
            F.cross_entropy(network(inputs[chosen]), labels[chosen]).backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    return network.eval()


def _digits():
    prepare = {"image_column": "image", "label_column": "label", "classes": 10, "channels": 1, "transforms": []}
    source = Source(loader="sglp.tasks.digits:Digits", name=None, revision=None)
    return task.open_split(source, {"train": True}, prepare | {"mean": [0.305], "std": [0.376]}, None, None, None)


def _recipe(samples: int, epochs: int) -> Recipe:
    sgd = {"optimizer": "sgd", "learning_rate": 0.05, "momentum": 0.9, "weight_decay": 5e-4, "batch_size": 64}
    rest = {"warmup_epochs": 0.0, "label_smoothing": 0.0, "precision": "float32", "augment": [], "holdout": 0.0}
    kept = {"samples": samples, "epochs": epochs, "keep": "last", "distillation": 0.0, "temperature": 2.0}
    return Finetuning.model_validate(sgd | rest | kept)
