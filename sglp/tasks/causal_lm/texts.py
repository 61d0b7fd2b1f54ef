"""Texts from `datasets` or a data-set class, as sequences of tokens of one length."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset

from sglp.errors import DataError
from sglp.loss import IGNORED
from sglp.tasks.schemas.causal_lm import TextPreparation
from sglp.tasks.schemas.workload import Source
from sglp.tasks.sources import name_of, open_source, reading


class Texts:
    """A split: one long text in tokens, cut into sequences.

    A sequence begins with what the tokenizer puts before a text (`prefix`: the token of its beginning, where it has
    one); the rest of the text that fills no sequence is left out.

    Args:
        source: where the data come from.
        arguments: of the split; see `open_source`.
        prepare: how texts become sequences.
        tokenizer: of transformers.
        path: the user's file or folder, or None.
        sha256: its checksum.

    Raises:
        DataError: the data can't be read, or hold not even one sequence.
    """

    def __init__(
        self,
        source: Source,
        arguments: dict,
        prepare: TextPreparation,
        tokenizer,
        path: str | None = None,
        sha256: str | None = None,
    ):
        self.name, self.length = name_of(source, path), prepare.length
        data = open_source(source, arguments, path, sha256, [prepare.text_column])
        with reading(self.name):
            rows = data[prepare.text_column][:] if source.loader == "datasets" else [data[i] for i in range(len(data))]
            text = prepare.separator.join(rows)
        # verbose: that a whole text is longer than what the model takes is meant so.
        self.tokens = torch.tensor(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        self.prefix = torch.tensor(prefix_of(tokenizer), dtype=torch.int64)
        self.step = self.length - len(self.prefix)
        if self.step < 1 or len(self) == 0:
            raise DataError(
                f"{self.name} is not enough text: it has {len(self.tokens)} tokens, and one sequence of "
                f"data.prepare.length={self.length} needs {max(self.step, 1)}"
            )

    def __len__(self) -> int:
        return len(self.tokens) // self.step

    def __getitem__(self, index: int) -> Tensor:
        """The tokens [length] of a sequence."""
        return torch.cat([self.prefix, self.tokens[index * self.step : (index + 1) * self.step]])

    def batch(self, indices: Sequence[int]) -> tuple[dict, Tensor]:
        """Inputs and targets of these sequences."""
        return stack([self[i] for i in indices])


class TrainingTexts(Dataset):
    """Sequences to train on or to judge by: the same in every epoch.

    Args:
        texts: the training split.
        indices: which of its sequences.
    """

    def __init__(self, texts: Texts, indices):
        self.texts, self.indices = texts, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, key) -> Tensor:
        position = key[1] if isinstance(key, tuple) else key
        return self.texts[int(self.indices[position])]


def stack(sequences: Sequence[Tensor]) -> tuple[dict, Tensor]:
    """Inputs {"input_ids": [samples, tokens]} and targets [samples, tokens]: the next token, none for the last."""
    ids = torch.stack(list(sequences))
    target = torch.cat([ids[:, 1:], torch.full_like(ids[:, :1], IGNORED)], dim=1)
    return {"input_ids": ids, "use_cache": False}, target


def encoded(tokenizer, text: str) -> list[int]:
    """A text that is not at its end yet: with what the tokenizer puts before it, without what it puts behind."""
    return [*prefix_of(tokenizer), *tokenizer(text, add_special_tokens=False)["input_ids"]]


def prefix_of(tokenizer) -> list[int]:
    """What the tokenizer puts before a text."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    starts = (i for i in range(len(whole)) if whole[i : i + len(plain)] == plain)
    return whole[: next(starts, 0)]
