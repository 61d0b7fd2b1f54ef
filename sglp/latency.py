"""Latency: two functions are timed alternately, so that other load on the machine affects both."""

import time
from collections.abc import Callable

import torch
from tqdm import tqdm

Work = Callable[[], object]
SHORTEST = 0.05  # seconds; a faster function is repeated until a round takes this long


def seconds_in_turn(
    first: Work, second: Work, rounds: int, what: str, device: torch.device | None = None
) -> list[tuple[float, float]]:
    """Time two functions alternately.

    Args:
        first, second: the functions; each is warmed up first, and they never run at the same time.
        rounds: number of rounds, each of which times both functions.
        what: the label of the progress bar.
        device: the device that the functions run on; None is the current GPU if there is one, else the CPU.

    Returns:
        For each round the seconds of one run of `first` and of `second`.
    """
    repeats = [_repeats(work, device) for work in (first, second)]
    times: list[tuple[float, float]] = []
    for _ in tqdm(range(rounds), desc=what, unit="round", disable=None):
        times.append((_seconds(first, repeats[0], device), _seconds(second, repeats[1], device)))
    return times


def _seconds(work: Work, repeats: int, device: torch.device | None) -> float:
    """Return the seconds of one run, averaged over repeats."""
    start = time.perf_counter()
    for _ in range(repeats):
        work()
    if torch.cuda.is_available() and (device is None or device.type == "cuda"):
        torch.cuda.synchronize(device)
    return (time.perf_counter() - start) / repeats


def _repeats(work: Work, device: torch.device | None) -> int:
    _seconds(work, 2, device)  # warm-up
    return max(1, round(SHORTEST / _seconds(work, 2, device)))
