"""Tasks by name, and the schema of each one's workload.

A task is a module of this package with these functions; stages know no task but by them, and by how its networks are
judged (`sglp.tasks.evaluation`). A batch is a pair (inputs,
target): a tensor or a dict of arguments, and the class of every row of the network's logits (-100 where there is none).

    build(architecture, weights, path, seed)      the dense network, with the weights that are not trained here
    processor(folder, architecture)               what goes with a network and prepares its data (a tokenizer), or None
    first_processor(architecture, weights, path, prepare)    the dense network's, before there is a folder
    dtype(device)                                 what a network computes in there, or None for what it is stored in
    open_split(source, arguments, prepare, path, sha256, processor)    a split of the data, with a length
    example(data)                                 the inputs of one sample
    calibration_batches(data, samples, batch_size, seed, part)    batches, drawn without replacement; all, or a part
    check_fit(network, data)                      an error where the two don't go together
    training_samples(data, indices, recipe, seed)    a data set by (epoch, position), or by position without a recipe
    collate(samples)                              a batch of them
    trainer_arguments(recipe)                     what the Trainer needs besides what all tasks need
    adapt(network, recipe, seed)                  what is trained in the network's place, and how to get it back
"""

from importlib import import_module
from types import ModuleType
from typing import Literal

from pydantic import BaseModel

from sglp.tasks.image_workload import ImageWorkload
from sglp.tasks.language_workload import LanguageWorkload
from sglp.tasks.workload import Recipe


class _Task(BaseModel):
    """The one key that says what the others are."""

    task: Literal["image_classification", "causal_lm"]


SCHEMAS = {"image_classification": ImageWorkload, "causal_lm": LanguageWorkload}


def find_task(name: str) -> ModuleType:
    """The task of this name."""
    return import_module(f"sglp.tasks.{name}")


def recipe_of(task: str, name: str, content: dict) -> Recipe:
    """A task's recipe ("pretrain" or "finetune") from a workload file's content."""
    return SCHEMAS[task].model_fields[name].annotation.model_validate(content)


def schema_of(content: dict) -> type[BaseModel]:
    """The schema of a workload file's content; of its task alone where that is unknown."""
    task = content.get("task")
    return SCHEMAS.get(task, _Task) if isinstance(task, str) else _Task
