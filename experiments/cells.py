"""How values are written in tables."""

import numpy as np
import pandas as pd
from scipy.stats import sem

from experiments.outcomes import Quality
from stages.support.outcome import prefix_of


def number(quality: Quality, value: float) -> str:
    """Format a value of a metric; shares are in per cent."""
    return f"{100 * value:.2f} %" if quality.share else _digits(value, 4)


def with_spread(quality: Quality, values: "pd.Series[float]") -> str:
    """Format the mean, with the standard deviation if there are several values."""
    mean = values.mean()
    if len(values) == 1:
        return number(quality, mean)
    deviation = float(np.std(values, ddof=1))
    if quality.share:
        return f"{100 * mean:.2f} ± {100 * deviation:.2f} %"
    return f"{_digits(mean, 4)} ± {_digits(deviation, 2)}"


def error(quality: Quality, values: "pd.Series[float]") -> str:
    """Format the standard error of the mean; empty for a single value."""
    if len(values) == 1:
        return ""
    return f"{100 * float(sem(values)):.2f}" if quality.share else _digits(float(sem(values)), 2)


def amount(value: float, unit: str = "") -> str:
    """Format a count with a unit prefix, such as 3.99 M."""
    factor, prefix = prefix_of(value)
    return f"{_digits(value / factor, 3)} {prefix}{unit}".strip()


def _digits(value: float, count: int) -> str:
    """Format a number with at least `count` significant digits, trailing zeros included."""
    return f"{value:,.0f}" if abs(value) >= 10 ** (count - 1) else f"{value:#.{count}g}".rstrip(".")
