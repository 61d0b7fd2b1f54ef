"""The signatures of methods and criteria, and their lookup by name.

    method(network, layers, segments, similarity, batches, keep, seed) -> (Plan, list of SetScore or of LayerScore)

network: the trained network. layers: as returned by `find_layers`. segments: inclusive (first, last) pairs. similarity:
array [layers, layers]. batches: pairs (inputs, target) of calibration data. keep: number of layers to keep. seed: seed
of everything that the method draws. A method with the keyword argument `loss` gets the user's loss, a function of the
network's output and the target. A method with the keyword argument `reconstruction_batches` also gets the batches
that kept layers are refitted on afterwards, one with `errors` what `sglp.reconstruction_errors` measures on these.

    criterion(network, layers, batches, loss, seed, random_inits) -> score
    score(kept, removed, already_removed) -> float

A criterion is called once and returns a scoring function, which is called for every candidate. loss: function of the
network's output and the target. random_inits: number of random networks to average over. kept, removed: indices of the
layers that a segment would keep and lose. already_removed: indices of the layers that other segments have lost. Higher
scores are better. Set `criterion.of_segment = True` if scores are comparable only within one segment, because they do
not measure the whole pruned network: such a criterion can't be used with the search "joint".

Each docstring states the rule, its source, its cost and its use; docs/methods.md collects them.
"""

import inspect
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from sglp.architecture import resolve
from sglp.budget import check_budget, split_budget
from sglp.choices import Search
from sglp.errors import BudgetError, SGLPError
from sglp.layer import Layer
from sglp.plan import Plan
from sglp.scores import LayerScore, SetScore
from sglp.scoring.combinations import SEARCH, best_plan, score_combinations

RECONSTRUCTION_BATCHES = "reconstruction_batches"
ERRORS = "errors"


def find_method(name: str) -> Callable:
    """Find a method by name: "sglp", a file in `sglp.scoring.baselines`, or a user's "package.module:function".

    Raises:
        SGLPError: the name is unknown.
    """
    if name == "sglp":
        return sglp
    return _find("method", name, method_names(), "sglp.scoring.baselines.{0}:{0}")


def takes(method: Callable, option: str) -> bool:
    """Check whether a method has a keyword argument."""
    return option in inspect.signature(method).parameters


def with_errors(method: Callable, options: dict[str, Any], errors: np.ndarray | None) -> dict[str, Any]:
    """Return a method's options with the reconstruction errors, if it or its criterion uses them."""
    criterion = options.get("criterion")
    if criterion is not None and takes(criterion, ERRORS):
        options = options | {"criterion": partial(criterion, errors=errors)}
    return options | ({ERRORS: errors} if takes(method, ERRORS) else {})


def find_criterion(name: str) -> Callable:
    """Find a criterion by name: a file in `sglp.scoring.criteria`, or a user's "package.module:callable".

    Raises:
        SGLPError: the name is unknown.
    """
    return _find("score.criterion", name, criterion_names(), "sglp.scoring.criteria.{0}:criterion")


def method_names() -> list[str]:
    """Return the names of all methods."""
    return ["sglp", *_files("baselines")]


def criterion_names() -> list[str]:
    """Return the names of all criteria."""
    return _files("criteria")


def check_search_budget(budget: Sequence[int] | None, search: str) -> None:
    """Check that the search "joint" has no budget per segment.

    Raises:
        BudgetError: it has one.
    """
    if budget is not None and search == "joint":
        raise BudgetError(
            f"score.budget={list(budget)} says what each segment keeps, but with score.search=joint all segments share "
            "one budget: use sequential or independent, or leave out score.budget"
        )


def _files(package: str) -> list[str]:
    return sorted(file.stem for file in (Path(__file__).parent / package).glob("[a-z]*.py"))


def _find(parameter: str, name: str, names: list[str], target: str) -> Callable:
    if ":" in name:
        return resolve(name)
    if name not in names:
        raise SGLPError(f"{parameter}={name} is unknown: it must be {', '.join(names)} or package.module:function")
    return resolve(target.format(name))


def sglp(
    network: nn.Module,
    layers: Sequence[Layer],
    segments: Sequence[tuple[int, int]],
    similarity: np.ndarray,
    batches: Iterable,
    keep: int,
    seed: int,
    *,
    budget: Sequence[int] | None = None,
    search: Search = SEARCH,
    **scoring,
) -> tuple[Plan, list[SetScore] | list[LayerScore]]:
    """SGLP: similarity guided layer partition pruning, which chooses layers within segments of similar layers.

    The layers are partitioned into segments of similar layers. With the default criterion `reconstruction_error` the
    best plan within the segments is found exactly. With any other criterion layers are removed one at a time, always
    from the segment where the criterion says that the removal costs least. After a removal the other layers of that
    segment are scored again; layers of other segments are scored again only right before they would be removed. With
    `score.search: sequential` or `independent` the layers to keep are split over the segments in advance, and
    combinations of a segment's layers are scored: all of them where they are few, otherwise by beam search.
    `sequential` scores a segment without the layers that earlier segments have lost, `independent` scores each segment
    on its own.

    Source: SGLP (arXiv 2410.14720), where segments are searched independently and the criterion is GradNorm.
    Cost: forward `C * B + 1`, backward `0`. These are for the criterion fitted_loss; other criteria have their own
    cost, and the default criterion measures all runs of layers in one pass. C is at most one more than the number of
    evaluations of `loss_greedy`, and falls with the number of segments; `score.max_evaluations` bounds it.
    Use: as the default. It removes more layers where they matter less, and need not score every layer again in each
    step.

    Args:
        network, layers, segments, similarity, batches, keep, seed: as for every method.
        budget: number of layers that each segment keeps, instead of a split of `keep`; not with the search "joint".
        search: how segments are searched; see `score_combinations`.
        scoring: `criterion`, `loss`, `random_inits`, `max_combinations`, `max_evaluations` and `beam_width` of
            `score_combinations`.

    Raises:
        BudgetError: the segments can't keep this number of layers, or there is a budget per segment with the search
            "joint".
    """
    check_search_budget(budget, search)
    removable = [layer.removable for layer in layers]
    kept = split_budget(segments, removable, keep) if budget is None else check_budget(segments, removable, budget)
    scores = score_combinations(network, layers, segments, kept, batches, search=search, seed=seed, **scoring)
    return best_plan(layers, scores), scores
