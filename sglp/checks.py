"""Types and ranges of the arguments of library functions, checked before any work is done."""

from collections.abc import Sequence
from numbers import Real
from pathlib import Path
from typing import Any, get_args

from torch import nn

from sglp.batches import even_slices
from sglp.choices import Pooling, is_whole_number
from sglp.errors import SGLPError

# The smallest allowed value of each option of the method sglp that is a whole number.
SMALLEST = {"random_inits": 1, "max_combinations": 1, "max_evaluations": 2, "beam_width": 1}


def check_network(model: Any) -> None:
    """Check that an argument is a network.

    Raises:
        SGLPError: it is not.
    """
    if not isinstance(model, nn.Module):
        hint = ": load it first, with sglp.load" if isinstance(model, str | Path) else ""
        raise SGLPError(f"model={model!r} is wrong: it must be a torch.nn.Module{hint}")


def check_arguments(
    model: Any,
    *,
    loss: Any,
    k: Any,
    prune_ratio: Any,
    method: Any,
    criterion: Any,
    seed: Any,
    pooling: Any,
    paths: Any,
    options: dict[str, Any],
) -> None:
    """Check the arguments of `sglp.compress`; see there.

    Raises:
        SGLPError: an argument has the wrong type, or a value that no network allows.
    """
    check_network(model)
    if not callable(loss):
        raise SGLPError(f"loss={loss!r} is wrong: it must be a function of the network's output and the target")
    if k != "auto":
        check_whole_number("k", k, 1, ', or "auto"')
    if isinstance(prune_ratio, bool) or not isinstance(prune_ratio, Real):
        raise SGLPError(f"prune_ratio={prune_ratio!r} is wrong: it must be a number, at least 0 and below 1")
    if not 0 <= float(prune_ratio) < 1:
        raise SGLPError(f"prune_ratio={prune_ratio} is impossible: it must be at least 0 and below 1")
    for name, value in (("method", method), ("criterion", criterion)):
        if not isinstance(value, str):
            raise SGLPError(f"{name}={value!r} is wrong: it must be a name, or package.module:function, as a string")
    check_whole_number("seed", seed, 0, " and below 2**63")
    if int(seed) >= 2**63:
        raise SGLPError(f"seed={seed} is too large: it must be below 2**63")
    if pooling not in get_args(Pooling):
        raise SGLPError(f"pooling={pooling!r} is unknown: it must be one of {', '.join(get_args(Pooling))}")
    listed = isinstance(paths, Sequence) and paths and all(isinstance(path, str) for path in paths)
    if paths is not None and not listed:
        raise SGLPError(f"paths={paths!r} is wrong: it must be a path of a module, or several paths, as strings")
    for name, smallest in SMALLEST.items():
        if name in options:
            check_whole_number(name, options[name], smallest)
    budget = options.get("budget")
    is_list = isinstance(budget, Sequence) and not isinstance(budget, str)
    if budget is not None and not (is_list and all(is_whole_number(number) for number in budget)):
        raise SGLPError(f"budget={budget!r} is wrong: it must be a list of whole numbers, one for each segment")


def check_sizes(**sizes: tuple[int, int]) -> dict[str, tuple[int, int]]:
    """Check pairs (number of samples, batch size) and return them by name.

    Raises:
        SGLPError: a pair is none, too small, or gives a batch that is too small for CKA.
    """
    for name, size in sizes.items():
        pair = isinstance(size, tuple | list) and len(size) == 2 and all(is_whole_number(number) for number in size)
        fewest = 4 if name == "calibration" else 1
        unused = pair and name == "recalibration" and size[0] == 0
        if not pair or (min(size) < fewest and not unused):
            raise SGLPError(
                f"{name}={size} is wrong: it must be (number of samples, batch size), such as (64, 16), each at least "
                f"{fewest}"
            )
        smallest = fewest if unused else min(part.stop - part.start for part in even_slices(*size))
        if smallest < fewest:
            raise SGLPError(
                f"{name}={size} is wrong: its smallest batch has {smallest} samples, and CKA needs at least {fewest}"
            )
    return {name: (int(number), int(size)) for name, (number, size) in sizes.items()}


def check_whole_number(name: str, value: Any, smallest: int, otherwise: str = "") -> None:
    """Check that an argument is a whole number.

    Args:
        name: the argument.
        value: its value.
        smallest: the smallest allowed value.
        otherwise: what else is allowed, for the message.

    Raises:
        SGLPError: it is not, or too small.
    """
    if not is_whole_number(value) or value < smallest:
        raise SGLPError(f"{name}={value!r} is wrong: it must be a whole number, at least {smallest}{otherwise}")
