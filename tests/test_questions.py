"""Question tasks: figures against log-likelihoods by hand, data beside the task files, and what goes wrong."""

import copy
import json
import os
import random
import shutil
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from transformers import ByT5Tokenizer, LlamaConfig, LlamaForCausalLM

from sglp.errors import DataError
from sglp.tasks.causal_lm.question_tasks import check
from sglp.tasks.causal_lm.questions import answer

BYTES = ByT5Tokenizer()  # it marks the end of every text, which must not stand between a question and its answer
SHIPPED = Path(__file__).parents[1] / "models" / "piqa"
TASK = {
    "task": "hands",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"validation": "data/hands.jsonl"}},
    "validation_split": "validation",
    "output_type": "multiple_choice",
    "doc_to_text": "Question: {{goal}}\nAnswer:",
    "doc_to_choice": "{{[sol1, sol2]}}",
    "doc_to_target": "label",
    "metric_list": [{"metric": m, "aggregation": "mean", "higher_is_better": True} for m in ("acc", "acc_norm")],
}


@pytest.fixture(scope="module")
def network():
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = LlamaConfig(**sizes, num_hidden_layers=2, vocab_size=384, initializer_range=0.4)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(config).eval()


@pytest.fixture
def rows() -> list[dict]:
    draw = random.Random(0)

    def words():
        return " ".join(
            draw.choice(["glue", "wash", "a pan", "the lid", "of wood", "twice"]) for _ in range(draw.randint(1, 7))
        )

    return [{"goal": words(), "sol1": words(), "sol2": words(), "label": draw.randrange(2)} for _ in range(24)]


@pytest.fixture
def folder(tmp_path, rows) -> Path:
    (tmp_path / "tasks" / "data").mkdir(parents=True)
    write(tmp_path / "tasks", TASK)
    write_rows(tmp_path / "tasks" / "data" / "hands.jsonl", rows)
    return tmp_path / "tasks"


@pytest.fixture
def few_known(tmp_path, monkeypatch) -> Path:
    """Only two tasks of lm-eval's own, since it takes seconds to read the names of all."""
    (tmp_path / "known").mkdir()
    write(tmp_path / "known", TASK | {"task": "far", "dataset_path": "someone/far", "dataset_kwargs": None})
    write(tmp_path / "known", TASK | {"doc_to_text": "another task of the same name"})
    monkeypatch.setattr("lm_eval.tasks.manager.__file__", str(tmp_path / "known" / "manager.py"))


def write(folder: Path, task: dict) -> None:
    name = task.get("group", task["task"])
    (folder / f"{name}.yaml").write_text(json.dumps(task))


def write_rows(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def flipped(rows: list[dict]) -> list[dict]:
    return [row | {"label": 1 - row["label"]} for row in rows]


def expected(network, name: str, rows: list[dict]) -> dict[str, float]:
    """The figures from plain forward passes over one question and one answer at a time."""
    right = {"acc": 0, "acc_norm": 0}
    for row in rows:
        scores = [log_likelihood(network, f"Question: {row['goal']}\nAnswer:", f" {row[s]}") for s in ("sol1", "sol2")]
        by_character = [score / len(row[key]) for score, key in zip(scores, ("sol1", "sol2"), strict=True)]
        right["acc"] += int(scores[1] > scores[0]) == row["label"]
        right["acc_norm"] += int(by_character[1] > by_character[0]) == row["label"]
    return {f"{name}_{metric}": n / len(rows) for metric, n in right.items()} | {f"{name}_questions": len(rows)}


def log_likelihood(network, question: str, text: str) -> float:
    ids = torch.tensor([[byte + 3 for byte in (question + text).encode()]])  # ByT5 has three special tokens
    with torch.no_grad():
        chances = network(ids).logits[0].float().log_softmax(-1)
    first = len(question.encode())
    return sum(float(chances[i - 1, ids[0, i]]) for i in range(first, ids.shape[1]))


def test_figures_are_those_of_log_likelihoods_by_hand(network, folder, rows):
    figures = answer(network, BYTES, ["hands"], str(folder), None, 5)
    assert figures == expected(network, "hands", rows)
    assert 0 < figures["hands_acc"] < 1
    assert figures["hands_acc"] != figures["hands_acc_norm"]


def test_answers_are_told_apart_in_half_precision_too(network, folder, rows):
    half = copy.deepcopy(network).bfloat16()
    assert answer(half, BYTES, ["hands"], str(folder), None, 1) == expected(half, "hands", rows)


def test_the_first_questions_are_asked_where_there_is_a_limit(network, folder, rows):
    assert answer(network, BYTES, ["hands"], str(folder), 7, 2) == expected(network, "hands", rows[:7])


def test_a_run_repeats_itself_in_silence_and_leaves_nothing_behind(
    network, folder, tmp_path, monkeypatch, capfd, caplog
):
    for name in ("cache", "scratch", "cwd"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    monkeypatch.chdir(tmp_path / "cwd")
    before = sorted(tmp_path.rglob("*"))
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    network.train()
    try:
        first, second = (answer(network, BYTES, ["hands"], str(folder), 6, size) for size in (4, 4))
        assert network.training
    finally:
        network.eval()
    assert first == second
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())
    assert sorted(tmp_path.rglob("*")) == before
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


def test_data_are_those_beside_the_task_file_wherever_it_runs(network, folder, rows, monkeypatch):
    (folder / "inner").mkdir()
    shutil.move(folder / "data", folder / "inner" / "data")
    shutil.move(folder / "hands.yaml", folder / "inner" / "hands.yaml")
    (folder / "data").mkdir()
    write_rows(folder / "data" / "hands.jsonl", flipped(rows))
    monkeypatch.chdir(folder)
    assert answer(network, BYTES, ["hands"], ".", None, 8) == expected(network, "hands", rows)


def test_data_that_changed_under_their_name_are_the_new_data(network, folder, rows):
    path = folder / "data" / "hands.jsonl"
    time = path.stat()
    old = answer(network, BYTES, ["hands"], str(folder), None, 8)
    write_rows(path, flipped(rows))
    os.utime(path, ns=(time.st_atime_ns, time.st_mtime_ns))
    new = answer(network, BYTES, ["hands"], str(folder), None, 8)
    assert new == expected(network, "hands", flipped(rows)) != old


@pytest.mark.parametrize("files", ["{}/data/hands.jsonl", ["data/*.jsonl"]], ids=["absolute", "pattern"])
def test_data_files_may_be_named_in_other_ways(network, folder, rows, files):
    files = files.format(folder) if isinstance(files, str) else files
    write(folder, TASK | {"dataset_kwargs": {"data_files": files}, "validation_split": "train"})
    assert answer(network, BYTES, ["hands"], str(folder), 5, 5) == expected(network, "hands", rows[:5])


@pytest.mark.usefixtures("few_known")
def test_a_group_with_figures_stands_for_its_tasks_and_one_without_does_not(network, folder, rows):
    write_rows(folder / "data" / "feet.jsonl", rows[:4])
    write(folder, TASK | {"task": "feet", "dataset_kwargs": {"data_files": {"validation": "data/feet.jsonl"}}})
    write(folder, {"group": "plain", "task": ["feet", "hands"]})
    figure = {"metric": "acc", "aggregation": "mean", "weight_by_size": True}
    write(folder, {"group": "limbs", "task": ["plain"], "aggregate_metric_list": [figure]})
    every, few = expected(network, "", rows), expected(network, "", rows[:4])
    together = (every["_acc"] * 24 + few["_acc"] * 4) / 28
    figures = answer(network, BYTES, ["limbs"], str(folder), None, 8)
    assert figures == {"limbs_acc": pytest.approx(together), "limbs_questions": 28}
    figures = answer(network, BYTES, ["plain"], str(folder), None, 8)
    assert figures == expected(network, "feet", rows[:4]) | expected(network, "hands", rows)


@pytest.fixture
def shipped(tmp_path) -> tuple[Path, list[dict]]:
    """The shipped task files beside made-up questions, written as PIQA's authors do."""
    questions = [
        ("How do I soften butter?", "Leave it on the table for an hour.", "Leave it in the freezer for an hour."),
        ("lamp", "gives light to read by", "gives water to wash with"),
        ("To keep a door open,", "push a wedge under it", "push a feather under it"),
        ("Où est l'été ?", "après le printemps", "après l'automne"),
        ("dry shoes", "fill them with paper", "fill them with soup"),
        ("Cut a loaf.", "Use a knife with teeth.", "Use a spoon with a long, long handle."),
    ]
    rows = [{"goal": goal, "sol1": sol1, "sol2": sol2} for goal, sol1, sol2 in questions]
    shutil.copytree(SHIPPED, tmp_path / "piqa")
    write_rows(tmp_path / "piqa" / "valid.jsonl", [{"id": str(i), **row} for i, row in enumerate(rows)])
    (tmp_path / "piqa" / "valid-labels.lst").write_text("0\n1\n1\n0\n0\n1\n")
    return tmp_path / "piqa", [row | {"label": label} for row, label in zip(rows, (0, 1, 1, 0, 0, 1), strict=True)]


def test_the_shipped_piqa_takes_its_authors_files(network, shipped):
    folder, rows = shipped
    assert answer(network, BYTES, ["piqa_local"], str(folder), None, 3) == expected(network, "piqa_local", rows)


def test_the_shipped_piqa_asks_as_lm_evals_does():
    lm_eval = pytest.importorskip("lm_eval.tasks")
    ours, theirs = (
        lm_eval.TaskManager(include_path=folder, include_defaults=False).task_index[name].cfg
        for name, folder in (("piqa_local", SHIPPED), ("piqa", Path(lm_eval.__file__).parent / "piqa"))
    )
    for key in ("output_type", "doc_to_text", "doc_to_choice", "doc_to_target", "metric_list", "validation_split"):
        assert ours[key] == theirs[key], key
    assert not {"num_fewshot", "description", "target_delimiter"} & (set(ours) | set(theirs))


@pytest.mark.parametrize("labels", ["0\n1\n1\n0\n0\n", "0\n1\n1\n0\n0\n2\n"], ids=["too few", "another number"])
def test_labels_that_do_not_fit_the_questions_are_refused(network, shipped, labels):
    folder, _ = shipped
    (folder / "valid-labels.lst").write_text(labels)
    message = r"'piqa_local' can't be loaded: valid-labels\.lst must hold a 0 or 1 for each of the 6 questions"
    with pytest.raises(DataError, match=message):
        answer(network, BYTES, ["piqa_local"], str(folder), None, 3)


@pytest.mark.usefixtures("few_known")
def test_names_that_nobody_knows_are_refused(folder):
    check(["hands", "far"], str(folder))
    check(["far"], None)
    with pytest.raises(DataError, match=f"'feet' is neither in lm-eval nor in {folder}, which has hands$"):
        check(["hands", "feet"], str(folder))
    with pytest.raises(DataError, match=r"'feet' is not in lm-eval, and files\.tasks\.path is null"):
        check(["feet"], None)


@pytest.mark.usefixtures("few_known")
def test_a_task_that_needs_the_hub_says_so_at_once_where_there_is_none(network, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://localhost:9")
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail("it tries again"))
    with pytest.raises(DataError, match=r"'far' needs the Hugging Face hub, which can't be reached: .* files\.tasks"):
        answer(network, BYTES, ["far"], None, 1, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dataset_kwargs": {"data_files": {"validation": "none.jsonl"}}}, "Unable to find .*tasks/none.jsonl"),
        ({"doc_to_text": "{{aim}}"}, "'aim' is undefined"),
        ({"validation_split": "test"}, "test"),
    ],
    ids=["no file", "no column", "no split"],
)
def test_tasks_that_can_not_be_loaded_say_why(network, folder, change, message):
    write(folder, TASK | change)
    with pytest.raises(DataError, match=f"the task 'hands' can't be loaded: .*{message}"):
        answer(network, BYTES, ["hands"], str(folder), None, 1)


def test_a_task_file_with_a_slip_is_not_just_unknown(folder):
    (folder / "more.yaml").write_text("task: more\nmetric_list: [acc\n")
    with pytest.raises(DataError, match=r"more\.yaml is not valid YAML: while parsing a flow sequence"):
        check(["hands"], str(folder))


def test_without_tasks_there_is_nothing_to_check(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    check([], None)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match=r"files\.tasks\.path=.*nowhere is wrong: it must be a folder"):
        check(["hands"], str(tmp_path / "nowhere"))


def test_without_lm_eval_the_user_is_told_what_to_install(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    with pytest.raises(DataError, match=r"lm-eval, which is not installed: pip install 'sglp\[llm\]'"):
        check(["hands"], str(folder))


def test_a_network_without_finite_outputs_is_refused(network, folder, monkeypatch):
    monkeypatch.setattr(network.lm_head, "forward", lambda x: torch.full((*x.shape[:-1], 384), float("nan")))
    with pytest.raises(DataError, match="a log-likelihood in hands is nan: the network's outputs are not finite"):
        answer(network, BYTES, ["hands"], str(folder), 2, 2)
