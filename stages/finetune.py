"""The fine-tuned network: the pruned one, trained on."""

import sglp
from sglp.tasks.training import train
from sglp.tasks.workload import Finetuning
from stages.support import stage
from stages.support.params import View
from stages.support.resume import resumable
from stages.support.tables import write_rows
from stages.support.workloads import load_images, load_network

COLUMNS = ("step", "epoch", "loss", "learning_rate", "heldout_loss", "heldout_accuracy")


def main(params: View, workload: View) -> None:
    """Train; a killed run goes on."""
    recipe = Finetuning.model_validate(workload.finetune)
    network = load_network("data/pruned", params, workload)
    teacher = load_network("data/dense", params, workload) if recipe.distillation else None
    images = load_images("train", params, workload)
    with resumable("finetune", params, workload) as folder:
        rows = train(network, images, recipe, params.seed, folder, teacher, recipe.distillation, recipe.temperature)
        sglp.save(network, "data/finetuned")
        write_rows("reports/training.csv", COLUMNS, ([row.get(name, "") for name in COLUMNS] for row in rows))


if __name__ == "__main__":
    stage.run(main, "finetune")
