"""From one score a layer to a plan."""

from collections.abc import Sequence

from sglp.errors import BudgetError
from sglp.layers import Layer
from sglp.plan import Plan
from sglp.scoring import Combination, best_plan


def keep_best(
    layers: Sequence[Layer], scores: Sequence[float], keep: int, search: str
) -> tuple[Plan, list[Combination]]:
    """The plan that removes the removable layers of the lowest scores until `keep` layers are left."""
    fewest = max(1, sum(not layer.removable for layer in layers))
    if not fewest <= keep <= len(layers):
        raise BudgetError(f"{keep} layers can't stay: this network can keep {fewest} to {len(layers)}")
    free = sorted((i for i, layer in enumerate(layers) if layer.removable), key=lambda i: (scores[i], i))
    gone = set(free[: len(layers) - keep])
    rows = [Combination(0, (i,), float(scores[i]), search, i not in gone) for i in range(len(layers))]
    return best_plan(layers, rows), rows
