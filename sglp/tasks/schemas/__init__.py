"""Schemas of workload files by task. They are checked without importing torch or the code of a task."""

from typing import cast

from pydantic import BaseModel

from sglp.choices import TaskName
from sglp.tasks.schemas.causal_lm import LanguageWorkload
from sglp.tasks.schemas.image_classification import ImageWorkload
from sglp.tasks.schemas.workload import Recipe, Workload


class _Task(BaseModel):
    """The key that selects the schema of a file."""

    task: TaskName


SCHEMAS: dict[str, type[Workload]] = {"image_classification": ImageWorkload, "causal_lm": LanguageWorkload}


def recipe_of(task: str, name: str, content: dict) -> Recipe:
    """Validate the recipe "pretrain" or "finetune" of a task, given its content in a workload file."""
    schema = cast(type[Recipe], SCHEMAS[task].model_fields[name].annotation)
    return schema.model_validate(content)


def schema_of(content: dict) -> type[BaseModel]:
    """Return the schema of a workload file's content, or a schema of the key `task` alone if the task is unknown."""
    task = content.get("task")
    return SCHEMAS.get(task, _Task) if isinstance(task, str) else _Task
