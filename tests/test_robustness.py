"""Accuracy under attack and corruption against the same made by hand; its dials; its rows in the report."""

import copy

import numpy as np
import pytest
import torch
import torchattacks
from pipeline import ROOT, merged, read_yaml
from pydantic import ValidationError
from torch import nn

from sglp.errors import DataError
from sglp.robustness.attacks import pgd, random_start
from sglp.robustness.corruptions import KINDS, corrupt
from sglp.tasks.image_classification import evaluation
from sglp.tasks.image_classification.images import Images
from sglp.tasks.image_classification.robustness import SEED, robustness
from sglp.tasks.schemas.image_classification import ImageEvaluation, ImagePreparation
from sglp.tasks.schemas.workload import Source
from stages.support.outcome import NETWORKS, metric_rows
from stages.support.robustness import corruption_rows, robustness_rows

EPS = 0.1
DIALS = {"samples": 1000, "fgsm": [0.03137, EPS], "pgd": [EPS], "pgd_steps": 3, "severities": [1, 5]}


@pytest.fixture(scope="module")
def images() -> Images:
    """The test split of the digits, normalised to what the network of the fixture was trained on."""
    prepare = ImagePreparation(
        image_column="image", label_column="label", classes=10, channels=1, transforms=[], mean=[8 / 17], std=[8 / 17]
    )
    return Images(Source(loader="sglp.tasks.digits:Digits", name=None, revision=None), {"train": False}, prepare)


def measure(network, images, batch_size: int = 128, **changes) -> dict:
    dials = ImageEvaluation.model_validate({"batch_size": batch_size, "robustness": DIALS | changes}).robustness
    return robustness(network, images, dials, batch_size)


def accuracy(network, images, indices) -> float:
    inputs, labels = images.batch(indices)
    return float((network(inputs).argmax(-1) == labels).double().mean())


class FromPixels(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, pixels):
        return self.network((pixels - 8 / 17) / (8 / 17))


def test_accuracy_under_attack_is_that_of_attacks_made_by_hand(network, images):
    found = measure(network, images, severities=[])
    inputs, labels = images.batch(range(len(images)))
    pixels, predict = inputs * (8 / 17) + 8 / 17, FromPixels(network).eval()
    exact = copy.deepcopy(predict).double()
    for eps in (0.03137, EPS):
        attacked = torchattacks.FGSM(exact, eps=eps)(pixels.double(), labels)
        expected = float((exact(attacked).argmax(-1) == labels).double().mean())
        assert found["fgsm"][str(eps)] == pytest.approx(expected, abs=0.003)
    start = random_start(pixels, EPS, [(SEED, i) for i in range(len(images))])
    attacked = pgd(predict, pixels, labels, EPS, 3, start)
    expected = float((predict(attacked).argmax(-1) == labels).double().mean())
    assert found["pgd"][str(EPS)] == pytest.approx(expected, abs=0.003)
    assert found["clean"] == accuracy(network, images, range(len(images)))
    assert found["samples"] == len(images)  # all, where there are fewer than asked for
    assert found["pgd"][str(EPS)] <= found["fgsm"][str(EPS)] < found["fgsm"]["0.03137"] <= found["clean"]


def test_accuracy_under_corruption_is_that_of_corrupted_images(network, images, monkeypatch):
    drawn = np.random.default_rng(SEED).permutation(len(images))[:50].tolist()
    found = measure(network, images, samples=50, fgsm=[], pgd=[])["corruptions"]
    original = images.image
    for severity in (1, 5):
        for kind in KINDS:

            def corrupted(index, kind=kind, severity=severity):
                pixels = corrupt(original(index).permute(1, 2, 0).numpy(), kind, severity, index)
                return torch.from_numpy(pixels).permute(2, 0, 1)

            monkeypatch.setattr(images, "image", corrupted)
            expected = accuracy(network, images, drawn)
            assert found[str(severity)][kind] == pytest.approx(expected, abs=1e-9)
        kinds = [found[str(severity)][kind] for kind in KINDS]
        assert found[str(severity)]["mean"] == pytest.approx(np.mean(kinds))
        assert len(found[str(severity)]) == 16
    assert found["5"]["mean"] < found["1"]["mean"]


def test_neither_batches_nor_modes_matter_and_nothing_is_left_behind(network, images):
    before = copy.deepcopy(network.state_dict())
    network.layer1.train()
    states = torch.get_rng_state(), np.random.get_state()[1].copy()
    first = measure(network, images, samples=20, batch_size=7)
    assert network.layer1[0].bn1.training
    assert not network.layer2[0].bn1.training
    assert first == measure(network.eval(), images, samples=20)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])
    assert all(p.grad is None for p in network.parameters())
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_the_images_are_a_draw_of_all(network, images):
    seen = []

    class Watched(nn.Module):
        def forward(self, inputs):
            seen.append(inputs)
            return network(inputs)

    found = measure(Watched(), images, samples=40, fgsm=[], pgd=[], severities=[])
    assert list(found) == ["samples", "clean"]
    assert found["samples"] == 40
    drawn = np.random.default_rng(SEED).permutation(len(images))[:40]
    expected = images.batch(drawn.tolist())[0]
    assert torch.equal(torch.cat(seen), expected), "to the bit what evaluation sees"
    assert found["clean"] == accuracy(network, images, drawn.tolist())


def test_evaluation_reports_it_beside_what_it_reports_without(network, images):
    def evaluate(dials):
        return evaluation.evaluate(network, images, {"batch_size": 64, "robustness": dials})[0]

    without = evaluate(None)
    assert list(without) == ["accuracy", "accuracy_top5", "loss", "samples"]
    dials = DIALS | {"samples": 20, "severities": [3]}
    metrics = evaluate(dials)
    assert metrics == without | {"robustness": measure(network, images, samples=20, severities=[3])}
    assert list(metrics["robustness"]) == ["samples", "clean", "fgsm", "pgd", "corruptions"]


def test_outputs_that_are_not_finite(network, images):
    class Breaks(nn.Module):
        def forward(self, inputs):
            logits = network(inputs)
            return logits / (inputs.flatten(1).max(1, keepdim=True).values < 1.001)

    with pytest.raises(DataError, match=r"outputs on sglp.tasks.digits:Digits \(corruptions 5 \w+\) are not finite"):
        measure(Breaks(), images, samples=10, fgsm=[], pgd=[], severities=[5])


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"samples": 0}, "greater than or equal to 1"),
        ({"fgsm": [0.0]}, "greater than 0"),
        ({"pgd": [8.0]}, "less than or equal to 1"),
        ({"pgd": [0.1, 0.1]}, r"pgd=\[0.1, 0.1\] repeats a value"),
        ({"severities": [0]}, "greater than or equal to 1"),
        ({"severities": [6]}, "less than or equal to 5"),
        ({"steps": 3}, "Extra inputs are not permitted"),
    ],
)
def test_wrong_dials(changes, sentence):
    with pytest.raises(ValidationError, match=sentence):
        ImageEvaluation.model_validate({"batch_size": 1, "robustness": DIALS | changes})


def test_every_shipped_workload_of_images_says_what_it_measures():
    workloads = [read_yaml(path) for path in sorted((ROOT / "models").glob("*.yaml"))]
    found = [w["evaluation"]["robustness"] for w in workloads if w["task"] == "image_classification"]
    assert sum(dials is not None for dials in found) >= 12
    assert all(dials is None or dials["samples"] == 1000 for dials in found)


def report_metrics() -> dict:
    dense = {"accuracy": 0.9, "samples": 10_000}
    measured = {
        "samples": 1000,
        "clean": 0.9,
        "fgsm": {"0.1": 0.2, "0.03137": 0.5},
        "pgd": {"0.00196": 0.4},
        "corruptions": {"3": {"fog": 0.5, "glass_blur": 0.7, "mean": 0.6}},
    }
    worse = merged(measured, {"clean": 0.8, "corruptions": {"3": {"fog": 0.4}}})
    names = {"dense": measured, "pruned": measured, "reconstructed": measured, "finetuned": worse}
    return {name: dense | {"robustness": values} for name, values in names.items()}


def test_rows_of_the_report():
    # The standard error of 0.9 is sqrt(0.9 * 0.1 / 1000) = 0.0095.
    rows = robustness_rows(report_metrics())
    assert rows[0] == [
        "accuracy, 1,000 clean images",
        "90.00 ± 0.95 %",
        "90.00 ± 0.95 %",
        "+0.00 points",
        "90.00 ± 0.95 %",
        "+0.00 points",
        "80.00 ± 1.26 %",
        "-10.00 points",
    ]
    assert [cells[:2] for cells in rows[1:]] == [
        ["accuracy under FGSM, ε = 8/255", "50.00 ± 1.58 %"],
        ["accuracy under FGSM, ε = 0.1", "20.00 ± 1.26 %"],
        ["accuracy under PGD, ε = 0.00196", "40.00 ± 1.55 %"],
        ["accuracy under corruption, severity 3, mean of 2 kinds", "60.00 %"],
    ]
    kinds = corruption_rows(report_metrics())
    assert [cells[0] for cells in kinds] == ["fog, severity 3", "glass blur, severity 3"]
    assert kinds[0][6:] == ["40.00 ± 1.55 %", "-10.00 points"]
    assert [cells[0] for cells in metric_rows(report_metrics())] == ["accuracy (top-1)"]


def test_a_report_without_robustness():
    metrics = {name: {"perplexity": 20.0} for name in NETWORKS}
    assert robustness_rows(metrics) == corruption_rows(metrics) == []
