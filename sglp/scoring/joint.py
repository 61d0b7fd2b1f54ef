"""Remove layers one at a time, always from the segment where the removal costs least.

Similar layers do similar work: removing one layer changes what the others in its segment are worth, so all of them are
scored again. Layers in other segments change less: one is scored again only when it would be removed next, as in the
accelerated greedy algorithm (M. Minoux, 1978). With one segment this is the plain greedy search, which scores every
layer again in each step; with more segments it needs fewer evaluations.
"""

from collections.abc import Callable, Sequence

from tqdm import tqdm

from sglp.distributed.processes import shared_map
from sglp.errors import ScoringError


def search_jointly(
    segments: Sequence[tuple[int, int]],
    removable: Sequence[bool],
    num_removed: int,
    score: Callable[[int, list[int]], float],
    max_evaluations: int,
) -> tuple[list[int], dict[int, float]]:
    """Choose the layers to remove; every segment keeps at least one layer.

    Args:
        segments: inclusive (first, last) pairs that cover all layers.
        removable: for each layer whether it can be removed.
        num_removed: number of layers to remove, at most what the segments can spare.
        score: score of the network without a list of layers, higher is better; its first argument is the index of the
            segment whose layer is being tested.
        max_evaluations: upper bound on the calls of `score`; beyond it the last known scores decide.

    Returns:
        The removed layers, in order of removal; and for each removable layer the drop in score that its removal caused
        when it was last tested.

    Raises:
        ScoringError: `max_evaluations` does not allow one evaluation per removable layer.
    """
    members = [[i for i in range(first, last + 1) if removable[i]] for first, last in segments]
    segment_of = {i: segment for segment, inside in enumerate(members) for i in inside}
    if len(segment_of) >= max_evaluations:
        raise ScoringError(
            f"score.max_evaluations={max_evaluations} is too small: it must be at least {len(segment_of) + 1} to score "
            f"the whole network and each of its {len(segment_of)} removable layers once"
        )
    spare = [last - first for first, last in segments]
    removed: list[int] = []
    drops: dict[int, float] = {}
    tested_at: dict[int, int] = {}  # number of removed layers when a layer was last tested
    current = score(0, removed)
    evaluations = 1

    def test(layers: list[int]) -> None:
        nonlocal evaluations
        tested_at.update(dict.fromkeys(layers, len(removed)))
        layers = layers[: max_evaluations - evaluations]
        evaluations += len(layers)
        scores = shared_map(lambda i: score(segment_of[i], [*removed, i]), layers)
        drops.update((i, current - value) for i, value in zip(layers, scores, strict=True))

    with tqdm(total=num_removed, desc="layers removed", unit="", disable=None) as bar:
        test(list(segment_of))
        while len(removed) < num_removed:
            candidates = [i for i, segment in segment_of.items() if i not in removed and spare[segment]]
            cheapest = min(candidates, key=lambda i: (drops[i], i))
            if tested_at[cheapest] < len(removed):
                test([cheapest])
                continue
            current -= drops[cheapest]
            removed.append(cheapest)
            spare[segment_of[cheapest]] -= 1
            bar.update()
            if len(removed) < num_removed:
                test([i for i in members[segment_of[cheapest]] if i not in removed])
    return removed, drops
