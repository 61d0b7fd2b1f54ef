"""What is timed of a language model; see `sglp.tasks.timing`."""

import copy
import inspect

import torch
from torch import nn

from sglp.errors import DataError
from sglp.running import call, device_of
from sglp.tasks.causal_lm.data import check_length
from sglp.tasks.causal_lm.texts import Texts
from sglp.tasks.schemas.causal_lm import TextBenchmark
from sglp.tasks.timing import BenchmarkTask


def work(network: nn.Module, data: Texts, settings: dict, size: int) -> list[BenchmarkTask]:
    """Reading prompts in one pass, and writing tokens one by one after them."""
    dials = TextBenchmark.model_validate(settings)
    check_length(
        network, "benchmark.prompt_tokens and benchmark.new_tokens together", dials.prompt_tokens + dials.new_tokens
    )
    ids = data.tokens[: dials.prompt_tokens].repeat(size, 1).to(device_of(network))
    if ids.shape[1] < dials.prompt_tokens:
        raise DataError(
            f"benchmark.prompt_tokens={dials.prompt_tokens} is too long: {data.name} has {ids.shape[1]} tokens"
        )

    inputs = {"input_ids": ids, "use_cache": True}
    if "logits_to_keep" in inspect.signature(network.forward).parameters:
        inputs["logits_to_keep"] = 1  # as `generate` does
    with torch.inference_mode():
        filled = call(network, inputs).past_key_values

    def write() -> None:
        token, cache = ids[:, -1:], copy.deepcopy(filled)
        for _ in range(dials.new_tokens):
            token = network(input_ids=token, past_key_values=cache, use_cache=True).logits[:, -1:].argmax(dim=-1)

    return [
        BenchmarkTask("prefill", lambda: call(network, inputs), size * dials.prompt_tokens, "tokens", inputs),
        BenchmarkTask("decode", write, size * dials.new_tokens, "tokens"),
    ]
