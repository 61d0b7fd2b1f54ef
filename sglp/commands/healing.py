"""``--heal``: a few steps of LoRA on the texts, as in the pipeline's fine-tuning of language models."""

from pathlib import Path
from tempfile import TemporaryDirectory

from torch import nn

from sglp.commands.text_samples import TextSamples
from sglp.errors import DataError
from sglp.running import device_of
from sglp.tasks.schemas.causal_lm import Finetuning
from sglp.tasks.trainer.train import train
from sglp.tasks.training import find_training

BATCH_SIZE = 4
RECIPE = {
    "optimizer": "adamw",
    "learning_rate": 1e-3,
    "momentum": 0.0,
    "weight_decay": 0.0,
    "batch_size": BATCH_SIZE,
    "epochs": 1,
    "warmup_epochs": 0.1,
    "label_smoothing": 0.0,
    "holdout": 0.0,
    "keep": "last",
    "gradient_accumulation_steps": 1,
    "gradient_checkpointing": False,
    "distillation": 0.0,
    "temperature": 2.0,
    "tuning": "lora",
    "lora": {"r": 16, "alpha": 32, "dropout": 0.05, "targets": "all-linear"},
    "last_layers": 0,
}


def check_steps(samples: TextSamples, steps: int) -> None:
    """Check that there are enough sequences, each of which is used once.

    Raises:
        DataError: there are too few.
    """
    if steps * BATCH_SIZE > len(samples.texts):
        raise DataError(
            f"--heal={steps} needs {steps * BATCH_SIZE} sequences of {samples.texts.length} tokens, and {samples.name} "
            f"has {len(samples.texts)}: at most --heal={len(samples.texts) // BATCH_SIZE}"
        )


def heal(network: nn.Module, samples: TextSamples, steps: int, seed: int) -> nn.Module:
    """Train adapters for a number of steps, and merge them into the network's weights.

    Raises:
        SGLPError: peft is not installed, or the loss is not finite.
    """
    device = device_of(network)
    recipe = Finetuning.model_validate(RECIPE | {"samples": steps * BATCH_SIZE})
    training = find_training("causal_lm")
    trained, merge = training.adapt(network, recipe, seed)
    with TemporaryDirectory() as folder:
        train(trained, training, samples.texts, recipe, seed, Path(folder) / "checkpoints")
    return merge().to(device).eval()
