"""Evaluation of causal language models; see `sglp.tasks.evaluation`."""

from typing import TYPE_CHECKING, Any

from sglp.batches import to_device
from sglp.cost import count_macs
from sglp.errors import DataError
from sglp.running import device_of
from sglp.tasks.causal_lm import question_tasks, questions, texts
from sglp.tasks.causal_lm.data import check_fit, check_length, example
from sglp.tasks.causal_lm.perplexity import continuations, perplexity
from sglp.tasks.causal_lm.texts import Texts
from sglp.tasks.schemas.causal_lm import TextEvaluation

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def check_workload(content: dict) -> None:
    """Check that the question tasks exist; this needs no network."""
    question_tasks.check(content["evaluation"]["tasks"], content["files"]["tasks"]["path"])


def evaluate(
    network: "PreTrainedModel", data: Texts, settings: dict, processor: Any, tasks: str | None
) -> tuple[dict, list]:
    """Measure perplexity on the test text and accuracy on question tasks, and continue prompts for the report.

    Args:
        network: a Hugging Face model.
        data: the test split.
        settings: the workload's `evaluation`.
        processor: the tokenizer.
        tasks: folder of the user's lm-eval tasks, or None.

    Returns:
        Metrics by name, and the prompts with their continuations.

    Raises:
        DataError: the data, a prompt or an option does not fit the network, or evaluation fails.
    """
    options = TextEvaluation.model_validate(settings)
    check_fit(network, data)
    check_length(network, "evaluation.length", options.length)
    for prompt in options.prompts:
        tokens = len(texts.encode(processor, prompt)) + options.max_new_tokens
        check_length(network, "evaluation.max_new_tokens and a prompt together", tokens)
    if options.tokens is not None and options.tokens > len(data.tokens):
        raise DataError(
            f"evaluation.tokens={options.tokens} is too many: the test split of {data.name} has {len(data.tokens)} "
            "tokens; null uses all of them"
        )
    text = data.tokens[: options.tokens]
    metrics = perplexity(network, text, options.length, options.stride, options.batch_size, data.prefix)
    if options.tasks:
        metrics |= questions.answer(network, processor, options.tasks, tasks, options.limit, options.batch_size)
    return metrics, continuations(network, processor, options.prompts, options.max_new_tokens)


def macs(network: "PreTrainedModel", data: Texts) -> dict[str, int]:
    """Count multiply-accumulates and floating-point operations per token, in a sequence of the workload's length."""
    count = count_macs(network, to_device(example(data), device_of(network))) // data.length
    return {"macs_per_token": count, "flops_per_token": 2 * count}
