"""Callbacks of the Trainer: complete checkpoints for runs that are killed, and an end for runs that diverge."""

import math
import shutil
from pathlib import Path

from transformers import TrainerCallback

from sglp.distributed import processes
from sglp.errors import SGLPError

COMPLETE = "complete"


class CompleteCheckpoints(TrainerCallback):
    """Marks checkpoints that are complete, and stops training that diverges."""

    def on_step_end(self, args, state, control, **kwargs):
        """Log the last step, too."""
        if state.global_step == state.max_steps:
            control.should_log = True
            control.should_evaluate = args.eval_strategy != "no"

    def on_log(self, args, state, control, **kwargs):
        """Stop if the loss is not finite."""
        if not math.isfinite(kwargs["logs"].get("loss", 0.0)):
            if processes.rank() == 0:
                shutil.rmtree(args.output_dir)  # a resumed run would diverge again
            processes.wait()  # the first process that ends stops the others
            raise SGLPError(
                f"training diverged, the loss is not finite: learning_rate={args.learning_rate} is too high"
            )

    def on_save(self, args, state, control, **kwargs):
        """Mark a checkpoint as complete: a kill can interrupt the writing of one."""
        processes.wait()
        (Path(args.output_dir) / f"checkpoint-{state.global_step}" / COMPLETE).touch()


def last_complete(resume: Path) -> str | None:
    """Return the newest complete checkpoint, and delete incomplete ones."""
    checkpoints = sorted(resume.glob("checkpoint-*"), key=lambda folder: int(folder.name.rpartition("-")[2]))
    complete = [folder for folder in checkpoints if (folder / COMPLETE).exists()]
    for folder in checkpoints:
        if folder not in complete:
            shutil.rmtree(folder)
    return str(complete[-1]) if complete else None
