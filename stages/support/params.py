"""Parameters, strictly checked; a stage is handed what its entry in dvc.yaml lists, and nothing else."""

from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML, YAMLError

from sglp.errors import SGLPError
from sglp.tasks.schemas import schema_of
from stages.support.dials import Params


class ParameterError(SGLPError):
    """A parameter file is wrong, or a stage reads what it does not declare."""


class DeclaredParams:
    """Parameters as attributes; the ones that the stage does not list are not there."""

    def __init__(self, stage: str, prefix: str, values: dict):
        self.__dict__.update(values)
        self._stage, self._prefix = stage, prefix

    def __getattr__(self, name: str) -> Any:
        raise ParameterError(
            f"the stage {self._stage} reads {self._prefix}{name}, a parameter that its entry in dvc.yaml does not list"
        )


def flat(content: DeclaredParams | dict, prefix: str = "") -> dict:
    """A view or mapping without nesting: keys joined by dots, what a view keeps to itself left out."""
    items = vars(content) if isinstance(content, DeclaredParams) else content
    found = {}
    for key, value in items.items():
        if isinstance(content, DeclaredParams) and key.startswith("_"):
            continue
        if isinstance(value, DeclaredParams) or (isinstance(value, dict) and value):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def declared(stage: str) -> tuple[DeclaredParams, DeclaredParams]:
    """The parameters that a stage's entry in dvc.yaml lists, of params.yaml and of the chosen workload.

    Raises:
        ParameterError: a file or a listed key is missing, or anything in the files is wrong.
    """
    listed = entry(stage).get("params", [])
    own = [key for key in listed if isinstance(key, str)]
    of_workload = [key for item in listed if isinstance(item, dict) for keys in item.values() for key in keys]
    params = read_yaml(Path("params.yaml"))
    check(Params, params, Path("params.yaml"), own)
    workload: dict = {}
    if of_workload:
        path = workload_path(params["model"])
        workload = read_yaml(path)
        check(schema_of(workload), workload, path, of_workload)
    return _view(stage, params, own), _view(stage, workload, of_workload)


def entry(stage: str) -> dict:
    """A stage's entry in dvc.yaml; for one of several alike (foreach) what they have in common."""
    found = read_yaml(Path("dvc.yaml"))["stages"][stage]
    return found.get("do", found)


def workload_path(model: str) -> Path:
    """The file of a workload.

    Raises:
        ParameterError: there is none of this name; the message has those that there are.
    """
    path = Path("models") / f"{model}.yaml"
    if not path.is_file():
        there = ", ".join(sorted(file.stem for file in Path("models").glob("*.yaml")))
        raise ParameterError(f"params.yaml: model={model} asks for {path}, which is not there; there are {there}")
    return path


def read_yaml(path: Path) -> dict:
    """Read YAML 1.2, as DVC does.

    Raises:
        ParameterError: there is no such file, or it is no mapping in YAML.
    """
    try:
        content = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ParameterError(f"there is no {path} in {Path.cwd().name}: run stages in the project's folder") from error
    except YAMLError as error:
        raise ParameterError(f"{path} is no YAML: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(content, dict):
        raise ParameterError(f"{path} is empty or no mapping")
    return content


def check(schema: type[BaseModel], content: dict, path: Path, needed: list[str] | None = None) -> None:
    """Check a file's content; with `needed`, only those keys have to be there.

    Raises:
        ParameterError: one sentence with the first fault.
    """
    try:
        schema.model_validate(content)
    except ValidationError as error:
        faults = error.errors()
    else:
        return
    # A misspelt key is both unknown and missing: the first says more.
    for fault in faults:
        if fault["type"] == "extra_forbidden":
            there = ", ".join(_keys_beside(schema, fault["loc"]))
            raise ParameterError(f"{path}: {_key(fault)} is no key; it can be one of {there}")
    for fault in faults:
        if fault["type"] != "missing":
            # One fault for each kind of value that would be allowed.
            said = [_said(other) for other in faults if _key(other) == _key(fault)]
            value = fault["input"]
            shown = f"{_key(fault)}={value!r} is wrong" if not isinstance(value, dict) else _key(fault) or "the whole"
            raise ParameterError(f"{path}: {shown}: {' or '.join(said)}")
    for fault in faults:
        if needed is None or any(_overlap(_key(fault), other) for other in needed):
            raise ParameterError(f"{path}: the key {_key(fault)} is missing")


def _key(fault: dict) -> str:
    """The key of a fault, without the kinds of value that pydantic puts behind it."""
    parts = [str(part) for part in fault["loc"]]
    return ".".join(part for part in parts if part not in ("constrained-int", "int", "none") and "[" not in part)


def _overlap(key: str, other: str) -> bool:
    """Whether one of two keys is the other or holds it."""
    return f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}.")


def _said(fault: dict) -> str:
    message = fault["msg"].removeprefix("Value error, ")
    return message[0].lower() + message[1:]


def _keys_beside(schema: type[BaseModel], location: tuple) -> list[str]:
    for part in location[:-1]:
        annotation = schema.model_fields[part].annotation
        groups = [kind for kind in (annotation, *get_args(annotation)) if _is_group(kind)]
        if not groups:
            break
        schema = groups[0]
    return sorted(schema.model_fields)


def _is_group(annotation) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _view(stage: str, content: dict, keys: list[str], prefix: str = "") -> DeclaredParams:
    """A view of the keys (with dots) of a mapping."""
    groups: dict[str, list[str]] = {}
    for key in keys:
        head, _, rest = key.partition(".")
        groups.setdefault(head, []).append(rest)
    values = {}
    for head, rests in groups.items():
        whole = "" in rests
        values[head] = content[head] if whole else _view(stage, content[head], rests, f"{prefix}{head}.")
    return DeclaredParams(stage, prefix, values)
