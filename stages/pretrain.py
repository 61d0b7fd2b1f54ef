"""The dense network: trained here, or with weights from a file or from its factory."""

import sglp
from sglp.errors import SGLPError
from sglp.tasks.image_classification import check_classes, example
from sglp.tasks.workload import Architecture, Pretraining, Weights
from stages.support import stage
from stages.support.params import View
from stages.support.resume import resumable
from stages.support.userfiles import locate
from stages.support.workloads import check_versions, device, load_images, use_code


def main(params: View, workload: View) -> None:
    """Build, bring in or train the weights, save."""
    check_versions()
    use_code(params, workload)
    architecture = Architecture.model_validate(workload.architecture)
    weights = Weights.model_validate(workload.weights)
    recipe = Pretraining.model_validate(workload.pretrain)
    path = locate(params.model, "weights", workload.files.weights.sha256)
    if (weights.source == "file") != (path is not None):
        raise SGLPError("weights.source: file and files.weights.path go together: the workload has only one of them")
    images = load_images("train", params, workload)
    fetched = weights.kwargs if weights.source == "factory" else None
    network = sglp.build(architecture.factory, architecture.kwargs, seed=recipe.seed, weights=fetched)
    if path is not None:
        sglp.load_weights(network, path)
    network.eval()
    check_classes(network(example(images)), images)
    if weights.source == "pretrain":
        from sglp.tasks.training import train

        depends = {"recipe": recipe.model_dump(), "architecture": architecture.model_dump()}
        depends |= {
            "data": [workload.data.source, workload.data.train, workload.data.prepare],
            "files": [workload.files.train.sha256, workload.files.code.sha256],
        }
        with resumable("pretrain", depends, ["versions.txt"]) as folder:
            train(network.to(device()), images, recipe, recipe.seed, folder)
            sglp.save(network, "data/dense")
    else:
        sglp.save(network, "data/dense")


if __name__ == "__main__":
    stage.run(main, "pretrain")
