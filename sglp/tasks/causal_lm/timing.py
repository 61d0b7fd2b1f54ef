"""Timed work of a language model; see `sglp.tasks.timing`."""

import copy
import inspect
from typing import TYPE_CHECKING

import torch

from sglp.errors import DataError
from sglp.running import call, device_of
from sglp.tasks.causal_lm.data import check_length
from sglp.tasks.causal_lm.texts import Texts
from sglp.tasks.schemas.causal_lm import TextBenchmark
from sglp.tasks.timing import BenchmarkTask

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def work(network: "PreTrainedModel", data: Texts, settings: dict, size: int) -> list[BenchmarkTask]:
    """Return the timed work: reading prompts in one pass, and generating tokens one by one after them."""
    options = TextBenchmark.model_validate(settings)
    check_length(
        network, "benchmark.prompt_tokens and benchmark.new_tokens together", options.prompt_tokens + options.new_tokens
    )
    ids = data.tokens[: options.prompt_tokens].repeat(size, 1).to(device_of(network))
    if ids.shape[1] < options.prompt_tokens:
        raise DataError(
            f"benchmark.prompt_tokens={options.prompt_tokens} is too long: {data.name} has {ids.shape[1]} tokens"
        )

    inputs = {"input_ids": ids, "use_cache": True}
    if "logits_to_keep" in inspect.signature(network.forward).parameters:
        inputs["logits_to_keep"] = 1  # as `generate` does
    with torch.inference_mode():
        filled = call(network, inputs).past_key_values

    def write() -> None:
        token, cache = ids[:, -1:], copy.deepcopy(filled)
        for _ in range(options.new_tokens):
            token = network(input_ids=token, past_key_values=cache, use_cache=True).logits[:, -1:].argmax(dim=-1)

    return [
        BenchmarkTask("prefill", lambda: call(network, inputs), size * options.prompt_tokens, "tokens", inputs),
        BenchmarkTask("decode", write, size * options.new_tokens, "tokens"),
    ]
