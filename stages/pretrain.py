"""The dense network: trained here, or with weights from a file or from its factory."""

import sglp
from sglp.errors import SGLPError
from sglp.tasks.image_classification import check_fit
from sglp.tasks.workload import Architecture, Pretraining, Weights
from stages.support import stage
from stages.support.params import View
from stages.support.resume import resumable
from stages.support.userfiles import locate
from stages.support.workloads import device, load_images, use_code


def main(params: View, workload: View) -> None:
    """Build, bring in or train the weights, save."""
    architecture = Architecture.model_validate(workload.architecture)
    weights = Weights.model_validate(workload.weights)
    recipe = Pretraining.model_validate(workload.pretrain)
    use_code(params, workload, architecture.factory)
    path = locate(params.model, "weights", workload.files.weights.sha256)
    if (weights.source == "file") != (path is not None):
        raise SGLPError("weights.source: file and files.weights.path go together: the workload has only one of them")
    images = load_images("train", params, workload)
    network = sglp.build(architecture.factory, architecture.kwargs, seed=recipe.seed, weights=weights.kwargs)
    if path is not None:
        sglp.load_weights(network, path)
    check_fit(network.eval(), images)
    if weights.source != "pretrain":
        sglp.save(network, "data/dense")
        return
    from sglp.tasks.training import train

    with resumable("pretrain", params, workload) as folder:
        train(network.to(device()), images, recipe, recipe.seed, folder)
        sglp.save(network, "data/dense")


if __name__ == "__main__":
    stage.run(main, "pretrain")
