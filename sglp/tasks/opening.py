"""Build a workload's network and an example input from its file, for `sglp inspect`."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from torch import nn

from sglp.errors import DataError
from sglp.exporting.example_input import check_takes, example_input
from sglp.hugging_face.networks import is_pretrained
from sglp.tasks.building import find_building
from sglp.tasks.data import find_data
from sglp.tasks.schemas import schema_of
from sglp.tasks.schemas.workload import Weights, Workload


def read_workload(path: Path) -> Workload:
    """Read a workload file.

    Raises:
        DataError: the file is not a workload.
    """
    try:
        content = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
        return cast(Workload, schema_of(content).model_validate(content))
    except (YAMLError, ValidationError, AttributeError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} is not a valid workload: set model: {path.stem} in params.yaml and run 'python -m tools.check'"
        ) from error


def open_workload(workload: Workload, shape: Sequence[int] | None = None) -> tuple[nn.Module, object]:
    """Build a workload's network and one input. Only language models are downloaded.

    Args:
        workload: the workload; code that it names runs.
        shape: shape of the input; None if the config of the network or a data-set class gives it.

    Raises:
        ArchitectureError: the network can't be built, the shape is needed or is wrong.
        CheckpointError: weights that the network needs can't be read.
        DataError: the weights do not exist, or the data can't be read.
    """
    files = workload.files
    data = workload.data
    if files.code.path is not None:
        sys.path.append(str(Path(files.code.path).resolve().parent))
    weights = workload.weights
    if workload.task == "image_classification":  # their layers do not depend on the weights
        weights = Weights.model_construct(source="random", kwargs={}, train=False)
    path = files.weights.path if workload.weights.source == "file" else None
    if path is not None and not Path(path).exists():
        raise DataError(f"files.weights.path={path} does not exist, and the network can't be built without it")
    network = find_building(workload.task).build(workload.architecture, weights, path, 0)
    if shape is None and is_pretrained(network):
        length = getattr(data.prepare, "length", None)
        shape = (length,) if length else None
    comes_along = data.source.loader != "datasets" and files.train.path is None
    if shape is None and comes_along and not is_pretrained(network):
        task = find_data(workload.task)
        split = task.open_split(data.source, data.train, data.prepare.model_dump(), None, None, None)
        example = task.example(split)
        check_takes(network, example)
        return network, example
    return network, example_input(network, shape)
