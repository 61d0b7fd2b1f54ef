"""What every workload file holds: a network, its weights, its data, its recipes. Nothing is guessed or ignored."""

import math
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from sglp.choices import Pooling, TaskName

Share = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Revision = Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]

# What `load_dataset` makes of the user's own files.
LOCAL_FORMATS = ("parquet", "imagefolder", "json", "text")
# What brings networks of transformers, from the hub or a folder.
FETCHING = ("sglp.tasks.language_models:causal_lm", "sglp.tasks.vision_models:image_classifier")


class Strict(BaseModel):
    """No unknown keys, no conversions."""

    model_config = ConfigDict(strict=True, extra="forbid")


class Architecture(Strict):
    """What builds the network."""

    factory: Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]
    kwargs: dict


class Weights(Strict):
    """Where the weights come from, and whether the recipe `pretrain` then trains them.

    source: "random", a "file" or folder of the user's, or the "factory" with these kwargs.
    """

    source: Literal["random", "file", "factory"]
    kwargs: dict
    train: bool

    @model_validator(mode="after")
    def _kwargs_are_the_factorys(self):
        if (self.source == "factory") != bool(self.kwargs):
            raise ValueError(
                "kwargs are the arguments that make a factory fetch weights: source: factory needs them, "
                "and no other source takes any"
            )
        return self

    @model_validator(mode="after")
    def _random_weights_are_trained(self):
        if self.source == "random" and not self.train:
            raise ValueError("source: random needs train: true: nothing can be told of layers that have learnt nothing")
        return self


class Source(Strict):
    """Where the data come from.

    loader: "datasets" for what `datasets.load_dataset` takes, or the dotted name of a data-set class whose items are
    (image, label), or texts.
    name: for datasets the hub name, or the format of the user's files ("parquet", "imagefolder", "json", "text").
    revision: the commit of a data set on the hub, so that the data can't change unseen.
    """

    loader: str
    name: str | None
    revision: Revision | None

    @model_validator(mode="after")
    def _pinned(self):
        on_hub = self.loader == "datasets" and self.name not in LOCAL_FORMATS
        if on_hub != (self.revision is not None):
            raise ValueError(
                f"a data set on the hub needs the revision of a commit, and {', '.join(LOCAL_FORMATS)} "
                "or a class take none"
            )
        return self


class Data(Strict):
    """The data: where from, which arguments make the two splits, how samples are prepared (the task says `prepare`)."""

    source: Source
    train: dict
    test: dict

    @model_validator(mode="after")
    def _files_stand_in_files(self):
        for split in (self.train, self.test):
            for key in ("data_files", "data_dir", "root"):
                if key in split:
                    raise ValueError(f"{key} has no checksum: give the path as files.train and files.test")
        return self


class File(Strict):
    """A file or folder of the user's. What is depended on is the sha256; the path is nobody else's business."""

    path: str | None
    sha256: Sha256 | None


class Files(Strict):
    """All files of the user's: trained weights, data of the splits, question tasks, a Python module or package."""

    weights: File
    train: File
    test: File
    tasks: File
    code: File


class Recipe(Strict):
    """How a network is trained.

    samples: how many of the training split, drawn by the seed; null for all.
    holdout: share of them that is not trained on but judged by, drawn apart from what calibration draws.
    keep: which weights, the last ones or those best on a held-out share.
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
    def _warms_up_in_time(self):
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs={self.warmup_epochs:g} must be below epochs={self.epochs}")
        return self

    @model_validator(mode="after")
    def _adamw_has_no_momentum(self):
        if self.optimizer == "adamw" and self.momentum:
            raise ValueError(f"momentum={self.momentum:g} is for sgd alone: with optimizer: adamw it must be 0.0")
        return self

    @model_validator(mode="after")
    def _best_needs_holdout(self):
        if self.keep == "best" and not self.holdout:
            raise ValueError("keep: best needs a holdout above 0, the share of the training split to choose on")
        return self


class Distillation(Strict):
    """What the dense network adds to fine-tuning: `distillation` is the weight of its outputs in the loss."""

    distillation: Annotated[float, Field(ge=0, le=1)]
    temperature: Annotated[float, Field(gt=0)]


class Calibration(Strict):
    """Samples of the training split that similarity is measured on, and what is taken of their activations."""

    samples: Annotated[int, Field(ge=4)]
    batch_size: Annotated[int, Field(ge=4)]
    pooling: Pooling

    @model_validator(mode="after")
    def _batches_are_large_enough(self):
        smallest = self.samples // math.ceil(self.samples / self.batch_size)  # as all are about the same size
        if smallest < 4:
            raise ValueError(
                f"samples={self.samples} in batches of at most {self.batch_size} make one of {smallest}, which is too "
                "small: CKA needs 4 or more"
            )
        return self


class Scoring(Strict):
    """What one evaluation of a combination costs, and up to how many of them a segment is searched exhaustively."""

    batch_size: Positive
    max_combinations: Annotated[int, Field(ge=0)]


class Workload(Strict):
    """One file in models/; what `data.prepare`, the recipes, `evaluation` and `benchmark` hold is the task's.

    layers: null where they are found by running the network, or a pattern or patterns of the paths of modules.
    """

    task: TaskName
    architecture: Architecture
    layers: str | list[str] | None
    weights: Weights
    data: Data
    files: Files
    calibration: Calibration
    scoring: Scoring

    @field_validator("layers", mode="before")
    @classmethod
    def _null_or_patterns(cls, layers):
        patterns = layers if isinstance(layers, list) else [layers]
        if layers is not None and not (patterns and all(isinstance(p, str) and p for p in patterns)):
            raise ValueError("it must be null, a pattern of module paths, or a list of patterns")
        return layers

    @model_validator(mode="after")
    def _weights_are_pinned(self):
        kwargs = self.weights.kwargs
        if self.weights.source == "factory" and self.architecture.factory in FETCHING:
            pinned = set(kwargs) == {"pretrained", "revision"} and re.fullmatch("[0-9a-f]{40}", str(kwargs["revision"]))
            if not pinned or Path(str(kwargs["pretrained"])).exists():
                raise ValueError(
                    f"weights.kwargs={kwargs} is wrong: it must be pretrained, a name on the hub, and revision, a "
                    "commit of 40 hexadecimal digits; a folder stands in files.weights.path, with weights.source: file"
                )
        return self

    @model_validator(mode="after")
    def _test_is_another_split(self):
        files, splits = self.files, (self.data.train, self.data.test)
        same = files.train.path == files.test.path or (files.train.sha256 or 0) == files.test.sha256
        train, test = ({**split, "split": None} for split in splits)
        (name, first, end), (other, start, stop) = (_rows(str(split.get("split", "train"))) for split in splits)
        if same and train == test and name == other and max(first, start) < min(end, stop):
            raise ValueError("data.train and data.test overlap: the test split must hold other samples")
        return self


def _rows(split: str) -> tuple[str, int, float]:
    """Name, first row and end of a split "NAME" or "NAME[a:b]"; any other form is a name of its own."""
    found = re.fullmatch(r"(\w+)(?:\[(\d*):(\d*)\])?", split)
    name, first, end = found.groups() if found else (split, None, None)
    return name, int(first or 0), int(end) if end else math.inf
