"""Writes docs/methods.md, a page on every method and criterion, from their docstrings.

`python -m tools.method_pages` does it. Such a docstring has four parts: its first line and what follows say the
rule; then lines begin with `Source:`, `Cost:` and `Use:`. A cost is two formulas, of passes forward and backward, in
letters that the head of the pages explains.
"""

import inspect
import re
import sys
from pathlib import Path
from typing import NamedTuple

from sglp.errors import SGLPError
from sglp.files import new_file
from sglp.scoring.methods import criterion_names, find_criterion, find_method, method_names

PATH = Path(__file__).parents[1] / "docs" / "methods.md"
HEAD = """\
<!-- Written by `python -m tools.method_pages` from docstrings: change those. -->

# Ways to a plan

A method says which layers of a network stay: `method: NAME` in params.yaml, or `dvc exp run -S method=NAME`. A
criterion says what the method `sglp` asks of a combination of a segment's layers: `-S score.criterion=NAME`. Both can
be your own, as `package.module:function`; their signatures stand in [sglp/scoring/methods.py](../sglp/methods.py).

Costs are passes of one batch through the network: `B` batches (`score.batches`), `L` layers that can go, `r` of them
that go, `C` combinations that are scored, `D` random networks (`score.random_inits`). A pass that differs from the one before
in some layers begins at the first of them. What a run took stands in reports/scoring.json.
"""


class Page(NamedTuple):
    """What stands in a docstring.

    Attributes:
        name: as in params.yaml.
        title, rule: the first line, and what is said more.
        source, cost, use: what stands behind `Source:`, `Cost:` and `Use:`.
        forward, backward: the cost's formulas.
    """

    name: str
    title: str
    rule: str
    source: str
    cost: str
    use: str
    forward: str
    backward: str


def pages() -> dict[str, list[Page]]:
    """The pages of all "Methods" and "Criteria".

    Raises:
        SGLPError: a docstring lacks a part.
    """
    methods = [page(name, _text(name)) for name in method_names()]
    criteria = [page(name, _module_text(find_criterion(name))) for name in criterion_names()]
    return {"Methods": methods, "Criteria": criteria}


def page(name: str, text: str) -> Page:
    """Read a docstring.

    Raises:
        SGLPError: it lacks a part.
    """
    title, _, rest = text.strip().partition("\n")
    rule, *parts = re.split(r"^(Source|Cost|Use): ", rest, flags=re.MULTILINE)
    found = {key: " ".join(part.split()) for key, part in zip(parts[::2], parts[1::2], strict=True)}
    lines = [" ".join(paragraph.split()) for paragraph in rule.strip().split("\n\n")]
    formulas = re.match(r"forward `([^`]+)`, backward `([^`]+)`", found.get("Cost", ""))
    if not (title and lines[0] and found.keys() == {"Source", "Cost", "Use"} and formulas):
        raise SGLPError(
            f"the docstring of {name} is no page: a page has a first line, a rule, and lines that begin with "
            "'Source: ', 'Cost: forward `...`, backward `...`' and 'Use: '"
        )
    return Page(name, title, "\n\n".join(lines), found["Source"], found["Cost"], found["Use"], *formulas.groups())


def markdown() -> str:
    """The text of docs/methods.md."""
    text = HEAD
    for kind, found in pages().items():
        text += f"\n## {kind}\n\n| name | rule | passes forward | backward |\n|---|---|---|---|\n"
        for entry in found:
            anchor, rule = _heading(kind, entry).replace(" ", "-"), entry.title.partition(": ")[2]
            text += f"| [`{entry.name}`](#{anchor}) | {rule} | `{entry.forward}` | `{entry.backward}` |\n"
        for entry in found:
            text += f"\n### {_heading(kind, entry)}\n\n**{entry.title}**\n\n{entry.rule}\n\n"
            text += f"- Source: {_links(entry.source)}\n- Cost: {entry.cost}\n- Use: {entry.use}\n"
    return text


def main() -> None:
    """Write docs/methods.md."""
    with new_file(PATH) as new:
        new.write_text(markdown(), encoding="utf-8")


def _text(name: str) -> str:
    """The docstring of a method's module; that of `sglp` is its own, up to its arguments."""
    method = find_method(name)
    return inspect.getdoc(method).partition("\n\nArgs:")[0] if name == "sglp" else _module_text(method)


def _module_text(thing) -> str:
    return inspect.getdoc(sys.modules[thing.__module__])


def _heading(kind: str, entry: Page) -> str:
    # `random` is a method and a criterion: their headings must differ for links to find them.
    return entry.name if kind == "Methods" else f"criterion {entry.name}"


def _links(text: str) -> str:
    return re.sub(r"arXiv (\d{4}\.\d{5})", r"[arXiv \1](https://arxiv.org/abs/\1)", text)


if __name__ == "__main__":
    main()
