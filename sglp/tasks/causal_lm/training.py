"""How language models are trained; see `sglp.tasks.training`."""

import torch

from sglp.tasks.causal_lm import texts, tuning
from sglp.tasks.causal_lm.texts import Texts, TrainingTexts

adapt, collate = tuning.adapt, texts.stack


def training_samples(data: Texts, indices, recipe, seed: int) -> TrainingTexts:
    """Sequences to train on, or to judge by: the same in every epoch."""
    return TrainingTexts(data, indices)


def trainer_arguments(recipe) -> dict:
    """What language models are trained with besides."""
    return {
        "max_grad_norm": 1.0,
        "metric_for_best_model": "loss",
        "gradient_accumulation_steps": recipe.gradient_accumulation_steps,
        "bf16": torch.cuda.is_available(),
    }
