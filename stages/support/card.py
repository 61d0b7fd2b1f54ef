"""The complete model card of the fine-tuned network: the one in its folder is written before anything is measured."""

from sglp.checkpoints.model_card import Figures, card_of
from stages.support.outcome import benchmark_rows, metric_rows
from stages.support.params import DeclaredParams, flat

TASKS = {"image_classification": "image-classification", "causal_lm": "text-generation"}
# Dials that name a question, beside those on top of params.yaml.
QUESTION = ("score.criterion", "score.search", "prune.weights")
NETWORK = "data/finetuned"


def complete_card(
    params: DeclaredParams, workload: DeclaredParams, metrics: dict, benchmark: dict, measured: str, command: str
) -> str:
    """The card of the fine-tuned network with its figures and the command that makes it again.

    Args:
        params, workload: what the stage declares.
        metrics, benchmark: what was measured; metrics of the dense, the pruned and the fine-tuned network.
        measured: what the quality was measured on, in words.
        command: what turns the dials on top of params.yaml.
    """
    found, source = metrics["finetuned"], flat(workload.data.source)
    exact = {key: value for key, value in found.items() if isinstance(value, int | float)}
    figures = Figures(
        task=TASKS[workload.task],
        dataset=source["name"] or source["loader"],
        measured=measured,
        metrics=exact,
        rows=[[row[i] for i in (0, 1, 4, 5)] for row in metric_rows(metrics) + benchmark_rows(benchmark)],
    )
    dials = flat(params)
    more = "".join(f" -S {key}={dials[key]}" for key in QUESTION if key in dials)
    return card_of(NETWORK, found.get("params"), figures, command + more)
