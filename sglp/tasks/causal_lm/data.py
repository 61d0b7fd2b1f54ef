"""Data for causal language modelling; see `sglp.tasks.data`."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from sglp.batches import even_slices
from sglp.distributed.processes import ALL
from sglp.errors import DataError
from sglp.tasks.causal_lm.texts import Texts
from sglp.tasks.drawing import draw
from sglp.tasks.local_files import CODE, read_local
from sglp.tasks.schemas.causal_lm import TextPreparation
from sglp.tasks.schemas.workload import Source

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def processor(folder: str | Path, architecture: dict) -> Any:
    """Load the tokenizer that was saved with a network."""
    from transformers import AutoTokenizer

    return read_local(AutoTokenizer, str(folder), architecture["kwargs"].get(CODE, False))


def dtype(device: torch.device) -> torch.dtype:
    """Return bfloat16 for a GPU, float32 for a CPU."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def open_split(
    source: Source, arguments: dict, prepare: dict, path: str | None, sha256: str | None, processor: Any
) -> Texts:
    """Open a split of texts; see `Texts`."""
    return Texts(source, arguments, TextPreparation.model_validate(prepare), processor, path, sha256)


def example(data: Texts) -> dict:
    """Return the inputs of the first sequence."""
    return data.batch([0])[0]


def calibration_batches(
    data: Texts, samples: int, batch_size: int, seed: int, part: slice = ALL
) -> Iterator[tuple[dict, Tensor]]:
    """Yield batches of sequences drawn without replacement: inputs, and the next tokens as target.

    Args:
        data: the training split.
        samples: number of sequences to draw.
        batch_size: the largest batch; batches are nearly equal in size.
        seed: seed of the draw.
        part: the batches to yield, by index.

    Raises:
        DataError: the split has fewer sequences.
    """
    description = f"sequences of data.prepare.length={data.length} tokens for training in {data.name}"
    drawn = draw(len(data), samples, seed, description)
    for rows in even_slices(samples, batch_size)[part]:
        yield data.batch(drawn[rows])


def check_fit(network: "PreTrainedModel", data: Texts) -> None:
    """Check that the network takes sequences of the data's length, and has an embedding for every token.

    Raises:
        DataError: the sequences are too long, or a token has no embedding.
    """
    check_length(network, "data.prepare.length", data.length)
    size = cast(nn.Embedding, network.get_input_embeddings()).num_embeddings
    largest = int(data.tokens.max())
    if largest >= size:
        raise DataError(
            f"{data.name} has the token {largest}, but the network only has tokens 0 to {size - 1}: use the tokenizer "
            "that the network was trained with"
        )


def check_length(network: "PreTrainedModel", key: str, length: int) -> None:
    """Check that the network takes sequences of a length.

    Args:
        network: a Hugging Face model.
        key: name of the length in the error message.
        length: the length in tokens.

    Raises:
        DataError: the sequences are too long.
    """
    max_length = getattr(network.config.get_text_config(), "max_position_embeddings", None)
    if max_length is not None and length > max_length:
        raise DataError(
            f"{key}={length} is too long: {type(network).__name__} takes sequences of at most {max_length} tokens"
        )
