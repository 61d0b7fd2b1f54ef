"""Training of language models; see `sglp.tasks.training`."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from sglp.tasks.causal_lm import texts, tuning
from sglp.tasks.causal_lm.texts import Texts, TrainingTexts
from sglp.tasks.schemas.causal_lm import TextRecipe

adapt = tuning.adapt
collate = texts.stack


def training_samples(data: Texts, indices: Sequence[int] | np.ndarray, recipe: Any, seed: int) -> TrainingTexts:
    """Return the sequences at these indices, for training or validation."""
    return TrainingTexts(data, indices)


def trainer_arguments(recipe: TextRecipe) -> dict:
    """Return the Trainer's arguments for language models."""
    return {
        "max_grad_norm": 1.0,
        "metric_for_best_model": "loss",
        "gradient_accumulation_steps": recipe.gradient_accumulation_steps,
        "bf16": torch.cuda.is_available(),
    }
