"""Trains a network with transformers' Trainer; a killed run goes on and ends in the same weights (CPU).

Several processes take the steps that one would: each has a part of every batch. Only dropout differs, whose masks each
of them draws for itself.
"""

import math
import sys
from pathlib import Path

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
from sglp.errors import SGLPError
from sglp.hugging_face.networks import is_pretrained
from sglp.loss import IGNORED, cross_entropy
from sglp.running import call, device_of, logits_of
from sglp.tasks.drawing import draw
from sglp.tasks.schemas.workload import Recipe
from sglp.tasks.trainer.callbacks import Marks, last_complete
from sglp.tasks.trainer.channels_last import channels_last
from sglp.tasks.trainer.samplers import EpochSampler, Parts
from sglp.tasks.trainer.whole_batch import whole_batch
from sglp.tasks.training import TaskTraining

# The run is logged, saved and (with a held-out share) judged this often, at the same steps, so that what is logged
# after a resume is what an undisturbed run would have logged.
LOG_EVENTS = 25


def train(
    network: nn.Module,
    task: TaskTraining,
    data,
    recipe: Recipe,
    seed: int,
    resume: Path,
    teacher: nn.Module | None = None,
) -> list[dict]:
    """Train a network in place.

    Args:
        network: the network; ends in eval mode on the CPU.
        task: what it is for.
        data: the training split, as the task opens it.
        recipe: how; with `distillation` and `temperature` where there is a teacher.
        seed: of the order of samples, augmentation, dropout and the held-out share.
        resume: folder for checkpoints; what a killed run left there is gone on with. Gone where training diverges.
        teacher: the network to distil from, or None.

    Returns:
        One row a point of the log: step, epoch, loss, learning_rate, heldout_loss, heldout_accuracy.

    Raises:
        SGLPError: the loss is not finite (told as soon as it is logged), several GPUs are visible to one process, or
            the processes can't share a batch alike.
        DataError: a sample can't be prepared, or there are fewer than the recipe asks for.
    """
    if recipe.batch_size % processes.count():
        raise SGLPError(
            f"batch_size={recipe.batch_size} can't be shared alike by {processes.count()} processes: start a number of "
            "them that divides it"
        )
    count = len(data) if recipe.samples is None else recipe.samples
    judging = math.ceil(recipe.holdout * count)
    chosen = draw(len(data), count, seed, f"samples to train on in {data.name}")[: count - judging]
    # Held out are the last of all there are: calibration draws the first with the same seed, and what judges may not
    # have been seen.
    held = draw(len(data), len(data), seed, "samples")[len(data) - judging :]
    samples = task.training_samples(data, np.sort(chosen), recipe, seed)
    further = task.trainer_arguments(recipe)
    batches = math.ceil(len(samples) / recipe.batch_size)
    steps_an_epoch = math.ceil(batches / further.get("gradient_accumulation_steps", 1))
    every = max(1, math.ceil(recipe.epochs * steps_an_epoch / LOG_EVENTS))
    arguments = TrainingArguments(
        output_dir=str(resume),
        per_device_train_batch_size=recipe.batch_size // processes.count(),
        per_device_eval_batch_size=recipe.batch_size // processes.count(),
        num_train_epochs=recipe.epochs,
        learning_rate=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        lr_scheduler_type="cosine",
        warmup_steps=round(recipe.warmup_epochs * steps_an_epoch),
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
        seed=seed,
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
        remove_unused_columns=False,
        label_names=["labels"],
        report_to=[],
        disable_tqdm=not sys.stderr.isatty(),
        **further,
    )
    if arguments.n_gpu > 1:
        raise SGLPError(
            f"{arguments.n_gpu} GPUs are visible to one process: choose one with CUDA_VISIBLE_DEVICES, or take all "
            f"with SGLP_LAUNCH='torchrun --nproc-per-node {arguments.n_gpu}'"
        )

    def collate(items: list) -> dict:
        inputs, labels = task.collate(items or [samples[0, 0]])
        labels = labels if items else torch.full_like(labels, IGNORED)  # a part that is empty needs something to run
        return {"inputs": inputs, "labels": labels, "rows": int((labels != IGNORED).sum())}

    entries = vars(network.config) if is_pretrained(network) else {}
    caches = "use_cache" in entries
    trainer = _Trainer(
        model=network,
        args=arguments,
        train_dataset=samples,
        eval_dataset=task.training_samples(data, np.sort(held), None, seed) if len(held) else None,
        data_collator=collate,
        callbacks=[Marks()],
    )
    trainer.remove_callback(PrinterCallback)
    if not caches:  # the Trainer notes it in any config
        entries.pop("use_cache", None)
    # The loss is a mean over the batch: of several batches that make a step, the mean is to be taken too.
    trainer.model_accepts_loss_kwargs = False
    trainer.recipe, trainer.teacher = recipe, teacher
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        raise SGLPError("the launcher asks for FSDP or DeepSpeed, which divide the network: start it without them")
    if processes.rank():
        torch.manual_seed(seed + processes.rank())  # of dropout: no two processes the same
    some, _ = task.collate([samples[0, 0]] * 2)
    with channels_last(network, to_device(some, device_of(network))):
        trainer.train(resume_from_checkpoint=processes.from_rank_zero(lambda: last_complete(resume)))
    # Where the Trainer computes in half precision, it has put another forward into the network.
    extract_model_from_parallel(network, keep_fp32_wrapper=False)
    network.cpu().eval()
    return _history(trainer.state.log_history)


class _Trainer(Trainer):
    """Trainer with the loss over classes of all tasks, distillation, and weight decay on all parameters."""

    def get_train_dataloader(self) -> DataLoader:
        return self._loader(self.train_dataset, EpochSampler(len(self.train_dataset), self.args.seed))

    def get_eval_dataloader(self, eval_dataset=None) -> DataLoader:
        return self._loader(self.eval_dataset, SequentialSampler(self.eval_dataset))

    def _loader(self, dataset, order: Sampler) -> DataLoader:
        parts = Parts(order, self.recipe.batch_size, drop_last=False)
        pin = self.args.dataloader_pin_memory
        loader = DataLoader(dataset, batch_sampler=parts, collate_fn=self.data_collator, pin_memory=pin)
        # Told that it is the only one: the Trainer's own would fill the last batch up with samples it has had.
        return prepare_data_loader(loader, self.args.device, num_processes=1, process_index=0, put_on_device=True)

    def get_decay_parameter_names(self, model) -> list[str]:
        return [name for name, _ in model.named_parameters()]

    def floating_point_ops(self, inputs) -> int:
        return 0  # the Trainer's estimate is not used

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels, rows = inputs["labels"], inputs["rows"]
        with whole_batch(counts=rows > 0):
            logits = logits_of(call(model, inputs["inputs"]))
        smoothing = self.recipe.label_smoothing if model.training else 0.0  # of held-out samples, the loss itself
        loss = cross_entropy(logits, labels, smoothing) if rows else 0.0 * logits.float().sum()
        if rows and self.teacher is not None and model.training:
            share = self.recipe.distillation
            loss = (1 - share) * loss + share * self._distance(logits, inputs["inputs"], labels)
        if model.training:
            # A mean over this process's rows, whose mean over processes is to be the mean over all rows.
            loss = loss * (rows * processes.count() / int(all_reduce_sum(torch.tensor(rows))))
        return (loss, {"logits": logits}) if return_outputs else loss

    def evaluation_loop(self, dataloader, description, *_, **__) -> EvalLoopOutput:
        """Loss and accuracy over all rows with a label, in all processes."""
        model, sums = self.model.eval(), torch.zeros(3, dtype=torch.float64)
        for batch in dataloader:
            with torch.no_grad():
                loss, outputs = self.compute_loss(model, batch, return_outputs=True)
            hits = (outputs["logits"].argmax(dim=-1) == batch["labels"]).sum()
            sums += torch.tensor([float(loss) * batch["rows"], int(hits), batch["rows"]])
        loss, hits, rows = all_reduce_sum(sums).tolist()
        metrics = {"eval_loss": loss / rows, "eval_accuracy": hits / rows}
        return EvalLoopOutput(None, None, metrics, num_samples=len(self.eval_dataset))

    def _distance(self, logits: Tensor, inputs, labels: Tensor) -> Tensor:
        """Hinton et al. 2015: Kullback-Leibler divergence from the teacher at a temperature, times its square."""
        temperature, labelled = self.recipe.temperature, labels != IGNORED
        with torch.no_grad():
            target = logits_of(call(self.teacher.to(labels.device).eval(), inputs))[labelled].float() / temperature
        student = F.log_softmax(logits[labelled].float() / temperature, dim=-1)
        distance = F.kl_div(student, F.log_softmax(target, dim=-1), log_target=True, reduction="batchmean")
        return distance * temperature**2


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
