"""Figures that the report of the pipeline and that of ``sglp compress`` share, drawn without a display.

Equal inputs give equal bytes. Layers are a list of dicts with "status", a key of `STATUSES`; segments are inclusive
(first, last).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator

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
    with figure_file(path, 7.6, 6.6) as figure:
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
        bars(above, layers, range(len(layers)), [1] * len(layers))
        bars(beside, layers, range(len(layers)), [1] * len(layers), horizontal=True)
        for band in (above, beside):
            band.axis("off")
        axes.set(xlabel="layer", ylabel="layer")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(whole_numbers(len(layers), room=30))
        figure.colorbar(image, ax=axes, label="similarity (CKA)", shrink=0.8, pad=0.03)
        legend(figure, layers)


def draw_reconstruction(path: Path, rows: Sequence[dict]) -> None:
    """Draw the error of every kept layer on held-out samples, before and after it was refitted.

    Args:
        path: path of the PNG.
        rows: "layer", "before", "after" and "kept", in order of depth.
    """
    with figure_file(path, 9, 3.4) as figure:
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


@contextmanager
def figure_file(path: Path, width: float, height: float) -> Iterator[Figure]:
    """Create a figure of a width and height in inches, and save it; the user's matplotlib settings have no effect."""
    with style.context(STYLE, after_reset=True):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        figure.savefig(path, dpi=150, metadata={"Software": None})


def bars(axes: Axes, layers, numbers, lengths, starts=None, horizontal: bool = False) -> None:
    """Draw a bar for each layer, in the colour of its status."""
    starts = [0] * len(lengths) if starts is None else starts
    for status in STATUSES:
        bars = [bar for bar in zip(numbers, lengths, starts, strict=True) if layers[bar[0]]["status"] == status]
        if not bars:
            continue
        where, length, start = zip(*bars, strict=True)
        draw, thickness = axes.barh if horizontal else axes.bar, 1 if len(layers) > PACKED else 0.82
        draw(where, length, thickness, start, **looks(status, layers))


def looks(status: str, layers: Sequence[dict]) -> dict:
    """Return how bars of layers with a status are drawn."""
    if len(layers) > CROWDED:
        return {"color": CROWDED_LOOKS[status], "linewidth": 0}
    return STATUSES[status] | {"linewidth": 0.8}


def legend(figure: Figure, layers: Sequence[dict]) -> None:
    """Name the colours of the statuses that layers have."""
    there = [status for status in STATUSES if any(layer["status"] == status for layer in layers)]
    handles = [Patch(label=status, **looks(status, layers)) for status in there]
    figure.legend(handles=handles, loc="outside upper right", ncols=len(there))


def whole_numbers(count: int, room: int = 45) -> MaxNLocator:
    """Place ticks at whole numbers, at every one if there is room."""
    return MaxNLocator(count + 2 if count <= room else room // 2, integer=True, steps=[1, 2, 5, 10])
