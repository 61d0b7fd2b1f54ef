"""Many runs of the pipeline: ``python -m experiments.sweep k=2..8 method=sglp,tail seed=0..2 [--workers N]``.

What is known is skipped, what is cached is not computed again, a run that fails stops no other one. A sweep that was
killed goes on where it was when it is started again.
"""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Lock

from filelock import FileLock, Timeout
from tqdm import tqdm

from experiments import runs
from experiments.git import RunError
from experiments.grid import check, parse
from experiments.lanes import Schedule
from experiments.snapshot import PARAMS, Snapshot
from sglp.errors import SGLPError

Points = dict[str, dict[str, object]]  # dials by the names of runs


def sweep(points: Points, snapshot: Snapshot, workers: int = 1) -> dict[str, str]:
    """Run all points; what is timed runs when nothing else does.

    Args:
        points: dials by the names of runs.
        snapshot: the project.
        workers: how many runs go side by side until only what is timed is left.

    Returns:
        Why runs failed, by their names.
    """
    untimed = {name: dials for name, dials in points.items() if not _times(dials, snapshot)}
    beside = side_by_side(untimed, snapshot, workers) if workers > 1 else ()
    failures = {name: str(found) for name, found in beside if isinstance(found, RunError)}
    left = {name: dials for name, dials in points.items() if name not in failures}
    environment = _environments(1)[0] if workers > 1 else {}  # one GPU, as workers had; else what the caller has
    with tqdm(left.items(), desc="sweep", unit="point", disable=None) as bar:
        for name, dials in bar:
            bar.set_postfix_str(name)
            try:
                runs.run(dials, snapshot=snapshot, environment=environment)
            except RunError as error:
                failures[name] = str(error)
    return failures


def _times(dials: dict[str, object], snapshot: Snapshot) -> bool:
    """Whether the way to a plan times networks."""
    return "latency" in (snapshot.values(dials)[PARAMS]["target"] or {})


def side_by_side(points: Points, snapshot: Snapshot, workers: int) -> Iterator[tuple[str, dict[str, str] | RunError]]:
    """Run every stage that is not timed, once for all points that ask the same of it.

    Args:
        points: dials by the names of runs; the first are begun first.
        snapshot: the project.
        workers: how many runs go side by side.

    Yields:
        A point's name, and the checksums of what its stages wrote, by path, or why it failed; as points get there.
    """
    lanes, answers, lock, stopped = Schedule(snapshot, points), {}, Lock(), Event()
    devices: SimpleQueue[dict[str, str]] = SimpleQueue()
    for environment in _environments(workers):
        devices.put(environment)

    def answer(question: str, dials: dict[str, object], targets: list[str]) -> dict[str, str]:
        """What stages wrote; the first point to ask runs them, others wait for it."""
        with lock:
            first, found = question not in answers, answers.setdefault(question, Future())
        if first:
            environment = devices.get()
            try:
                if stopped.is_set():
                    raise RunError("stopped")
                name = runs.run(dials, target=targets, snapshot=snapshot, environment=environment)
                found.set_result(runs.checksums(name, snapshot.baseline))
            except BaseException as error:
                found.set_exception(error)
            finally:
                devices.put(environment)
        return found.result()

    def go(name: str) -> dict[str, str]:
        found: dict[str, str] = {}
        for step in lanes.steps:
            made = answer(lanes.question(name, step), points[name], lanes.targets(step))
            found = lanes.arrived(name, step, made)
        return found

    # More points are on their way than there are workers, as some only wait for what another one runs.
    pool = ThreadPoolExecutor(4 * workers)
    try:
        futures = {pool.submit(go, name): name for name in points}
        for future in tqdm(as_completed(futures), desc="runs", total=len(futures), unit="point", disable=None):
            try:
                yield futures[future], future.result()
            except RunError as error:
                yield futures[future], error
    finally:  # nothing else begins; what runs now goes on for as long as this process
        stopped.set()
        pool.shutdown(wait=False, cancel_futures=True)


def _environments(workers: int) -> list[dict[str, str]]:
    """What tells each worker its GPU, or without one its share of the cores, which they would fight over."""
    import torch  # takes seconds, which one worker need not wait for

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(number) for number in range(torch.cuda.device_count())]
    if names in ([], ["-1"]):
        return [{"OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // workers))}] * workers
    if len(names) < 2:
        return [{}] * workers
    return [{"CUDA_VISIBLE_DEVICES": names[worker % len(names)]} for worker in range(workers)]


def _points(grid: Sequence[str], snapshot: Snapshot) -> Points:
    """What a grid asks for; dials of a workload that a point does not use make no other point of it."""
    found: dict[str, tuple[str, dict]] = {}
    for dials in parse(grid):
        name = runs.name_of(dials, snapshot=snapshot)
        found.setdefault(runs.identity(name), (name, dials))
    return dict(found.values())


def _summary(points: Points, baseline: str, skipped: int, failures: dict[str, str]) -> str:
    """A small table, then what failed and why."""
    found = [runs.checksums(name, baseline) for name in points if name not in failures]
    rows = {
        "points": len(points),
        "known before": skipped,
        "failed": len(failures),
        "distinct plans": len({one.get("data/plan.json") for one in found}),
        "networks fine-tuned": len({one.get("data/finetuned") for one in found}),
    }
    lines = [f"{count:6}  {what}" for what, count in rows.items()]
    lines += [f"{name} failed: {why}" for name, why in failures.items()]
    return "\n".join([*lines, "Side by side: make compare"])


def add_workers(parser: argparse.ArgumentParser) -> None:
    """Add the option --workers."""

    def number(text: str) -> int:
        if not text.isdigit() or not int(text):
            raise argparse.ArgumentTypeError(f"{text} is wrong: it must be a whole number, 1 or more")
        return int(text)

    parser.add_argument("--workers", type=number, default=1, metavar="N", help="runs side by side, one a GPU")


@contextmanager
def alone() -> Iterator[None]:
    """Two sweeps at a time would compute the same twice, and measure latency beside one another."""
    folder = Path(".dvc/tmp/copies")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(folder / "sweep.lock").acquire(timeout=0)
    except Timeout as error:
        raise RunError("another sweep is running in this project: start this one when it has ended") from error
    with lock:
        yield


def main() -> None:
    """Check all points, run those that are not known, and say what came of it."""
    parser = argparse.ArgumentParser(prog="python -m experiments.sweep", description=__doc__)
    parser.add_argument(
        "grid", nargs="+", metavar="DIAL=VALUES", help="as k=2..8, method=sglp,tail or score.budget=null"
    )
    add_workers(parser)
    arguments = parser.parse_args()
    try:
        snapshot = Snapshot.take()
        points = _points(arguments.grid, snapshot)
        there = {name for name in points.keys() & set(runs.known(snapshot.baseline)) if runs.is_whole(name, snapshot)}
        new = {name: dials for name, dials in points.items() if name not in there}
        check(new.values(), snapshot)
        with alone():
            failures = sweep(new, snapshot, arguments.workers)
    except SGLPError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        os._exit(130)  # what runs ends with this process, which would wait for it otherwise
    print(_summary(points, snapshot.baseline, len(there), failures))
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
