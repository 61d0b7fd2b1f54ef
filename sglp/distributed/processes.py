"""Share work between the processes of torch.distributed: each process does a part, and all get the whole result.

The launcher (torchrun, accelerate) sets the number of processes, and all of them must call these functions in the same
order. Outside `joined`, each process does all the work itself. This is also the case in processes that a user starts,
which need not call the library in step.
"""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any, TypeVar

from tqdm import tqdm

from sglp.errors import SGLPError

# Long, as the first process may wait for another run that computes the same. A process that dies is noticed at once.
TIMEOUT = timedelta(hours=12)

ALL = slice(None)
_joined = False

Item = TypeVar("Item")
Result = TypeVar("Result")


class ProcessError(SGLPError):
    """Processes can't share the work the way they were started."""


def count() -> int:
    """Return the number of processes that share the work."""
    return _distributed().get_world_size() if _joined else 1


def rank() -> int:
    """Return the index of this process; process 0 writes all files."""
    return _distributed().get_rank() if _joined else 0


def part(items: int) -> slice:
    """Return this process's contiguous part of a number of items; empty if there are too few."""
    first, last = (items * number // count() for number in (rank(), rank() + 1))
    return slice(first, last)


def shared_map(function: Callable[[Item], Result], items: Sequence[Item], **bar: Any) -> list[Result]:
    """Apply a function to all items, each process to its own part, and return all results in order.

    Args:
        function: the same in every process; its results are sent to the other processes, so they should be small.
        items: the same in every process.
        bar: options of the `tqdm` progress bar; without any, no bar is shown.
    """
    own = items[part(len(items))]
    results = [function(item) for item in (tqdm(own, disable=None, **bar) if bar else own)]
    if not _joined:
        return results
    parts: list = [None] * count()
    _distributed().all_gather_object(parts, results)
    return [result for part in parts for result in part]


def from_rank_zero(make: Callable[[], Result]) -> Result:
    """Call a function in process 0 only, and return its result in all processes."""
    if not _joined:
        return make()
    box: list = [make() if rank() == 0 else None]
    _distributed().broadcast_object_list(box)
    return box[0]


@contextmanager
def entered_by_rank_zero(context: AbstractContextManager) -> Iterator[Any]:
    """Enter a context in process 0 only, and yield its value in all processes; exit when all of them are done."""
    with context if rank() == 0 else nullcontext() as value:
        yield from_rank_zero(lambda: value)
        wait()


def wait() -> None:
    """Wait until all processes get here."""
    if _joined:
        # A sum on the CPU, as a barrier would use the GPUs and need to know which process has which.
        _distributed().all_reduce(sys.modules["torch"].zeros(1))


@contextmanager
def joined() -> Iterator[None]:
    """Join the processes that torchrun or accelerate started, with one GPU per process if there are GPUs.

    Raises:
        ProcessError: the launcher did not set the number of processes, or there are more processes than GPUs.
    """
    if "RANK" not in os.environ:
        raise ProcessError(
            "the launcher started a single process (RANK is not set): use torchrun --nproc-per-node N or accelerate "
            "launch --multi_gpu"
        )
    import torch.distributed

    backend = "gloo"
    if torch.cuda.is_available():
        backend, local = "cpu:gloo,cuda:nccl", int(os.environ["LOCAL_RANK"])
        if local >= torch.cuda.device_count():
            raise ProcessError(
                f"process {local + 1} of this machine has no GPU, as only {torch.cuda.device_count()} are visible: "
                "start one process per GPU"
            )
        torch.cuda.set_device(local)
    global _joined
    torch.distributed.init_process_group(backend, timeout=TIMEOUT)
    _joined = True
    yield
    wait()  # otherwise the first process to exit would look lost to the others
    _joined = False
    torch.distributed.destroy_process_group()


def lost_another(error: RuntimeError) -> bool:
    """Check whether an error says that another process died or hung."""
    distributed = _distributed()
    return distributed is not None and (isinstance(error, distributed.DistError) or "gloo" in str(error))


def _distributed() -> Any:
    """Return torch.distributed if it was imported, else None; this module must work without torch."""
    return sys.modules.get("torch.distributed")
