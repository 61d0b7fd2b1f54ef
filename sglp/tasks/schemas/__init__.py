"""Schemas of workload files by task. Nothing here imports torch or what a task does."""

from pydantic import BaseModel

from sglp.choices import TaskName
from sglp.tasks.schemas.causal_lm import LanguageWorkload
from sglp.tasks.schemas.image_classification import ImageWorkload
from sglp.tasks.schemas.workload import Recipe


class _Task(BaseModel):
    """The one key that says what the others are."""

    task: TaskName


SCHEMAS = {"image_classification": ImageWorkload, "causal_lm": LanguageWorkload}


def recipe_of(task: str, name: str, content: dict) -> Recipe:
    """A task's recipe ("pretrain" or "finetune") from a workload file's content."""
    return SCHEMAS[task].model_fields[name].annotation.model_validate(content)


def schema_of(content: dict) -> type[BaseModel]:
    """The schema of a workload file's content; of its task alone where that is unknown."""
    task = content.get("task")
    return SCHEMAS.get(task, _Task) if isinstance(task, str) else _Task
