"""The first-party import closure of a stage, read off the source: what its entry in dvc.yaml has to declare."""

import ast
from collections.abc import Iterator
from pathlib import Path

import sglp

FIRST_PARTY = ("sglp", "stages")
# Files that import what a dial or a workload names, and the first-party files that can be named there.
BY_NAME = {
    "sglp/architecture.py": ["sglp/networks/*.py"],
    "sglp/scoring/methods.py": ["sglp/scoring/baselines/*.py", "sglp/scoring/criteria/*.py"],
    "sglp/tasks/building.py": ["sglp/tasks/*/building.py", "sglp/tasks/vision_models.py"],
    "sglp/tasks/data.py": ["sglp/tasks/*/data.py"],
    "sglp/tasks/evaluation.py": ["sglp/tasks/*/evaluation.py"],
    "sglp/tasks/sources.py": ["sglp/tasks/digits.py", "sglp/tasks/topics.py"],
    "sglp/tasks/timing.py": ["sglp/tasks/*/timing.py"],
    "sglp/tasks/training.py": ["sglp/tasks/*/training.py"],
}


def closure(entry: Path, root: Path) -> set[str]:
    """All first-party files that running `entry` can import, `entry` and the packages' __init__.py included.

    Imports inside functions count, and what `BY_NAME` lists.
    """
    found: set[Path] = set()
    waiting = [entry]
    while waiting:
        file = waiting.pop()
        if file in found:
            continue
        found.add(file)
        waiting += _packages(file, root)
        waiting += [target for name in _names(file) for target in _files(name, root)]
        named = BY_NAME.get(file.relative_to(root).as_posix(), [])
        waiting += [target for pattern in named for target in root.glob(pattern)]
    return {file.relative_to(root).as_posix() for file in found}


def _packages(file: Path, root: Path) -> list[Path]:
    return [p / "__init__.py" for p in file.parents if root in p.parents and (p / "__init__.py").exists()]


def _names(file: Path) -> set[str]:
    names: set[str] = set()
    for node in _nodes(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "sglp":
            names.add(f"sglp.{sglp._MODULES.get(node.attr, node.attr)}")  # a public name, imported on first use
    return {name for name in names if name and name.split(".")[0] in FIRST_PARTY}


def _nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those under `if TYPE_CHECKING`, which never run."""
    for child in ast.iter_child_nodes(tree):
        if not (isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING"):
            yield child
            yield from _nodes(child)


def _files(name: str, root: Path) -> list[Path]:
    path = root / name.replace(".", "/")
    return [p for p in (path.with_suffix(".py"), path / "__init__.py") if p.is_file()]
