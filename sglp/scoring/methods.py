"""Every way to a plan has one signature, and so has every criterion inside segments; dials name them.

    method(network, layers, segments, similarity, batches, keep, seed) -> (Plan, list of SetScore or of LayerScore)

network: the trained network; layers: what `find_layers` found; segments: inclusive (first, last); similarity: [layers,
layers] array; batches: pairs (inputs, target) of calibration data; keep: how many layers stay; seed: of whatever the
method draws.

    criterion(network, layers, batches, loss, seed, random_inits) -> score
    score(kept, gone, before) -> float

loss: of the network's output and the target; random_inits: of random networks to average over; kept, gone: numbers of a
segment's layers that are to stay and to go; before: of layers of other segments that are out already. The higher a
score the better. A score that compares sets of one segment only, as it is not that of the whole network that is left,
says so: criterion.of_segment = True; then segments can't share what goes (search "joint").

What each does, where it is from, what it costs and when to use it stands in its docstring, and so in docs/methods.md.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from sglp.architecture import resolve
from sglp.budget import check_budget, split_budget
from sglp.choices import Search
from sglp.errors import BudgetError, SGLPError
from sglp.scoring.combinations import SEARCH, best_plan, score_combinations


def find_method(name: str) -> Callable:
    """The method of this name: "sglp", a file in `sglp.scoring.baselines`, or a user's "package.module:function".

    Raises:
        SGLPError: there is none.
    """
    if name == "sglp":
        return sglp
    return _find("method", name, method_names(), "sglp.scoring.baselines.{0}:{0}")


def find_criterion(name: str) -> Callable:
    """The criterion of this name: a file in `sglp.scoring.criteria`, or a user's "package.module:callable".

    Raises:
        SGLPError: there is none.
    """
    return _find("score.criterion", name, criterion_names(), "sglp.scoring.criteria.{0}:criterion")


def method_names() -> list[str]:
    """The methods that are there."""
    return ["sglp", *_files("baselines")]


def criterion_names() -> list[str]:
    """The criteria that are there."""
    return _files("criteria")


def check_shared(budget: Sequence[int] | None, search: str) -> None:
    """Check that segments which share what goes have no budget each.

    Raises:
        BudgetError: they have.
    """
    if budget is not None and search == "joint":
        raise BudgetError(
            f"score.budget={list(budget)} says what each segment keeps, but with score.search=joint they share it: "
            "use sequential or independent"
        )


def _files(package: str) -> list[str]:
    return sorted(file.stem for file in (Path(__file__).parent / package).glob("[a-z]*.py"))


def _find(dial: str, name: str, names: list[str], where: str) -> Callable:
    if ":" in name:
        return resolve(name)
    if name not in names:
        raise SGLPError(f"{dial}={name} is unknown: it must be {', '.join(names)} or package.module:function")
    return resolve(where.format(name))


def sglp(
    network,
    layers,
    segments,
    similarity,
    batches,
    keep: int,
    seed: int,
    *,
    budget: Sequence[int] | None = None,
    search: Search = SEARCH,
    **scoring,
):
    """SGLP: similarity guided layer partition pruning, layers chosen inside segments of similar ones.

    Layers are cut into segments of similar ones. Segments share what goes: a layer at a time, from the segment that can
    spare one most by a criterion, where the other layers of that segment are asked about anew, and those elsewhere only
    before they go. With `score.search: sequential` or `independent` each segment keeps its share of the layers; combinations of
    them are scored, all where they are few, else by beam search, with the layers gone that segments before have lost,
    or every segment on its own.

    Source: SGLP (arXiv 2410.14720), where segments are searched alone and the criterion is GradNorm.
    Cost: forward `C * B + 1`, backward `0`. That is with the criterion fitted_loss; others have their own cost. C is at
    most that of `loss_greedy` and one, and falls with the number of segments; `score.max_evaluations` bounds it.
    Use: as the default. What goes is not the same everywhere, and need not be asked about everywhere in each step.

    Args:
        network, layers, segments, similarity, batches, keep, seed: those of every method.
        budget: how many layers each segment keeps, in place of a split of `keep`; not where segments share.
        search: how segments are searched; see `score_combinations`.
        scoring: its `criterion`, `loss`, `random_inits`, `max_combinations`, `max_evaluations` and `beam_width`.

    Raises:
        BudgetError: the segments can't keep so many or so few, or have a budget each though they share one.
    """
    check_shared(budget, search)
    removable = [layer.removable for layer in layers]
    kept = split_budget(segments, removable, keep) if budget is None else check_budget(segments, removable, budget)
    combinations = score_combinations(network, layers, segments, kept, batches, search=search, seed=seed, **scoring)
    return best_plan(layers, combinations), combinations
