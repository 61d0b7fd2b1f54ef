"""Checkpoints of a training that can be killed at any moment: which of them stand whole, and which must not be kept."""

import math
import shutil
from pathlib import Path

from transformers import TrainerCallback

from sglp.distributed import processes
from sglp.errors import SGLPError

COMPLETE = "complete"


class Marks(TrainerCallback):
    """What the Trainer calls as it goes."""

    def on_step_end(self, args, state, control, **kwargs):
        """A point in the log at the very end."""
        if state.global_step == state.max_steps:
            control.should_log = True
            control.should_evaluate = args.eval_strategy != "no"

    def on_log(self, args, state, control, logs, **kwargs):
        """An end to what diverges."""
        if not math.isfinite(logs.get("loss", 0.0)):
            if processes.rank() == 0:
                shutil.rmtree(args.output_dir)  # going on from there would end the same way
            processes.wait()  # the first to end ends the others
            raise SGLPError(
                f"training diverged, its loss is not finite: learning_rate={args.learning_rate} is too high"
            )

    def on_save(self, args, state, control, **kwargs):
        """A mark in each checkpoint that stands whole: a kill can fall into the writing of one."""
        processes.wait()
        (Path(args.output_dir) / f"checkpoint-{state.global_step}" / COMPLETE).touch()


def last_complete(resume: Path) -> str | None:
    """The newest checkpoint that stands whole; those that don't go."""
    found = sorted(resume.glob("checkpoint-*"), key=lambda folder: int(folder.name.rpartition("-")[2]))
    whole = [folder for folder in found if (folder / COMPLETE).exists()]
    for folder in found:
        if folder not in whole:
            shutil.rmtree(folder)
    return str(whole[-1]) if whole else None
