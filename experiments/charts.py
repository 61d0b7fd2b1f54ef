"""The comparison's figures as PNG bytes. Drawn without a display; equal inputs give equal bytes."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from typing import Any

import numpy as np
from matplotlib import style
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter, FuncFormatter, MaxNLocator
from matplotlib.transforms import ScaledTranslation

from experiments.outcomes import Comparison
from experiments.settings import Setting, beside, series
from experiments.statistics import removals, stability
from sglp.figures import STYLE

# Okabe and Ito's colours, which colour-blind readers can tell apart; on grey paper, the shapes differ.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#4d4d4d")
DASHES = ("-", "--", ":", "-.")
SHAPES = ("o", "s", "^", "D", "v", "P", "X", "p", "<", ">")
FRONT = "#8b979f"
DENSE: dict[str, Any] = {"color": "#222222", "linewidth": 1, "linestyle": (0, (5, 3))}
REMOVED = LinearSegmentedColormap.from_list("removed", ["#f3f6f8", "#f2a541", "#7a3b00"])
FIXED: dict[str, Any] = {"facecolor": "#ffffff", "edgecolor": "#aab3b9", "hatch": "/////", "linewidth": 0}
PER_CENT = FuncFormatter(lambda value, _: f"{100 * value:g} %")


def draw_outcome(comparison: Comparison) -> bytes:
    """Draw quality against every cost, with the Pareto front; settings on it have their numbers in the table."""
    looks = _looks(comparison.settings)
    rows = (len(comparison.costs) + 1) // 2
    spare = len(comparison.costs) % 2 == 1
    with drawing(10, 3.6 * rows + (0 if spare else 0.2 + 0.24 * -(-len(looks) // 3))) as (figure, content):
        grid = figure.subplots(rows, 2, sharey=True).ravel()
        for position, (axes, cost) in enumerate(zip(grid, comparison.costs, strict=False)):
            _dense(axes, comparison)
            _settings(axes, comparison, cost, looks)
            _quality_axis(axes, comparison, labelled=position % 2 == 0)
            axes.tick_params(labelleft=True)
        handles = [Line2D([], [], label=family, **style | {"linestyle": "none"}) for family, style in looks.items()]
        handles.append(Line2D([], [], label="dense network", **DENSE))
        handles.append(Line2D([], [], color=FRONT, label="Pareto front"))
        if spare:
            grid[-1].axis("off")
            grid[-1].legend(handles=handles, loc="center left", ncols=1 if len(handles) <= 14 else 2)
        else:
            figure.legend(handles=handles, loc="outside lower center", ncols=min(3, len(handles)))
    return content.getvalue()


def draw_k(comparison: Comparison) -> bytes | None:
    """Draw quality against the number of segments, and as level lines methods without segments.

    Returns:
        None if no settings differ only in k.
    """
    groups = series(comparison.settings)
    if not groups:
        return None
    baselines, looks = beside(comparison.settings), _looks(comparison.settings)
    points = comparison.points.set_index("setting")
    with drawing(10, max(3.8, 0.24 * (len(groups) + len(baselines) + 1) + 0.6)) as (figure, content):
        axes = figure.subplots()
        ks = sorted({setting.params["k"] for group in groups.values() for setting in group})
        step = 0.3 * min(np.diff(ks)) / len(groups)
        handles: list[Any] = []
        drawn: Counter[str] = Counter()
        for number, (label, group) in enumerate(sorted(groups.items())):
            # Shifted, so that bars at the same k do not hide each other.
            places = [setting.params["k"] + step * (number - (len(groups) - 1) / 2) for setting in group]
            qualities = points.loc[[setting.label for setting in group]]
            family = _family(group[0])
            line = looks[family] | {"linestyle": DASHES[drawn[family] % len(DASHES)], "elinewidth": 1, "capsize": 2}
            drawn[family] += 1
            handles.append(axes.errorbar(places, qualities["quality"], qualities["deviation"], label=label, **line))
        for number, setting in enumerate(baselines):
            line = {"color": looks[_family(setting)]["color"], "linestyle": (0, (1 + 2 * (number % 3), 1.5))}
            level = points["quality"][setting.label]
            handles.append(axes.axhline(level, label=setting.label, linewidth=1.8, **line))
        handles.append(_dense(axes, comparison))
        axes.set_xticks(ks)
        axes.set(xlabel="segments k", ylim=_limits(comparison))
        _quality_axis(axes, comparison)
        figure.legend(handles=handles, loc="outside right upper")
    return content.getvalue()


def draw_layers(comparison: Comparison) -> bytes:
    """Draw a strip per setting and a cell per layer: the share of runs that remove it; and how similar runs are."""
    layers, settings = comparison.records[0].layers, comparison.settings
    removed = [removals([record.removed for record in setting.records], len(layers)) for setting in settings]
    fixed = [i for i, layer in enumerate(layers) if not layer["removable"]]
    with drawing(10, 0.23 * len(settings) + 1.5) as (figure, content):
        axes = figure.subplots()
        shares = np.array([matrix.mean(axis=0) for matrix in removed])
        image = axes.imshow(shares, cmap=REMOVED, vmin=0, vmax=1, aspect="auto", interpolation="nearest")
        for i in fixed:
            axes.axvspan(i - 0.5, i + 0.5, **FIXED)
        axes.set_xticks(np.arange(len(layers) + 1) - 0.5, minor=True)
        axes.set_yticks(np.arange(len(settings) + 1) - 0.5, minor=True)
        axes.grid(which="minor", color="white", linewidth=1 if len(layers) <= 100 else 0)
        axes.tick_params(which="both", length=0)
        axes.spines[:].set_visible(False)
        labels = [f"{number}  {_short(setting.label)}" for number, setting in enumerate(settings, 1)]
        axes.set_yticks(range(len(settings)), labels)
        axes.xaxis.set_major_locator(MaxNLocator(min(len(layers) + 2, 30), integer=True, steps=[1, 2, 5, 10]))
        axes.set(xlabel="layer", xlim=(-0.5, len(layers) - 0.5))
        right = axes.secondary_yaxis("right")
        texts = [f"{stability(matrix):.2f} ({len(matrix)})" if len(matrix) > 1 else "" for matrix in removed]
        right.set_yticks(range(len(settings)), texts)
        right.tick_params(length=0)
        right.spines[:].set_visible(False)
        if any(texts):
            axes.annotate("Jaccard (runs)", (1, 1), (8, 6), "axes fraction", textcoords="offset points", fontsize=8)
        pad = {"location": "bottom", "aspect": 40, "fraction": 0.3 / len(settings) ** 0.5, "pad": 0.01}
        bar = figure.colorbar(image, ax=axes, label="share of the runs that remove the layer", **pad)
        bar.ax.xaxis.set_major_formatter(PER_CENT)
        if fixed:
            figure.legend(handles=[Patch(label="can't be removed", **FIXED)], loc="outside upper right")
    return content.getvalue()


@contextmanager
def drawing(width: float, height: float) -> Iterator[tuple[Figure, BytesIO]]:
    """Give a figure, sized in inches, and the buffer of its PNG; the user's settings of matplotlib do not count."""
    content = BytesIO()
    with style.context(STYLE, after_reset=True):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, content
        figure.savefig(content, dpi=130, format="png", metadata={"Software": None})


def look(number: int) -> dict[str, Any]:
    """Return the colour and shape of the series with this number."""
    return {"color": COLOURS[number % len(COLOURS)], "marker": SHAPES[number % len(SHAPES)], "markersize": 6}


def _family(setting: Setting) -> str:
    """Return what settings of one look share: the method, and the criterion if there are several."""
    parts, criterion = setting.label.split(" · "), setting.params.get("score.criterion")
    return " · ".join(parts[:2]) if criterion in parts[1:2] else parts[0]


def _looks(settings: Sequence[Setting]) -> dict[str, dict[str, Any]]:
    """Return the look of every family, in alphabetical order."""
    return {family: look(i) for i, family in enumerate(sorted({_family(setting) for setting in settings}))}


def _settings(axes: Axes, comparison: Comparison, cost: str, looks: dict[str, dict[str, Any]]) -> None:
    """Draw a point per setting, shifted where costs are nearly equal, and the front as steps."""
    points = comparison.points[[cost, "quality", "deviation"]].drop(0).dropna()
    low, high = points[cost].min(), points[cost].max()
    axes.set_ylim(*_limits(comparison))
    margin = 0.12 * (high - low) or 0.1 * high
    axes.set_xlim(low - margin, high + margin)
    # The best setting of nearly equal costs, which alone can be on the front, is not shifted; others alternate sides.
    nearby = points.groupby((20 * (points[cost] - low) / ((high - low) or 1)).round()).cumcount()
    front = comparison.front(cost)
    for (number, value, mean, deviation), rank in zip(points.itertuples(), nearby, strict=True):
        shift = (rank + 1) // 2 * (-1) ** rank * min(9, 240 / len(points))
        shifted = axes.transData + ScaledTranslation(shift / 72, 0, axes.figure.dpi_scale_trans)
        marker = looks[_family(comparison.settings[number - 1])]
        axes.errorbar(value, mean, deviation or None, elinewidth=0.9, transform=shifted, **marker)
        if number in front:
            sign = comparison.quality.sign
            note: dict[str, Any] = {"ha": "center", "va": "center", "weight": "bold", "textcoords": "offset points"}
            axes.annotate(str(number), (value, mean + sign * deviation), (shift, sign * 9), **note)
    steps = comparison.points.loc[front]
    axes.plot(steps[cost], steps["quality"], color=FRONT, drawstyle="steps-post", linewidth=1.4, zorder=1)
    axes.set_xlabel(f"{cost}, share of the dense network's" if cost in comparison.timed else cost)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.xaxis.set_major_formatter(PER_CENT if cost in comparison.timed else EngFormatter(sep=" "))


def _limits(comparison: Comparison) -> tuple[float, float]:
    """Return the limits of the quality axis with some room; matplotlib ignores shifted points."""
    mean, deviation = comparison.points["quality"], comparison.points["deviation"]
    low, high = min(mean - deviation), max(mean + deviation)
    room = 0.08 * (high - low) or 0.01
    return low - room, high + room


def _dense(axes: Axes, comparison: Comparison) -> Artist:
    return axes.axhline(comparison.points["quality"][0], label="dense network", zorder=1, **DENSE)


def _quality_axis(axes: Axes, comparison: Comparison, labelled: bool = True) -> None:
    if labelled:
        axes.set_ylabel(comparison.quality.label + (" (less is better)" if comparison.quality.sign < 0 else ""))
    if comparison.quality.share:
        axes.yaxis.set_major_formatter(PER_CENT)


def _short(label: str) -> str:
    return label if len(label) <= 44 else f"{label[:43]}…"
