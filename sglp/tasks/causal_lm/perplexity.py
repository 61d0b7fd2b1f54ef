"""Perplexity of a text by sliding windows, and continuations of prompts."""

import math
from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from sglp.distributed import processes
from sglp.errors import DataError
from sglp.running import device_of, logits_of
from sglp.tasks.causal_lm.texts import encoded


@torch.inference_mode()
def perplexity(
    network: nn.Module, tokens: Tensor, length: int, stride: int, batch_size: int = 1, prefix: Tensor | None = None
) -> dict[str, float]:
    """Perplexity: exp of the mean negative log-likelihood of a text's tokens.

    The text is read in windows of `length` tokens, each `stride` after the one before. Every token is scored once, in
    the first window that holds it, so that all but those of the first window have at least `length - stride` tokens
    before them. The very first has none, and is not scored unless there is a prefix.

    Args:
        network: of transformers, on any device.
        tokens: the text [tokens].
        length, stride: of the windows; a smaller stride gives more context, and costs more.
        batch_size: windows at once.
        prefix: what stands before every window, within its length (the token of a text's beginning).

    Returns:
        perplexity, loss (mean negative log-likelihood, in nats a token), tokens (how many were scored).

    Raises:
        DataError: nothing can be scored, or the outputs are not finite.
    """
    network.eval()
    device = device_of(network)
    prefix = torch.empty(0, dtype=tokens.dtype) if prefix is None else prefix
    groups: dict[int, list[tuple[Tensor, int]]] = {}
    for window, fresh in _windows(tokens, prefix, length, stride):
        groups.setdefault(len(window), []).append((window, fresh))
    batches = [rows[i : i + batch_size] for rows in groups.values() for i in range(0, len(rows), batch_size)]

    def judge(rows: list[tuple[Tensor, int]]) -> list[tuple[float, int]]:
        ids = torch.stack([window for window, _ in rows]).to(device)
        logits = logits_of(network(input_ids=ids, use_cache=False))
        judged = []
        for row, (window, fresh) in enumerate(rows):
            scored = min(fresh, len(window) - 1)
            if not scored:  # a single token, without a prefix
                judged.append((0.0, 0))
                continue
            of = logits[row, -scored - 1 : -1].float()
            judged.append((float(F.cross_entropy(of, ids[row, -scored:], reduction="none").double().sum()), scored))
        return judged

    judged = chain.from_iterable(processes.shared_map(judge, batches, desc="perplexity", unit="batch"))
    total, count = (sum(column) for column in zip((0.0, 0), *judged, strict=True))
    if not count:
        raise DataError(f"a text of {len(tokens)} tokens has none whose likelihood could be measured")
    if not math.isfinite(total):
        raise DataError(f"the negative log-likelihood of the text is {total}: the network's outputs are not finite")
    return {"perplexity": math.exp(min(total / count, 700.0)), "loss": total / count, "tokens": count}


def _windows(tokens: Tensor, prefix: Tensor, length: int, stride: int) -> list[tuple[Tensor, int]]:
    """Windows with their prefix, and how many tokens at the end of each stand in no window before it."""
    size = length - len(prefix)
    if size < 2:
        raise DataError(f"windows of {length} tokens have no room beside the {len(prefix)} that begin every text")
    # Without a prefix the first token of a window can't be scored: it must be the last one of the window before.
    stride = min(stride, size if len(prefix) else size - 1)
    windows, done, begin = [], 0, 0
    while done < len(tokens):
        end = min(begin + size, len(tokens))
        windows.append((torch.cat([prefix, tokens[begin:end]]), end - done))
        done, begin = end, begin + stride
    return windows


@torch.inference_mode()
def continuations(network: nn.Module, tokenizer, prompts: list[str], new: int) -> list[dict[str, str]]:
    """The most likely next tokens after each prompt, one by one (greedy), as text.

    Args:
        network: of transformers.
        tokenizer: its own.
        prompts: texts to go on from.
        new: how many tokens; fewer where the network ends the text.
    """
    network.eval()
    found = []
    for prompt in tqdm(prompts, desc="continuations", disable=None):
        ids = torch.tensor([encoded(tokenizer, prompt)], device=device_of(network))
        whole = network.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new,
            do_sample=False,
            num_beams=1,
            repetition_penalty=1.0,
            temperature=None,
            top_p=None,
            top_k=None,
            pad_token_id=network.generation_config.pad_token_id or 0,
        )
        written = whole[0, ids.shape[1] :]
        text = tokenizer.decode(written, skip_special_tokens=True)
        found.append({"prompt": prompt, "continuation": text})
    return found
