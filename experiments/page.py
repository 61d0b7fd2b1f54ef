"""One page and one table on a chain of runs: a sentence, a table, a figure."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

from matplotlib import style
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, MaxNLocator

from experiments.charts import COLOURS, DENSE, SHAPES
from experiments.outcomes import SIGNS, Quality
from experiments.tables import Table
from sglp.files import new_file
from stages.support.figures import STYLE
from stages.support.outcome import METRICS
from stages.support.pages import embedded, render
from stages.support.tables import write_rows


class Page(NamedTuple):
    """What is told.

    Attributes:
        title: what was done, to which model.
        outcome: what came of it, in one sentence.
        table: what is shown; the columns named in `words` are no numbers.
        words: those columns.
        figure: a PNG.
        notes: how to read it, a paragraph each.
        command: what makes the page again.
    """

    title: str
    outcome: str
    table: Table
    words: Sequence[str]
    figure: bytes
    notes: Sequence[str]
    command: str


def write(name: str, page: Page, columns: Sequence[str], rows: Sequence[Sequence]) -> None:
    """Write reports/NAME.html, which stands alone, and its numbers as reports/NAME.csv."""
    content = page._asdict() | {"figure": embedded(page.figure), "name": name}
    html = render(Path(__file__).with_name("page.html.jinja"), content)
    write_rows(f"reports/{name}.csv", columns, rows)
    with new_file(f"reports/{name}.html") as new:
        new.write_text(html, encoding="utf-8")
    print(f"{page.outcome}\nreports/{name}.html, reports/{name}.csv")


def quality_of(metrics: dict) -> Quality:
    """The metric that networks are judged by, the first that a task reports."""
    key = next(key for key in SIGNS if key in metrics)
    return Quality(key, METRICS[key].label.partition(" (")[0], SIGNS[key], METRICS[key].form == "share")


def cost_of(metrics: dict) -> tuple[str, str]:
    """The key and the name of what a network costs."""
    key = next(key for key in ("macs", "macs_per_token") if key in metrics)
    return key, METRICS[key].label


def draw(
    curves: dict[str, Sequence[tuple[float, float]]],
    labels: tuple[str, str],
    level: tuple[str, float],
    share: bool = False,
) -> bytes:
    """Points joined to one curve a name, as a PNG.

    Args:
        curves: points (x, y) by the name of the curve.
        labels: of the axes x and y.
        level: name and height of a dashed line across.
        share: whether y is shown as per cent.
    """
    content = BytesIO()
    with style.context(STYLE, after_reset=True):
        figure = Figure(figsize=(9, 3.8), layout="constrained")
        axes = figure.subplots()
        for i, (name, points) in enumerate(curves.items()):
            look = {"color": COLOURS[i % len(COLOURS)], "marker": SHAPES[i % len(SHAPES)], "markersize": 5}
            axes.plot(*zip(*points, strict=True), label=name, linewidth=1.2, **look)
        axes.axhline(level[1], label=level[0], zorder=1, **DENSE)
        axes.set(xlabel=labels[0], ylabel=labels[1])
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        axes.xaxis.set_major_formatter(EngFormatter(sep=" "))
        if share:
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))
        figure.legend(loc="outside right upper")
        figure.savefig(content, dpi=130, format="png", metadata={"Software": None})
    return content.getvalue()
