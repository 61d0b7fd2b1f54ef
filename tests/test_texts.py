"""Texts become sequences, perplexity is its definition, continuations are the greedy ones."""

import json
import math

import pytest
import torch
from language import byte_tokenizer, prose, tiny_llama

from sglp.errors import DataError
from sglp.loss import IGNORED, cross_entropy
from sglp.tasks.causal_lm import data as causal_lm
from sglp.tasks.causal_lm import evaluation, timing
from sglp.tasks.causal_lm.perplexity import continuations, perplexity
from sglp.tasks.causal_lm.texts import Texts
from sglp.tasks.schemas.causal_lm import TextEvaluation, TextPreparation
from sglp.tasks.schemas.workload import Source
from sglp.tasks.topics import Topics

PREPARE = TextPreparation(text_column="text", separator="\n", length=8, tokenizer="bytes")
TOPICS = Source(loader="sglp.tasks.topics:Topics", name=None, revision=None)


class Beginning:
    """A tokenizer that puts a token before every text, as Llama's does, and one behind it."""

    def __call__(self, text, add_special_tokens=True, verbose=True):
        ids = [ord(character) for character in text]
        return {"input_ids": [1, *ids, 2] if add_special_tokens else ids}


def local(name: str, path) -> Texts:
    return Texts(
        Source(loader="datasets", name=name, revision=None), {}, PREPARE, byte_tokenizer(), str(path), "a" * 64
    )


def test_text_json_lines_and_parquet_hold_the_same_tokens(tmp_path):
    import datasets

    lines = [prose(9, seed) for seed in range(6)]
    (tmp_path / "a.txt").write_text("\n".join(lines) + "\n")
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    datasets.disable_progress_bars()
    datasets.Dataset.from_dict({"text": lines}).to_parquet(tmp_path / "a.parquet")
    expected = [byte + 3 for byte in "\n".join(lines).encode()]
    for kind, name in (("text", "a.txt"), ("json", "a.jsonl"), ("parquet", "a.parquet")):
        texts = local(kind, tmp_path / name)
        assert texts.tokens.tolist() == expected
        assert torch.cat([texts[i] for i in range(len(texts))]).tolist() == expected[: len(texts) * 8]


def test_targets_are_the_next_tokens():
    texts = Texts(TOPICS, {"train": True}, PREPARE, byte_tokenizer())
    inputs, target = texts.batch([3, 1])
    ids = inputs["input_ids"]
    assert ids.tolist() == [texts.tokens[24:32].tolist(), texts.tokens[8:16].tolist()]
    assert target[:, :-1].tolist() == ids[:, 1:].tolist()
    assert target[:, -1].tolist() == [IGNORED, IGNORED]


def test_the_loss_is_the_one_of_transformers():
    network, texts = tiny_llama(), Texts(TOPICS, {"train": True}, PREPARE, byte_tokenizer())
    inputs, target = texts.batch(range(5))
    with torch.no_grad():
        ours = cross_entropy(network(**inputs), target)
        theirs = network(**inputs, labels=inputs["input_ids"]).loss
    assert float(ours) == pytest.approx(float(theirs), rel=1e-6)


def test_sequences_begin_as_the_tokenizer_begins_a_text():
    texts = Texts(TOPICS, {"train": True}, PREPARE, Beginning())
    assert texts[2].tolist() == [1, *texts.tokens[14:21].tolist()]
    assert len(texts) == len(texts.tokens) // 7


def test_the_topics_splits_share_no_text():
    train, test = Topics(True), Topics(False)
    assert len(train) > 3 * len(test) > 30
    assert not {train[i] for i in range(len(train))} & {test[i] for i in range(len(test))}


@pytest.mark.parametrize(("length", "stride"), [(8, 8), (8, 3), (16, 1), (64, 64), (128, 40)])
@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("prefix", [[], [1]])
def test_perplexity_is_its_definition(length, stride, batch_size, prefix):
    network = tiny_llama()
    tokens = torch.tensor([byte + 3 for byte in prose(12).encode()])
    found = perplexity(network, tokens, length, stride, batch_size, torch.tensor(prefix, dtype=torch.int64))
    # Token by token: each in the first window that holds it, after all that stands before it there.
    size = length - len(prefix)
    step = min(stride, size if prefix else size - 1)
    losses = []
    for i in range(len(tokens)):
        begin = 0 if i < size else math.ceil((i + 1 - size) / step) * step
        context = torch.cat([torch.tensor(prefix, dtype=torch.int64), tokens[begin:i]])
        if len(context):
            with torch.no_grad():
                logits = network(input_ids=context[None]).logits[0, -1].double()
            losses.append(float(-logits.log_softmax(-1)[tokens[i]]))
    assert found["tokens"] == len(losses) == len(tokens) - (not prefix)
    assert found["loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-6)
    assert found["perplexity"] == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-6)


def test_windows_may_stand_side_by_side():
    settings = {"length": 8, "stride": 8, "tokens": None, "batch_size": 1, "tasks": [], "limit": None}
    TextEvaluation.model_validate(settings | {"prompts": [], "max_new_tokens": 1})
    network, tokens = tiny_llama(), torch.tensor([byte + 3 for byte in prose(12).encode()])
    begin, losses = torch.tensor([1]), []
    for block in tokens.split(7):
        ids = torch.cat([begin, block])[None]
        with torch.no_grad():
            losses += [float(network(input_ids=ids, labels=ids).loss)] * len(block)
    found = perplexity(network, tokens, length=8, stride=8, prefix=begin)
    assert (found["tokens"], found["loss"]) == (len(tokens), pytest.approx(sum(losses) / len(losses), rel=1e-5))


def test_continuations_are_the_most_likely_tokens_one_by_one():
    network, tokenizer = tiny_llama(seed=5), byte_tokenizer()
    (row,) = continuations(network, tokenizer, ["the fox"], 6)
    ids = [byte + 3 for byte in b"the fox"]
    for _ in range(6):
        with torch.no_grad():
            ids.append(int(network(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    assert row == {"prompt": "the fox", "continuation": tokenizer.decode(ids[7:], skip_special_tokens=True)}


def test_the_cost_of_a_token():
    texts = Texts(TOPICS, {"train": True}, PREPARE, byte_tokenizer())
    projections = 16 * 16 + 2 * 16 * 8 + 16 * 16 + 3 * 16 * 32  # q, k and v (one head of eight), o, three of the MLP
    attention = 2 * 8 * 16  # every token with all eight of a sequence, twice
    expected = 4 * (projections + attention) + 16 * 259
    assert evaluation.macs(tiny_llama(), texts) == {"macs_per_token": expected, "flops_per_token": 2 * expected}


def test_what_is_timed_is_a_prompt_and_tokens_after_it():
    texts, network = Texts(TOPICS, {"train": True}, PREPARE, byte_tokenizer()), tiny_llama()
    lengths = []
    network.model.register_forward_pre_hook(
        lambda module, args, kwargs: lengths.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    prefill, decode = timing.work(network, texts, {"batch_sizes": [2], "prompt_tokens": 10, "new_tokens": 3}, 2)
    assert (prefill.units, decode.units) == (20, 6)
    lengths.clear()
    with torch.inference_mode():
        prefill.run()
        decode.run()
        decode.run()
    assert lengths == [(2, 10), *[(2, 1)] * 6]


def complaint(call, *arguments) -> str:
    with pytest.raises(DataError) as caught:
        call(*arguments)
    return str(caught.value)


def test_not_enough_text(tmp_path):
    (tmp_path / "short.txt").write_text("the fox\n")
    said = complaint(local, "text", tmp_path / "short.txt")
    assert said.endswith("short.txt is too short: it has 7 tokens, and one sequence of data.prepare.length=8 needs 8")
    (tmp_path / "some.txt").write_text(prose(40))
    texts = local("text", tmp_path / "some.txt")
    said = complaint(list, causal_lm.calibration_batches(texts, 50, 4, 0))
    assert f"50 samples are needed, but there are only {len(texts)} sequences of data.prepare.length=8" in said


def test_a_column_that_is_not_there(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"story": "the fox"}\n')
    assert "has no column 'text': it has story" in complaint(local, "json", tmp_path / "a.jsonl")


def test_sequences_longer_than_the_models_positions():
    long = PREPARE.model_copy(update={"length": 129})
    texts = Texts(TOPICS, {"train": True}, long, byte_tokenizer())
    assert complaint(causal_lm.check_fit, tiny_llama(), texts) == (
        "data.prepare.length=129 is too long: LlamaForCausalLM takes sequences of at most 128 tokens"
    )


def test_a_prompt_that_leaves_no_room():
    texts = Texts(TOPICS, {"train": True}, PREPARE, byte_tokenizer())
    settings = {"length": 8, "stride": 4, "tokens": 50, "batch_size": 1, "tasks": [], "limit": None}
    settings |= {"prompts": ["the fox"], "max_new_tokens": 122}
    assert complaint(evaluation.evaluate, tiny_llama(), texts, settings, byte_tokenizer(), None) == (
        "evaluation.max_new_tokens and a prompt together=129 is too long: LlamaForCausalLM takes sequences of at most "
        "128 tokens"
    )


def test_tokens_that_the_network_does_not_know():
    texts = Texts(TOPICS, {"train": True}, PREPARE, byte_tokenizer())
    network = tiny_llama(vocab_size=100)
    assert "but the network only has tokens 0 to 99" in complaint(causal_lm.check_fit, network, texts)
