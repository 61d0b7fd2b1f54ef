"""Trains an image classifier with transformers' Trainer; a killed run goes on and ends in the same weights (CPU)."""

import math
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from sglp.batches import logits_of
from sglp.errors import SGLPError
from sglp.tasks.images import Images
from sglp.tasks.samples import EpochSampler, TrainingSamples, collate
from sglp.tasks.workload import Recipe

# The run is logged, saved and (with a held-out share) judged this often, at the same steps, so that what is logged
# after a resume is what an undisturbed run would have logged.
POINTS = 25
COMPLETE = "complete"


def train(
    network: nn.Module,
    images: Images,
    recipe: Recipe,
    seed: int,
    resume: Path,
    teacher: nn.Module | None = None,
    distillation: float = 0.0,
    temperature: float = 1.0,
) -> list[dict]:
    """Train a network in place.

    Args:
        network: the network; ends in eval mode on the CPU.
        images: the training split.
        recipe: how.
        seed: of the order of samples, augmentation, dropout and the held-out share.
        resume: folder for checkpoints; what a killed run left there is gone on with.
        teacher: the network to distil from, or None.
        distillation: weight of the teacher in the loss, the labels' is the rest.
        temperature: of the teacher's and the network's outputs in distillation.

    Returns:
        One row a point of the log: step, epoch, loss, learning_rate, heldout_loss, heldout_accuracy.

    Raises:
        SGLPError: the loss is not finite at some point, or several GPUs are visible.
        DataError: an image can't be prepared, or the images differ in size.
    """
    chosen = np.random.default_rng(seed).permutation(len(images))
    held = chosen[: math.ceil(recipe.holdout * len(images))]
    samples = TrainingSamples(images, np.sort(chosen[len(held) :]), recipe.augment, seed)
    steps = recipe.epochs * math.ceil(len(samples) / recipe.batch_size)
    every = max(1, math.ceil(steps / POINTS))
    arguments = TrainingArguments(
        output_dir=str(resume),
        per_device_train_batch_size=recipe.batch_size,
        per_device_eval_batch_size=recipe.batch_size,
        num_train_epochs=recipe.epochs,
        learning_rate=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        lr_scheduler_type="cosine",
        warmup_steps=recipe.warmup_epochs * math.ceil(len(samples) / recipe.batch_size),
        max_grad_norm=0.0,
        optim="sgd" if recipe.optimizer == "sgd" else "adamw_torch",
        optim_args=f"momentum={recipe.momentum}" if recipe.optimizer == "sgd" else None,
        logging_strategy="steps",
        logging_steps=every,
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=every,
        save_total_limit=2,
        eval_strategy="steps" if len(held) else "no",
        eval_steps=every,
        load_best_model_at_end=recipe.keep == "best",
        metric_for_best_model="accuracy" if recipe.keep == "best" else None,
        seed=seed,
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
        remove_unused_columns=False,
        label_names=["labels"],
        report_to=[],
        disable_tqdm=not sys.stderr.isatty(),
    )
    if arguments.n_gpu > 1:
        raise SGLPError(
            f"{arguments.n_gpu} GPUs are visible, which would multiply the recipe's batch size: choose one with "
            "CUDA_VISIBLE_DEVICES"
        )
    trainer = _Classifier(
        model=network,
        args=arguments,
        train_dataset=samples,
        eval_dataset=TrainingSamples(images, np.sort(held), None, seed) if len(held) else None,
        data_collator=collate,
        compute_metrics=lambda p: {"accuracy": float((p.predictions.argmax(-1) == p.label_ids).mean())},
        callbacks=[_Marks()],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.label_smoothing, trainer.teacher = recipe.label_smoothing, teacher
    trainer.distillation, trainer.temperature = distillation, temperature
    trainer.train(resume_from_checkpoint=_last_complete(resume))
    network.cpu().eval()
    rows = _history(trainer.state.log_history)
    if not all(math.isfinite(row.get("loss", 0.0)) for row in rows):
        raise SGLPError(f"training diverged, its loss is not finite: learning_rate={recipe.learning_rate} is too high")
    return rows


class _Classifier(Trainer):
    """Trainer with a classifier's loss, distillation, and weight decay on all parameters."""

    def _get_train_sampler(self, train_dataset=None) -> Sampler:
        return EpochSampler(len(self.train_dataset), self.args.seed)

    def get_decay_parameter_names(self, model) -> list[str]:
        return [name for name, _ in model.named_parameters()]

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        logits = logits_of(model(inputs["inputs"]))
        loss = F.cross_entropy(logits, inputs["labels"], label_smoothing=self.label_smoothing)
        if self.distillation and model.training:
            loss = (1 - self.distillation) * loss + self.distillation * self._distance(logits, inputs["inputs"])
        return (loss, {"logits": logits}) if return_outputs else loss

    def _distance(self, logits: Tensor, inputs: Tensor) -> Tensor:
        """Hinton et al. 2015: Kullback-Leibler divergence from the teacher at a temperature, times its square."""
        with torch.no_grad():
            target = logits_of(self.teacher.to(inputs.device).eval()(inputs)) / self.temperature
        student = F.log_softmax(logits / self.temperature, dim=-1)
        distance = F.kl_div(student, F.log_softmax(target, dim=-1), log_target=True, reduction="batchmean")
        return distance * self.temperature**2


class _Marks(TrainerCallback):
    """A point in the log at the very end, and a mark in each checkpoint that stands whole."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == state.max_steps:
            control.should_log = True
            control.should_evaluate = args.eval_strategy != "no"

    def on_save(self, args, state, control, **kwargs):
        # A kill can fall into the writing of a checkpoint; what has this mark is whole.
        (Path(args.output_dir) / f"checkpoint-{state.global_step}" / COMPLETE).touch()


def _last_complete(resume: Path) -> str | None:
    """The newest checkpoint that stands whole; those that don't go."""
    found = sorted(resume.glob("checkpoint-*"), key=lambda folder: int(folder.name.rpartition("-")[2]))
    whole = [folder for folder in found if (folder / COMPLETE).exists()]
    for folder in found:
        if folder not in whole:
            shutil.rmtree(folder)
    return str(whole[-1]) if whole else None


def _history(log: list[dict]) -> list[dict]:
    """The log's rows by step, without the times in it."""
    names = {
        "loss": "loss",
        "learning_rate": "learning_rate",
        "eval_loss": "heldout_loss",
        "eval_accuracy": "heldout_accuracy",
    }
    rows: dict[int, dict] = {}
    for entry in log:
        row = rows.setdefault(entry["step"], {"step": entry["step"], "epoch": entry["epoch"]})
        row.update({names[key]: value for key, value in entry.items() if key in names})
    return [row for row in rows.values() if len(row) > 2]
