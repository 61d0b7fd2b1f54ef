"""The first-party import closure of a stage, read from the source: the code that its entry in dvc.yaml must list."""

import ast
from collections.abc import Iterator
from pathlib import Path

import sglp

FIRST_PARTY = ("sglp", "stages")
# Files that import modules named in params.yaml or a workload, and the first-party files that can be named.
IMPORTED_BY_NAME = {
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
    """Return the paths of all first-party files that running `entry` can import, relative to the root.

    They include `entry`, the packages' __init__.py, imports inside functions, and the files in `IMPORTED_BY_NAME`.

    Args:
        entry: file of the stage.
        root: folder of the project.
    """
    files: set[Path] = set()
    pending = [entry]
    while pending:
        file = pending.pop()
        if file in files:
            continue
        files.add(file)
        pending += _packages(file, root)
        pending += [target for name in _names(file) for target in _files(name, root)]
        patterns = IMPORTED_BY_NAME.get(file.relative_to(root).as_posix(), [])
        pending += [target for pattern in patterns for target in root.glob(pattern)]
    return {file.relative_to(root).as_posix() for file in files}


def _packages(file: Path, root: Path) -> list[Path]:
    return [p / "__init__.py" for p in file.parents if root in p.parents and (p / "__init__.py").exists()]


def _names(file: Path) -> set[str]:
    """Return the dotted names of the first-party modules, and names in them, that a file imports."""
    names: set[str] = set()
    for node in _nodes(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            names |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "sglp":
            names.add(
                f"sglp.{sglp._MODULES.get(node.attr, node.attr)}"
            )  # a public name of the package, imported on first use
    return {name for name in names if name.split(".")[0] in FIRST_PARTY}


def _nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield all nodes except those under `if TYPE_CHECKING`, which never run."""
    for child in ast.iter_child_nodes(tree):
        if not (isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING"):
            yield child
            yield from _nodes(child)


def _files(name: str, root: Path) -> list[Path]:
    path = root / name.replace(".", "/")
    return [p for p in (path.with_suffix(".py"), path / "__init__.py") if p.is_file()]
