"""Images, evaluation and training against their definitions."""

import copy
import inspect

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.metrics import accuracy_score, log_loss, top_k_accuracy_score

import sglp
from sglp.errors import DataError, SGLPError
from sglp.tasks import building, data, evaluation, timing, training
from sglp.tasks.drawing import draw
from sglp.tasks.image_classification import training as image_classification
from sglp.tasks.image_classification.augmentation import TrainingImages
from sglp.tasks.image_classification.data import calibration_batches
from sglp.tasks.image_classification.images import Images, stack
from sglp.tasks.schemas.image_classification import Finetuning, ImagePreparation
from sglp.tasks.schemas.workload import Source
from sglp.tasks.trainer.train import _Trainer, train

PREPARE = ImagePreparation(
    image_column="image",
    label_column="label",
    classes=10,
    channels=1,
    transforms=[],
    mean=[0.3],
    std=[0.4],
)
DIGITS = Source(loader="sglp.tasks.digits:Digits", name=None, revision=None)
SHIFT = [{"RandomCrop": {"size": 8, "padding": 1}}]


def recipe(**changes) -> Finetuning:
    plain = {
        "samples": None,
        "optimizer": "sgd",
        "learning_rate": 0.05,
        "momentum": 0.9,
        "weight_decay": 0.0005,
        "batch_size": 64,
        "epochs": 1,
        "warmup_epochs": 0,
        "label_smoothing": 0.0,
        "precision": "float32",
        "augment": [],
        "holdout": 0.2,
        "keep": "last",
        "distillation": 0.0,
        "temperature": 1.0,
    }
    return Finetuning.model_validate(plain | changes)


def evaluate(network, images, batch_size: int) -> dict:
    metrics, examples = evaluation.find_evaluation("image_classification").evaluate(
        network, images, {"batch_size": batch_size, "robustness": None}
    )
    assert examples == []
    return metrics


@pytest.fixture(scope="module")
def images() -> Images:
    return Images(DIGITS, {"train": True}, PREPARE)


def fresh(depth: int = 8):
    return sglp.build("sglp.networks.cifar_resnet:resnet", {"depth": depth, "in_channels": 1}, seed=0)


def test_the_digits_are_split_without_overlap_and_with_the_same_share_of_each(images):
    test = Images(DIGITS, {"train": False}, PREPARE)
    assert (len(images), len(test)) == (1433, 364)
    seen, others = ({split.image(i).numpy().tobytes() for i in range(len(split))} for split in (images, test))
    assert not seen & others
    assert seen | others == {(15 * image).astype("uint8").tobytes() for image in load_digits().images}
    shares = [np.bincount(split.labels) / len(split) for split in (images, test)]
    assert np.abs(shares[0] - shares[1]).max() < 0.002


def test_an_image_is_decoded_once_as_long_as_there_is_room(images):
    asked, items = [], images.items
    images = copy.copy(images)
    images.items = lambda index: asked.append(index) or items(index)
    images.decoded, images.room = {}, 2 * 64  # of 8x8 grey pixels
    for _ in range(3):
        for index in (0, 1, 2):
            assert np.array_equal(images.image(index)[0], items(index).convert("L"))
    assert asked == [0, 1, 2, 2, 2]


def test_an_image_is_scaled_and_normalised(images):
    pixels = images.image(3)[0].double()
    assert torch.allclose(images[3][0][0].double(), (pixels / 255 - 0.3) / 0.4, atol=1e-6)


def test_evaluation_equals_scikit_learn(images):
    network = fresh()
    network(images.batch(range(512))[0])  # in train mode: running statistics that fit the data
    network.eval()
    logits = network(images.batch(range(len(images)))[0]).detach().double()
    labels, scores = images.labels.numpy(), logits.softmax(-1).numpy()
    found = evaluate(network, images, batch_size=100)
    assert found["accuracy"] == pytest.approx(accuracy_score(labels, scores.argmax(1)), abs=1e-12)
    assert found["accuracy_top5"] == pytest.approx(top_k_accuracy_score(labels, scores, k=5), abs=1e-12)
    assert found["loss"] == pytest.approx(log_loss(labels, scores), rel=1e-5)


def test_calibration_draws_without_replacement_by_its_seed(images):
    first, again, other = (list(calibration_batches(images, 100, 32, seed)) for seed in (0, 0, 1))
    assert [len(labels) for _, labels in first] == [25, 25, 25, 25]
    assert all(torch.equal(a[0], b[0]) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0][0], other[0][0])
    whole = torch.cat([inputs for inputs, _ in calibration_batches(images, len(images), 500, 0)])
    expected = torch.cat([images.batch([i])[0] for i in range(len(images))])
    assert torch.equal(whole.sum(dim=0), expected.sum(dim=0)) or torch.allclose(
        whole.sum(0), expected.sum(0), atol=1e-3
    )


def test_too_many_calibration_samples(images):
    with pytest.raises(
        DataError, match=r"2000 samples are needed, but there are only 1433 images for training in sglp.tasks.digits"
    ):
        list(calibration_batches(images, 2000, 32, 0))


def test_augmentation_depends_on_seed_epoch_and_index_alone(images):
    samples = TrainingImages(images, np.arange(50), SHIFT, seed=0)
    first = [samples[0, i][0] for i in range(50)]
    torch.manual_seed(123)
    state = torch.get_rng_state()
    again = [samples[0, i][0] for i in reversed(range(50))][::-1]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert torch.equal(state, torch.get_rng_state())
    assert sum(not torch.equal(first[i], samples[1, i][0]) for i in range(50)) > 30
    other = TrainingImages(images, np.arange(50), SHIFT, seed=1)
    assert sum(not torch.equal(first[i], other[0, i][0]) for i in range(50)) > 30


def test_an_unknown_transform_is_named(images):
    with pytest.raises(DataError, match="'RandomCorp' is not a transform"):
        images.steps_after([{"RandomCorp": {}}])


def test_images_of_different_sizes_are_told(images, tmp_path):
    from PIL import Image

    for i in range(2):
        Image.new("L", (8 + i, 8)).save(tmp_path / f"{i}.png")
    prepare = PREPARE.model_copy(update={"classes": 2})
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "0.png").rename(tmp_path / "a/0.png")
    (tmp_path / "1.png").rename(tmp_path / "b/1.png")
    folder = Images(Source(loader="datasets", name="imagefolder", revision=None), {}, prepare, str(tmp_path))
    with pytest.raises(DataError, match="differ in size"):
        folder.batch([0, 1])


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_best_weights_on_the_held_out_share_are_kept(images, tmp_path, optimizer):
    # A rate that grows too high at first: the last point need not be the best.
    network = fresh()
    rate = 0.05 if optimizer == "sgd" else 0.01
    rows = train(
        network,
        image_classification,
        images,
        recipe(optimizer=optimizer, keep="best", learning_rate=rate, momentum=0.9 if optimizer == "sgd" else 0.0),
        0,
        tmp_path,
    )
    held = np.random.default_rng(0).permutation(len(images))[-287:]
    inputs, labels = images.batch(sorted(held.tolist()))
    accuracy = float((network(inputs).argmax(-1) == labels).double().mean())
    assert accuracy == pytest.approx(max(row["heldout_accuracy"] for row in rows), abs=1e-9)
    assert not network.training


def test_nothing_is_held_out_that_calibration_has_seen(images, tmp_path, monkeypatch):
    parts, make = [], image_classification.training_samples
    monkeypatch.setattr(
        image_classification, "training_samples", lambda *args: (parts.append(set(args[1])), make(*args))[1]
    )
    train(fresh(), image_classification, images, recipe(samples=200), 7, tmp_path)
    trained, held = parts
    drawn = np.random.default_rng(7).permutation(len(images)).tolist()
    assert (trained, held) == (set(drawn[:160]), set(drawn[-40:]))
    assert not held & set(draw(len(images), 200, 7, "")), "calibration on as many samples"


def test_a_training_that_diverges_ends_at_once_and_leaves_nothing_to_go_on_from(images, tmp_path, monkeypatch):
    steps = []
    monkeypatch.setattr(image_classification, "collate", lambda pairs: (steps.append(1), stack(pairs))[1])
    with pytest.raises(SGLPError, match="training diverged, the loss is not finite: learning_rate=1e\\+20 is too high"):
        train(
            fresh(), image_classification, images, recipe(learning_rate=1e20, epochs=9, holdout=0.0), 0, tmp_path / "r"
        )
    assert len(steps) < 30  # of 207
    assert not (tmp_path / "r").exists()


def test_training_learns(images, tmp_path):
    network = fresh()
    before = evaluate(network, images, 256)["loss"]
    rows = train(network, image_classification, images, recipe(holdout=0.0, epochs=2), 0, tmp_path)
    assert evaluate(network, images, 256)["loss"] < before / 2
    assert [*rows[-1]] == ["step", "epoch", "loss", "learning_rate"]


def test_distillation_is_the_divergence_from_the_teacher_at_a_temperature(images):
    teacher, student = fresh(14).eval(), fresh(8).eval()
    inputs = images.batch(range(16))[0]
    trainer = _Trainer.__new__(_Trainer)
    trainer.teacher, trainer.recipe = teacher, recipe(distillation=1.0, temperature=3.0)
    logits = student(inputs).detach()
    p, q = (F.softmax(x.double() / 3.0, -1) for x in (teacher(inputs), logits))
    expected = 9 * (p * (p / q).log()).sum(-1).mean().detach()
    labels = torch.zeros(16, dtype=torch.int64)
    assert float(trainer._distance(logits, inputs, labels)) == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("name", ["image_classification", "causal_lm"])
def test_a_task_has_every_function_that_stages_call(name):
    parts = {
        building.Building: building.find_building(name),
        data.TaskData: data.find_data(name),
        training.TaskTraining: training.find_training(name),
        evaluation.Evaluation: evaluation.find_evaluation(name),
        timing.Timing: timing.find_timing(name),
    }
    for protocol, module in parts.items():
        functions = [function for function in vars(protocol) if not function.startswith("_")]
        assert functions
        for function in functions:
            _, *asked = inspect.signature(getattr(protocol, function)).parameters.values()
            there = list(inspect.signature(getattr(module, function)).parameters.values())
            assert [p.kind for p in there] == [p.kind for p in asked], f"{module.__name__}.{function}"


def test_a_recipe_can_take_a_part_of_the_samples(images, tmp_path):
    rows = train(fresh(), image_classification, images, recipe(samples=100, batch_size=10), 0, tmp_path)
    assert rows[-1]["step"] == 8  # 80 of them, a fifth is held out
    with pytest.raises(DataError, match="5000 samples are needed, but there are only 1433 samples to train on"):
        train(fresh(), image_classification, images, recipe(samples=5000), 0, tmp_path)
