"""One page and one table on a chain of runs: a sentence, a table, a figure."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from matplotlib.ticker import EngFormatter, MaxNLocator

from experiments.charts import DENSE, PER_CENT, drawing, look
from experiments.outcomes import quality_of
from experiments.tables import Table
from sglp.files import new_file
from sglp.pages import embedded, render
from stages.support.outcome import METRICS

__all__ = ["Page", "cost_of", "draw", "quality_of", "write"]


class Page(NamedTuple):
    """The content of a page.

    Attributes:
        title: what was done, to which model.
        outcome: the result, in one sentence.
        table: the table of the page.
        words: the columns of the table that are not numbers.
        figure: a PNG.
        notes: how to read the page, a paragraph each.
        command: the command that makes the page again.
    """

    title: str
    outcome: str
    table: Table
    words: Sequence[str]
    figure: bytes
    notes: Sequence[str]
    command: str


def write(name: str, page: Page, columns: Sequence[Any], rows: Sequence[Sequence[Any]]) -> None:
    """Write the self-contained page reports/NAME.html, and its numbers as reports/NAME.csv."""
    content = page._asdict() | {"figure": embedded(page.figure), "name": name}
    html = render(Path(__file__).with_name("page.html.jinja"), content)
    with new_file(f"reports/{name}.csv") as new:
        pd.DataFrame(rows, columns=list(columns), dtype=object).to_csv(new, index=False, lineterminator="\n")
    with new_file(f"reports/{name}.html") as new:
        new.write_text(html, encoding="utf-8")
    print(f"{page.outcome}\nreports/{name}.html, reports/{name}.csv")


def cost_of(metrics: Mapping[Any, Any]) -> tuple[str, str]:
    """Return the key and the label of a network's cost."""
    key = next(key for key in ("macs", "macs_per_token") if key in metrics)
    return key, METRICS[key].label


def draw(
    curves: dict[str, Sequence[tuple[float, float]]],
    labels: tuple[str, str],
    level: tuple[str, float],
    share: bool = False,
) -> bytes:
    """Draw one curve per name, as a PNG.

    Args:
        curves: points (x, y) by the name of the curve.
        labels: of the axes x and y.
        level: name and height of a dashed horizontal line.
        share: whether y is shown in per cent.
    """
    with drawing(9, 3.8) as (figure, content):
        axes = figure.subplots()
        for i, (name, points) in enumerate(curves.items()):
            axes.plot(*zip(*points, strict=True), label=name, linewidth=1.2, **look(i) | {"markersize": 5})
        axes.axhline(level[1], label=level[0], zorder=1, **DENSE)
        axes.set(xlabel=labels[0], ylabel=labels[1])
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        axes.xaxis.set_major_formatter(EngFormatter(sep=" "))
        if share:
            axes.yaxis.set_major_formatter(PER_CENT)
        figure.legend(loc="outside right upper")
    return content.getvalue()
