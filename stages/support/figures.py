"""Figures of the report, drawn without a display; equal inputs give equal bytes.

Layers are a list of dicts with "status" (a key of `STATUSES`) and "macs"; segments are inclusive (first, last).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, MaxNLocator, PercentFormatter

from sglp.figures import CHOSEN, FEW, QUIET, bars, figure_file, legend, whole_numbers
from sglp.scores import LayerScore, SetScore
from stages.support.scores import Scores

PANELS = 24  # segments that fit into scores.png


def draw_segmentation(path: Path, losses: Sequence[float], chosen: int, min_loss_drop: float) -> None:
    """Draw the loss of the best segmentation for every k, and the drop that each further segment brings."""
    ks, share = np.arange(1, len(losses) + 1), np.asarray(losses) / (losses[0] or 1)
    with figure_file(path, 9, 3.2) as figure:
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
        with figure_file(path, 9, 3) as figure:
            axes = figure.subplots()
            bars(axes, layers, [row.layer for row in single], [row.score for row in single])
            axes.axhline(0, color="#333333", linewidth=0.8)
            axes.set(xlabel="layer", ylabel="score", xlim=(-0.8, len(layers) - 0.2))
            axes.xaxis.set_major_locator(whole_numbers(len(layers), room=30))
            legend(figure, layers)
        return
    sets = [row for row in rows if isinstance(row, SetScore)]
    parts = [[row for row in sets if row.segment == s] for s in sorted({row.segment for row in sets})]
    parts = [part for part in parts if len(part) > 1]
    more, parts = len(parts) - PANELS, parts[:PANELS]
    columns = min(3, max(1, len(parts)))
    height = -(-len(parts) // columns)
    with figure_file(path, 9, 2.5 * max(1, height)) as figure:
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
    with figure_file(path, 10, 3.4) as figure:
        strip, cost = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        bars(strip, layers, numbers, [1] * len(layers), [-1.15 * (row["status"] == "removed") for row in layers])
        bars(cost, layers, numbers, [row["macs"] for row in layers])
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
        cost.xaxis.set_major_locator(whole_numbers(len(layers), room=30))
        cost.yaxis.set_major_formatter(EngFormatter(sep=" "))
        cost.yaxis.set_major_locator(MaxNLocator(3))
        legend(figure, layers)


def draw_errors(path: Path, errors: np.ndarray) -> None:
    """Draw the reconstruction errors of runs of layers as a heat map.

    Args:
        path: path of the PNG.
        errors: [layers, layers], from `sglp.reconstruction_errors`.
    """
    with figure_file(path, 7.6, 6.2) as figure:
        axes = figure.subplots()
        shown = np.ma.masked_invalid(errors)
        image = axes.imshow(shown, cmap="cividis", interpolation="nearest", vmin=0, vmax=min(1, float(shown.max())))
        axes.set(xlabel="last removed layer", ylabel="layer that is refitted")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(whole_numbers(len(errors), room=30))
        figure.colorbar(image, ax=axes, label="relative squared error", shrink=0.8)


def draw_training(path: Path, rows: pd.DataFrame) -> None:
    """Draw loss, metrics on held-out samples, and learning rate over epochs.

    Args:
        path: path of the PNG.
        rows: training.csv; NaN where a value was not measured.
    """
    measured = [name for name in map(str, rows) if name.startswith("heldout_") and name != "heldout_loss"]
    measured = [name for name in measured if rows[name].notna().any()]
    with figure_file(path, 9, 3.6 + 1.2 * len(measured)) as figure:
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
