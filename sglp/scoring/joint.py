"""Takes layers out one by one, from whichever segment can spare one most, until so many are left.

Similar layers do similar work: where one of a segment goes, what the others of it are worth changes, and all of them
are asked anew. What a layer elsewhere is worth changes less: it is asked anew only when it would be the next to go, as
in the accelerated greedy algorithm (M. Minoux, 1978). One segment makes it the plain greedy search, which asks about
every layer again in each step; with more segments it asks less.
"""

from collections.abc import Callable, Sequence

from tqdm import tqdm

from sglp.distributed.processes import shared_map
from sglp.errors import ScoringError


def search_jointly(
    segments: Sequence[tuple[int, int]],
    removable: Sequence[bool],
    goes: int,
    score: Callable[[int, list[int]], float],
    max_evaluations: int,
) -> tuple[list[int], dict[int, float]]:
    """Choose the layers that go; every segment keeps at least one.

    Args:
        segments: inclusive (first, last) pairs that cover all layers.
        removable: for every layer whether it can go.
        goes: how many go; no more than the segments can give.
        score: of the network without the layers of a list, the higher the better; its first argument is the segment
            of the layer that is asked about.
        max_evaluations: `score` is asked at most so often. Past it, what was said last decides.

    Returns:
        The layers that go, in their order; and for every removable layer by how much the score falls when it goes, as
        last asked.

    Raises:
        ScoringError: there are more layers to ask about than evaluations.
    """
    members = [[i for i in range(first, last + 1) if removable[i]] for first, last in segments]
    segment_of = {i: number for number, inside in enumerate(members) for i in inside}
    if len(segment_of) >= max_evaluations:
        raise ScoringError(
            f"score.max_evaluations={max_evaluations} is too small: {len(segment_of)} layers can go, and each is to be "
            "asked about, besides the network as it is"
        )
    spare = [last - first for first, last in segments]
    gone: list[int] = []
    falls: dict[int, float] = {}
    asked: dict[int, int] = {}  # how many layers were gone when a layer was asked about last
    now, evaluations = score(0, gone), 1

    def ask(layers: list[int]) -> None:
        nonlocal evaluations
        asked.update(dict.fromkeys(layers, len(gone)))
        layers = layers[: max_evaluations - evaluations]
        evaluations += len(layers)
        scores = shared_map(lambda i: score(segment_of[i], [*gone, i]), layers)
        falls.update((i, now - value) for i, value in zip(layers, scores, strict=True))

    with tqdm(total=goes, desc="layers that go", unit="", disable=None) as bar:
        ask(list(segment_of))
        while len(gone) < goes:
            able = [i for i, number in segment_of.items() if i not in gone and spare[number]]
            first = min(able, key=lambda i: (falls[i], i))
            if asked[first] < len(gone):
                ask([first])
                continue
            now -= falls[first]
            gone.append(first)
            spare[segment_of[first]] -= 1
            bar.update()
            if len(gone) < goes:
                ask([i for i in members[segment_of[first]] if i not in gone])
    return gone, falls
