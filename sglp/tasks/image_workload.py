"""What a workload file of image classification holds."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from sglp.tasks.workload import Data, Distillation, Positive, Recipe, Seed, Strict, Workload

# One transform of torchvision.transforms.v2 and its arguments, as {RandomCrop: {size: 32, padding: 4}}.
Transform = Annotated[dict[str, dict], Field(min_length=1, max_length=1)]


class ImagePreparation(Strict):
    """How images become tensors. `transforms` are those of evaluation; training has its own, `augment`."""

    image_column: str
    label_column: str
    classes: Positive
    channels: Literal[1, 3]
    transforms: list[Transform]
    mean: list[float]
    std: list[Annotated[float, Field(gt=0)]]

    @model_validator(mode="after")
    def _one_a_channel(self):
        if not len(self.mean) == len(self.std) == self.channels:
            raise ValueError(f"mean and std must have {self.channels} numbers, one a channel")
        return self


class ImageData(Data):
    """Labelled images."""

    prepare: ImagePreparation


class Pretraining(Recipe):
    """How the dense network is trained, with a seed of its own."""

    augment: list[Transform]
    seed: Seed


class Finetuning(Recipe, Distillation):
    """How the pruned network is tuned."""

    augment: list[Transform]


class ImageEvaluation(Strict):
    """How networks are evaluated."""

    batch_size: Positive


class ImageBenchmark(Strict):
    """How networks are timed."""

    batch_sizes: Annotated[list[Positive], Field(min_length=1)]


class ImageWorkload(Workload):
    """A workload of image classification."""

    data: ImageData
    pretrain: Pretraining
    finetune: Finetuning
    evaluation: ImageEvaluation
    benchmark: ImageBenchmark
