"""How values are written in tables."""

from experiments.outcomes import Quality
from experiments.statistics import Spread
from stages.support.outcome import prefix_of


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
    factor, prefix = prefix_of(value)
    return f"{_digits(value / factor, 3)} {prefix}{unit}".strip()


def _digits(value: float, count: int) -> str:
    """So many digits at least, zeros at the end too."""
    return f"{value:,.0f}" if abs(value) >= 10 ** (count - 1) else f"{value:#.{count}g}".rstrip(".")
