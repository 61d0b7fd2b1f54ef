"""Fine-tune the reconstructed network."""

import sglp
from sglp.distributed import processes
from sglp.tasks.data import find_data
from sglp.tasks.schemas import recipe_of
from sglp.tasks.training import find_training
from stages.support import launch
from stages.support.params import DeclaredParams
from stages.support.resume import resumable
from stages.support.tables import write_rows
from stages.support.workloads import device, load_network, load_split

COLUMNS = ("step", "epoch", "loss", "learning_rate", "heldout_loss", "heldout_accuracy")


def main(params: DeclaredParams, workload: DeclaredParams) -> None:
    """Train, or resume a killed run."""
    from sglp.tasks.trainer.train import train  # slow; not needed to launch processes

    task = find_data(workload.task)
    training = find_training(workload.task)
    recipe = recipe_of(workload.task, "finetune", workload.finetune)
    processor = task.processor("data/reconstructed", workload.architecture)
    data = load_split("train", params, workload, processor)
    trained, merge = training.adapt(
        load_network("data/reconstructed", params, workload, stored=True), recipe, params.seed
    )
    teacher = load_network("data/dense", params, workload) if workload.finetune["distillation"] else None
    with processes.entered_by_rank_zero(resumable("finetune", params, workload)) as folder:
        rows = train(trained.to(device()), training, data, recipe, params.seed, folder, teacher)
        if processes.rank() == 0:
            sglp.save(merge(), "data/finetuned", processor)
            write_rows("reports/training.csv", COLUMNS, ([row.get(name, "") for name in COLUMNS] for row in rows))


if __name__ == "__main__":
    launch.run(main, "finetune")
