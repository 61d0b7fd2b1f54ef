"""Perplexity of a text in sliding windows, and continuations of prompts."""

import math
from itertools import chain
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from sglp.distributed import processes
from sglp.errors import DataError
from sglp.running import device_of, logits_of
from sglp.tasks.causal_lm.texts import encode

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers._typing import GenerativePreTrainedModel


@torch.inference_mode()
def perplexity(
    network: "PreTrainedModel",
    tokens: Tensor,
    length: int,
    stride: int,
    batch_size: int = 1,
    prefix: Tensor | None = None,
) -> dict[str, float]:
    """Measure the perplexity of a text: exp of the mean negative log-likelihood of its tokens.

    The text is read in windows of `length` tokens, at a distance of `stride`. Every token is scored once, in the first
    window that holds it. After the first window, a scored token thus has at least `length - stride` tokens of context.
    The first token of the text has no context, and is scored only if there is a prefix.

    Args:
        network: a Hugging Face model, on any device.
        tokens: the text [tokens].
        length: tokens per window, including the prefix.
        stride: distance between windows; a smaller stride gives more context, and costs more.
        batch_size: windows per batch.
        prefix: tokens to put before every window (the token for the beginning of a text).

    Returns:
        "perplexity", "loss" (mean negative log-likelihood, in nats per token) and "tokens" (number of scored tokens).

    Raises:
        DataError: no token can be scored, or the outputs are not finite.
    """
    network.eval()
    device = device_of(network)
    prefix = torch.empty(0, dtype=tokens.dtype) if prefix is None else prefix
    groups: dict[int, list[tuple[Tensor, int]]] = {}
    for window, num_new in _windows(tokens, prefix, length, stride):
        groups.setdefault(len(window), []).append((window, num_new))
    batches = [rows[i : i + batch_size] for rows in groups.values() for i in range(0, len(rows), batch_size)]

    def score(rows: list[tuple[Tensor, int]]) -> list[tuple[float, int]]:
        ids = torch.stack([window for window, _ in rows]).to(device)
        logits = logits_of(network(input_ids=ids, use_cache=False))
        sums = []
        for row, (window, num_new) in enumerate(rows):
            num_scored = min(num_new, len(window) - 1)
            if not num_scored:  # a single token, without a prefix
                sums.append((0.0, 0))
                continue
            predictions = logits[row, -num_scored - 1 : -1].float()
            losses = F.cross_entropy(predictions, ids[row, -num_scored:], reduction="none")
            sums.append((float(losses.double().sum()), num_scored))
        return sums

    sums = chain.from_iterable(processes.shared_map(score, batches, desc="perplexity", unit="batch"))
    total, count = (sum(column) for column in zip((0.0, 0), *sums, strict=True))
    if not count:
        raise DataError(f"a text of {len(tokens)} tokens is too short for perplexity: no token has another before it")
    if not math.isfinite(total):
        raise DataError(f"the negative log-likelihood of the text is {total}: the network's outputs are not finite")
    return {"perplexity": math.exp(min(total / count, 700.0)), "loss": total / count, "tokens": count}


def _windows(tokens: Tensor, prefix: Tensor, length: int, stride: int) -> list[tuple[Tensor, int]]:
    """Return windows with their prefix, each with the number of tokens at its end that are in no earlier window."""
    size = length - len(prefix)
    if size < 2:
        raise DataError(
            f"windows of {length} tokens are too short: the tokenizer's prefix and two tokens need {len(prefix) + 2}"
        )
    # Without a prefix, the first token of a window can't be scored, so the previous window has to score it.
    stride = min(stride, size if len(prefix) else size - 1)
    windows = []
    begin = num_done = 0
    while num_done < len(tokens):
        end = min(begin + size, len(tokens))
        windows.append((torch.cat([prefix, tokens[begin:end]]), end - num_done))
        num_done = end
        begin += stride
    return windows


@torch.inference_mode()
def continuations(
    network: "PreTrainedModel", tokenizer: Any, prompts: list[str], max_new_tokens: int
) -> list[dict[str, str]]:
    """Continue each prompt by the most likely tokens, one by one (greedy decoding).

    Args:
        network: a Hugging Face model.
        tokenizer: the tokenizer of the network.
        prompts: texts to continue.
        max_new_tokens: number of tokens to generate; fewer if the network ends the text.

    Returns:
        "prompt" and "continuation" of each prompt, as text.
    """
    network.eval()
    rows = []
    for prompt in tqdm(prompts, desc="continuations", disable=None):
        ids = torch.tensor([encode(tokenizer, prompt)], device=device_of(network))
        output = cast("GenerativePreTrainedModel", network).generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            repetition_penalty=1.0,
            temperature=None,
            top_p=None,
            top_k=None,
            pad_token_id=network.generation_config.pad_token_id or 0,
        )
        new_ids = output[0, ids.shape[1] :]
        text = tokenizer.decode(new_ids, skip_special_tokens=True)
        rows.append({"prompt": prompt, "continuation": text})
    return rows
