"""The user's texts or images: samples to compress with, and held-out samples to measure the networks on."""

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from sglp.batches import even_slices
from sglp.choices import Pooling
from sglp.commands.networks import View
from sglp.cost import count_macs
from sglp.errors import DataError
from sglp.running import call, device_of, logits_of
from sglp.tasks.causal_lm.data import check_fit
from sglp.tasks.causal_lm.perplexity import perplexity
from sglp.tasks.causal_lm.texts import Texts
from sglp.tasks.drawing import draw
from sglp.tasks.image_classification.images import Images
from sglp.tasks.schemas.causal_lm import TextPreparation
from sglp.tasks.schemas.image_classification import ImagePreparation
from sglp.tasks.schemas.workload import Source

if TYPE_CHECKING:
    from transformers import PreTrainedModel

HELD_OUT = 0.1  # share of the samples that measure the networks
MOST_TOKENS, MOST_IMAGES = 8192, 2000  # that measure them
FORMATS = {".txt": "text", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
FEWEST = 4  # samples that CKA needs


class Sizes(NamedTuple):
    """Numbers of samples and batch sizes for `sglp.compress`."""

    calibration: tuple[int, int]
    scoring: tuple[int, int]
    reconstruction: tuple[int, int]
    pooling: Pooling

    def within(self, available: int) -> "Sizes":
        """Return sizes for which there are enough samples."""
        calibration, scoring, reconstruction = ((min(count, available), batch) for count, batch in self[:3])
        return Sizes(calibration, scoring, reconstruction, self.pooling)


class Samples(Protocol):
    """What the command needs of texts or images.

    Attributes:
        name: of the file or folder.
        quality: name of what is measured.
        unit: what the MACs of a forward pass are counted for.
        sizes: for `sglp.compress`.
    """

    name: str
    quality: str
    unit: str
    sizes: Sizes

    def example(self) -> Any:
        """Return the inputs of one sample."""

    def batches(self, seed: int) -> Iterator[tuple[Any, Tensor]]:
        """Yield samples in random order, without those that are held out, with their targets."""

    def measure(self, network: nn.Module) -> float:
        """Measure the quality of a network on the held-out samples."""

    def macs(self, network: nn.Module) -> int:
        """Count the multiply-accumulates of one unit."""


class TextSamples:
    """Sequences of tokens from a file of texts; the last tenth of the text is held out.

    Args:
        file: a .txt, .json, .jsonl or .parquet file, or a folder of such files.
        column: the column with the texts.
        length: tokens per sequence.
        network: the language model.
        tokenizer: its tokenizer.

    Raises:
        DataError: there is no such file, it can't be read, or it is too short.
    """

    quality, unit = "perplexity", "token"
    sizes = Sizes(calibration=(128, 16), scoring=(1, 1), reconstruction=(48, 4), pooling="mean")

    def __init__(self, file: str, column: str, length: int, network: "PreTrainedModel", tokenizer: Any):
        self.name = file
        kind = text_format(file)
        separator = "\n" if kind == "text" else "\n\n"
        prepare = TextPreparation(text_column=column, separator=separator, length=length, tokenizer=None)
        texts = Texts(Source(loader="datasets", name=kind, revision=None), {}, prepare, tokenizer, file)
        check_fit(network, texts)
        held_out = int(len(texts.tokens) * HELD_OUT)
        self.texts, self.tail = copy.copy(texts), texts.tokens[len(texts.tokens) - held_out :][:MOST_TOKENS]
        self.texts.tokens = texts.tokens[: len(texts.tokens) - held_out]
        if len(self.texts) < FEWEST:
            raise DataError(
                f"{file} is too short: it has {len(texts.tokens)} tokens, a tenth of which is held out, and "
                f"compression needs {FEWEST} sequences of --length={length} tokens"
            )
        self.sizes = self.sizes.within(len(self.texts))

    def example(self) -> dict:
        """Return the first sequence."""
        return self.texts.batch([0])[0]

    def batches(self, seed: int) -> Iterator[tuple[dict, Tensor]]:
        """Yield sequences in random order, and the next tokens as target."""
        count = max(size[0] for size in self.sizes[:3])
        drawn = draw(len(self.texts), count, seed, "sequences")
        for rows in even_slices(count, self.sizes.calibration[1]):
            yield self.texts.batch(drawn[rows])

    def measure(self, network: nn.Module) -> float:
        """Measure the perplexity of the held-out text in windows of the sequences' length."""
        length = self.texts.length
        return perplexity(network, self.tail, length, length, 4, self.texts.prefix)["perplexity"]  # type: ignore[arg-type]

    def macs(self, network: nn.Module) -> int:
        """Count the multiply-accumulates of a token, as a mean over a sequence."""
        return count_macs(network, self.example()) // self.texts.length


def text_format(file: str) -> str:
    """Return the name that `load_dataset` has for a file of texts, or for the files of a folder.

    Raises:
        DataError: there is no such file, or it has another format.
    """
    path = Path(file)
    if not path.exists():
        raise DataError(f"--text={file} does not exist")
    inside = sorted(path.rglob("*")) if path.is_dir() else [path]
    kinds = {FORMATS[one.suffix.lower()] for one in inside if one.suffix.lower() in FORMATS}
    if len(kinds) != 1:
        raise DataError(f"--text={file} must be files of one format, ending in {', '.join(FORMATS)}")
    return kinds.pop()


class ImageSamples:
    """Images of a folder; a tenth of them, drawn with the seed, is held out.

    Subfolders are classes if the network has as many outputs. Otherwise the dense network's answers are the targets,
    and what is measured is how often a network agrees with them.

    Args:
        folder: the folder.
        view: how the network sees an image.
        network: the dense network.
        seed: of the draw.

    Raises:
        DataError: there are too few images, or the network does not take them.
    """

    unit = "image"
    sizes = Sizes(calibration=(512, 128), scoring=(64, 64), reconstruction=(512, 128), pooling="flatten")

    def __init__(self, folder: str, view: View, network: nn.Module, seed: int):
        from sglp.commands.photos import Photos

        self.name, self.dense = folder, network
        classes = Photos(folder).classes
        channels = len(view.mean)
        prepare = ImagePreparation.model_validate(
            {
                "image_column": "image",
                "label_column": "label",
                "classes": max(len(classes), 1),
                "channels": channels,
                "transforms": [{"Resize": {"size": view.resize}}, {"CenterCrop": {"size": view.size}}],
                "mean": list(view.mean),
                "std": list(view.std),
            }
        )
        source = Source(loader="sglp.commands.photos:Photos", name=None, revision=None)
        self.images = Images(source, {}, prepare, folder)
        order = draw(len(self.images), len(self.images), seed, "images")
        held_out = max(1, int(len(order) * HELD_OUT))
        self.order, self.held_out = order[: len(order) - held_out], order[len(order) - held_out :][:MOST_IMAGES]
        if len(self.order) < FEWEST:
            raise DataError(f"{folder} has {len(self.images)} images, and compression needs at least {FEWEST + 1}")
        self.sizes = self.sizes.within(len(self.order))
        self.labelled = self._outputs() == len(classes)
        self.quality = "accuracy" if self.labelled else "agreement"

    def _outputs(self) -> int:
        try:
            logits = self._logits(self.dense, self.example())
        except Exception as error:  # whatever a network raises, the user needs one sentence
            raise DataError(
                f"the network can't take images of the shape {list(self.example().shape[1:])}: set --size, and for "
                "grey images --mean and --std with one value"
            ) from error
        if logits.ndim != 2:
            raise DataError(f"the network returns {list(logits.shape)} for one image, and not one row of class scores")
        return logits.shape[1]

    @staticmethod
    def _logits(network: nn.Module, inputs: Tensor) -> Tensor:
        with torch.no_grad():
            return logits_of(call(network, inputs.to(device_of(network)))).cpu()

    def _pairs(self, indices: Sequence[int], size: int) -> Iterator[tuple[Tensor, Tensor]]:
        for rows in even_slices(len(indices), size):
            inputs, labels = self.images.batch(indices[rows])
            yield inputs, labels if self.labelled else self._logits(self.dense, inputs).argmax(1)

    def example(self) -> Tensor:
        """Return one image [1, channels, height, width]."""
        return self.images.batch([0])[0]

    def batches(self, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images in random order, and their classes."""
        return self._pairs(self.order, self.sizes.calibration[1])

    def measure(self, network: nn.Module) -> float:
        """Measure the share of held-out images whose class has the largest output."""
        pairs = self._pairs(self.held_out, 64)
        right = sum(int((self._logits(network, inputs).argmax(1) == labels).sum()) for inputs, labels in pairs)
        return right / len(self.held_out)

    def macs(self, network: nn.Module) -> int:
        """Count the multiply-accumulates of an image."""
        return count_macs(network, self.example().to(device_of(network)))
