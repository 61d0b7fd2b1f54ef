"""The plan: the method scores layers, and says which stay."""

import time

import torch

from sglp.budget import check_target, layers_to_keep
from sglp.distributed import processes
from sglp.distributed.all_reduce import all_reduce_sum
from sglp.running import count_passes
from sglp.scoring.methods import find_criterion, find_method
from sglp.target import RemainingCost, search_keep_count
from sglp.tasks.data import find_data
from sglp.tasks.schemas.workload import Scoring
from stages.support import launch
from stages.support.layers import read_layers
from stages.support.params import DeclaredParams
from stages.support.scores import write_scores
from stages.support.tables import read_json, read_similarity, write_json
from stages.support.workloads import load_network, load_split, use_code


def main(params: DeclaredParams, workload: DeclaredParams) -> None:
    """Run the method on the scoring batches of the training split."""
    use_code(params, workload, params.method, params.score.criterion)
    method = find_method(params.method)
    layers, segments = read_layers("data/layers.csv"), read_json("data/segments.json")
    keep = layers_to_keep([layer.removable for layer in layers], params.prune_ratio)
    task, dials, cost = find_data(workload.task), params.score, Scoring.model_validate(workload.scoring)
    goal = None if params.target is None else check_target(params.target, dials.budget)
    options = {}
    if params.method == "sglp":
        options = {
            "criterion": find_criterion(dials.criterion),
            "search": dials.search,
            "budget": dials.budget,
            "random_inits": dials.random_inits,
            "max_combinations": cost.max_combinations,
            "max_evaluations": dials.max_evaluations,
            "beam_width": dials.beam_width,
        }
    network = load_network("data/dense", params, workload)
    data = load_split("train", params, workload, task.processor("data/dense", workload.architecture))
    samples = cost.batch_size * dials.batches
    batches = list(task.calibration_batches(data, samples, cost.batch_size, params.seed))
    similarity = read_similarity("data/similarity.csv")

    def ask(keep: int):
        return method(network, layers, segments, similarity, batches, keep, params.seed, **options)

    found = {}
    start = time.perf_counter()
    with count_passes() as passes:
        if goal is None:
            plan, scores = ask(keep)
        else:
            of, share = goal
            plan, scores, left = search_keep_count(
                share, RemainingCost(of, network, layers, batches[0][0]), ask, segments
            )
            found = {"target": {"of": of, "asked": share, "reached": left}}
    seconds = time.perf_counter() - start
    run = all_reduce_sum(torch.tensor([passes.forward, passes.backward])).tolist()
    if processes.rank():
        return
    write_scores("data/scores.csv", scores)
    write_json(
        "reports/scoring.json",
        {
            "seconds": seconds,
            "forward_passes": run[0],
            "backward_passes": run[1],
            "samples_a_pass": cost.batch_size,
            **found,
        },
    )
    plan.save("data/plan.json")


if __name__ == "__main__":
    launch.run(main, "score")
