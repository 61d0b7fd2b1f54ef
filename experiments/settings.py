"""What was asked: which dials count, which runs ask the same but for the seed, how a setting is called."""

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from experiments.records import Record
from sglp.segmentation import uses_segments

# Dials by their beginning. Rivals use no segments; as stages.score has it, only the method sglp is handed the dials of
# scoring, except how many batches there are, and a target takes the ratio's place. Similarity all may use.
OF_SEGMENTS = ("k", "segment.")
OF_SGLP = ("score.", "workload.scoring.max_combinations")
OF_ALL = ("score.batches",)
# What makes the dense network and measures it: numbers compare where these are the same.
OF_THE_MODEL = (
    "model",
    *(f"workload.{name}" for name in ("task", "architecture", "layers", "weights", "data", "files")),
    *(f"workload.{name}" for name in ("pretrain", "evaluation")),
)
# What leads to a plan, and what is only timed: all else is what a plan then goes through.
OF_THE_PLAN = (
    *("seed", "method", "prune_ratio", "target", "cka.", "score.", "benchmark."),
    *(f"workload.{name}" for name in ("calibration", "scoring", "benchmark")),
    *OF_SEGMENTS,
)
# What a label always says where it differs; of other dials only values that are not the usual one.
HOW_MUCH = ("prune_ratio", "target.macs", "target.parameters", "target.latency")
FIRST = ("score.criterion", "k", *HOW_MUCH)


class Setting(NamedTuple):
    """Runs that ask the same but for the seed.

    Attributes:
        label: the method and what else tells it from the other settings.
        dials: those that the method uses, without the seed.
        records: of distinct seeds, in order.
    """

    label: str
    dials: dict
    records: list[Record]


def asked(dials: dict) -> dict:
    """The dials that the method uses: others make no other question."""
    method, targets = dials["method"], [key for key in dials if key.startswith("target.")]
    unused = () if method == "sglp" else OF_SGLP if uses_segments(method) else (*OF_SGLP, *OF_SEGMENTS)
    unused = (*unused, "prune_ratio" if targets else "target")
    return {key: value for key, value in dials.items() if not begins(key, unused) or begins(key, OF_ALL)}


def begins(key: str, names: Sequence[str]) -> bool:
    """Whether a dial is one of the names, or stands in a group of theirs."""
    return any(key == name or key.startswith(name if name.endswith(".") else f"{name}.") for name in names)


def distinct(records: Sequence[Record]) -> tuple[list[Record], dict[str, str]]:
    """The records without those that ask the same as a later one, seed and all; why those are left out, by name."""
    last = {_key(asked(record.dials)): record for record in records}
    left_out = {
        record.name: f"asks the same as {last[_key(asked(record.dials))].name}"
        for record in records
        if last[_key(asked(record.dials))] is not record
    }
    return list(last.values()), left_out


def by_model(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Records whose dense network and its measurement are the same, by the name of the workload and what differs."""
    groups = defaultdict(list)
    for record in records:
        groups[_key({k: v for k, v in record.dials.items() if begins(k, OF_THE_MODEL)})].append(record)
    found = {}
    for key, group in groups.items():
        dials, model = json.loads(key), group[0].dials["model"]
        namesakes = [other for other in map(json.loads, groups) if other["model"] == model]
        keys = differing(namesakes, lambda other: other["model"])
        found[" · ".join([model, *(text(name, dials[name], keys) for name in keys if name in dials)])] = group
    return dict(sorted(found.items()))


def settings(records: Sequence[Record]) -> list[Setting]:
    """The settings of one model's records, in the order of their labels."""
    groups = defaultdict(list)
    for record in records:
        groups[_key(without_seed(record.dials))].append(record)
    of = [without_seed(group[0].dials) for group in groups.values()]
    keys = differing(of, lambda dials: dials["method"])
    usual = {key: Counter(_key(dials[key]) for dials in of if key in dials).most_common(1)[0][0] for key in keys}
    found = []
    for dials, group in zip(of, groups.values(), strict=True):
        parts = [dials["method"]]
        for key in keys:
            if key in dials and (key in FIRST or _key(dials[key]) != usual[key]) and key != "method":
                parts.append(text(key, dials[key], keys))
            elif key not in (*dials, *HOW_MUCH) and any(key in o for o in of if o["method"] == dials["method"]):
                parts.append(f"{key} absent")
        found.append(Setting(" · ".join(parts), dials, sorted(group, key=lambda record: record.dials["seed"])))
    return sorted(found, key=lambda setting: setting.label)


def without_seed(dials: dict) -> dict:
    """The dials of a setting."""
    return {key: value for key, value in asked(dials).items() if key != "seed"}


def differing(all_dials: Sequence[dict], kind) -> list[str]:
    """The dials with several values, criterion, k and prune_ratio first; one that is missing differs inside a kind."""
    keys = {key: None for dials in all_dials for key in dials}
    found = []
    for key in keys:
        values = {_key(dials[key]) for dials in all_dials if key in dials}
        lacking = {kind(dials) for dials in all_dials if key not in dials}
        having = {kind(dials) for dials in all_dials if key in dials}
        if len(values) > 1 or lacking & having:
            found.append(key)
    return [key for key in FIRST if key in found] + [key for key in found if key not in FIRST]


def text(key: str, value, keys: Sequence[str]) -> str:
    """A dial in a label: of its key, as much as tells it from others."""
    last = key.rpartition(".")[2]
    alone = sum(other.rpartition(".")[2] == last for other in keys) == 1
    name = last if alone else key.removeprefix("workload.")
    return plain(value) if key == "score.criterion" else f"{name}={plain(value)}"


def plain(value) -> str:
    """A dial's value, as it stands in YAML."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def changed(dials: dict, others: dict) -> list[str]:
    """The dials of two settings that differ; with another method, only those that both use."""
    keys = dials.keys() | others.keys()
    if dials["method"] != others["method"]:
        keys = dials.keys() & others.keys()
    return sorted(key for key in keys if dials.get(key) != others.get(key))


def reference(found: Sequence[Setting], default: dict | None = None) -> Setting:
    """The setting that ablations start from: the nearest to the committed dials, then the one with most neighbours."""
    start = without_seed(default) if default else None

    def key(setting: Setting) -> tuple[int, int, int]:
        alike = [other for other in found if len(changed(setting.dials, other.dials)) == 1]
        of_its_method = sum(other.dials["method"] == setting.dials["method"] for other in alike)
        return -len(changed(setting.dials, start)) if start else 0, of_its_method, len(alike)

    return max(found, key=key)


def series(found: Sequence[Setting]) -> dict[str, list[Setting]]:
    """The settings that differ in k alone, where there are several (`auto` is none of them), by what they share."""
    groups = defaultdict(list)
    for setting in found:
        if isinstance(setting.dials.get("k"), int):
            groups[_key({k: v for k, v in setting.dials.items() if k != "k"})].append(setting)
    several = [sorted(group, key=lambda s: s.dials["k"]) for group in groups.values() if len(group) > 1]
    return {group[0].label.replace(f" · k={group[0].dials['k']}", ""): group for group in several}


def beside(found: Sequence[Setting]) -> list[Setting]:
    """The settings of methods without k that share all other dials with a series over k."""
    members = [setting for group in series(found).values() for setting in group]
    rivals = [setting for setting in found if "k" not in setting.dials]
    return [rival for rival in rivals if any(changed(rival.dials, other.dials) == ["method"] for other in members)]


def _key(value) -> str:
    return json.dumps(value, sort_keys=True)
