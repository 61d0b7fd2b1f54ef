"""Create the network to prune: with weights trained here, from a file or from its factory."""

import sglp
from sglp.distributed import processes
from sglp.errors import SGLPError
from sglp.tasks.building import find_building
from sglp.tasks.data import find_data
from sglp.tasks.schemas import recipe_of
from sglp.tasks.schemas.workload import Architecture, Weights
from sglp.tasks.training import find_training
from stages.support import launch
from stages.support.params import DeclaredParams
from stages.support.resume import resumable
from stages.support.userfiles import verified_path
from stages.support.workloads import device, load_split, use_code


def main(params: DeclaredParams, workload: DeclaredParams) -> None:
    """Build the network with its weights, train it if the workload says so, and save it."""
    task = find_data(workload.task)
    building = find_building(workload.task)
    training = find_training(workload.task)
    architecture = Architecture.model_validate(workload.architecture)
    weights = Weights.model_validate(workload.weights)
    recipe = recipe_of(workload.task, "pretrain", workload.pretrain)
    seed = workload.pretrain["seed"]
    use_code(params, workload, architecture.factory)
    path = verified_path(params.model, "weights", workload.files.weights.sha256)
    if (weights.source == "file") != (path is not None):
        missing = "weights.source is not file" if path else "files.weights.path is null"
        raise SGLPError(
            f"models/{params.model}.yaml: {missing}: 'weights.source: file' and files.weights.path need each other"
        )
    processor = building.first_processor(architecture, weights, path, workload.data.prepare)
    data = load_split("train", params, workload, processor)
    network = building.build(architecture, weights, path, seed).eval()
    task.check_fit(network, data)
    if not weights.train:
        if processes.rank() == 0:
            sglp.save(network, "data/dense", processor)
        return
    from sglp.tasks.trainer.train import train

    with processes.entered_by_rank_zero(resumable("pretrain", params, workload)) as folder:
        trained, merge = training.adapt(network, recipe, seed)
        train(trained.to(device()), training, data, recipe, seed, folder)
        if processes.rank() == 0:
            sglp.save(merge(), "data/dense", processor)


if __name__ == "__main__":
    launch.run(main, "pretrain")
