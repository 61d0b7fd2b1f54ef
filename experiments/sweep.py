"""Many pipeline runs: ``python -m experiments.sweep k=2..8 method=sglp,tail seed=0..2 [--workers N]``.

Finished runs are skipped, cached stages are not computed again, and a failed run does not stop the others. A sweep that
was killed continues where it was when it is started again.
"""

import argparse
import os
import sys
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import AbstractContextManager
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Lock

from filelock import FileLock, Timeout
from tqdm import tqdm

from experiments import runs
from experiments.errors import RunError
from experiments.grid import check, parse
from experiments.schedule import Schedule
from experiments.snapshot import PARAMS, Snapshot
from sglp.errors import SGLPError

Points = dict[str, dict[str, object]]  # parameters by the names of runs
Results = Generator[tuple[str, dict[str, str] | RunError], None, None]


def sweep(points: Points, snapshot: Snapshot, workers: int = 1) -> dict[str, str]:
    """Run all points; stages that measure time run when nothing else does.

    Args:
        points: parameters by the names of runs.
        snapshot: the project's files.
        workers: the number of simultaneous runs until only the stages that measure time remain.

    Returns:
        The errors of failed runs, by their names.
    """
    untimed = {name: params for name, params in points.items() if not _plan_is_timed(params, snapshot)}
    results = side_by_side(untimed, snapshot, workers) if workers > 1 else ()
    failures = {name: str(result) for name, result in results if isinstance(result, RunError)}
    environment = _environments(1)[0] if workers > 1 else {}  # one GPU, as workers have; else the caller's
    bar = tqdm([name for name in points if name not in failures], desc="sweep", unit="point", disable=None)
    for name in bar:
        bar.set_postfix_str(name)
        try:
            runs.run(points[name], snapshot=snapshot, environment=environment)
        except RunError as error:
            failures[name] = str(error)
    return failures


def _plan_is_timed(params: dict[str, object], snapshot: Snapshot) -> bool:
    """Check whether latency decides the plan, so that stages before the timed one measure it."""
    return "latency" in (snapshot.values(params)[PARAMS]["target"] or {})


def side_by_side(points: Points, snapshot: Snapshot, workers: int) -> Results:
    """Run all stages that do not measure time, once for all points with the same parameters and inputs.

    Args:
        points: parameters by the names of runs; earlier points start first.
        snapshot: the project's files.
        workers: the number of simultaneous runs.

    Yields:
        As points complete, their names with the checksums of their stages' outputs by path, or with their errors.
    """
    schedule = Schedule(snapshot, points)
    lock = Lock()
    stopped = Event()
    results: dict[str, Future[dict[str, str]]] = {}
    environments: SimpleQueue[dict[str, str]] = SimpleQueue()
    for environment in _environments(workers):
        environments.put(environment)

    def run_step(key: str, params: dict[str, object], targets: list[str]) -> dict[str, str]:
        """Return the outputs' checksums; the first point with a key runs the step, and others wait for it."""
        with lock:
            is_first, result = key not in results, results.setdefault(key, Future())
        if is_first:
            environment = environments.get()
            try:
                if stopped.is_set():
                    raise RunError("stopped")
                name = runs.run(params, target=targets, snapshot=snapshot, environment=environment)
                result.set_result(runs.checksums(name, snapshot.baseline))
            except BaseException as error:
                result.set_exception(error)
            finally:
                environments.put(environment)
        return result.result()

    def run_steps(name: str) -> dict[str, str]:
        checksums: dict[str, str] = {}
        for step in schedule.steps:
            outputs = run_step(schedule.cache_key(name, step), points[name], schedule.targets(step))
            checksums = schedule.complete(name, step, outputs)
        return checksums

    # More threads than workers, because some points only wait for another point's run.
    pool = ThreadPoolExecutor(4 * workers)
    try:
        futures = {pool.submit(run_steps, name): name for name in points}
        for future in tqdm(as_completed(futures), desc="runs", total=len(futures), unit="point", disable=None):
            try:
                yield futures[future], future.result()
            except RunError as error:
                yield futures[future], error
    finally:  # no other run starts; running ones continue while this process exists
        stopped.set()
        pool.shutdown(wait=False, cancel_futures=True)


def _environments(workers: int) -> list[dict[str, str]]:
    """Return variables that give each worker a GPU or, without GPUs, an equal share of the cores."""
    import torch  # takes seconds to import, and a single worker does not need it

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = visible.split(",") if visible else [str(index) for index in range(torch.cuda.device_count())]
    if devices in ([], ["-1"]):
        return [{"OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // workers))}] * workers
    if len(devices) < 2:
        return [{}] * workers
    return [{"CUDA_VISIBLE_DEVICES": devices[worker % len(devices)]} for worker in range(workers)]


def _points(grid: Sequence[str], snapshot: Snapshot) -> Points:
    """Return a grid's distinct points: parameters of a workload that a point does not use do not make another point."""
    points: dict[str, tuple[str, dict[str, object]]] = {}
    for params in parse(grid):
        name = runs.name_of(params, snapshot=snapshot)
        points.setdefault(runs.identity(name), (name, params))
    return dict(points.values())


def _summary(points: Points, baseline: str, skipped: int, failures: dict[str, str]) -> str:
    """Return a small table of counts, then the errors."""
    checksums = [runs.checksums(name, baseline) for name in points if name not in failures]
    counts = {
        "points": len(points),
        "known before": skipped,
        "failed": len(failures),
        "distinct plans": len({run.get("data/plan.json") for run in checksums}),
        "networks fine-tuned": len({run.get("data/finetuned") for run in checksums}),
    }
    lines = [f"{count:6}  {what}" for what, count in counts.items()]
    lines += [f"{name} failed: {why}" for name, why in failures.items()]
    return "\n".join([*lines, "To compare them: make compare"])


def add_workers(parser: argparse.ArgumentParser) -> None:
    """Add the option --workers."""

    def positive(text: str) -> int:
        if not text.isdigit() or not int(text):
            raise argparse.ArgumentTypeError(f"{text} is wrong: it must be a whole number, 1 or more")
        return int(text)

    parser.add_argument("--workers", type=positive, default=1, metavar="N", help="simultaneous runs, one for each GPU")


def alone() -> AbstractContextManager:
    """Acquire the lock against a second sweep, which would repeat work and disturb latency measurements."""
    folder = Path(".dvc/tmp/copies")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        return FileLock(folder / "sweep.lock").acquire(timeout=0)
    except Timeout as error:
        raise RunError("another sweep is running in this project: start this one when it has ended") from error


def main() -> None:
    """Check all points, run those without results, and print a summary."""
    parser = argparse.ArgumentParser(prog="python -m experiments.sweep", description=__doc__)
    parser.add_argument("grid", nargs="+", metavar="KEY=VALUES", help="such as k=2..8, method=sglp,tail or target=null")
    add_workers(parser)
    arguments = parser.parse_args()
    try:
        snapshot = Snapshot.take()
        points = _points(arguments.grid, snapshot)
        new = {name: params for name, params in points.items() if not runs.is_whole(name, snapshot)}
        check(new.values(), snapshot)
        with alone():
            failures = sweep(new, snapshot, arguments.workers)
    except SGLPError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        os._exit(130)  # running stages end with this process, which would otherwise wait for them
    print(_summary(points, snapshot.baseline, len(points) - len(new), failures))
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
