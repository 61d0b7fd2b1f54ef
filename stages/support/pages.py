"""Pages from templates, in HTML or Markdown by the template's name; a page stands alone."""

import base64
import json
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined


def render(template: Path, content: dict) -> str:
    """The page that a template makes of its content; a name that is missing there is an error.

    Filters: "plain", a value as it stands in YAML; "cell", a text in one line.
    """
    environment = Environment(
        loader=FileSystemLoader(template.parent),
        autoescape=template.name.endswith(".html.jinja"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["plain"] = lambda value: value if isinstance(value, str) else json.dumps(value)
    environment.filters["cell"] = lambda text: " ".join(text.split())
    return environment.get_template(template.name).render(content)


def embedded(png: bytes) -> str:
    """A figure as a data URI."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
