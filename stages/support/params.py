"""Read and check parameter files; a stage gets only the parameters that its entry in dvc.yaml lists."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML, YAMLError

from sglp.errors import SGLPError
from sglp.tasks.schemas import schema_of
from stages.support.schema import Params

MUST_BE = "it must be "


class ParameterError(SGLPError):
    """A parameter file is wrong, or a stage reads a parameter that it does not declare."""


class DeclaredParams:
    """Parameters as attributes; reading one that the stage does not list is an error."""

    def __init__(self, stage: str, prefix: str, values: dict):
        self.__dict__.update(values)
        self._stage = stage
        self._prefix = prefix

    def __getattr__(self, name: str) -> Any:
        raise ParameterError(
            f"the stage {self._stage} reads the parameter {self._prefix}{name}: add it to params in the stage's entry "
            "in dvc.yaml"
        )


def flat(content: DeclaredParams | dict, prefix: str = "") -> dict[str, Any]:
    """Flatten nested parameters: join the keys by dots and skip the private attributes of `DeclaredParams`."""
    items = vars(content) if isinstance(content, DeclaredParams) else content
    flattened: dict[str, Any] = {}
    for key, value in items.items():
        if isinstance(content, DeclaredParams) and key.startswith("_"):
            continue
        if isinstance(value, DeclaredParams) or (isinstance(value, dict) and value):
            flattened |= flat(value, f"{prefix}{key}.")
        else:
            flattened[f"{prefix}{key}"] = value
    return flattened


def declared(stage: str) -> tuple[DeclaredParams, DeclaredParams]:
    """Return the parameters that a stage's entry in dvc.yaml lists, from params.yaml and from the chosen workload.

    Raises:
        ParameterError: a file or a listed key is missing, or a file has a wrong key or value.
    """
    listed = entry(stage).get("params", [])
    params_keys = [key for key in listed if isinstance(key, str)]
    workload_keys = [key for item in listed if isinstance(item, dict) for keys in item.values() for key in keys]
    params = read_yaml(Path("params.yaml"))
    check(Params, params, Path("params.yaml"), params_keys)
    workload: dict = {}
    if workload_keys:
        path = workload_path(params["model"])
        workload = read_yaml(path)
        check(schema_of(workload), workload, path, workload_keys)
    return _select(stage, params, params_keys), _select(stage, workload, workload_keys)


def entry(stage: str) -> dict:
    """Return a stage's entry in dvc.yaml; for a foreach stage, its template."""
    content = read_yaml(Path("dvc.yaml"))["stages"][stage]
    return content.get("do", content)


def workload_path(model: str) -> Path:
    """Return the path of a workload's file.

    Raises:
        ParameterError: there is no workload of this name; the message lists the available ones.
    """
    path = Path("models") / f"{model}.yaml"
    if not path.is_file():
        available = ", ".join(sorted(file.stem for file in Path("models").glob("*.yaml")))
        raise ParameterError(
            f"params.yaml: model={model} is unknown: {path} does not exist; the available workloads are "
            f"{available or 'none'}"
        )
    return path


def read_yaml(path: Path) -> dict:
    """Read YAML 1.2, as DVC does.

    Raises:
        ParameterError: the file does not exist, or is not a YAML mapping.
    """
    try:
        content = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ParameterError(f"there is no {path} in {Path.cwd()}: run this in the project's folder") from error
    except YAMLError as error:
        raise ParameterError(f"{path} is not valid YAML: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(content, dict):
        problem = "is empty" if content is None else f"holds a {type(content).__name__}"
        raise ParameterError(f"{path} {problem}: it must hold keys with values, such as 'seed: 0'")
    return content


def check(schema: type[BaseModel], content: dict, path: Path, needed: list[str] | None = None) -> None:
    """Check a file's content; with `needed`, only these keys must be present.

    Raises:
        ParameterError: the first error, in one sentence.
    """
    try:
        schema.model_validate(content)
    except ValidationError as exception:
        errors = exception.errors()
    else:
        return
    # A misspelt key causes two errors, unknown and missing: report the unknown key.
    for error in errors:
        if error["type"] == "extra_forbidden":
            valid = ", ".join(_valid_keys(schema, error["loc"]))
            raise ParameterError(f"{path}: {_key(error)} is not a valid key; the valid keys are {valid}")
    for error in errors:
        if error["type"] != "missing":
            key, value = _key(error), error["input"]
            reason = _join([_message(other) for other in errors if _key(other) == key])
            if not isinstance(value, dict):
                key = f"{key}={value!r} is wrong"
            raise ParameterError(": ".join(part for part in (str(path), key, reason) if part))
    for error in errors:
        if needed is None or any(_overlap(_key(error), key) for key in needed):
            raise ParameterError(f"{path}: the key {_key(error)} is missing")


def _key(error: Mapping[str, Any]) -> str:
    """Return the key that an error is about, without the type names that pydantic appends."""
    parts = [str(part) for part in error["loc"]]
    return ".".join(part for part in parts if part not in ("constrained-int", "int", "none") and "[" not in part)


def _overlap(key: str, other: str) -> bool:
    """Return whether one of two keys equals the other or contains it."""
    return f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}.")


def _message(error: Mapping[str, Any]) -> str:
    """Return pydantic's message, reworded for the user of a YAML file."""
    if error["type"] in ("model_type", "dict_type"):
        return f"{MUST_BE}a mapping of keys to values"
    message = error["msg"].removeprefix("Value error, ").replace("Input should be ", MUST_BE)
    return message[0].lower() + message[1:]


def _join(messages: list[str]) -> str:
    """Join the messages about one value, one for each type that it may have."""
    first, *others = messages
    return " or ".join([first, *(message.removeprefix(MUST_BE) for message in others)])


def _valid_keys(schema: type[BaseModel], location: tuple) -> list[str]:
    """Return the keys that are valid in the same group as an unknown key."""
    for part in location[:-1]:
        annotation = schema.model_fields[part].annotation
        groups = [kind for kind in (annotation, *get_args(annotation)) if _is_group(kind)]
        if not groups:
            break
        schema = groups[0]
    return sorted(schema.model_fields)


def _is_group(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _select(stage: str, content: dict, keys: list[str], prefix: str = "") -> DeclaredParams:
    """Select keys, written with dots, from a nested mapping."""
    groups: dict[str, list[str]] = {}
    for key in keys:
        head, _, rest = key.partition(".")
        groups.setdefault(head, []).append(rest)
    values = {}
    for head, rests in groups.items():
        whole = "" in rests
        values[head] = content[head] if whole else _select(stage, content[head], rests, f"{prefix}{head}.")
    return DeclaredParams(stage, prefix, values)
