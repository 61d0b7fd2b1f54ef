"""Pages rendered from templates, as HTML or Markdown; an HTML page is a single file."""

import base64
import json
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined


def render(template: Path, content: dict) -> str:
    """Render a template. A name that the content lacks is an error.

    Filters: "plain" formats a value as in YAML; "cell" puts a text on one line.
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
    """Encode a figure as a data URI."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
