"""Train a network with transformers' Trainer; a killed run resumes and ends with the same weights (on a CPU).

Several processes take the same steps as one: each has a part of every batch. Only dropout differs, because every
process draws its own masks.
"""

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate.data_loader import prepare_data_loader
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler, SequentialSampler
from transformers import PrinterCallback, Trainer, TrainingArguments
from transformers.trainer_utils import EvalLoopOutput

from sglp.batches import to_device
from sglp.distributed import processes
from sglp.distributed.all_reduce import all_reduce_sum
from sglp.distributed.whole_batch import whole_batch
from sglp.errors import SGLPError
from sglp.hugging_face.networks import is_pretrained
from sglp.loss import IGNORED, cross_entropy
from sglp.running import call, device_of, logits_of
from sglp.tasks.drawing import draw
from sglp.tasks.schemas.workload import Recipe
from sglp.tasks.trainer.callbacks import CompleteCheckpoints, last_complete
from sglp.tasks.trainer.channels_last import channels_last
from sglp.tasks.trainer.samplers import EpochSampler, Parts
from sglp.tasks.training import TaskTraining

# Number of times that a run is logged, saved and (with held-out samples) evaluated. The steps are fixed, so that the
# log of a resumed run is the log of an undisturbed one.
LOG_EVENTS = 25


def train(
    network: nn.Module,
    task: TaskTraining,
    data: Any,
    recipe: Recipe,
    seed: int,
    resume: Path,
    teacher: nn.Module | None = None,
) -> list[dict]:
    """Train a network in place.

    Args:
        network: the network; ends in eval mode on the CPU.
        task: the training side of the task.
        data: the training split, as the task opens it.
        recipe: the recipe; with `distillation` and `temperature` if there is a teacher.
        seed: seed of the order of samples, augmentation, dropout and the held-out samples.
        resume: folder for checkpoints, from which a killed run resumes. It is deleted if training diverges.
        teacher: the network to distil from, or None.

    Returns:
        One row per log event: step, epoch, loss, learning_rate, heldout_loss, heldout_accuracy.

    Raises:
        SGLPError: the loss is not finite (raised as soon as it is logged), several GPUs are visible to one process, or
            the batch can't be divided by the number of processes.
        DataError: a sample can't be prepared, or there are fewer samples than the recipe needs.
    """
    if recipe.batch_size % processes.count():
        raise SGLPError(
            f"batch_size={recipe.batch_size} can't be divided by {processes.count()} processes: start a number of "
            "processes that divides it"
        )
    chosen, held_out = _split(data, recipe, seed)
    samples = task.training_samples(data, np.sort(chosen), recipe, seed)
    arguments = _arguments(task, recipe, seed, resume, len(samples), bool(held_out))

    def collate(items: list) -> dict:
        inputs, labels = task.collate(items or [samples[0, 0]])
        labels = labels if items else torch.full_like(labels, IGNORED)  # an empty part runs a placeholder
        return {"inputs": inputs, "labels": labels, "rows": int((labels != IGNORED).sum())}

    config = vars(network.config) if is_pretrained(network) else {}
    has_cache = "use_cache" in config
    trainer = _Trainer(
        model=network,
        args=arguments,
        train_dataset=samples,
        eval_dataset=task.training_samples(data, np.sort(held_out), None, seed) if held_out else None,
        data_collator=collate,
        callbacks=[CompleteCheckpoints()],
    )
    trainer.remove_callback(PrinterCallback)
    if not has_cache:  # the Trainer adds the entry to every config
        config.pop("use_cache", None)
    # The loss is a mean over the batch, so several batches of one step have to be averaged, too.
    trainer.model_accepts_loss_kwargs = False
    trainer.recipe = recipe
    trainer.teacher = teacher
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        raise SGLPError("the launcher asks for FSDP or DeepSpeed, which divide the network: start it without them")
    if processes.rank():
        torch.manual_seed(seed + processes.rank())  # dropout must differ between processes
    pair, _ = task.collate([samples[0, 0]] * 2)
    with channels_last(network, to_device(pair, device_of(network))):
        trainer.train(resume_from_checkpoint=processes.from_rank_zero(lambda: last_complete(resume)))
    # If the Trainer computes in half precision, it has replaced the network's forward.
    extract_model_from_parallel(network, keep_fp32_wrapper=False)
    network.cpu().eval()
    return _history(trainer.state.log_history)


def _split(data: Any, recipe: Recipe, seed: int) -> tuple[list[int], list[int]]:
    """Draw the indices of the samples to train on, and of the held-out samples."""
    count = len(data) if recipe.samples is None else recipe.samples
    num_held_out = math.ceil(recipe.holdout * count)
    chosen = draw(len(data), count, seed, f"samples to train on in {data.name}")[: count - num_held_out]
    # The last samples of the same permutation: calibration draws the first ones, and held-out samples must be unseen.
    held_out = draw(len(data), len(data), seed, "samples")[len(data) - num_held_out :]
    return chosen, held_out


def _arguments(
    task: TaskTraining, recipe: Recipe, seed: int, resume: Path, num_samples: int, evaluates: bool
) -> TrainingArguments:
    """Translate a recipe into the Trainer's arguments.

    Raises:
        SGLPError: several GPUs are visible to one process.
    """
    task_arguments = task.trainer_arguments(recipe)
    batches = math.ceil(num_samples / recipe.batch_size)
    steps_per_epoch = math.ceil(batches / task_arguments.get("gradient_accumulation_steps", 1))
    every = max(1, math.ceil(recipe.epochs * steps_per_epoch / LOG_EVENTS))
    arguments = TrainingArguments(
        output_dir=str(resume),
        per_device_train_batch_size=recipe.batch_size // processes.count(),
        per_device_eval_batch_size=recipe.batch_size // processes.count(),
        num_train_epochs=recipe.epochs,
        learning_rate=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        lr_scheduler_type="cosine",
        warmup_steps=round(recipe.warmup_epochs * steps_per_epoch),
        optim="sgd" if recipe.optimizer == "sgd" else "adamw_torch",
        optim_args=f"momentum={recipe.momentum}" if recipe.optimizer == "sgd" else None,
        logging_strategy="steps",
        logging_steps=every,
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=every,
        save_total_limit=2,
        eval_strategy="steps" if evaluates else "no",
        eval_steps=every,
        load_best_model_at_end=recipe.keep == "best",
        seed=seed,
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
        remove_unused_columns=False,
        label_names=["labels"],
        report_to=[],
        disable_tqdm=not sys.stderr.isatty(),
        **task_arguments,
    )
    if arguments.n_gpu > 1:
        raise SGLPError(
            f"{arguments.n_gpu} GPUs are visible to one process: choose one with CUDA_VISIBLE_DEVICES, or use all of "
            f"them with SGLP_LAUNCH='torchrun --nproc-per-node {arguments.n_gpu}'"
        )
    return arguments


class _Trainer(Trainer):
    """Trainer with one loss over classes for all tasks, distillation, and weight decay on all parameters."""

    recipe: Any
    teacher: Any
    train_dataset: Any
    eval_dataset: Any

    def get_train_dataloader(self) -> DataLoader:
        return self._loader(self.train_dataset, EpochSampler(len(self.train_dataset), self.args.seed))

    def get_eval_dataloader(self, eval_dataset=None) -> DataLoader:
        return self._loader(self.eval_dataset, SequentialSampler(self.eval_dataset))

    def _loader(self, dataset: Any, order: Sampler) -> DataLoader:
        parts = Parts(order, self.recipe.batch_size, drop_last=False)
        pin = self.args.dataloader_pin_memory
        loader = DataLoader(dataset, batch_sampler=parts, collate_fn=self.data_collator, pin_memory=pin)
        # With num_processes=1: otherwise the last batch would be filled up with samples that were used already.
        return prepare_data_loader(loader, self.args.device, num_processes=1, process_index=0, put_on_device=True)

    def get_decay_parameter_names(self, model) -> list[str]:
        return [name for name, _ in model.named_parameters()]

    def floating_point_ops(self, inputs) -> int:
        return 0  # the Trainer's estimate is not used

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels, rows = inputs["labels"], inputs["rows"]
        with whole_batch(counts=rows > 0):
            logits = logits_of(call(model, inputs["inputs"]))
        smoothing = self.recipe.label_smoothing if model.training else 0.0  # held-out samples are evaluated without it
        loss = cross_entropy(logits, labels, smoothing) if rows else 0.0 * logits.float().sum()
        if rows and self.teacher is not None and model.training:
            share = self.recipe.distillation
            loss = (1 - share) * loss + share * self._distance(logits, inputs["inputs"], labels)
        if model.training:
            # Weight this process's mean so that the mean over processes is the mean over all rows.
            loss = loss * (rows * processes.count() / int(all_reduce_sum(torch.tensor(rows))))
        return (loss, {"logits": logits}) if return_outputs else loss

    def evaluation_loop(self, dataloader, description, *_, **__) -> EvalLoopOutput:
        """Compute loss and accuracy over all rows with a label, in all processes."""
        model: Any = self.model
        model.eval()
        sums = torch.zeros(3, dtype=torch.float64)
        for batch in dataloader:
            with torch.no_grad():
                loss, outputs = self.compute_loss(model, batch, return_outputs=True)
            hits = (outputs["logits"].argmax(dim=-1) == batch["labels"]).sum()
            sums += torch.tensor([float(loss) * batch["rows"], int(hits), batch["rows"]])
        loss, hits, rows = all_reduce_sum(sums).tolist()
        metrics = {"eval_loss": loss / rows, "eval_accuracy": hits / rows}
        return EvalLoopOutput(np.empty(0), None, metrics, num_samples=len(self.eval_dataset))

    def _distance(self, logits: Tensor, inputs, labels: Tensor) -> Tensor:
        """Compute the divergence (KL) from the teacher at a temperature, times its square (Hinton et al. 2015)."""
        temperature, labelled = self.recipe.temperature, labels != IGNORED
        with torch.no_grad():
            target = logits_of(call(self.teacher.to(labels.device).eval(), inputs))[labelled].float() / temperature
        student = F.log_softmax(logits[labelled].float() / temperature, dim=-1)
        distance = F.kl_div(student, F.log_softmax(target, dim=-1), log_target=True, reduction="batchmean")
        return distance * temperature**2


def _history(log: list[dict]) -> list[dict]:
    """Collect the rows of the log by step, without times."""
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
