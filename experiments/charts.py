"""The comparison's figures, as the bytes of PNGs. Drawn without a display; equal inputs give equal bytes."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter, FuncFormatter, MaxNLocator
from matplotlib.transforms import ScaledTranslation

from experiments.outcomes import Comparison, Cost, Quality
from experiments.settings import Setting, beside, series
from experiments.statistics import shares, stability
from stages.support.figures import STYLE

# Okabe and Ito's colours, which the colour-blind tell apart; shapes tell the same on grey paper.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#4d4d4d")
DASHES = ("-", "--", ":", "-.")
SHAPES = ("o", "s", "^", "D", "v", "P", "X", "p", "<", ">")
FRONT = "#8b979f"
DENSE = {"color": "#222222", "linewidth": 1, "linestyle": (0, (5, 3))}
GOES = LinearSegmentedColormap.from_list("goes", ["#f3f6f8", "#f2a541", "#7a3b00"])
FIXED = {"facecolor": "#ffffff", "edgecolor": "#aab3b9", "hatch": "/////", "linewidth": 0}
_PER_CENT = FuncFormatter(lambda value, _: f"{100 * value:g} %")


def draw_outcome(found: Comparison) -> bytes:
    """Quality against every cost, with the Pareto front; places in the table stand at the settings on it."""
    looks = _looks(found.settings)
    rows = (len(found.costs) + 1) // 2
    spare = len(found.costs) % 2 == 1
    with _figure(10, 3.6 * rows + (0 if spare else 0.2 + 0.24 * -(-len(looks) // 3))) as (figure, content):
        grid = figure.subplots(rows, 2, sharey=True).ravel()
        for position, (axes, cost) in enumerate(zip(grid, found.costs, strict=False)):
            _dense(axes, found)
            _settings(axes, found, cost, looks)
            _quality_axis(axes, found.quality, position % 2 == 0)
            axes.tick_params(labelleft=True)
        handles = [Line2D([], [], linestyle="none", label=family, **look) for family, look in looks.items()]
        handles.append(Line2D([], [], label="dense network", **DENSE))
        handles.append(Line2D([], [], color=FRONT, label="Pareto front"))
        if spare:
            grid[-1].axis("off")
            grid[-1].legend(handles=handles, loc="center left", ncols=1 if len(handles) <= 14 else 2)
        else:
            figure.legend(handles=handles, loc="outside lower center", ncols=min(3, len(handles)))
    return content.getvalue()


def draw_k(found: Comparison) -> bytes | None:
    """Quality against the number of segments, and that of methods without any; None where no settings differ in k."""
    groups = series(found.settings)
    if not groups:
        return None
    rivals, looks = beside(found.settings), _looks(found.settings)
    entries = len(groups) + len(rivals) + 1
    with _figure(10, max(3.8, 0.24 * entries + 0.6)) as (figure, content):
        axes = figure.subplots()
        ks = sorted({setting.dials["k"] for group in groups.values() for setting in group})
        step = 0.3 * min(np.diff(ks)) / len(groups)
        handles = []
        drawn: Counter = Counter()
        for number, (label, group) in enumerate(sorted(groups.items())):
            # Side by side, so that bars of the same k do not hide each other.
            places = [setting.dials["k"] + step * (number - (len(groups) - 1) / 2) for setting in group]
            spreads = [found.spread(setting) for setting in group]
            means, bars = [spread.mean for spread in spreads], [spread.deviation or 0 for spread in spreads]
            family = _family(group[0])
            dashes = DASHES[drawn[family] % len(DASHES)]
            drawn[family] += 1
            look = looks[family] | {"linestyle": dashes, "elinewidth": 1, "capsize": 2}
            handles.append(axes.errorbar(places, means, bars, label=label, **look))
        for number, rival in enumerate(rivals):
            look = {"color": looks[_family(rival)]["color"], "linestyle": (0, (1 + 2 * (number % 3), 1.5))}
            handles.append(axes.axhline(found.spread(rival).mean, label=rival.label, linewidth=1.8, **look))
        handles.append(_dense(axes, found))
        axes.set_xticks(ks)
        axes.set(xlabel="segments k", ylim=_limits(found))
        _quality_axis(axes, found.quality)
        figure.legend(handles=handles, loc="outside right upper")
    return content.getvalue()


def draw_layers(found: Comparison) -> bytes:
    """A strip a setting, a cell a layer: the share of runs in which it goes; how alike two runs are, on the right."""
    layers = found.records[0].layers
    settings = found.settings
    sets = [[record.removed for record in setting.records] for setting in settings]
    fixed = [i for i, layer in enumerate(layers) if not layer["removable"]]
    with _figure(10, 0.23 * len(settings) + 1.5) as (figure, content):
        axes = figure.subplots()
        grid = np.array([shares(of, len(layers)) for of in sets])
        image = axes.imshow(grid, cmap=GOES, vmin=0, vmax=1, aspect="auto", interpolation="nearest")
        for i in fixed:
            axes.axvspan(i - 0.5, i + 0.5, **FIXED)
        axes.set_xticks(np.arange(len(layers) + 1) - 0.5, minor=True)
        axes.set_yticks(np.arange(len(settings) + 1) - 0.5, minor=True)
        axes.grid(which="minor", color="white", linewidth=1 if len(layers) <= 100 else 0)
        axes.tick_params(which="both", length=0)
        axes.spines[:].set_visible(False)
        labels = [f"{place + 1}  {_short(setting.label)}" for place, setting in enumerate(settings)]
        axes.set_yticks(range(len(settings)), labels)
        axes.xaxis.set_major_locator(MaxNLocator(min(len(layers) + 2, 30), integer=True, steps=[1, 2, 5, 10]))
        axes.set(xlabel="layer", xlim=(-0.5, len(layers) - 0.5))
        alike = axes.secondary_yaxis("right")
        numbers = [stability(of) for of in sets]
        told = [f"{value:.2f} ({len(of)})" if len(of) > 1 else "" for value, of in zip(numbers, sets, strict=True)]
        alike.set_yticks(range(len(settings)), told)
        alike.tick_params(length=0)
        alike.spines[:].set_visible(False)
        if any(told):
            axes.annotate("Jaccard (runs)", (1, 1), (8, 6), "axes fraction", textcoords="offset points", fontsize=8)
        bar = figure.colorbar(
            image, ax=axes, location="bottom", aspect=40, fraction=0.3 / len(settings) ** 0.5, pad=0.01
        )
        bar.set_label("share of the runs in which the layer goes")
        bar.ax.xaxis.set_major_formatter(_PER_CENT)
        if fixed:
            figure.legend(handles=[Patch(label="can't be removed", **FIXED)], loc="outside upper right")
    return content.getvalue()


@contextmanager
def _figure(width: float, height: float) -> Iterator[tuple[Figure, BytesIO]]:
    """A figure of a width and height in inches and where its PNG goes; settings of the user's do not count."""
    content = BytesIO()
    with style.context(STYLE, after_reset=True):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, content
        figure.savefig(content, dpi=130, format="png", metadata={"Software": None})


def _family(setting: Setting) -> str:
    """Settings of one look: the method, and the criterion where it has several."""
    parts, criterion = setting.label.split(" · "), setting.dials.get("score.criterion")
    return " · ".join(parts[:2]) if criterion in parts[1:2] else parts[0]


def _looks(settings: Sequence[Setting]) -> dict[str, dict]:
    """Colour and shape of every family, in the order of names."""
    families = sorted({_family(setting) for setting in settings})
    return {
        family: {"color": COLOURS[i % len(COLOURS)], "marker": SHAPES[i % len(SHAPES)], "markersize": 6}
        for i, family in enumerate(families)
    }


def _settings(axes: Axes, found: Comparison, cost: Cost, looks: dict[str, dict]) -> None:
    """A point a setting, those of about one cost side by side, and the front as steps: the best that a cost buys."""
    measured = [i for i, value in enumerate(cost.values) if value is not None]
    values = [cost.values[i] for i in measured] or [cost.dense]
    low, high = min(values), max(values)
    axes.set_ylim(*_limits(found))
    margin = 0.12 * (high - low) or 0.1 * high
    axes.set_xlim(low - margin, high + margin)
    cells = [round(20 * (cost.values[i] - low) / (high - low)) if high > low else 0 for i in measured]
    front = found.front(cost)
    for i, cell in zip(measured, cells, strict=True):
        alike = [other for other, where in zip(measured, cells, strict=True) if where == cell]
        # The best one, which alone can be on the front, is where it belongs; the others are right and left of it.
        place = alike.index(i)
        points = (place + 1) // 2 * (-1) ** place * min(9, 240 / len(measured))
        aside = axes.transData + ScaledTranslation(points / 72, 0, axes.figure.dpi_scale_trans)
        spread, look = found.spread(found.settings[i]), looks[_family(found.settings[i])]
        axes.errorbar(cost.values[i], spread.mean, spread.deviation, elinewidth=0.9, transform=aside, **look)
        if i in front:
            sign = found.quality.sign
            note = {"textcoords": "offset points", "ha": "center", "va": "center", "weight": "bold"}
            end = spread.mean + sign * (spread.deviation or 0)
            axes.annotate(str(i + 1), (cost.values[i], end), (points, sign * 9), **note)
    means = [found.dense[found.quality.key] if i is None else found.spread(found.settings[i]).mean for i in front]
    xs = [cost.dense if i is None else cost.values[i] for i in front]
    axes.plot(xs, means, color=FRONT, drawstyle="steps-post", linewidth=1.4, zorder=1)
    axes.set_xlabel(f"{cost.label}, {cost.unit}" if cost.unit else cost.label)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.xaxis.set_major_formatter(_PER_CENT if cost.unit else EngFormatter(sep=" "))


def _limits(found: Comparison) -> tuple[float, float]:
    """The least and the most that is drawn, with some room. Matplotlib knows nothing of what stands aside."""
    spreads = [found.spread(setting) for setting in found.settings]
    ends = [spread.mean + sign * (spread.deviation or 0) for spread in spreads for sign in (-1, 1)]
    ends.append(found.dense[found.quality.key])
    room = 0.08 * (max(ends) - min(ends)) or 0.01
    return min(ends) - room, max(ends) + room


def _dense(axes: Axes, found: Comparison) -> Line2D:
    return axes.axhline(found.dense[found.quality.key], label="dense network", zorder=1, **DENSE)


def _quality_axis(axes: Axes, quality: Quality, labelled: bool = True) -> None:
    if labelled:
        axes.set_ylabel(quality.label + (" (less is better)" if quality.sign < 0 else ""))
    if quality.share:
        axes.yaxis.set_major_formatter(_PER_CENT)


def _short(label: str) -> str:
    return label if len(label) <= 44 else f"{label[:43]}…"
