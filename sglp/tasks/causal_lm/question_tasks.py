"""Find and load question tasks: those of lm-eval, with data from the hub, or those in a folder of the user."""

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from sglp.errors import DataError, first_line
from sglp.tasks.hub import fail_fast_offline

# lm-eval and datasets are imported inside functions: they are slow to import, and few runs need them.
SEED = 0  # seed of the examples that tasks draw


def check(tasks: list[str], folder: str | None) -> None:
    """Check that tasks exist, without a network or data.

    This takes seconds if a task is not in the folder, since lm-eval then reads the names in thousands of files.

    Args:
        tasks: names of tasks, groups or tags.
        folder: the user's task files, or None.

    Raises:
        DataError: lm-eval is not installed, the folder does not exist, a file in it is not valid YAML, or a name is
            unknown.
    """
    if tasks:
        with only_errors(), TemporaryDirectory() as scratch:
            build_manager(tasks, folder, Path(scratch))


@contextmanager
def only_errors() -> Iterator[None]:
    """Make lm-eval log only errors inside a context; disable `datasets`' progress bars if stderr is not a terminal."""
    import datasets

    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    log = logging.getLogger("lm_eval")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def build_manager(tasks: list[str], folder: str | None, scratch: Path) -> Any:
    """Build lm-eval's TaskManager, in which the folder's tasks find their data files.

    Args:
        tasks: names that must be known.
        folder: the user's task files, or None.
        scratch: an empty folder, which must exist as long as the manager is used.

    Raises:
        DataError: see `check`.
    """
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise DataError("evaluation.tasks needs lm-eval, which is not installed: pip install 'sglp[llm]'") from error
    local: dict = {}
    if folder is not None:
        _check_files(Path(folder))
        local = TaskManager(include_path=folder, include_defaults=False).task_index
        _write_includes(local, scratch)
    # Reading lm-eval's thousands of files takes seconds. Only groups, and tasks outside the folder, need them.
    only_local = all(name in local and "group" not in (local[name].cfg or {}) for name in tasks)
    manager = TaskManager(include_path=scratch, include_defaults=not only_local)
    for name in tasks:
        if name not in manager.task_index:
            if folder is None:
                raise DataError(
                    f"the task {name!r} is not in lm-eval, and files.tasks.path is null: set it for your own tasks"
                )
            names = ", ".join(sorted(local)) or "no tasks"
            raise DataError(f"the task {name!r} is neither in lm-eval nor in {folder}, which has {names}")
    return manager


def _check_files(folder: Path) -> None:
    """Check that task files are valid YAML: lm-eval skips invalid files, and would report their tasks as unknown."""
    if not folder.is_dir():
        raise DataError(f"files.tasks.path={folder} is wrong: it must be a folder of task files")
    for path in sorted(folder.rglob("*.yaml")):
        try:
            YAML(typ="safe").compose(path)
        except (YAMLError, UnicodeDecodeError) as error:
            raise DataError(f"{path} is not valid YAML: {first_line(error)}") from error


def _write_includes(local: dict, scratch: Path) -> None:
    """Write task files that include those of the user, with paths of data files made relative to the user's file.

    The cache of `datasets` is in the scratch folder too: the usual cache might return old content of a changed file.
    """
    for number, entry in enumerate(entry for entry in local.values() if entry.yaml_path):
        path = Path(entry.yaml_path).resolve()
        content: dict[str, Any] = {"include": str(path)}
        arguments = entry.cfg.get("dataset_kwargs") or {}
        if {"data_files", "data_dir"} & set(arguments) and not _may_need_hub(entry):
            base = path.parent / arguments.get("data_dir", "")
            content["dataset_kwargs"] = {**arguments, "data_dir": str(base), "cache_dir": str(scratch / "cache")}
        (scratch / f"{number}.yaml").write_text(json.dumps(content), encoding="utf-8")  # JSON is YAML


def load(manager: Any, tasks: list[str]) -> dict[str, dict]:
    """Load tasks and groups with their data, in the form that lm-eval's `evaluate` takes.

    Raises:
        DataError: a task can't be loaded, or needs the hub, which can't be reached.
    """
    loaded: dict[str, dict] = {"tasks": {}, "groups": {}}
    for name in tasks:
        try:
            with fail_fast_offline() if _may_need_hub(manager.task_index[name]) else nullcontext():
                content = manager.load([name])
        except ConnectionError as error:
            raise DataError(
                f"the task {name!r} needs the Hugging Face hub, which can't be reached: only tasks with local data, in "
                "the folder files.tasks.path, work without it"
            ) from error
        except Exception as error:  # a task's own code and data may raise anything
            raise DataError(f"the task {name!r} can't be loaded: {first_line(error)}") from error
        for kind, items in loaded.items():
            items.update(content[kind])
    for task in loaded["tasks"].values():
        task.set_fewshot_seed(SEED)
    return loaded


def _may_need_hub(entry: Any) -> bool:
    """Return whether a task may load data from the hub: its data set's name has a slash, or it is a group."""
    return "/" in str((entry.cfg or {}).get("dataset_path") or "/")
