"""What of a language model is trained, and that a step is the sum of its batches."""

import copy

import numpy as np
import pytest
import torch
from language import byte_tokenizer, cast, tiny_llama

import sglp
from sglp.errors import SGLPError
from sglp.loss import cross_entropy
from sglp.running import call
from sglp.tasks.causal_lm import training as causal_lm
from sglp.tasks.causal_lm.texts import Texts
from sglp.tasks.schemas.causal_lm import Finetuning, TextPreparation
from sglp.tasks.schemas.workload import Source
from sglp.tasks.trainer.train import train

RECIPE = {
    "samples": 16,
    "optimizer": "adamw",
    "learning_rate": 1e-2,
    "momentum": 0.0,
    "weight_decay": 0.0,
    "batch_size": 4,
    "epochs": 1,
    "warmup_epochs": 0.0,
    "label_smoothing": 0.0,
    "holdout": 0.0,
    "keep": "last",
    "gradient_accumulation_steps": 1,
    "gradient_checkpointing": False,
    "distillation": 0.0,
    "temperature": 1.0,
    "tuning": "full",
    "lora": {"r": 4, "alpha": 8.0, "dropout": 0.0, "targets": "all-linear"},
    "last_layers": 1,
}


def recipe(**changes) -> Finetuning:
    return Finetuning.model_validate(RECIPE | changes)


@pytest.fixture(scope="module")
def texts() -> Texts:
    prepare = TextPreparation(text_column="text", separator="\n", length=32, tokenizer="bytes")
    return Texts(
        Source(loader="sglp.tasks.topics:Topics", name=None, revision=None), {"train": True}, prepare, byte_tokenizer()
    )


def tuned(texts, folder, teacher=None, **changes):
    chosen = recipe(**changes)
    trained, merge = causal_lm.adapt(tiny_llama(), chosen, 0)
    rows = train(trained, causal_lm, texts, chosen, 0, folder, teacher)
    return merge(), rows


def changed(network) -> set[str]:
    before = dict(tiny_llama().named_parameters())
    return {name for name, p in network.named_parameters() if not torch.equal(p, before[name])}


def test_full_tuning_changes_everything(texts, tmp_path):
    network, rows = tuned(texts, tmp_path)
    assert changed(network) == {name for name, _ in network.named_parameters()}
    assert [row["step"] for row in rows] == [1, 2, 3, 4]


@pytest.mark.parametrize(("last", "layers"), [(1, {3}), (2, {2, 3}), (0, set())])
def test_partial_tuning_changes_the_end_alone(texts, tmp_path, last, layers):
    network, _ = tuned(texts, tmp_path, tuning="partial", last_layers=last)
    expected = {
        name for name, _ in network.named_parameters() if name.startswith(tuple(f"model.layers.{i}." for i in layers))
    }
    assert changed(network) == expected | {"lm_head.weight", "model.norm.weight"}
    assert all(p.requires_grad for p in network.parameters())


def test_lora_changes_its_targets_alone_and_leaves_no_trace(texts, tmp_path):
    lora = RECIPE["lora"] | {"targets": ["q_proj", "down_proj"]}
    network, _ = tuned(texts, tmp_path, tuning="lora", lora=lora)
    assert type(network) is type(tiny_llama())
    names = {name for name, _ in network.named_parameters()}
    assert changed(network) == {name for name in names if "q_proj" in name or "down_proj" in name}
    assert network.state_dict().keys() == tiny_llama().state_dict().keys()


def test_merged_adapters_compute_the_same(texts, tmp_path):
    chosen = recipe(tuning="lora")
    network, merge = causal_lm.adapt(tiny_llama(), chosen, 0)
    train(network, causal_lm, texts, chosen, 0, tmp_path)
    inputs, _ = texts.batch([0, 1])
    with torch.no_grad():
        before = call(network, inputs).logits
        after = call(merge(), inputs).logits
    assert torch.allclose(before, after, atol=1e-5)


def test_adapters_depend_on_the_seed_alone():
    made = []
    for state in (1, 2):
        torch.manual_seed(state)
        network, _ = causal_lm.adapt(tiny_llama(), recipe(tuning="lora"), 7)
        made.append([p for name, p in network.named_parameters() if "lora_A" in name])
    assert len(made[0]) == 28
    assert all(torch.equal(a, b) for a, b in zip(*made, strict=True))


def test_accumulated_batches_are_one_larger_batch(texts, tmp_path):
    whole, _ = tuned(texts, tmp_path / "whole", batch_size=8)
    parts, rows = tuned(texts, tmp_path / "parts", batch_size=2, gradient_accumulation_steps=4)
    assert rows[-1]["step"] == 2
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        assert torch.allclose(a, b, atol=2e-4)


def test_the_loss_of_what_is_held_out_is_not_smoothed(texts, tmp_path):
    for smoothing in (0.0, 0.2):
        folder = tmp_path / str(smoothing)
        _, rows = tuned(texts, folder, learning_rate=1e-30, holdout=0.25, label_smoothing=smoothing)
        found = [row["heldout_loss"] for row in rows if row.get("heldout_loss")], rows[0]["loss"]
        if not smoothing:
            plain = found
    assert found[0] == plain[0] != []
    assert found[1] != plain[1]


def test_gradient_checkpointing_changes_no_weights(texts, tmp_path):
    kept, _ = tuned(texts, tmp_path / "kept")
    again, _ = tuned(texts, tmp_path / "again", gradient_checkpointing=True)
    assert all(torch.equal(a, b) for a, b in zip(kept.parameters(), again.parameters(), strict=True))


def test_the_first_step_is_adamw_on_the_mean_loss(texts, tmp_path):
    network, _ = tuned(texts, tmp_path, batch_size=16)
    reference = tiny_llama().train()
    optimizer = torch.optim.AdamW(reference.parameters(), lr=1e-2, weight_decay=0.0)
    chosen = np.random.default_rng(0).permutation(len(texts))[:16]
    inputs, target = texts.batch(sorted(chosen.tolist()))
    cross_entropy(call(reference, inputs), target).backward()
    torch.nn.utils.clip_grad_norm_(reference.parameters(), 1.0)
    optimizer.step()
    for a, b in zip(reference.parameters(), network.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-4)


def test_distillation_moves_towards_the_teacher(texts, tmp_path):
    teacher = tiny_llama(seed=9)
    inputs, _ = texts.batch(range(4))

    def distance(network) -> float:
        with torch.no_grad():
            ours, target = (call(n, inputs).logits.log_softmax(-1) for n in (network, teacher))
        return float((target.exp() * (target - ours)).sum(-1).mean())

    network, _ = tuned(texts, tmp_path, copy.deepcopy(teacher), distillation=1.0, epochs=4)
    assert distance(network) < 0.9 * distance(tiny_llama())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"tuning": "lora", "lora": RECIPE["lora"] | {"targets": ["q_proj", "c_attn"]}},
            "finetune.lora.targets: the network has no layer c_attn; its linear layers are .*'q_proj'",
        ),
        ({"tuning": "partial", "last_layers": 5}, "finetune.last_layers=5 is too many: the pruned network has 4"),
    ],
)
def test_what_can_not_be_tuned(changes, message):
    with pytest.raises(SGLPError, match=message):
        causal_lm.adapt(tiny_llama(), recipe(**changes), 0)


@pytest.mark.parametrize("tuning", ["lora", "partial", "full"])
def test_a_network_in_half_precision_is_saved_as_it_was(texts, tmp_path, tuning, monkeypatch):
    # As on a GPU: the Trainer computes in bfloat16.
    plain = causal_lm.trainer_arguments
    monkeypatch.setattr(causal_lm, "trainer_arguments", lambda recipe: plain(recipe) | {"bf16": True})
    chosen, half = recipe(tuning=tuning), cast(tiny_llama(), torch.bfloat16)
    trained, merge = causal_lm.adapt(half, chosen, 0)
    assert {p.dtype for p in trained.parameters() if p.requires_grad} == {torch.float32}
    train(trained, causal_lm, texts, chosen, 0, tmp_path / "resume")
    assert {p.dtype for p in merge().parameters()} == {torch.bfloat16}
    sglp.save(half, tmp_path / "saved")  # which checks that it comes back the same


def test_partial_tuning_finds_a_final_norm_that_is_registered_first():
    import transformers

    config = transformers.OPTConfig(
        vocab_size=64, hidden_size=16, ffn_dim=16, num_hidden_layers=3, num_attention_heads=2, word_embed_proj_dim=16
    )
    network, _ = causal_lm.adapt(transformers.OPTForCausalLM(config), recipe(tuning="partial", last_layers=1), 0)
    free = {name for name, p in network.named_parameters() if p.requires_grad}
    assert "model.decoder.final_layer_norm.weight" in free
    assert "model.decoder.embed_positions.weight" not in free
    assert {name.split(".")[3] for name in free if ".layers." in name} == {"2"}
