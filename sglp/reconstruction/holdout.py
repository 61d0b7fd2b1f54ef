"""Calibration data: which batches are fitted on, which are held out, and which samples each process has."""

from typing import Any

from sglp.batches import rebatch
from sglp.cutting import can_be_cut, part_of, size_of
from sglp.distributed import processes
from sglp.errors import ScoringError

PARTS = 8  # one of which is held out


def split(inputs: list) -> tuple[list, list]:
    """Split batches into those to fit on and the held-out last eighth.

    Fewer than 8 batches are cut into 8, or into as many as have two samples each, which batch norm needs. Batches that
    are as many already stay as they are, and so do those that can't be cut.
    """
    samples = sum(size_of(one) for one in inputs)
    parts = min(PARTS, samples // 2)
    if len(inputs) < parts and all(can_be_cut(one) for one in inputs):
        inputs = [one for one, _ in rebatch([(one, None) for one in inputs], samples, -(-samples // parts))]
    count = max(1, len(inputs) // PARTS)
    return (inputs[:-count], inputs[-count:]) if len(inputs) > 1 else (inputs, inputs)


def own_part(inputs: Any) -> Any:
    """Return this process's samples of a batch."""
    size = size_of(inputs)
    if size < processes.count():
        raise ScoringError(
            f"a batch of {size} samples can't be shared by {processes.count()} processes: reconstruct with larger "
            "batches or fewer processes"
        )
    own = processes.part(size)
    return inputs if processes.count() == 1 else part_of(inputs, own.start, own.stop)
