"""Texts from `datasets` or a data-set class, as sequences of tokens of equal length."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from sglp.errors import DataError
from sglp.loss import IGNORED
from sglp.tasks.schemas.causal_lm import TextPreparation
from sglp.tasks.schemas.workload import Source
from sglp.tasks.sources import name_of, open_source, reading


class Texts:
    """A split of the data: one long text in tokens, cut into sequences.

    Every sequence begins with `prefix`, the tokens that the tokenizer puts before a text (usually one, or none). Tokens
    at the end of the text that do not fill a sequence are dropped.

    Args:
        source: where the data come from.
        arguments: arguments of the split; see `open_source`.
        prepare: how texts become sequences.
        tokenizer: a Hugging Face tokenizer.
        path: the user's file or folder, or None.
        sha256: checksum of that file or folder.

    Raises:
        DataError: the data can't be read, or do not fill one sequence.
    """

    def __init__(
        self,
        source: Source,
        arguments: dict,
        prepare: TextPreparation,
        tokenizer: Any,
        path: str | None = None,
        sha256: str | None = None,
    ):
        self.name = name_of(source, path)
        self.length = prepare.length
        data = open_source(source, arguments, path, sha256, [prepare.text_column])
        with reading(self.name):
            rows = data[prepare.text_column][:] if source.loader == "datasets" else [data[i] for i in range(len(data))]
            text = prepare.separator.join(rows)
        # verbose=False: no warning that the whole text is longer than the model's context.
        self.tokens = torch.tensor(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        self.prefix = torch.tensor(prefix_of(tokenizer), dtype=torch.int64)
        self.step = self.length - len(self.prefix)
        if self.step < 1 or len(self) == 0:
            raise DataError(
                f"{self.name} is too short: it has {len(self.tokens)} tokens, and one sequence of "
                f"data.prepare.length={self.length} needs {max(self.step, 1)}"
            )

    def __len__(self) -> int:
        return len(self.tokens) // self.step

    def __getitem__(self, index: int) -> Tensor:
        """Return the tokens [length] of a sequence."""
        return torch.cat([self.prefix, self.tokens[index * self.step : (index + 1) * self.step]])

    def batch(self, indices: Sequence[int]) -> tuple[dict, Tensor]:
        """Return inputs and targets of the sequences at these indices."""
        return stack([self[i] for i in indices])


class TrainingTexts(Dataset):
    """Sequences for training or validation, which are the same in every epoch.

    Args:
        texts: the training split.
        indices: indices of the sequences in the split.
    """

    def __init__(self, texts: Texts, indices: Sequence[int] | np.ndarray):
        self.texts = texts
        self.indices = indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, key: int | tuple[int, int]) -> Tensor:
        """Return the sequence at a position, or at a pair (epoch, position)."""
        position = key[1] if isinstance(key, tuple) else key
        return self.texts[int(self.indices[position])]


def stack(sequences: Sequence[Tensor]) -> tuple[dict, Tensor]:
    """Return inputs {"input_ids": [samples, tokens]} and target [samples, tokens]: the next tokens, none at the end."""
    ids = torch.stack(list(sequences))
    target = torch.cat([ids[:, 1:], torch.full_like(ids[:, :1], IGNORED)], dim=1)
    return {"input_ids": ids, "use_cache": False}, target


def encode(tokenizer: Any, text: str) -> list[int]:
    """Tokenize the beginning of a text, with the tokens that mark a beginning but not those that mark an end."""
    return [*prefix_of(tokenizer), *tokenizer(text, add_special_tokens=False)["input_ids"]]


def prefix_of(tokenizer: Any) -> list[int]:
    """Return the tokens that the tokenizer puts before a text."""
    text_ids = tokenizer("a", add_special_tokens=False)["input_ids"]
    all_ids = tokenizer("a")["input_ids"]
    starts = (i for i in range(len(all_ids)) if all_ids[i : i + len(text_ids)] == text_ids)
    return all_ids[: next(starts, 0)]
