"""Evaluation of causal language models on question tasks: lm-eval's own, from the hub, or the user's, from a folder."""

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

import numpy as np
import torch
from torch import nn

from sglp.errors import DataError
from sglp.running import eval_mode
from sglp.tasks.causal_lm.question_tasks import SEED, load, manager_of, quiet


def answer(
    network: nn.Module, tokenizer, tasks: list[str], folder: str | None, questions: int | None, batch_size: int
) -> dict[str, float]:
    """Let a causal language model answer questions; the same questions give the same numbers on every run.

    Args:
        network: a causal language model of transformers, on any device and in any precision.
        tokenizer: its tokenizer; left as it is.
        tasks: names of tasks, groups or tags of tasks. One in the folder goes before lm-eval's of the same name.
        folder: the user's task files, as for lm-eval's `include_path`; Python that they name runs. Data files that
            they name are relative to the file that names them.
        questions: how many of each task, from its beginning; None for all.
        batch_size: how many answers the network is given at once.

    Returns:
        For each task "{task}_{metric}", with the filter behind it if the task has any, and "{task}_questions", how many
        were asked. Shares such as the accuracy are in 0..1. A group that has figures of its own stands for its tasks.

    Raises:
        DataError: errors as in `check`, a task can't be loaded or needs the hub, or the network's outputs are not
            finite.
    """
    with quiet(), _seeded(), TemporaryDirectory() as scratch:
        manager = manager_of(tasks, folder, Path(scratch))
        from lm_eval import evaluate
        from lm_eval.models.huggingface import HFLM

        loaded = load(manager, tasks)
        with eval_mode(network), nullcontext() if sys.stderr.isatty() else redirect_stderr(io.StringIO()):
            model = HFLM(
                pretrained=network,
                tokenizer=copy.deepcopy(tokenizer),
                batch_size=batch_size,
                softmax_dtype=torch.float32,  # sums of log-likelihoods in bfloat16 would make ties of most answers
                add_bos_token=False if _ends_texts(tokenizer) else None,
            )
            # Not simple_evaluate, which asks pip, git and the GPU's driver for things that nobody reads here.
            results = evaluate(model, loaded, limit=questions, bootstrap_iters=0)
    _check_finite(results["samples"])
    return _metrics(results, tasks)


def _ends_texts(tokenizer) -> bool:
    """Whether it marks the end of every text: between a question and its answer the mark would part them."""
    return tokenizer.encode("a")[-1] == tokenizer.eos_token_id


@contextmanager
def _seeded() -> Iterator[None]:
    """Fixed seeds, since tasks may draw examples or shuffle choices; the caller's random states are left alone."""
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        random.seed(SEED)
        np.random.seed(SEED)
        torch.manual_seed(SEED)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


def _check_finite(samples: dict[str, list[dict]]) -> None:
    for name, rows in samples.items():
        for response in chain.from_iterable(chain.from_iterable(row["resps"] for row in rows)):
            score = response[0] if isinstance(response, tuple) else response
            if isinstance(score, float) and not math.isfinite(score):
                raise DataError(f"a log-likelihood in {name} is {score}: the network's outputs are not finite")


def _metrics(results: dict, tasks: list[str]) -> dict[str, float]:
    """The figures of the tasks and groups asked for; of a group's tasks only where the group has none of its own."""
    figures = {name: _figures(name, row) for name, row in results["results"].items()}
    members = results["group_subtasks"]
    hidden = {inner for group in members if figures[group] for inner in _inside(group, members)} - set(tasks)
    return {key: value for name in figures if name not in hidden for key, value in figures[name].items()}


def _figures(name: str, row: dict) -> dict[str, float]:
    figures = {}
    for key, value in row.items():
        metric, comma, filtered = key.partition(",")
        if comma and not metric.endswith("_stderr") and isinstance(value, int | float):
            figures["_".join([name, metric] if filtered == "none" else [name, metric, filtered])] = float(value)
    return figures | ({f"{name}_questions": row["sample_len"]} if figures else {})


def _inside(group: str, members: dict[str, list[str]]) -> set[str]:
    return {name for child in members.get(group, ()) for name in (child, *_inside(child, members))}
