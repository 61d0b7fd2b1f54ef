"""Finds and loads tasks of lm-eval: its own, whose data come from the hub, or the user's, from a folder."""

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from sglp.errors import DataError, first_line
from sglp.tasks.hub import fail_fast_offline

# lm-eval and datasets are imported where they are used: they are slow to import, and few runs ask questions.
SEED = 0  # of the examples that tasks draw


def check(tasks: list[str], folder: str | None) -> None:
    """Check that there are such tasks, without a network or data.

    This takes seconds where a task is not in the folder, since lm-eval reads thousands of files for their names.

    Raises:
        DataError: lm-eval is not installed, there is no such folder, a file of its is no YAML, or a name is unknown.
    """
    if tasks:
        with quiet(), TemporaryDirectory() as scratch:
            manager_of(tasks, folder, Path(scratch))


@contextmanager
def quiet() -> Iterator[None]:
    """lm-eval logs nothing but errors, and `datasets` draws bars in a terminal only."""
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


def manager_of(tasks: list[str], folder: str | None, scratch: Path):
    """lm-eval's view of all tasks, in which the folder's find their data."""
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise DataError("questions need lm-eval, which is not installed: pip install 'sglp[llm]'") from error
    local: dict = {}
    if folder is not None:
        _check_files(Path(folder))
        local = TaskManager(include_path=folder, include_defaults=False).task_index
        _at_home(local, scratch)
    # A group may hold tasks of lm-eval's; a task in the folder needs none of its thousands of files.
    alone = all(name in local and "group" not in (local[name].cfg or {}) for name in tasks)
    manager = TaskManager(include_path=scratch, include_defaults=not alone)
    for name in tasks:
        if name not in manager.task_index:
            own = f"nor of {folder}, which holds {', '.join(sorted(local)) or 'none'}"
            own = "and files.tasks is not given" if folder is None else own
            raise DataError(f"{name!r} is no task of lm-eval's, {own}")
    return manager


def _check_files(folder: Path) -> None:
    """lm-eval passes over what it can't read, so that a task with a slip in it would only be unknown."""
    if not folder.is_dir():
        raise DataError(f"there is no folder of tasks at {folder}")
    for path in sorted(folder.rglob("*.yaml")):
        try:
            YAML(typ="safe").compose(path)
        except (YAMLError, UnicodeDecodeError) as error:
            raise DataError(f"{path} is no YAML: {first_line(error)}") from error


def _at_home(local: dict, scratch: Path) -> None:
    """Write task files that include the folder's and say where relative data files are: beside the file itself.

    What `datasets` makes of the data goes into the scratch folder too: in its usual cache a file that changed under
    its name might be taken for the old one.
    """
    for number, entry in enumerate(entry for entry in local.values() if entry.yaml_path):
        path = Path(entry.yaml_path).resolve()
        content = {"include": str(path)}
        arguments = entry.cfg.get("dataset_kwargs") or {}
        if {"data_files", "data_dir"} & set(arguments) and not _may_need_hub(entry):
            base = path.parent / arguments.get("data_dir", "")
            content["dataset_kwargs"] = {**arguments, "data_dir": str(base), "cache_dir": str(scratch / "cache")}
        (scratch / f"{number}.yaml").write_text(json.dumps(content), encoding="utf-8")  # JSON is YAML


def load(manager, tasks: list[str]) -> dict[str, dict]:
    """The tasks and groups of these names, with their data, as lm-eval's `evaluate` takes them."""
    loaded: dict[str, dict] = {"tasks": {}, "groups": {}}
    for name in tasks:
        try:
            with fail_fast_offline() if _may_need_hub(manager.task_index[name]) else nullcontext():
                found = manager.load([name])
        except ConnectionError as error:
            raise DataError(
                f"the task {name!r} needs the Hugging Face hub, which can't be reached: tasks with local data, in the "
                "folder files.tasks, work without it"
            ) from error
        except Exception as error:  # whatever a task's own code and data raise, the user needs one sentence
            raise DataError(f"the task {name!r} can't be loaded: {first_line(error)}") from error
        for kind, items in loaded.items():
            items.update(found[kind])
    for task in loaded["tasks"].values():
        task.set_fewshot_seed(SEED)
    return loaded


def _may_need_hub(entry) -> bool:
    """A data set's name without a slash is a format of files, any other is on the hub; a group may hold any."""
    return "/" in str((entry.cfg or {}).get("dataset_path") or "/")
