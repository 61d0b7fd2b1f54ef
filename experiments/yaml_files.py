"""YAML 1.2 as DVC reads and writes it, and values under dotted keys such as "score.batches"."""

from io import StringIO
from typing import Any

from ruamel.yaml import YAML, YAMLError

from experiments.errors import RunError


def parse(text: str, source: str) -> Any:
    """Parse YAML.

    Raises:
        RunError: the text is not YAML; the message names its source.
    """
    try:
        return YAML(typ="safe", pure=True).load(text)
    except YAMLError as error:
        raise RunError(f"{source} is not YAML: {' '.join(str(error).split())}") from error


def edit(text: str, source: str, values: dict[str, object]) -> str:
    """Return a YAML file's text with new values for some keys; comments are kept.

    Raises:
        RunError: the file does not have a key; the message names the file.
    """
    yaml = YAML(pure=True)
    yaml.default_flow_style = False
    yaml.width = 4096
    content = yaml.load(text)
    set_values(content, source, values)
    edited = StringIO()
    yaml.dump(content, edited)
    return edited.getvalue()


def set_values(content: dict, source: str, values: dict[str, object]) -> None:
    """Replace the values of dotted keys in a file's content.

    Raises:
        RunError: the file does not have a key; the message names the file and the keys that it has.
    """
    for key, value in values.items():
        group: Any = content
        for part in key.split("."):
            if not isinstance(group, dict) or part not in group:
                keys = f"; it can be one of {', '.join(group)}" if isinstance(group, dict) else ""
                raise RunError(f"{source}: {key} is not a key{keys}")
            parent, group = group, group[part]
        parent[part] = value


def get_value(content: Any, key: str) -> Any:
    """Return the value of a dotted key, or None if the content does not have the key."""
    for part in key.split("."):
        content = content.get(part) if isinstance(content, dict) else None
    return content
