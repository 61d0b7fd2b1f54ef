"""The user's texts, for ``sglp compress``."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from sglp.batches import even_slices, to_device
from sglp.commands.samples import FEWEST, HELD_OUT, Sizes
from sglp.cost import count_macs
from sglp.errors import DataError
from sglp.running import device_of
from sglp.tasks.causal_lm.data import check_fit
from sglp.tasks.causal_lm.perplexity import perplexity
from sglp.tasks.causal_lm.texts import Texts
from sglp.tasks.drawing import draw
from sglp.tasks.schemas.causal_lm import TextPreparation
from sglp.tasks.schemas.workload import Source

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MOST_TOKENS = 8192  # that measure the networks
FORMATS = {".txt": "text", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}


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

    task, quality, unit = "text-generation", "perplexity", "token"
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
        return count_macs(network, to_device(self.example(), device_of(network))) // self.texts.length


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
