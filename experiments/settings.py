"""Settings: runs that differ only in their seed. Which parameters count, and how settings are labelled."""

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import pandas as pd

from experiments.records import Record
from sglp.choices import runs_sglp
from sglp.segmentation import uses_segments

# Parameters and groups of parameters. Baselines use no segments unless they say so, and of the score parameters only
# the number of batches (see stages.score). A target replaces prune_ratio. Every method may use similarity.
SEGMENT_PARAMS = ("k", "segment")
SGLP_PARAMS = ("score", "workload.scoring.max_combinations")
SHARED_PARAMS = ("score.batches",)
# What the dense network and its metrics depend on: results are comparable if these are equal.
MODEL_GROUPS = ("task", "architecture", "layers", "weights", "data", "files", "pretrain", "evaluation")
MODEL_PARAMS = ("model", *(f"workload.{group}" for group in MODEL_GROUPS))
# What the plan depends on, and what is only timed; a plan is pruned, tuned and measured by the other parameters.
PLAN_GROUPS = ("cka", "score", "benchmark", "workload.calibration", "workload.scoring", "workload.benchmark")
PLAN_PARAMS = ("seed", "method", "prune_ratio", "target", *SEGMENT_PARAMS, *PLAN_GROUPS)
# A label always has these if they differ; other parameters only if the value is not the most common one.
RATIO_PARAMS = ("prune_ratio", "target.macs", "target.parameters", "target.latency")
LABEL_PARAMS = ("score.criterion", "k", *RATIO_PARAMS)

T = TypeVar("T")


class Setting(NamedTuple):
    """Runs that differ only in their seed.

    Attributes:
        label: the method, and what distinguishes the setting from the others.
        params: the parameters that the method uses, without the seed.
        records: the runs, in the order of their seeds.
    """

    label: str
    params: dict[str, Any]
    records: list[Record]


def used(params: dict[str, Any]) -> dict[str, Any]:
    """Return the parameters that the method uses: runs that differ only in others are the same."""
    method, has_target = params["method"], any(key.startswith("target.") for key in params)
    unused = () if runs_sglp(method) else SGLP_PARAMS if uses_segments(method) else (*SGLP_PARAMS, *SEGMENT_PARAMS)
    unused = (*unused, "prune_ratio" if has_target else "target")
    return {key: value for key, value in params.items() if not within(key, unused) or within(key, SHARED_PARAMS)}


def within(key: str, names: Sequence[str]) -> bool:
    """Return whether a parameter is one of the names or belongs to a group of one of these names."""
    return any(f"{key}.".startswith(f"{name}.") for name in names)


def distinct(records: Sequence[Record]) -> tuple[list[Record], dict[str, str]]:
    """Keep the last of the runs with equal parameters, the seed included.

    Returns:
        The records that are kept, and why the others are left out, by name.
    """
    keys = [_key(used(record.params)) for record in records]
    last = dict(zip(keys, records, strict=True))
    pairs = [(record, last[key]) for key, record in zip(keys, records, strict=True)]
    left_out = {old.name: f"has the same parameters as {new.name}" for old, new in pairs if old is not new}
    return list(last.values()), left_out


def by_model(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Group records by dense network and its evaluation; keys are the workload and what distinguishes the group."""
    every = [{k: v for k, v in sorted(record.params.items()) if within(k, MODEL_PARAMS)} for record in records]
    groups = {}
    for group in _grouped(records, every):
        params, model = group[0].params, group[0].params["model"]
        keys = differing([other for other in every if other["model"] == model], "model")
        groups[" · ".join([model, *(label_of(key, params[key], keys) for key in keys if key in params)])] = group
    return dict(sorted(groups.items()))


def settings(records: Sequence[Record]) -> list[Setting]:
    """Group one model's records into settings, in the order of their labels."""
    groups = _grouped(records, [without_seed(record.params) for record in records])
    every = [without_seed(group[0].params) for group in groups]
    keys = differing(every, "method")
    usual = {key: Counter(_key(p[key]) for p in every if key in p).most_common(1)[0][0] for key in keys}
    result = []
    for params, group in zip(every, groups, strict=True):
        siblings = {key for other in every if other["method"] == params["method"] for key in other}
        parts = [params["method"]]
        for key in keys:
            if key in params and key != "method" and (key in LABEL_PARAMS or _key(params[key]) != usual[key]):
                parts.append(label_of(key, params[key], keys))
            elif key not in (*params, *RATIO_PARAMS) and key in siblings:
                parts.append(f"{key} absent")
        result.append(Setting(" · ".join(parts), params, sorted(group, key=lambda record: record.params["seed"])))
    return sorted(result, key=lambda setting: setting.label)


def without_seed(params: dict[str, Any]) -> dict[str, Any]:
    """Return the parameters of a run's setting."""
    return {key: value for key, value in used(params).items() if key != "seed"}


def differing(every: Sequence[dict[str, Any]], kind: str) -> list[str]:
    """Find the parameters with several values, those of LABEL_PARAMS first.

    Args:
        every: the parameters of each run.
        kind: a parameter; one that only some of the runs with equal `kind` have differs, too.
    """
    texts = pd.DataFrame([{key: _key(value) for key, value in params.items()} for params in every])
    missing = texts.isna().groupby(texts[kind])
    keys = texts.columns[(texts.nunique() > 1) | (missing.any() & ~missing.all()).any()]
    return sorted(keys, key=lambda key: LABEL_PARAMS.index(key) if key in LABEL_PARAMS else len(LABEL_PARAMS))


def label_of(key: str, value: Any, keys: Sequence[str]) -> str:
    """Write a parameter for a label, with as much of its key as distinguishes it from the other keys."""
    last = key.rpartition(".")[2]
    unique = sum(other.rpartition(".")[2] == last for other in keys) == 1
    name = last if unique else key.removeprefix("workload.")
    return yaml_text(value) if key == "score.criterion" else f"{name}={yaml_text(value)}"


def yaml_text(value: Any) -> str:
    """Write a parameter's value as in YAML."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def changed(params: dict[str, Any], others: dict[str, Any]) -> list[str]:
    """Find the parameters in which two settings differ; if their methods differ, only those that both use."""
    same_method = params["method"] == others["method"]
    keys = params.keys() | others.keys() if same_method else params.keys() & others.keys()
    return sorted(key for key in keys if params.get(key) != others.get(key))


def reference(candidates: Sequence[Setting], default: dict[str, Any] | None = None) -> Setting:
    """Choose the setting that ablations start from: nearest to the committed parameters, then with most neighbours."""
    start = without_seed(default) if default else None

    def rank(setting: Setting) -> tuple[int, int, int]:
        near = [other for other in candidates if len(changed(setting.params, other.params)) == 1]
        same_method = sum(other.params["method"] == setting.params["method"] for other in near)
        return -len(changed(setting.params, start)) if start else 0, same_method, len(near)

    return max(candidates, key=rank)


def series(candidates: Sequence[Setting]) -> dict[str, list[Setting]]:
    """Group settings that differ only in k (a number, not `auto`), where there are several, by their common label."""
    numbered = [setting for setting in candidates if isinstance(setting.params.get("k"), int)]
    groups = _grouped(numbered, [{key: value for key, value in s.params.items() if key != "k"} for s in numbered])
    several = [sorted(group, key=lambda setting: setting.params["k"]) for group in groups if len(group) > 1]
    return {group[0].label.replace(f" · k={group[0].params['k']}", ""): group for group in several}


def beside(candidates: Sequence[Setting]) -> list[Setting]:
    """Find the settings of methods without k that share all other parameters with a series over k."""
    members = [setting for group in series(candidates).values() for setting in group]
    without_k = [setting for setting in candidates if "k" not in setting.params]
    return [s for s in without_k if any(changed(s.params, other.params) == ["method"] for other in members)]


def _grouped(items: Sequence[T], params: Sequence[dict[str, Any]]) -> list[list[T]]:
    """Group items with equal parameters, in the order of the first of each group."""
    groups: Any = pd.Series(list(items), dtype=object).groupby(list(map(_key, params)), sort=False)
    return [list(group) for _, group in groups]


def _key(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
