"""What a workload file of image classification holds."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from sglp.tasks.schemas.workload import Data, Distillation, Positive, Recipe, Seed, Strict, Workload

# One transform of torchvision.transforms.v2 and its arguments, as {RandomCrop: {size: 32, padding: 4}}.
Transform = Annotated[dict[str, dict], Field(min_length=1, max_length=1)]
Epsilon = Annotated[float, Field(gt=0, le=1)]


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


class ImageRecipe(Recipe):
    """How a network for images is trained.

    precision: what passes forward and backward compute in (autocast); weights and steps are float32 in both. bfloat16
        is float32 on a processor without instructions for it, where it would be slower.
    augment: the transforms of training, in the place of those of evaluation.
    """

    precision: Literal["float32", "bfloat16"]
    augment: list[Transform]


class Pretraining(ImageRecipe):
    """How the dense network is trained, with a seed of its own."""

    seed: Seed


class Finetuning(ImageRecipe, Distillation):
    """How the pruned network is tuned."""


class Robustness(Strict):
    """What networks are attacked with, on test images drawn with a fixed seed.

    samples: how many images; all of them where there are fewer.
    fgsm, pgd: the largest change of a pixel, as shares of its range: 0.03137 is 8 of 255 levels.
    pgd_steps: of every attack by PGD, each a forward and a backward pass.
    severities: of the 15 corruptions.
    """

    samples: Positive
    fgsm: list[Epsilon]
    pgd: list[Epsilon]
    pgd_steps: Positive
    severities: list[Annotated[int, Field(ge=1, le=5)]]

    @model_validator(mode="after")
    def _each_once(self):
        for name in ("fgsm", "pgd", "severities"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"{name}={values} has a value twice")
        return self


class ImageEvaluation(Strict):
    """How networks are evaluated; robustness is null where it is not measured."""

    batch_size: Positive
    robustness: Robustness | None


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
