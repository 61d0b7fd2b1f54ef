"""Keys that all workload files share. Every key must be present, and unknown keys are refused."""

import math
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from sglp.choices import Pooling, TaskName

Share = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Revision = Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]

# Names that `load_dataset` takes for the user's own files, without a revision.
LOCAL_FORMATS = ("parquet", "imagefolder", "json", "text")
# Factories that load Hugging Face models from the hub.
FETCHING = ("sglp.tasks.language_models:causal_lm", "sglp.tasks.vision_models:image_classifier")


class Strict(BaseModel):
    """A mapping with exactly these keys, whose values are not converted to other types."""

    model_config = ConfigDict(strict=True, extra="forbid")


class Architecture(Strict):
    """The function or class that builds the network.

    Attributes:
        factory: its dotted name, such as `torchvision.models:resnet50`.
        kwargs: its arguments.
    """

    factory: Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]
    kwargs: dict


class Weights(Strict):
    """The initial weights of the dense network.

    Attributes:
        source: "random"; "file", the user's file or folder in `files.weights.path`; or "factory", which loads weights
            if it is called with `kwargs`.
        kwargs: further arguments of the factory, for source "factory"; {} for any other source.
        train: whether the recipe `pretrain` trains these weights. Random weights must be trained.
    """

    source: Literal["random", "file", "factory"]
    kwargs: dict
    train: bool

    @model_validator(mode="after")
    def _kwargs_are_the_factorys(self) -> Self:
        if (self.source == "factory") != bool(self.kwargs):
            raise ValueError(
                f"kwargs={self.kwargs} does not fit source: {self.source}: source: factory needs the arguments that "
                "make the factory load weights, any other source needs {}"
            )
        return self

    @model_validator(mode="after")
    def _random_weights_are_trained(self) -> Self:
        if self.source == "random" and not self.train:
            raise ValueError("source: random needs train: true, since scores of untrained layers mean nothing")
        return self


class Source(Strict):
    """The source of the data.

    Attributes:
        loader: "datasets" for `datasets.load_dataset`, or the dotted name of a data-set class whose items are pairs
            (image, label), or texts.
        name: for "datasets", a name on the hub, or the format of the user's files: "parquet", "imagefolder", "json" or
            "text".
        revision: the commit (40 hexadecimal digits) of a data set on the hub, so that the data can't change unnoticed;
            null for the user's files and for classes.
    """

    loader: str
    name: str | None
    revision: Revision | None

    @model_validator(mode="after")
    def _is_pinned(self) -> Self:
        on_hub = self.loader == "datasets" and self.name not in LOCAL_FORMATS
        if on_hub and self.revision is None:
            raise ValueError(f"a data set on the hub needs a commit as revision, but name={self.name} has none")
        if not on_hub and self.revision is not None:
            raise ValueError(
                f"revision={self.revision} must be null: only a data set on the hub has a revision, not a class or "
                f"{', '.join(LOCAL_FORMATS)}"
            )
        return self


class Data(Strict):
    """The data.

    Attributes:
        source: where both splits come from.
        train: arguments of `load_dataset`, or of the data-set class, for the training split: {split: "train[:80%]"}.
        test: the same for the test split, which must not overlap the training split.
        prepare: how samples are prepared; its keys depend on the task.
    """

    source: Source
    train: dict
    test: dict
    prepare: Strict

    @model_validator(mode="after")
    def _paths_are_in_files(self) -> Self:
        for split in (self.train, self.test):
            for key in ("data_files", "data_dir", "root"):
                if key in split:
                    raise ValueError(f"{key} has no checksum: set files.train.path and files.test.path instead")
        return self


class File(Strict):
    """A file or folder of the user; both keys are null if there is none.

    Attributes:
        path: its path on this machine. Stages do not depend on the path, so that colleagues may store it elsewhere.
        sha256: its checksum, which stages depend on; `python -m tools.checksums` fills it in.
    """

    path: str | None
    sha256: Sha256 | None


class Files(Strict):
    """All files of the user.

    Attributes:
        weights: trained weights, for `weights.source: file`.
        train: data of the training split.
        test: data of the test split.
        tasks: a folder of question tasks for lm-eval.
        code: a Python module or package, with any factory, data-set class, method or criterion of the user.
    """

    weights: File
    train: File
    test: File
    tasks: File
    code: File


class Recipe(Strict):
    """How a network is trained. The learning rate rises linearly, then falls to 0 as a cosine.

    Attributes:
        samples: number of training samples, drawn with the seed; null for all.
        optimizer: "sgd" or "adamw".
        learning_rate: the highest learning rate.
        momentum: of sgd; 0.0 for adamw.
        weight_decay: applied to all parameters.
        batch_size: samples per batch.
        epochs: passes over the training samples.
        warmup_epochs: epochs, or a part of one, in which the learning rate rises.
        label_smoothing: share of the target's probability that is spread over all classes.
        holdout: share of `samples` that is held out to evaluate the network during training: those samples that
            calibration would draw last.
        keep: "last" for the final weights, or "best" for the weights that do best on the held-out samples.
    """

    samples: Positive | None
    optimizer: Literal["sgd", "adamw"]
    learning_rate: Annotated[float, Field(gt=0)]
    momentum: Share
    weight_decay: Annotated[float, Field(ge=0)]
    batch_size: Positive
    epochs: Positive
    warmup_epochs: Annotated[float, Field(ge=0)]
    label_smoothing: Share
    holdout: Share
    keep: Literal["last", "best"]

    @model_validator(mode="after")
    def _warms_up_in_time(self) -> Self:
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs={self.warmup_epochs:g} must be below epochs={self.epochs}")
        return self

    @model_validator(mode="after")
    def _adamw_has_no_momentum(self) -> Self:
        if self.optimizer == "adamw" and self.momentum:
            raise ValueError(f"momentum={self.momentum:g} is only for sgd: with optimizer: adamw it must be 0.0")
        return self

    @model_validator(mode="after")
    def _best_needs_holdout(self) -> Self:
        if self.keep == "best" and not self.holdout:
            raise ValueError("keep: best needs a holdout above 0, the share of the training samples to choose on")
        return self


class Distillation(Strict):
    """Distillation from the dense network during fine-tuning (Hinton et al. 2015).

    Attributes:
        distillation: weight of the dense network's outputs in the loss; the labels have the rest. 0.0 disables it.
        temperature: by which the logits of both networks are divided.
    """

    distillation: Annotated[float, Field(ge=0, le=1)]
    temperature: Annotated[float, Field(gt=0)]


class Calibration(Strict):
    """The training samples on which the similarity of layers is measured.

    Attributes:
        samples: number of samples, drawn with the seed.
        batch_size: the largest batch. Batches are nearly equal in size; CKA is estimated per batch and averaged.
        pooling: what is compared of a layer's output: "flatten", all values of a sample; "mean", the mean over space or
            tokens; "last", the last token; "tokens", each token as a sample.
    """

    samples: Annotated[int, Field(ge=4)]
    batch_size: Annotated[int, Field(ge=4)]
    pooling: Pooling

    @model_validator(mode="after")
    def _batches_are_large_enough(self) -> Self:
        smallest = self.samples // math.ceil(self.samples / self.batch_size)  # batches are nearly equal
        if smallest < 4:
            raise ValueError(
                f"samples={self.samples} with batch_size={self.batch_size} gives a batch of {smallest}, which is too "
                "small: CKA needs at least 4 samples per batch"
            )
        return self


class Scoring(Strict):
    """How much work it is to score one set of layers, and when a segment is searched exhaustively.

    Attributes:
        batch_size: samples in each of the `score.batches` batches of params.yaml.
        max_combinations: largest number of combinations that is searched exhaustively; a segment with more is searched
            by beam. Not used with `score.search: joint`.
    """

    batch_size: Positive
    max_combinations: Annotated[int, Field(ge=0)]


class ReconstructionSamples(Strict):
    """The training samples that kept layers are refitted on; labels are not used.

    Attributes:
        samples: number of samples, drawn with the seed; an eighth of them is held out to check each layer.
        batch_size: the largest batch; each step of a fit by gradient takes one.
    """

    samples: Annotated[int, Field(ge=2)]
    batch_size: Positive


class Workload(Strict):
    """A workload file in models/. Each task adds `pretrain`, `finetune`, `evaluation` and `benchmark`.

    Attributes:
        task: "image_classification" or "causal_lm".
        architecture: the function or class that builds the network.
        layers: null to find layers by running the network, or a pattern, or a list of patterns, of module paths, such
            as "encoder.layers.*".
        weights: the initial weights.
        data: the data and their two splits.
        files: the user's files, with checksums.
        calibration: the samples on which similarity is measured.
        scoring: the work per scored set of layers.
        reconstruction: the samples that kept layers are refitted on.
    """

    task: TaskName
    architecture: Architecture
    layers: str | list[str] | None
    weights: Weights
    data: Data
    files: Files
    calibration: Calibration
    scoring: Scoring
    reconstruction: ReconstructionSamples

    @field_validator("layers", mode="before")
    @classmethod
    def _null_or_patterns(cls, layers: Any) -> Any:
        patterns = layers if isinstance(layers, list) else [layers]
        if layers is not None and not (patterns and all(isinstance(p, str) and p for p in patterns)):
            raise ValueError("it must be null, a pattern of module paths, or a list of patterns")
        return layers

    @model_validator(mode="after")
    def _weights_are_pinned(self) -> Self:
        kwargs = self.weights.kwargs
        if self.weights.source == "factory" and self.architecture.factory in FETCHING:
            pinned = set(kwargs) == {"pretrained", "revision"} and re.fullmatch("[0-9a-f]{40}", str(kwargs["revision"]))
            if not pinned or Path(str(kwargs["pretrained"])).exists():
                raise ValueError(
                    f"weights.kwargs={kwargs} is wrong: it must have pretrained (a name on the hub) and revision (a "
                    "commit of 40 hexadecimal digits); for a local folder, set weights.source: file and "
                    "files.weights.path"
                )
        return self

    @model_validator(mode="after")
    def _splits_do_not_overlap(self) -> Self:
        files, splits = self.files, (self.data.train, self.data.test)
        same_files = files.train.path == files.test.path or (files.train.sha256 or 0) == files.test.sha256
        train, test = ({**split, "split": None} for split in splits)
        (name, first, end), (other, start, stop) = (_rows(str(split.get("split", "train"))) for split in splits)
        if same_files and train == test and name == other and max(first, start) < min(end, stop):
            raise ValueError("data.train and data.test overlap: the test split must not hold training samples")
        return self


def _rows(split: str) -> tuple[str, int, float]:
    """Parse a split "NAME" or "NAME[a:b]" into its name, first row and end; any other form counts as a name."""
    match = re.fullmatch(r"(\w+)(?:\[(\d*):(\d*)\])?", split)
    name, first, end = match.groups() if match else (split, None, None)
    return name, int(first or 0), int(end) if end else math.inf
