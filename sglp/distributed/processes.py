"""Several processes of torch.distributed that share the work: each does a part, and all know the whole.

Whoever starts them (torchrun, accelerate) says how many there are; with one, everything here does nothing, as in a
user's own processes, which do not call the library in step. What is asked of all must be asked in the same order by
every one of them.
"""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta

from tqdm import tqdm

from sglp.errors import SGLPError

# The first one may wait for another run of the same; that one of them died is seen at once.
TIMEOUT = timedelta(hours=12)

ALL = slice(None)
_joined = False


class ProcessError(SGLPError):
    """Processes can't share the work as they were started."""


def count() -> int:
    """How many processes share the work."""
    return _distributed().get_world_size() if _joined else 1


def rank() -> int:
    """The number of this one; 0 is the one that writes."""
    return _distributed().get_rank() if _joined else 0


def part(items: int) -> slice:
    """Which of so many items are this process's: one run of them, empty where there are too few."""
    first, last = (items * number // count() for number in (rank(), rank() + 1))
    return slice(first, last)


def shared_map(function: Callable, items: Sequence, **bar) -> list:
    """What a function gives for all items, in their order; every process asks it about a run of them.

    Args:
        function: gives something small that can be sent; the same in every process.
        items: the same ones in every process.
        bar: of the progress bar, as `tqdm` takes it; without, there is none.
    """
    own = items[part(len(items))]
    results = [function(item) for item in (tqdm(own, disable=None, **bar) if bar else own)]
    if not _joined:
        return results
    parts: list = [None] * count()
    _distributed().all_gather_object(parts, results)
    return [result for part in parts for result in part]


def from_rank_zero(make: Callable):
    """What the first process makes, in all of them."""
    if not _joined:
        return make()
    box = [make() if rank() == 0 else None]
    _distributed().broadcast_object_list(box)
    return box[0]


@contextmanager
def entered_by_rank_zero(context: AbstractContextManager) -> Iterator:
    """What a context gives, in all processes; the first one alone enters it, and leaves it when all are done."""
    with context if rank() == 0 else nullcontext() as given:
        yield from_rank_zero(lambda: given)
        wait()


def wait() -> None:
    """Wait for all others to come here."""
    if _joined:
        # A barrier would be the GPUs', and ask which one is whose.
        _distributed().all_reduce(sys.modules["torch"].zeros(1))


@contextmanager
def joined() -> Iterator[None]:
    """Be one of the processes that torchrun or accelerate started, on a GPU of its own where there are any.

    Raises:
        ProcessError: nobody said how many there are, or they are more than the GPUs.
    """
    if "RANK" not in os.environ:
        raise ProcessError(
            "what was to start several processes started one that is told of no others: torchrun --nproc-per-node N "
            "does, and so does accelerate launch --multi_gpu"
        )
    import torch.distributed

    backend = "gloo"
    if torch.cuda.is_available():
        backend, local = "cpu:gloo,cuda:nccl", int(os.environ["LOCAL_RANK"])
        if local >= torch.cuda.device_count():
            raise ProcessError(
                f"process {local + 1} of this machine has no GPU, as {torch.cuda.device_count()} are visible: start "
                "one process a GPU"
            )
        torch.cuda.set_device(local)
    global _joined
    torch.distributed.init_process_group(backend, timeout=TIMEOUT)
    _joined = True
    yield
    wait()  # else the first to end would look lost to the others
    _joined = False
    torch.distributed.destroy_process_group()


def lost_another(error: RuntimeError) -> bool:
    """Whether an error says that another process is gone, or that it hung."""
    distributed = _distributed()
    return distributed is not None and (isinstance(error, distributed.DistError) or "gloo" in str(error))


def _distributed():
    """torch.distributed, if somebody has imported it: what works without torch shares nothing, and needs none here."""
    return sys.modules.get("torch.distributed")
