"""Score layers with the chosen method and write the pruning plan."""

import time
from typing import Any

import torch

from sglp.budget import check_target, layers_to_keep
from sglp.choices import runs_sglp
from sglp.distributed import processes
from sglp.distributed.all_reduce import all_reduce_sum
from sglp.plan import Plan
from sglp.running import count_passes
from sglp.scores import LayerScore, SetScore
from sglp.scoring.methods import RECONSTRUCTION_BATCHES, find_criterion, find_method, takes, with_errors
from sglp.target import RemainingCost, search_keep_count
from sglp.tasks.data import find_data
from sglp.tasks.schemas.workload import ReconstructionSamples, Scoring
from stages.support import launch
from stages.support.layers import read_layers
from stages.support.matrices import read_errors, read_similarity
from stages.support.params import DeclaredParams
from stages.support.scores import write_scores
from stages.support.tables import read_json, write_json
from stages.support.workloads import load_network, load_split, use_code


def main(params: DeclaredParams, workload: DeclaredParams) -> None:
    """Run the method on the scoring batches of the training split."""
    use_code(params, workload, params.method, params.score.criterion)
    method = find_method(params.method)
    layers = read_layers("data/layers.csv")
    segments = read_json("data/segments.json")
    keep = layers_to_keep([layer.removable for layer in layers], params.prune_ratio)
    task = find_data(workload.task)
    score = params.score
    scoring = Scoring.model_validate(workload.scoring)
    target = None if params.target is None else check_target(params.target, score.budget)
    options: dict[str, Any] = {}
    if runs_sglp(params.method):
        options |= {
            "criterion": find_criterion(score.criterion),
            "search": score.search,
            "budget": score.budget,
            "random_inits": score.random_inits,
            "max_combinations": scoring.max_combinations,
            "max_evaluations": score.max_evaluations,
            "beam_width": score.beam_width,
        }
    network = load_network("data/dense", params, workload)
    data = load_split("train", params, workload, task.processor("data/dense", workload.architecture))
    samples = scoring.batch_size * score.batches
    batches = list(task.calibration_batches(data, samples, scoring.batch_size, params.seed))
    if takes(method, RECONSTRUCTION_BATCHES):
        size = ReconstructionSamples.model_validate(workload.reconstruction)
        fit_on = task.calibration_batches(data, size.samples, size.batch_size, params.seed)
        options[RECONSTRUCTION_BATCHES] = list(fit_on)
    options = with_errors(method, options, read_errors(len(layers)))
    similarity = read_similarity("data/similarity.csv")

    def plan_for(keep: int) -> tuple[Plan, list[SetScore] | list[LayerScore]]:
        return method(network, layers, segments, similarity, batches, keep, params.seed, **options)

    target_report = {}
    start = time.perf_counter()
    with count_passes() as passes:
        if target is None:
            plan, scores = plan_for(keep)
        else:
            kind, share = target
            cost = RemainingCost(kind, network, layers, batches[0][0])
            plan, scores, remaining = search_keep_count(share, cost, plan_for, segments)
            target_report = {"target": {"of": kind, "asked": share, "reached": remaining}}
    seconds = time.perf_counter() - start
    forward_passes, backward_passes = all_reduce_sum(torch.tensor([passes.forward, passes.backward])).tolist()
    if processes.rank():
        return
    write_scores("data/scores.csv", scores)
    write_json(
        "reports/scoring.json",
        {
            "seconds": seconds,
            "forward_passes": forward_passes,
            "backward_passes": backward_passes,
            "samples_a_pass": scoring.batch_size,
            **target_report,
        },
    )
    plan.save("data/plan.json")


if __name__ == "__main__":
    launch.run(main, "score")
