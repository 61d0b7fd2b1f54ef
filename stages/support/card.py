"""The complete model card of the fine-tuned network; the card in its folder is written before measurements exist."""

from sglp.checkpoints.model_card import Figures, card_of
from stages.support.outcome import benchmark_rows, metric_rows
from stages.support.params import DeclaredParams, flat

TASKS = {"image_classification": "image-classification", "causal_lm": "text-generation"}
# Nested parameters that belong into the command, besides the top-level ones.
NESTED = ("score.criterion", "score.search", "prune.weights", "reconstruct.method")
NETWORK = "data/finetuned"


def complete_card(
    params: DeclaredParams,
    workload: DeclaredParams,
    metrics: dict,
    benchmark: dict,
    measured: str,
    command: str,
    reconstruction: str,
) -> str:
    """Write the model card of the fine-tuned network, with its measurements and the command that reproduces it.

    Args:
        params, workload: parameters that the stage declares.
        metrics: metrics of all networks, by name.
        benchmark: content of benchmark.json.
        measured: description of the test data.
        command: command that sets the top-level parameters.
        reconstruction: a sentence about it, or "".
    """
    tuned = metrics["finetuned"]
    source = flat(workload.data.source)
    exact = {key: value for key, value in tuned.items() if isinstance(value, int | float)}
    figures = Figures(
        task=TASKS[workload.task],
        dataset=source["name"] or source["loader"],
        measured=measured,
        metrics=exact,
        rows=[[row[i] for i in (0, 1, -2, -1)] for row in metric_rows(metrics) + benchmark_rows(benchmark)],
        notes=[reconstruction] if reconstruction else [],
    )
    values = flat(params)
    more = "".join(f" -S {key}={values[key]}" for key in NESTED if key in values)
    return card_of(NETWORK, tuned.get("params"), figures, command + more)
