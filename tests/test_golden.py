"""The numbers of every step on tiny networks are those in tests/golden; `make golden` writes them anew.

The dense networks are drawn from a seed, so that no training amplifies the rounding of one processor or another.
"""

import json
from pathlib import Path

import pytest
import torch
from language import byte_tokenizer, prose, tiny_llama

import sglp
from sglp.loss import cross_entropy
from sglp.running import call, logits_of
from sglp.scoring.methods import criterion_names, find_criterion, find_method, method_names
from sglp.segmentation import segmentation_table
from sglp.surgery.random_weights import reinitialized
from sglp.tasks.causal_lm.perplexity import perplexity

FILE = Path(__file__).parent / "golden" / "numbers.json"


def steps(model, layers, batches) -> dict:
    """The numbers of all steps from activations to the pruned network."""
    similarity = sglp.cka_matrix(sglp.gram_matrices(model, layers, batches))
    table = segmentation_table(similarity.numpy())
    segments = table.segments(2)
    removable = [layer.removable for layer in layers]
    budget = sglp.allocate_budget(segments, removable, prune_ratio=0.5)
    keep = sum(budget)
    found = {
        "layers": [[layer.name, layer.removable, layer.parameters, layer.macs] for layer in layers],
        "similarity": similarity.tolist(),
        "segmentation losses": table.losses.tolist(),
        "segments": [list(segment) for segment in segments],
        "budget": budget,
    }
    last = max(i for i, layer in enumerate(layers) if layer.removable)
    for name in criterion_names():
        if name == "synflow" and not isinstance(batches[0][0], torch.Tensor):
            continue  # it asks for inputs that are numbers
        score = find_criterion(name)(model, layers, batches, cross_entropy, 0, 1)
        found[f"criterion {name}"] = score([i for i in range(*segments[-1]) if i != last], [last], ())
    for name in method_names():
        plan, _ = find_method(name)(model, layers, segments, similarity.numpy(), batches, keep, 0)
        found[f"method {name}"] = list(plan.removed)
    pruned = sglp.prune(model, sglp.Plan.without(layers, [last])).eval()
    with torch.no_grad():
        logits = logits_of(call(pruned, batches[0][0]))
    found["pruned logits"] = logits.flatten()[:20].tolist()
    fresh = reinitialized(model, 0)
    found["re-initialised"] = [float(p.detach().double().square().sum()) for p in fresh.parameters()][:8]
    return found


def cnn_numbers(digits) -> dict:
    images, targets = digits
    model = sglp.build("sglp.networks.cifar_resnet:resnet", {"depth": 20, "in_channels": 1}, seed=0).eval()
    sglp.recalibrate(model, [images[:128]])
    layers = sglp.find_layers(model, images[:2])
    return steps(model, layers, [(images[:24], targets[:24]), (images[24:40], targets[24:40])])


def llama_numbers() -> dict:
    model = tiny_llama(6)
    ids = torch.tensor(byte_tokenizer()(prose(200), add_special_tokens=False)["input_ids"])
    sequences = ids[: 16 * 24].view(16, 24)
    target = torch.nn.functional.pad(sequences[:, 1:], (0, 1), value=-100)
    batches = [({"input_ids": sequences[i : i + 8], "use_cache": False}, target[i : i + 8]) for i in (0, 8)]
    found = steps(model, sglp.find_layers(model, batches[0][0]), batches)
    return found | {"perplexity": perplexity(model, ids[:200], 32, 16, 4, torch.zeros(0, dtype=torch.int64))}


@pytest.mark.parametrize("name", ["cnn", "llama"])
def test_no_number_has_moved(name, digits, request):
    numbers = cnn_numbers(digits) if name == "cnn" else llama_numbers()
    known = json.loads(FILE.read_text()) if FILE.exists() else {}
    if request.config.getoption("--rewrite-golden"):
        FILE.write_text(json.dumps(known | {name: numbers}, indent=1, sort_keys=True) + "\n")
        return
    assert sorted(numbers) == sorted(known[name])
    for key, value in numbers.items():
        close(value, known[name][key], f"{name}, {key}")


def close(value, expected, where: str) -> None:
    """Check numbers to a part in 10,000, and all else exactly."""
    if isinstance(expected, dict):
        assert sorted(value) == sorted(expected), where
        for key in expected:
            close(value[key], expected[key], f"{where}, {key}")
    elif isinstance(expected, list):
        assert len(value) == len(expected), where
        for i, (one, other) in enumerate(zip(value, expected, strict=True)):
            close(one, other, f"{where}[{i}]")
    elif isinstance(expected, float):
        assert value == pytest.approx(expected, rel=1e-4, abs=1e-6), f"{where}: `make golden` if it is meant to move"
    else:
        assert value == expected, f"{where}: `make golden` if it is meant to move"
