"""The default loss compares shapes, and a user's loss gets what the network returns."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_outputs import CausalLMOutput

import sglp
from sglp.errors import ScoringError, SGLPError
from sglp.loss import cross_entropy

DRAWN = torch.Generator().manual_seed(0)


def logits(*shape):
    return torch.randn(*shape, generator=DRAWN)


def classes(count, *shape):
    return torch.randint(count, shape, generator=DRAWN)


@pytest.mark.parametrize(
    "shape", [(2, 8, 6, 8), (2, 6, 6, 8), (3, 5, 7), (3, 5, 5, 7), (2, 3, 4, 5, 6), (4, 3), (6, 1)]
)
def test_classes_in_dimension_one_are_those_of_torch(shape):
    scores = logits(*shape)
    target = classes(shape[1], shape[0], *shape[2:])
    assert cross_entropy(scores, target) == F.cross_entropy(scores, target)
    target.view(-1)[0] = -100
    assert cross_entropy(scores, target, 0.1) == F.cross_entropy(scores, target, ignore_index=-100, label_smoothing=0.1)


@pytest.mark.parametrize("shape", [(2, 6, 9), (2, 4, 6, 9)])
def test_classes_in_the_last_dimension_are_those_of_the_rows(shape):
    scores, target = logits(*shape), classes(shape[-1], *shape[:-1])
    expected = F.cross_entropy(scores.reshape(-1, shape[-1]), target.reshape(-1))
    for given in (target, target.flatten()):
        assert cross_entropy(scores, given) == expected
    assert cross_entropy({"logits": scores}, target) == expected


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 5), (2, 3, 4, 5)])
def test_probabilities_are_targets(shape):
    scores, target = logits(*shape), logits(*shape).softmax(dim=1)
    assert cross_entropy(scores, target) == pytest.approx(float(F.cross_entropy(scores, target)), rel=1e-6)


def test_an_output_object_says_that_the_last_dimension_of_tokens_holds_the_classes():
    scores, target = logits(2, 8, 8), classes(8, 2, 8)
    expected = F.cross_entropy(scores.flatten(0, 1), target.flatten())
    assert cross_entropy(CausalLMOutput(logits=scores), target) == expected


REFUSED = {
    "either dimension": (logits(2, 8, 8), classes(8, 2, 8), r"\[2, 8, 8\] with a target of the shape \[2, 8\], as sev"),
    "neither dimension": (
        logits(2, 6, 8),
        classes(6, 2, 7),
        r"\[2, 6, 8\] with a target of the shape \[2, 7\], as they do",
    ),
    "one logit": (logits(5), classes(2, 5), r"\[5\] with a target of the shape \[5\]"),
    "numbers": (logits(5, 3), logits(5), r"\[5, 3\] with a target of the shape \[5\]"),
    "a tuple": (
        (logits(5, 3), logits(5)),
        classes(3, 5),
        r"returns a tuple, .* give a loss of your own \(loss=\.\.\.\)",
    ),
    "a dict": ({"out": logits(5, 3)}, classes(3, 5), "returns a dict, .* called with the network's output"),
    "a target of two": (logits(5, 3), (classes(3, 5),) * 2, "the target is a tuple"),
}


@pytest.mark.parametrize(("output", "target", "message"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_is_refused_with_the_shapes(output, target, message):
    with pytest.raises(ScoringError, match=message) as refusal:
        cross_entropy(output, target)
    assert "\n" not in str(refusal.value)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(8, 8)

    def forward(self, x):
        return x + self.inner(x).relu()


class Net(nn.Module):
    """Four blocks; `make` builds what it returns of features and logits."""

    def __init__(self, make):
        super().__init__()
        self.make, self.stem, self.head = make, nn.Linear(6, 8), nn.Linear(8, 3)
        self.blocks = nn.Sequential(*[Block() for _ in range(4)])

    def forward(self, x):
        features = self.blocks(self.stem(x))
        return self.make(features, self.head(features))


def compressed(make, loss, **arguments):
    torch.manual_seed(0)
    batches = [(torch.randn(32, 6), torch.randint(3, (32,)))]
    sizes = {"calibration": (32, 16), "scoring": (16, 16), "reconstruct": False, "k": 1}
    return sglp.compress(Net(make), batches, loss=loss, **sizes | arguments)


OUTPUTS = {
    "a tuple": (lambda features, scores: (scores, features), lambda output: output[0]),
    "a dict": (lambda features, scores: {"out": scores}, lambda output: output["out"]),
    "a dict of logits": (lambda features, scores: {"logits": scores}, lambda output: output["logits"]),
    "an output object": (lambda features, scores: CausalLMOutput(logits=scores), lambda output: output.logits),
    "logits in an object": (lambda features, scores: CausalLMOutput(logits=scores), lambda logits: logits),
    "a tensor": (lambda features, scores: scores, lambda output: output),
}
LOSSES = [{}, {"criterion": "loss"}, {"method": "loss_greedy"}, {"method": "taylor"}, {"method": "tournament"}]


@pytest.mark.parametrize(("make", "take"), OUTPUTS.values(), ids=OUTPUTS)
@pytest.mark.parametrize("arguments", LOSSES, ids=str)
def test_a_users_loss_gets_what_the_network_returns(make, take, arguments):
    def loss(output, target):
        return F.cross_entropy(take(output), target)

    plan = compressed(make, loss, **arguments).plan
    assert len(plan.removed) == 2
    same = compressed(lambda features, scores: scores, cross_entropy, **arguments).plan
    has_logits = make not in (OUTPUTS["a tuple"][0], OUTPUTS["a dict"][0])
    assert plan == same or not has_logits  # without logits, their scale is not fitted


def test_an_output_without_logits_is_refused_before_any_work():
    with pytest.raises(
        SGLPError, match=r"returns a tuple, in which cross-entropy finds no logits: give a loss of your"
    ):
        compressed(OUTPUTS["a tuple"][0], cross_entropy, criterion="fitted_loss")


def test_a_method_that_computes_no_loss_says_which_ones_do():
    with pytest.raises(SGLPError, match="method=angular computes no loss: leave out loss, or use sglp, loss_greedy or"):
        compressed(OUTPUTS["a tensor"][0], F.cross_entropy, method="angular")
