"""Keys of a workload file for image classification, beside those of `sglp.tasks.schemas.workload`."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from sglp.tasks.schemas.workload import Data, Distillation, Positive, Recipe, Seed, Strict, Workload

# A transform of torchvision.transforms.v2 with its arguments, such as {RandomCrop: {size: 32, padding: 4}}.
Transform = Annotated[dict[str, dict], Field(min_length=1, max_length=1)]
Epsilon = Annotated[float, Field(gt=0, le=1)]


class ImagePreparation(Strict):
    """How images become tensors.

    Attributes:
        image_column: the column with the images; ignored for a data-set class.
        label_column: the column with the labels; ignored for a data-set class.
        classes: number of classes.
        channels: 1 for grey images, 3 for RGB.
        transforms: the transforms for evaluation; training uses `augment` instead.
        mean: mean of each channel, subtracted from pixel values in 0..1.
        std: standard deviation of each channel, by which the difference is divided.
    """

    image_column: str
    label_column: str
    classes: Positive
    channels: Literal[1, 3]
    transforms: list[Transform]
    mean: list[float]
    std: list[Annotated[float, Field(gt=0)]]

    @model_validator(mode="after")
    def _has_a_value_per_channel(self) -> Self:
        if not len(self.mean) == len(self.std) == self.channels:
            raise ValueError(
                f"mean and std have {len(self.mean)} and {len(self.std)} values: each needs {self.channels}, one per "
                "channel"
            )
        return self


class ImageData(Data):
    """Labelled images; see `Data`."""

    prepare: ImagePreparation


class ImageRecipe(Recipe):
    """How an image classifier is trained.

    Attributes:
        precision: precision of forward and backward passes (autocast). Weights and optimizer steps are always float32.
            "bfloat16" falls back to float32 on a processor without bfloat16 instructions, where it would be slower.
        augment: the transforms for training, used instead of `data.prepare.transforms`.
    """

    precision: Literal["float32", "bfloat16"]
    augment: list[Transform]


class Pretraining(ImageRecipe):
    """How the dense network is trained if `weights.train` is true.

    Attributes:
        seed: seed of the random weights and of training, independent of `seed` in params.yaml.
    """

    seed: Seed


class Finetuning(ImageRecipe, Distillation):
    """How the pruned network is fine-tuned."""


class Robustness(Strict):
    """Attacks and corruptions under which accuracy is measured, on test images drawn with a fixed seed.

    Attributes:
        samples: number of test images; all of them if the split has fewer.
        fgsm: for FGSM, the largest changes of a pixel, as shares of its range: 0.03137 is 8 of 255 levels.
        pgd: the same for PGD.
        pgd_steps: steps of each PGD attack; a step is a forward and a backward pass.
        severities: severities, 1 to 5, of each of the 15 corruptions of CIFAR-C.
    """

    samples: Positive
    fgsm: list[Epsilon]
    pgd: list[Epsilon]
    pgd_steps: Positive
    severities: list[Annotated[int, Field(ge=1, le=5)]]

    @model_validator(mode="after")
    def _values_are_unique(self) -> Self:
        for name in ("fgsm", "pgd", "severities"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"{name}={values} repeats a value: list each value once")
        return self


class ImageEvaluation(Strict):
    """How networks are evaluated.

    Attributes:
        batch_size: images per batch.
        robustness: attacks and corruptions; null to skip them.
    """

    batch_size: Positive
    robustness: Robustness | None


class ImageBenchmark(Strict):
    """How networks are timed.

    Attributes:
        batch_sizes: numbers of images per batch; the forward pass is timed at each.
    """

    batch_sizes: Annotated[list[Positive], Field(min_length=1)]


class ImageWorkload(Workload):
    """A workload of image classification; see `Workload` for the other keys.

    Attributes:
        data: the images.
        pretrain: how the dense network is trained.
        finetune: how the pruned network is fine-tuned.
        evaluation: how networks are evaluated.
        benchmark: how networks are timed.
    """

    data: ImageData
    pretrain: Pretraining
    finetune: Finetuning
    evaluation: ImageEvaluation
    benchmark: ImageBenchmark
