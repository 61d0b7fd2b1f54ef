"""Latency: two pieces of work timed in turn, so that whatever else the machine does hits both."""

import time
from collections.abc import Callable

import torch
from tqdm import tqdm

Work = Callable[[], object]
SHORTEST = 0.05  # seconds; faster work is repeated until a round takes so long


def seconds_in_turn(
    first: Work, second: Work, rounds: int, what: str, device: torch.device | None = None
) -> list[tuple[float, float]]:
    """Seconds of one run of each piece of work, round by round.

    Args:
        first, second: the work; each runs alone, after a warm-up.
        rounds: how often both are timed, one after the other.
        what: is timed, for the progress bar.
        device: where the work is done; the current GPU, if there is one, where it is not said.
    """
    repeats = [_repeats(work, device) for work in (first, second)]
    times: list[tuple[float, float]] = []
    for _ in tqdm(range(rounds), desc=what, unit="round", disable=None):
        times.append((_seconds(first, repeats[0], device), _seconds(second, repeats[1], device)))
    return times


def _seconds(work: Work, repeats: int, device: torch.device | None) -> float:
    """Seconds of one run, the mean over repeats."""
    start = time.perf_counter()
    for _ in range(repeats):
        work()
    if torch.cuda.is_available() and (device is None or device.type == "cuda"):
        torch.cuda.synchronize(device)
    return (time.perf_counter() - start) / repeats


def _repeats(work: Work, device: torch.device | None) -> int:
    _seconds(work, 2, device)  # warm-up
    return max(1, round(SHORTEST / _seconds(work, 2, device)))
