"""The task of causal language modelling; see `sglp.tasks.task`."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

import sglp
from sglp.architecture import remember
from sglp.batches import slices
from sglp.errors import DataError, SGLPError
from sglp.processes import ALL
from sglp.record import ARCHITECTURE, saved_architecture
from sglp.tasks import language_models, texts, tuning
from sglp.tasks.draws import draw
from sglp.tasks.language_workload import TextPreparation
from sglp.tasks.texts import Texts, TrainingTexts
from sglp.tasks.workload import Architecture, Source, Weights

adapt, collate = tuning.adapt, texts.stack


def build(architecture: Architecture, weights: Weights, path: str | None, seed: int) -> nn.Module:
    """The network from the hub, a file or folder, or a configuration."""
    fetched = {"pretrained": path} if path is not None else weights.kwargs
    network = sglp.build(architecture.factory, architecture.kwargs, seed=seed, weights=fetched)
    if path is not None and (Path(path) / ARCHITECTURE).is_file():  # its layers go by their dense names still
        remember(network, saved_architecture(path))
    return network


def first_processor(architecture: Architecture, weights: Weights, path: str | None, prepare: dict):
    """The tokenizer that comes with the weights, or one of bytes."""
    if prepare["tokenizer"] == "bytes":
        return language_models.byte_tokenizer()
    name = path or weights.kwargs.get("pretrained")
    if name is None:
        raise SGLPError("data.prepare.tokenizer=null is wrong without weights that bring one: bytes would be right")
    trust = architecture.kwargs.get(language_models.CODE, False)
    return language_models.tokenizer(name, weights.kwargs.get("revision"), trust)


def processor(folder, architecture: dict):
    """The tokenizer that was saved with a network."""
    return language_models.tokenizer(folder, trust_remote_code=architecture["kwargs"].get(language_models.CODE, False))


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
    for some in slices(samples, batch_size)[part]:
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


def training_samples(data: Texts, indices, recipe, seed: int) -> TrainingTexts:
    """Sequences to train on, or to judge by: the same in every epoch."""
    return TrainingTexts(data, indices)


def trainer_arguments(recipe) -> dict:
    """What language models are trained with besides."""
    return {
        "max_grad_norm": 1.0,
        "metric_for_best_model": "loss",
        "gradient_accumulation_steps": recipe.accumulation,
        "bf16": torch.cuda.is_available(),
    }
