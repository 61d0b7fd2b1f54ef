"""What a compression came to: the table at the end, the same as JSON, and the report page."""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from sglp.compression import Compressed

REPORT = "report.html"
BEFORE, AFTER = "dense", "this network"


class Network(NamedTuple):
    """The size and the quality of a network.

    Attributes:
        layers: number of layers that `find_layers` finds in the dense network, or of those that are kept.
        parameters: number of parameters.
        macs: multiply-accumulates per token or image.
        quality: what was measured on held-out samples; None where nothing was.
    """

    layers: int
    parameters: int
    macs: int
    quality: float | None


def table(before: Network, after: Network, quality: str, unit: str) -> list[tuple[str, str, str, str]]:
    """Return rows of text: label, dense network, smaller network, change."""
    rows = [
        (f"MACs per {unit}" if name == "macs" else name, _count(old), _count(new), _change(old, new))
        for name, old, new in zip(Network._fields[:3], before[:3], after[:3], strict=True)
    ]
    old, new = before.quality, after.quality
    if old is None or new is None:
        return rows
    if quality == "perplexity":
        return [*rows, (quality, f"{old:.2f}", f"{new:.2f}", _change(old, new))]
    return [*rows, (quality, f"{100 * old:.1f} %", f"{100 * new:.1f} %", f"{100 * (new - old):+.1f} points")]


def _count(number: int) -> str:
    return f"{number:,}" if number < 100_000 else f"{number / 1e6:,.1f} M"


def _change(before: float, after: float) -> str:
    return f"{100 * (after / before - 1):+.1f} %" if before else ""


def text_of(rows: Sequence[tuple[str, str, str, str]]) -> str:
    """Return rows as an aligned table."""
    lines = [("", BEFORE, AFTER, "change"), *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(4)]
    aligned = ([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])] for line in lines)
    return "\n".join("  ".join(cells).rstrip() for cells in aligned)


def page(title: str, facts: Sequence[tuple[str, str]], rows: Sequence[tuple], result: "Compressed") -> str:
    """Return the report: one HTML page with its figures inside.

    Args:
        title: of the page.
        facts: sentences about how the network was made, by label.
        rows: from `table`.
        result: what `sglp.compress` returned.
    """
    from sglp.figures import draw_reconstruction, draw_similarity
    from sglp.pages import embedded, render

    removed = set(result.plan.removed)
    layers = [
        {
            "name": layer.name,
            "status": "removed" if layer.name in removed else "kept" if layer.removable else "can't be removed",
            "reason": layer.reason,
            "parameters": layer.parameters,
            "macs": layer.macs,
        }
        for layer in result.layers
    ]
    rebuilt = [row._asdict() for row in result.reconstructed]
    with TemporaryDirectory() as folder:
        similarity, errors = Path(folder, "similarity.png"), Path(folder, "errors.png")
        draw_similarity(similarity, result.similarity, layers, result.segments)
        if rebuilt:
            draw_reconstruction(errors, rebuilt)
        figures = {file.stem: embedded(file.read_bytes()) for file in (similarity, errors) if file.is_file()}
    content = {"title": title, "facts": facts, "rows": rows, "layers": layers, "figures": figures}
    return render(Path(__file__).with_name("page.html.jinja"), content)
