"""What is computed of texts does not depend on how far they are padded, with which token, and on which side."""

import numpy as np
import pytest
import torch
from torch import nn

import sglp
from sglp.batches import padding_mask
from sglp.reconstruction.error_matrix import reconstruction_errors
from sglp.reconstruction.rows import row_weights
from sglp.scoring.baselines import angular, block_influence, cka, lorp, loss_greedy, taylor
from sglp.scoring.methods import find_criterion

SAMPLES, LENGTH, VOCABULARY = 12, 6, 20
LENGTHS = torch.randint(2, LENGTH + 1, (SAMPLES, 1), generator=torch.Generator().manual_seed(3))
IDS = torch.randint(1, VOCABULARY, (SAMPLES, LENGTH), generator=torch.Generator().manual_seed(4))


class Mixing(nn.Module):
    """A block whose tokens see the mean of all visible tokens: the place of a token does not matter."""

    def __init__(self, width):
        super().__init__()
        self.own, self.others = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x, mask):
        mean = (x * mask[..., None]).sum(dim=1, keepdim=True) / mask.sum(dim=1)[:, None, None]
        return x + torch.tanh(self.own(x) + self.others(mean))


class Tagger(nn.Module):
    """A classifier of tokens that is right about padding on both sides."""

    def __init__(self, width=8, depth=4, transposed=False):
        super().__init__()
        self.embedding, self.head = nn.Embedding(VOCABULARY, width), nn.Linear(width, VOCABULARY)
        self.blocks = nn.ModuleList([Mixing(width) for _ in range(depth)])

    def forward(self, input_ids, attention_mask):
        x = self.embedding(input_ids)
        for block in self.blocks:
            x = block(x, attention_mask.to(x))
        return self.head(x)


@pytest.fixture
def tagger():
    torch.manual_seed(0)
    return Tagger().eval()


def padded(width, token=0, side="right", kind=torch.int64):
    """Return the batch of the same texts, padded to a width: inputs and the next tokens."""
    inputs = torch.full((SAMPLES, width), token)
    mask = torch.zeros(SAMPLES, width, dtype=kind)
    for row, (length,) in enumerate(LENGTHS.tolist()):
        place = slice(0, length) if side == "right" else slice(width - length, width)
        inputs[row, place] = IDS[row, :length]
        mask[row, place] = 1
    target = torch.nn.functional.pad(inputs[:, 1:], (0, 1), value=-100)
    return {"input_ids": inputs, "attention_mask": mask}, target


LIKE = {
    "far": {"width": 19},
    "just": {"width": LENGTH},
    "with another token": {"width": 11, "token": 7},
    "on the left": {"width": 11, "side": "left"},
    "as many tokens as samples": {"width": SAMPLES, "token": 3},
    "with a mask of bools": {"width": 9, "kind": torch.bool},
    "with a mask of floats": {"width": 9, "kind": torch.float32},
}


def layers_of(network):
    # Named: how layers are found is tested elsewhere.
    return [sglp.Layer(f"blocks.{i}", True, "", 1, 1) for i in range(len(network.blocks))]


def scores(network, batch):
    """Return whatever is computed of a batch, by name."""
    layers, batches = layers_of(network), [batch]
    found = {}
    for pooling in ("mean", "flatten", "last", "tokens"):
        found[f"pooling={pooling}"] = sglp.cka_matrix(sglp.gram_matrices(network, layers, batches, pooling)).numpy()
    arguments = (network, layers, [(0, 3)], found["pooling=mean"], batches, 2, 0)
    for name, method in {
        "block_influence": block_influence.block_influence,
        "angular": angular.angular,
        "cka": cka.cka,
        "lorp": lorp.lorp,
        "loss_greedy": loss_greedy.loss_greedy,
        "taylor": taylor.taylor,
    }.items():
        found[name] = np.array([row.score for row in method(*arguments)[1]])
    for name in ("loss", "fitted_loss", "cka_output", "gradnorm"):
        found[name] = np.array(find_criterion(name)(network, layers, batches)([0, 2, 3], [1]))
    errors = reconstruction_errors(network, layers, [batch] * 8)
    found["reconstruction errors"] = errors[np.isfinite(errors)]
    return found


@pytest.mark.parametrize("like", LIKE)
def test_nothing_depends_on_padding(tagger, like):
    expected, actual = scores(tagger, padded(LENGTH + 2)), scores(tagger, padded(**LIKE[like]))
    for name, values in expected.items():
        assert np.abs(actual[name] - values).max() < 1e-4 * max(1, np.abs(values).max()), name


def test_pooling_of_padded_tokens_equals_its_definition(tagger):
    """Each text alone, without padding."""
    with torch.no_grad():
        states = []
        for ids, (length,) in zip(IDS, LENGTHS.tolist(), strict=True):
            x, mask = tagger.embedding(ids[None, :length]), torch.ones(1, length)
            states.append(tagger.blocks[0](x, mask)[0].double())
    rows = {
        "mean": torch.stack([state.mean(dim=0) for state in states]),
        "last": torch.stack([state[-1] for state in states]),
        "tokens": torch.cat(states),
        "flatten": torch.stack(
            [torch.cat([state.flatten(), torch.zeros(8 * LENGTH - state.numel())]) for state in states]
        ),
    }
    for pooling, features in rows.items():
        (grams,) = sglp.gram_matrices(tagger, layers_of(tagger)[:1], [padded(9, token=5)], pooling)
        centred = features - features.mean(dim=0)
        torch.testing.assert_close(grams[0], centred @ centred.T, rtol=1e-5, atol=1e-5)


def test_a_text_without_a_visible_token_counts_as_zero():
    tokens, mask = torch.randn(4, 3, 2), torch.ones(4, 3, dtype=torch.long)
    mask[1] = 0
    network = nn.Sequential(Holds(tokens))
    layers = [sglp.Layer("0", True, "", 0, 0)]
    for pooling in ("mean", "last", "flatten"):
        (grams,) = sglp.gram_matrices(network, layers, [{"input_ids": mask, "attention_mask": mask}], pooling)
        assert grams.isfinite().all()


class Holds(nn.Module):
    """Returns fixed tokens."""

    def __init__(self, tokens):
        super().__init__()
        self.tokens = tokens

    def forward(self, features):
        return self.tokens


def test_tokens_that_come_first_are_masked_too():
    """As in XLNet: activations are [tokens, samples, channels], here with as many tokens as samples."""

    class Transposed(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(VOCABULARY, 4)
            self.blocks = nn.ModuleList([nn.Linear(4, 4) for _ in range(3)])

        def forward(self, input_ids, attention_mask):
            x = self.embedding(input_ids).transpose(0, 1)
            for block in self.blocks:
                x = x + torch.tanh(block(x))
            return x.transpose(0, 1)

    torch.manual_seed(0)
    network = Transposed().eval()
    layers = layers_of(network)
    for width in (SAMPLES, SAMPLES + 3):
        found = block_influence.influences(network, layers, [padded(width)])
        expected = block_influence.influences(network, layers, [padded(LENGTH)])
        assert found == pytest.approx(expected, abs=1e-6)


def test_weights_of_rows_do_not_depend_on_hidden_rows():
    target = torch.randn(10, 4, generator=torch.Generator().manual_seed(0))
    target[0] /= 1000  # below the floor, which is a share of the mean row
    mask = torch.ones(1, 10, dtype=torch.bool)
    longer = torch.cat([target, torch.full((5, 4), 1e3)])
    weights = row_weights(longer, torch.cat([mask, torch.zeros(1, 5, dtype=torch.bool)], dim=1))
    assert torch.equal(weights[:10], row_weights(target, mask))
    assert not weights[10:].any()


def test_only_masks_that_hide_a_token_and_have_two_dimensions_count():
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    ids = {"input_ids": torch.ones(2, 3, dtype=torch.long)}
    for given in (mask, mask.bool(), mask.float()):
        assert torch.equal(padding_mask(ids | {"attention_mask": given}), mask.bool())
        assert torch.equal(padding_mask((ids | {"attention_mask": given},)), mask.bool())
    assert padding_mask(ids | {"attention_mask": torch.ones(2, 3)}) is None
    assert padding_mask(ids | {"attention_mask": mask[:, None, None]}) is None
    assert padding_mask(ids) is None


def test_labels_of_token_classification_at_hidden_tokens_do_not_count(tagger):
    def loss(width, token):
        inputs, _ = padded(width, token)
        target = (inputs["input_ids"] * 7) % VOCABULARY  # aligned with the tokens, padding included
        return find_criterion("loss")(tagger, layers_of(tagger), [(inputs, target)])([0, 1], [2, 3])

    assert loss(LENGTH, 0) == pytest.approx(loss(15, 9), abs=1e-5)


def test_a_users_loss_gets_the_target_as_it_is(tagger):
    targets = []

    def loss(output, target):
        targets.append(target)
        return output.sum()

    inputs, target = padded(9)
    find_criterion("loss")(tagger, layers_of(tagger), [(inputs, target)], loss)([0], [1])
    assert torch.equal(targets[0], target)
