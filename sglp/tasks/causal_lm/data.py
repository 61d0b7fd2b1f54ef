"""The task of causal language modelling; see `sglp.tasks.data`."""

from collections.abc import Iterator

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


def processor(folder, architecture: dict):
    """The tokenizer that was saved with a network."""
    from transformers import AutoTokenizer

    return read_local(AutoTokenizer, str(folder), architecture["kwargs"].get(CODE, False))


def dtype(device: torch.device) -> torch.dtype:
    """bfloat16 on a GPU, float32 on a CPU."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def open_split(
    source: Source, arguments: dict, prepare: dict, path: str | None, sha256: str | None, processor
) -> Texts:
    """A split of texts; see `Texts`."""
    return Texts(source, arguments, TextPreparation.model_validate(prepare), processor, path, sha256)


def example(data: Texts) -> dict:
    """One sequence."""
    return data.batch([0])[0]


def calibration_batches(
    data: Texts, samples: int, batch_size: int, seed: int, part: slice = ALL
) -> Iterator[tuple[dict, Tensor]]:
    """Batches of sequences drawn without replacement, or a part of them: inputs and the tokens that follow.

    Raises:
        DataError: there are fewer.
    """
    what = f"sequences of data.prepare.length={data.length} tokens for training in {data.name}"
    drawn = draw(len(data), samples, seed, what)
    for some in even_slices(samples, batch_size)[part]:
        yield data.batch(drawn[some])


def check_fit(network: nn.Module, data: Texts) -> None:
    """Check that the network takes sequences so long, and has an embedding for every token.

    Raises:
        DataError: it does not.
    """
    check_length(network, "data.prepare.length", data.length)
    size = network.get_input_embeddings().num_embeddings
    largest = int(data.tokens.max())
    if largest >= size:
        raise DataError(
            f"{data.name} has the token {largest}, but the network knows 0 to {size - 1}: is it the tokenizer?"
        )


def check_length(network: nn.Module, key: str, length: int) -> None:
    """Check that sequences are not longer than what the network takes.

    Raises:
        DataError: they are.
    """
    most = getattr(network.config.get_text_config(), "max_position_embeddings", None)
    if most is not None and length > most:
        raise DataError(
            f"{key}={length} is too long: {type(network).__name__} takes sequences of at most {most} tokens"
        )
