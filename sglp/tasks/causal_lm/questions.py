"""Evaluation of causal language models on question tasks: of lm-eval, with data from the hub, or of the user."""

import copy
import io
import math
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import nn

from sglp.errors import DataError
from sglp.running import eval_mode
from sglp.tasks.causal_lm.question_tasks import SEED, build_manager, load, only_errors


def answer(
    network: nn.Module, tokenizer: Any, tasks: list[str], folder: str | None, limit: int | None, batch_size: int
) -> dict[str, float]:
    """Evaluate a causal language model on question tasks. The result is the same on every run.

    Args:
        network: a causal language model from Hugging Face, on any device and in any precision.
        tokenizer: the tokenizer of the network; left unchanged.
        tasks: names of tasks, groups or tags. A task in the folder replaces lm-eval's task of the same name.
        folder: the user's task files, as for lm-eval's `include_path`. Python code that they name is run. Paths of data
            files are relative to the task file.
        limit: number of questions per task, from the first; None for all.
        batch_size: answers per batch.

    Returns:
        For each task, "{task}_{metric}" (or "{task}_{metric}_{filter}") and the number of questions as
        "{task}_questions". Shares such as accuracy are in 0..1. A group with metrics of its own replaces its tasks.

    Raises:
        DataError: an error of `check`, a task can't be loaded or needs the hub, or the network's outputs are not
            finite.
    """
    with only_errors(), _seeded(), TemporaryDirectory() as scratch:
        manager = build_manager(tasks, folder, Path(scratch))
        from lm_eval import evaluate
        from lm_eval.models.huggingface import HFLM

        loaded = load(manager, tasks)
        with eval_mode(network), nullcontext() if sys.stderr.isatty() else redirect_stderr(io.StringIO()):
            model = HFLM(
                pretrained=network,
                tokenizer=copy.deepcopy(tokenizer),
                batch_size=batch_size,
                softmax_dtype=torch.float32,  # in bfloat16, most answers would have equal sums of log-likelihoods
                add_bos_token=False if _marks_ends(tokenizer) else None,
            )
            # Not simple_evaluate, which queries pip, git and the GPU driver for a report that is not used here.
            results = evaluate(model, loaded, limit=limit, bootstrap_iters=0)
    _check_finite(results["samples"])
    return _metrics(results, tasks)


def _marks_ends(tokenizer: Any) -> bool:
    """Return whether the tokenizer ends every text with a token, which would separate a question from its answer."""
    return tokenizer.encode("a")[-1] == tokenizer.eos_token_id


@contextmanager
def _seeded() -> Iterator[None]:
    """Fix all seeds inside a context, as tasks may draw examples or shuffle choices, then restore the random states."""
    python_state = random.getstate()
    numpy_state = np.random.get_state()
    with torch.random.fork_rng():
        random.seed(SEED)
        np.random.seed(SEED)
        torch.manual_seed(SEED)
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)


def _check_finite(samples: dict[str, list[dict]]) -> None:
    """Raise an error if a log-likelihood is not finite."""
    for name, rows in samples.items():
        for response in chain.from_iterable(chain.from_iterable(row["resps"] for row in rows)):
            score = response[0] if isinstance(response, tuple) else response
            if isinstance(score, float) and not math.isfinite(score):
                raise DataError(f"a log-likelihood in {name} is {score}: the network's outputs are not finite")


def _metrics(results: dict, tasks: list[str]) -> dict[str, float]:
    """Return the metrics of tasks and groups, without the tasks of a group that has metrics of its own."""
    figures = {name: _figures(name, row) for name, row in results["results"].items()}
    members = results["group_subtasks"]
    hidden = {inner for group in members if figures[group] for inner in _inside(group, members)} - set(tasks)
    return {key: value for name in figures if name not in hidden for key, value in figures[name].items()}


def _figures(name: str, row: dict) -> dict[str, float]:
    """Return the metrics of one task or group, named "{name}_{metric}", without standard errors."""
    figures = {}
    for key, value in row.items():
        metric, comma, filtered = key.partition(",")
        if comma and not metric.endswith("_stderr") and isinstance(value, int | float):
            figures["_".join([name, metric] if filtered == "none" else [name, metric, filtered])] = float(value)
    return figures | ({f"{name}_questions": row["sample_len"]} if figures else {})


def _inside(group: str, members: dict[str, list[str]]) -> set[str]:
    """Return the names of all tasks and groups inside a group."""
    return {name for child in members.get(group, ()) for name in (child, *_inside(child, members))}
