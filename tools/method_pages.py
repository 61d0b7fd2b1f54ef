"""Write docs/methods.md, a page for each method and criterion, from their docstrings: ``python -m tools.method_pages``.

Such a docstring has four parts: the first line and the paragraphs below it state the rule; then paragraphs begin with
`Source:`, `Cost:` and `Use:`. A cost begins with two formulas, for forward and backward passes, whose letters the head
of the document explains.
"""

import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from sglp.errors import SGLPError
from sglp.files import new_file
from sglp.scoring.methods import criterion_names, find_criterion, find_method, method_names

PATH = Path(__file__).parents[1] / "docs" / "methods.md"
HEAD = """\
<!-- Written by `python -m tools.method_pages` from docstrings: change those. -->

# Methods and criteria

A *method* chooses which layers of a network to keep: `method: NAME` in params.yaml, or `dvc exp run -S method=NAME`. A
*criterion* scores a set of layers that a segment could keep, for the method `sglp`: `-S score.criterion=NAME`. Both can
be your own code, as `package.module:function`; [sglp/scoring/methods.py](../sglp/scoring/methods.py) has their
signatures.

Costs are passes of one batch through the network, with `B` batches (`score.batches`), `L` removable layers, `r` removed
layers, `C` scored combinations, and `D` random networks (`score.random_inits`). A pass that differs from the one before
in only some layers starts at the first of them. The passes of your own run are in reports/scoring.json.
"""


class Page(NamedTuple):
    """The content of a docstring.

    Attributes:
        name: name in params.yaml.
        title: the first line.
        rule: the paragraphs between the first line and `Source:`.
        source, cost, use: the text after `Source:`, `Cost:` and `Use:`.
        forward, backward: the formulas of the cost.
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
    """Return the pages of all "Methods" and "Criteria".

    Raises:
        SGLPError: a docstring lacks a part.
    """
    methods = [page(name, _method_text(name)) for name in method_names()]
    criteria = [page(name, _module_text(find_criterion(name))) for name in criterion_names()]
    return {"Methods": methods, "Criteria": criteria}


def page(name: str, text: str) -> Page:
    """Parse a docstring.

    Raises:
        SGLPError: the docstring lacks a part.
    """
    title, _, rest = text.strip().partition("\n")
    rule, *sections = re.split(r"^(Source|Cost|Use): ", rest, flags=re.MULTILINE)
    parts = {key: " ".join(part.split()) for key, part in zip(sections[::2], sections[1::2], strict=True)}
    paragraphs = [" ".join(paragraph.split()) for paragraph in rule.strip().split("\n\n")]
    formulas = re.match(r"forward `([^`]+)`, backward `([^`]+)`", parts.get("Cost", ""))
    if not (title and paragraphs[0] and parts.keys() == {"Source", "Cost", "Use"} and formulas):
        raise SGLPError(
            f"the docstring of {name} lacks a part: it needs a first line, a rule, and paragraphs that begin with "
            "'Source: ', 'Cost: forward `...`, backward `...`' and 'Use: '"
        )
    rule = "\n\n".join(paragraphs)
    return Page(name, title, rule, parts["Source"], parts["Cost"], parts["Use"], *formulas.groups())


def markdown() -> str:
    """Return the text of docs/methods.md."""
    text = HEAD
    for kind, entries in pages().items():
        text += f"\n## {kind}\n\n| name | rule | forward passes | backward passes |\n|---|---|---|---|\n"
        for entry in entries:
            anchor = _heading(kind, entry).replace(" ", "-")
            rule = entry.title.partition(": ")[2]
            text += f"| [`{entry.name}`](#{anchor}) | {rule} | `{entry.forward}` | `{entry.backward}` |\n"
        for entry in entries:
            text += f"\n### {_heading(kind, entry)}\n\n**{entry.title}**\n\n{entry.rule}\n\n"
            text += f"- Source: {_links(entry.source)}\n- Cost: {entry.cost}\n- Use: {entry.use}\n"
    return text


def main() -> None:
    """Write docs/methods.md."""
    with new_file(PATH) as new:
        new.write_text(markdown(), encoding="utf-8")


def _method_text(name: str) -> str:
    """Return the docstring of a method's module, or for `sglp` that of the function, up to its arguments."""
    method = find_method(name)
    return _text(method).partition("\n\nArgs:")[0] if name == "sglp" else _module_text(method)


def _module_text(function: Callable) -> str:
    return _text(sys.modules[function.__module__])


def _text(documented: object) -> str:
    return inspect.getdoc(documented) or ""


def _heading(kind: str, entry: Page) -> str:
    # `random` is a method and a criterion: their headings must differ for links to find them.
    return entry.name if kind == "Methods" else f"criterion {entry.name}"


def _links(text: str) -> str:
    return re.sub(r"arXiv (\d{4}\.\d{5})", r"[arXiv \1](https://arxiv.org/abs/\1)", text)


if __name__ == "__main__":
    main()
