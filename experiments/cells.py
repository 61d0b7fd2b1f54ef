"""How values are written in tables."""

from collections.abc import Sequence

from experiments.outcomes import Quality
from experiments.statistics import Spread


def number(quality: Quality, value: float) -> str:
    """A value as it is shown: shares as per cent."""
    return f"{100 * value:.2f} %" if quality.share else _digits(value, 4)


def with_spread(quality: Quality, values: Spread) -> str:
    """A mean, and the standard deviation where there are several values."""
    if values.deviation is None:
        return number(quality, values.mean)
    if quality.share:
        return f"{100 * values.mean:.2f} ± {100 * values.deviation:.2f} %"
    return f"{_digits(values.mean, 4)} ± {_digits(values.deviation, 2)}"


def error(quality: Quality, values: Spread) -> str:
    """A standard error, nothing where there is one value."""
    if values.error is None:
        return ""
    return f"{100 * values.error:.2f}" if quality.share else _digits(values.error, 2)


def amount(value: float, unit: str = "") -> str:
    """A count with its prefix: 3.99 M."""
    prefixes = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1, ""), (1e-3, "m"), (1e-6, "µ"))
    factor, prefix = next((pair for pair in prefixes if abs(value) >= pair[0]), (1, ""))
    return f"{_digits(value / factor, 3)} {prefix}{unit}".strip()


def ranges(numbers: Sequence[int]) -> str:
    """Numbers in order, those in a row as "4-7"."""
    runs: list[list[int]] = []
    for i in numbers:
        if runs and runs[-1][-1] == i - 1:
            runs[-1].append(i)
        else:
            runs.append([i])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def _digits(value: float, count: int) -> str:
    """So many digits at least, zeros at the end too."""
    return f"{value:,.0f}" if abs(value) >= 10 ** (count - 1) else f"{value:#.{count}g}".rstrip(".")
