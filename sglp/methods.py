"""Every way to a plan has one signature; a dial names it.

    method(network, layers, segments, similarity, batches, keep, seed) -> (Plan, list of Combination)

network: the trained network; layers: what `find_layers` found; segments: inclusive (first, last); similarity: [layers,
layers] array; batches: pairs (inputs, target) of calibration data; keep: how many layers stay; seed: of whatever the
method draws.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from sglp.architecture import resolve
from sglp.budget import check_budget, split_budget
from sglp.errors import SGLPError
from sglp.scoring import best_plan, score_combinations


def find_method(name: str) -> Callable:
    """The method of this name: "sglp", a file in `sglp.baselines`, or a user's "package.module:function".

    Raises:
        SGLPError: there is none.
    """
    if ":" in name:
        return resolve(name)
    if name == "sglp":
        return sglp
    if name not in method_names():
        raise SGLPError(f"method={name} is unknown: it must be {', '.join(method_names())} or package.module:function")
    return resolve(f"sglp.baselines.{name}:{name}")


def method_names() -> list[str]:
    """The methods that are there."""
    files = (Path(__file__).parent / "baselines").glob("[a-z]*.py")
    return ["sglp", *sorted(file.stem for file in files if file.stem != "ranking")]


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
    **search,
):
    """Similarity guided layer partition pruning: the best combination of layers inside every segment by GradNorm.

    Args:
        network, layers, segments, similarity, batches, keep, seed: those of every method.
        budget: how many layers each segment keeps, in place of a split of `keep`.
        search: `draws`, `max_combinations`, `max_evaluations` and `beam_width` of `score_combinations`.
    """
    removable = [layer.removable for layer in layers]
    kept = split_budget(segments, removable, keep) if budget is None else check_budget(segments, removable, budget)
    combinations = score_combinations(network, layers, segments, kept, batches, seed=seed, **search)
    return best_plan(layers, combinations), combinations
