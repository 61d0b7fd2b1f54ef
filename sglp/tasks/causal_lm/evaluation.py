"""How causal language models are judged; see `sglp.tasks.evaluation`."""

from torch import nn

from sglp.batches import to_device
from sglp.cost import count_macs
from sglp.errors import DataError
from sglp.running import device_of
from sglp.tasks.causal_lm import question_tasks, questions, texts
from sglp.tasks.causal_lm.data import check_fit, check_length, example
from sglp.tasks.causal_lm.perplexity import continuations, perplexity
from sglp.tasks.causal_lm.texts import Texts
from sglp.tasks.schemas.causal_lm import TextEvaluation


def check_workload(content: dict) -> None:
    """Check what can be checked before there is a network: that the tasks to evaluate exist."""
    question_tasks.check(content["evaluation"]["tasks"], content["files"]["tasks"]["path"])


def evaluate(network: nn.Module, data: Texts, settings: dict, processor, tasks: str | None) -> tuple[dict, list]:
    """Perplexity of the test text, answers to questions, and continuations of prompts to show.

    Args:
        network: of transformers.
        data: the test split.
        settings: the workload's `evaluation`.
        processor: the tokenizer.
        tasks: folder of the user's tasks for lm-eval, or None.
    """
    dials = TextEvaluation.model_validate(settings)
    check_fit(network, data)
    check_length(network, "evaluation.length", dials.length)
    for prompt in dials.prompts:
        tokens = len(texts.encoded(processor, prompt)) + dials.max_new_tokens
        check_length(network, "evaluation.max_new_tokens and a prompt together", tokens)
    if dials.tokens is not None and dials.tokens > len(data.tokens):
        raise DataError(
            f"evaluation.tokens={dials.tokens} is too many: {data.name} has {len(data.tokens)} for the test; "
            "null takes them all"
        )
    text = data.tokens[: dials.tokens]
    metrics = perplexity(network, text, dials.length, dials.stride, dials.batch_size, data.prefix)
    if dials.tasks:
        metrics |= questions.answer(network, processor, dials.tasks, tasks, dials.limit, dials.batch_size)
    return metrics, continuations(network, processor, dials.prompts, dials.max_new_tokens)


def macs(network: nn.Module, data: Texts) -> dict[str, int]:
    """Multiply-accumulates and floating-point operations of one token, in a sequence of the workload's length."""
    count = count_macs(network, to_device(example(data), device_of(network))) // data.length
    return {"macs_per_token": count, "flops_per_token": 2 * count}
