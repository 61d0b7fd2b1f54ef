"""Figures of the report, drawn without a display; equal inputs give equal bytes.

Layers are a list of dicts with "status" (a key of `STATUSES`) and "macs"; segments are inclusive (first, last).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import EngFormatter, MaxNLocator, PercentFormatter

from sglp.scores import LayerScore, SetScore
from stages.support.scores import Scores

# They differ in lightness and hatching too, for grey prints and for colour-blind readers.
STATUSES = {
    "kept": {"facecolor": "#0a5c8f", "edgecolor": "#0a5c8f"},
    "can't be removed": {"facecolor": "#9aa5ad", "edgecolor": "#3f474d", "hatch": "...."},
    "removed": {"facecolor": "#fff3dc", "edgecolor": "#d97b00", "hatch": "////"},
}
CHOSEN, QUIET = "#d1495b", "#9fb8c8"
# Numbers of layers above which bars have no outlines and hatching, and no gaps.
CROWDED, PACKED = 60, 250
CROWDED_LOOKS = {"kept": "#0a5c8f", "can't be removed": "#87929a", "removed": "#ffc766"}
FEW = 15  # segments; if there are more, their borders are thinner
PANELS = 24  # segments that fit into scores.png
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "hatch.linewidth": 0.6,
    "legend.frameon": False,
}


def draw_similarity(path: Path, similarity: np.ndarray, layers: Sequence[dict], segments: Sequence) -> None:
    """Draw CKA as a heat map, with segments as boxes and the status of layers in bands above and on the right."""
    with _figure(path, 7.6, 6.6) as figure:
        axes = figure.subplots()
        image = axes.imshow(similarity, cmap="cividis", interpolation="nearest")
        thin = 1.8 if len(segments) <= FEW else 0.8
        for width, colour in ((2 * thin, "black"), (thin, "white")):
            for first, last in segments:
                corner, size = (first - 0.5, first - 0.5), last - first + 1
                box = Rectangle(corner, size, size, fill=False, linewidth=width, edgecolor=colour, clip_on=False)
                axes.add_patch(box)
        axes.spines[:].set_visible(False)
        above = axes.inset_axes((0, 1.016, 1, 0.028), sharex=axes)
        beside = axes.inset_axes((1.016, 0, 0.028, 1), sharey=axes)
        _bars(above, layers, range(len(layers)), [1] * len(layers))
        _bars(beside, layers, range(len(layers)), [1] * len(layers), horizontal=True)
        for band in (above, beside):
            band.axis("off")
        axes.set(xlabel="layer", ylabel="layer")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(_whole(len(layers), room=30))
        figure.colorbar(image, ax=axes, label="similarity (CKA)", shrink=0.8, pad=0.03)
        _legend(figure, layers)


def draw_segmentation(path: Path, losses: Sequence[float], chosen: int, min_loss_drop: float) -> None:
    """Draw the loss of the best segmentation for every k, and the drop that each further segment brings."""
    ks, share = np.arange(1, len(losses) + 1), np.asarray(losses) / (losses[0] or 1)
    with _figure(path, 9, 3.2) as figure:
        left, right = figure.subplots(1, 2)
        left.plot(ks, share, ".-", color=QUIET, markerfacecolor="#0a5c8f", markeredgecolor="#0a5c8f")
        right.vlines(ks[1:], 0, -np.diff(share), color=QUIET, linewidth=1)
        right.plot(ks[1:], -np.diff(share), ".", color="#0a5c8f")
        right.axhline(min_loss_drop, color="#555555", linewidth=1, linestyle="--")
        note = {"xytext": (-2, 3), "textcoords": "offset points", "ha": "right"}
        right.annotate(
            f"k: auto: last drop above {100 * min_loss_drop:g} %", (len(losses) + 0.5, min_loss_drop), **note
        )
        left.set_title("loss relative to one segment")
        right.set_title("drop in loss from k - 1 to k segments")
        for axes, height in ((left, share), (right, [None, *-np.diff(share)])):
            if height[chosen - 1] is not None:
                axes.plot(chosen, height[chosen - 1], "o", markersize=11, fillstyle="none", color=CHOSEN, mew=2)
            axes.axvline(chosen, color=CHOSEN, linewidth=1, zorder=0, label=f"chosen: k = {chosen}")
            axes.set_xscale("log")
            ticks = [k for k in (1, 2, 3, 5, 10, 20, 50, 100, 200, 500, 1000) if k <= len(losses)]
            axes.set_xticks(ticks, map(str, ticks))
            axes.minorticks_off()
            axes.set(xlabel="segments k", xlim=(0.9, len(losses) * 1.1 + 0.2), ylim=(-0.03, None))
            axes.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
        left.legend(loc="upper right", labelcolor=CHOSEN)


def draw_scores(path: Path, rows: Scores, layers: Sequence[dict]) -> None:
    """Draw the scores: a bar for each layer if layers were scored one by one, else a histogram for each segment.

    Args:
        path: path of the PNG.
        rows: rows of scores.csv.
        layers: all layers.
    """
    single = [row for row in rows if isinstance(row, LayerScore)]
    if single:
        with _figure(path, 9, 3) as figure:
            axes = figure.subplots()
            _bars(axes, layers, [row.layer for row in single], [row.score for row in single])
            axes.axhline(0, color="#333333", linewidth=0.8)
            axes.set(xlabel="layer", ylabel="score", xlim=(-0.8, len(layers) - 0.2))
            axes.xaxis.set_major_locator(_whole(len(layers), room=30))
            _legend(figure, layers)
        return
    sets = [row for row in rows if isinstance(row, SetScore)]
    parts = [[row for row in sets if row.segment == s] for s in sorted({row.segment for row in sets})]
    parts = [part for part in parts if len(part) > 1]
    more, parts = len(parts) - PANELS, parts[:PANELS]
    columns = min(3, max(1, len(parts)))
    height = -(-len(parts) // columns)
    with _figure(path, 9, 2.5 * max(1, height)) as figure:
        if not parts:
            figure.text(
                0.5,
                0.5,
                "Every segment had only one possible set of layers, so there was nothing to choose.",
                ha="center",
            )
            return
        grid = figure.subplots(height, columns, squeeze=False).ravel()
        for axes in grid[len(parts) :]:
            axes.remove()
        for axes, part in zip(grid, parts, strict=False):
            _histogram(axes, part)
        if more > 0:
            figure.supxlabel(f"{more} more segments are in the table only")


def draw_architecture(path: Path, layers: Sequence[dict], segments: Sequence) -> None:
    """Draw the network as a strip of layers, removed layers below it, and the MACs of all layers."""
    numbers = range(len(layers))
    with _figure(path, 10, 3.4) as figure:
        strip, cost = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        _bars(strip, layers, numbers, [1] * len(layers), [-1.15 * (row["status"] == "removed") for row in layers])
        _bars(cost, layers, numbers, [row["macs"] for row in layers])
        thin = 1 if len(segments) <= FEW else 0.5
        for number, (first, last) in enumerate(segments):
            if number:
                for axes in (strip, cost):
                    axes.axvline(first - 0.5, color="#222222", linewidth=thin, linestyle=(0, (4, 2)))
            wide = (last - first + 1) / len(layers)
            label = f"segment {number}" if wide > 0.1 else str(number) if wide > 0.02 else ""
            strip.text((first + last) / 2, 1.15, label, ha="center", va="bottom")
        strip.set(xlim=(-0.8, len(layers) - 0.2), ylim=(-1.25, 1.5))
        strip.set_yticks([0.5, -0.65], ["kept", "removed"])
        strip.spines[:].set_visible(False)
        strip.tick_params(length=0, labelbottom=False)
        cost.set(xlabel="layer", ylabel="MACs")
        cost.xaxis.set_major_locator(_whole(len(layers), room=30))
        cost.yaxis.set_major_formatter(EngFormatter(sep=" "))
        cost.yaxis.set_major_locator(MaxNLocator(3))
        _legend(figure, layers)


def draw_errors(path: Path, errors: np.ndarray) -> None:
    """Draw the reconstruction errors of runs of layers as a heat map.

    Args:
        path: path of the PNG.
        errors: [layers, layers], from `sglp.reconstruction_errors`.
    """
    with _figure(path, 7.6, 6.2) as figure:
        axes = figure.subplots()
        shown = np.ma.masked_invalid(errors)
        image = axes.imshow(shown, cmap="cividis", interpolation="nearest", vmin=0, vmax=min(1, float(shown.max())))
        axes.set(xlabel="last removed layer", ylabel="layer that is refitted")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(_whole(len(errors), room=30))
        figure.colorbar(image, ax=axes, label="relative squared error", shrink=0.8)


def draw_reconstruction(path: Path, rows: Sequence[dict]) -> None:
    """Draw the error of every kept layer on held-out samples, before and after it was refitted.

    Args:
        path: path of the PNG.
        rows: "layer", "before", "after" and "kept", in order of depth.
    """
    with _figure(path, 9, 3.4) as figure:
        axes = figure.subplots()
        places = np.arange(len(rows))
        before, after = (np.array([row[name] for row in rows]) for name in ("before", "after"))
        kept = np.array([row["kept"] for row in rows])
        axes.vlines(places, before, after, color=QUIET, linewidth=1.5, zorder=0)
        axes.plot(places, before, "o", color="#d97b00", markerfacecolor="white", label="before")
        axes.plot(places[kept], after[kept], "o", color="#0a5c8f", label="after")
        if not kept.all():
            axes.plot(places[~kept], after[~kept], "x", color=CHOSEN, label="not better, so left as it was")
        if (np.concatenate([before, after]) > 0).all():
            axes.set_yscale("log")
        few = len(rows) <= CROWDED
        axes.set_xticks(places if few else [], [row["layer"] for row in rows] if few else [], rotation=90)
        axes.set(xlabel="kept layer", ylabel="relative squared error", xlim=(-0.8, len(rows) - 0.2))
        figure.legend(loc="outside upper right", ncols=3)


def draw_training(path: Path, rows: pd.DataFrame) -> None:
    """Draw loss, metrics on held-out samples, and learning rate over epochs.

    Args:
        path: path of the PNG.
        rows: training.csv; NaN where a value was not measured.
    """
    measured = [name for name in map(str, rows) if name.startswith("heldout_") and name != "heldout_loss"]
    measured = [name for name in measured if rows[name].notna().any()]
    with _figure(path, 9, 3.6 + 1.2 * len(measured)) as figure:
        panels = figure.subplots(2 + len(measured), 1, sharex=True, height_ratios=[3, *[1.5] * len(measured), 1])
        _curve(panels[0], rows, "loss", "training batches", "#0a5c8f")
        if _curve(panels[0], rows, "heldout_loss", "held-out samples", CHOSEN):
            panels[0].legend()
        panels[0].set_ylabel("loss")
        if (rows["loss"].dropna() > 0).all():
            panels[0].set_yscale("log")
        for axes, name in zip(panels[1:-1], measured, strict=True):
            _curve(axes, rows, name, "", CHOSEN)
            axes.set_ylabel(name.replace("heldout_", "held-out\n").replace("_", " "))
        _curve(panels[-1], rows, "learning_rate", "", "#555555", marker="")
        panels[-1].set(xlabel="epoch", ylabel="learning\nrate", ylim=(0, None))
        figure.align_ylabels(panels)


@contextmanager
def _figure(path: Path, width: float, height: float) -> Iterator[Figure]:
    """Create a figure of a width and height in inches, and save it; the user's matplotlib settings have no effect."""
    with style.context(STYLE, after_reset=True):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        figure.savefig(path, dpi=150, metadata={"Software": None})


def _bars(axes: Axes, layers, numbers, lengths, starts=None, horizontal: bool = False) -> None:
    """Draw a bar for each layer, in the colour of its status."""
    starts = [0] * len(lengths) if starts is None else starts
    for status in STATUSES:
        bars = [bar for bar in zip(numbers, lengths, starts, strict=True) if layers[bar[0]]["status"] == status]
        if not bars:
            continue
        where, length, start = zip(*bars, strict=True)
        draw, thickness = axes.barh if horizontal else axes.bar, 1 if len(layers) > PACKED else 0.82
        draw(where, length, thickness, start, **_looks(status, layers))


def _looks(status: str, layers) -> dict:
    if len(layers) > CROWDED:
        return {"color": CROWDED_LOOKS[status], "linewidth": 0}
    return STATUSES[status] | {"linewidth": 0.8}


def _legend(figure: Figure, layers) -> None:
    there = [status for status in STATUSES if any(layer["status"] == status for layer in layers)]
    handles = [Patch(label=status, **_looks(status, layers)) for status in there]
    figure.legend(handles=handles, loc="outside upper right", ncols=len(there))


def _histogram(axes: Axes, rows: Sequence[SetScore]) -> None:
    """Draw the scores of a segment's sets of layers, with the best one marked."""
    scores = np.array([row.score for row in rows])
    axes.hist(scores[np.isfinite(scores)], bins=min(30, int(len(scores) ** 0.5) + 4), color=QUIET)
    axes.set_title(f"segment {rows[0].segment}: {len(rows)} sets of layers")
    note: dict[str, Any] = {"xytext": (-4, 0), "textcoords": "offset points", "ha": "right", "va": "top"}
    for score in (row.score for row in rows if row.best):
        axes.axvline(score, color=CHOSEN, linewidth=2)
        axes.annotate(f"chosen: {score:#.4g}", (score, 0.99), xycoords=("data", "axes fraction"), color=CHOSEN, **note)
    axes.margins(y=0.25)
    axes.set(xlabel="score", ylabel="sets of layers")
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))


def _curve(axes: Axes, rows: pd.DataFrame, name: str, label: str, colour: str, marker: str = ".") -> bool:
    """Draw one column over epochs; return whether it has any values."""
    points = rows[["epoch", name]].dropna()
    if len(points):
        crowded = len(points) > 60
        axes.plot(points["epoch"], points[name], marker="" if crowded else marker, color=colour, label=label)
    return bool(len(points))


def _whole(count: int, room: int = 45) -> MaxNLocator:
    """Place ticks at whole numbers, at every one if there is room."""
    return MaxNLocator(count + 2 if count <= room else room // 2, integer=True, steps=[1, 2, 5, 10])
