"""The comparison's numbers, against definitions and other libraries."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr
from synthetic_runs import record

from experiments.cells import error, with_spread
from experiments.correlation import predicted, prediction
from experiments.outcomes import Quality
from experiments.settings import beside, by_model, changed, distinct, reference, series, settings, used
from experiments.statistics import pareto_front, partial_correlation, rank_correlation, removals, stability
from sglp.scores import LayerScore, SetScore


def test_a_value_has_the_sample_deviation_and_a_standard_error():
    values = [0.3, 0.7, 0.2, 0.9]
    mean = sum(values) / 4
    deviation = (sum((value - mean) ** 2 for value in values) / 3) ** 0.5
    for share, expected in ((True, f"{100 * mean:.2f} ± {100 * deviation:.2f} %"), (False, "0.5250 ± 0.33")):
        quality = Quality("accuracy", "accuracy", 1, share)
        assert with_spread(quality, pd.Series(values)) == expected
        assert error(quality, pd.Series([0.5])) == ""
    assert error(quality._replace(share=True), pd.Series(values)) == f"{100 * deviation / 2:.2f}"
    assert with_spread(quality, pd.Series([0.5])) == "0.5000"


@pytest.mark.parametrize("seed", range(30))
def test_pareto_front_has_the_points_that_no_point_beats(seed):
    draw = np.random.default_rng(seed)
    points = [tuple(map(float, pair)) for pair in draw.integers(0, 5, (draw.integers(1, 12), 2))]
    by_force = {
        i
        for i, (cost, quality) in enumerate(points)
        if not any(c <= cost and q >= quality and (c, q) != (cost, quality) for c, q in points)
    }
    front = pareto_front(pd.DataFrame(points, columns=["cost", "quality"]))
    assert set(front) == by_force
    assert len(front) == len(by_force)
    assert [points[i][0] for i in front] == sorted(points[i][0] for i in front)


@pytest.mark.parametrize("seed", range(10))
def test_rank_correlation_of_one_group_is_spearmans(seed):
    draw = np.random.default_rng(seed)
    x, y = draw.integers(0, 6, 15), draw.integers(0, 6, 15)  # with ties
    found, theirs = rank_correlation(x, y), spearmanr(x, y)
    assert found == pytest.approx(theirs.statistic, abs=1e-12)


def test_rank_correlation_of_groups_is_pearsons_of_centred_ranks():
    values = [1.0, 3.0, 2.0, 100.0, 200.0, 300.0, 400.0], [10.0, 20.0, 30.0, 4.0, 3.0, 2.0, 1.0]
    x, y = np.array([-1, 1, 0, -1.5, -0.5, 0.5, 1.5]), np.array([-1, 0, 1, 1.5, 0.5, -0.5, -1.5])
    assert rank_correlation(*values, [0, 0, 0, 1, 1, 1, 1]) == pytest.approx(np.corrcoef(x, y)[0, 1])


def test_without_variation_there_is_no_correlation():
    assert np.isnan(rank_correlation([], []))
    assert np.isnan(rank_correlation([1.0], [2.0]))
    assert np.isnan(rank_correlation([1.0, 1.0], [2.0, 3.0]))


def test_stability_is_the_mean_jaccard_similarity():
    assert stability(removals([(1, 2, 3), (2, 3, 4), (1, 2, 3)], 5)) == pytest.approx((2 / 4 + 1 + 2 / 4) / 3)
    assert stability(removals([(), ()], 5)) == 1
    assert np.isnan(stability(removals([(1,)], 5)))
    assert removals([(0, 1), (1, 3)], 4).mean(axis=0).tolist() == [0.5, 1, 0, 0.5]


def test_parameters_that_a_method_does_not_use_do_not_count():
    tail, rank = record(method="tail").params, record(method="mine:rank").params
    none = {"k", "segment.by"}
    of_sglp = {"score.criterion", "score.search", "workload.scoring.max_combinations"}
    assert tail.keys() - used(tail).keys() == none | of_sglp
    assert rank.keys() - used(rank).keys() == of_sglp
    assert used(record().params) == record().params


def test_settings_differ_in_more_than_the_seed():
    records = [record(seed=seed, k=k) for k in (2, 3) for seed in (1, 0)]
    records += [record(seed=0, k=3, prune__weights="random"), record(method="tail", k=3), record(method="tail", seed=1)]
    found = {setting.label: setting for setting in settings(records)}
    assert {label: [r.params["seed"] for r in setting.records] for label, setting in found.items()} == {
        "sglp · k=2": [0, 1],
        "sglp · k=3": [0, 1],
        "sglp · k=3 · weights=random": [0],
        "tail": [0, 1],
    }


def test_labels_omit_common_values_and_distinguish_equal_names():
    records = [record(workload__finetune__epochs=epochs) for epochs in (15, 15, 20)]
    assert [s.label for s in settings(records)] == ["sglp", "sglp · epochs=20"]
    older = record()
    del older.params["score.search"]
    assert [s.label for s in settings([*records, older])] == ["sglp", "sglp · epochs=20", "sglp · score.search absent"]
    twice = [record(prune__epochs=p, workload__finetune__epochs=f) for p, f in ((1, 1), (1, 1), (1, 2), (2, 1))]
    assert [s.label for s in settings(twice)] == ["sglp", "sglp · finetune.epochs=2", "sglp · prune.epochs=2"]


def test_equal_runs_count_once():
    records = [record("old", k=3), record("other", k=4), record("new", k=3), record("tail", method="tail")]
    records.append(record("tail again", method="tail", k=7))
    found, left_out = distinct(records)
    assert [r.name for r in found] == ["new", "other", "tail again"]
    assert left_out == {"old": "has the same parameters as new", "tail": "has the same parameters as tail again"}


def test_models_differ_in_what_the_dense_network_depends_on():
    records = [record(), record(k=2), record(workload__architecture__kwargs__depth=110), record(model="another")]
    groups = by_model(records)
    assert {name: len(group) for name, group in groups.items()} == {
        "another": 1,
        "net · depth=110": 1,
        "net · depth=56": 2,
    }


def test_ablations_start_near_the_committed_parameters_or_with_most_neighbours():
    found = settings(
        [record(k=3), record(k=4), record(k=3, score__search="sequential"), record(k=5, score__search="sequential")]
    )
    assert reference(found).label == "sglp · k=3"
    assert reference(found, record(k=4, seed=7).params).label == "sglp · k=4"
    assert (
        reference(found, record(k=5, score__search="sequential", benchmark__rounds=1).params).label
        == "sglp · k=5 · search=sequential"
    )
    assert changed(record(k=3).params, record(method="tail", k=3).params) == ["method"]
    assert changed(used(record(k=3).params), used(record(method="tail", k=9).params)) == ["method"]


def test_a_series_differs_only_in_k():
    records = [record(k=k) for k in (4, 2, "auto")] + [record(k=2, score__criterion="loss"), record(method="tail")]
    records.append(record(method="random", prune_ratio=0.3))
    found = settings(records)
    assert {label: [s.params["k"] for s in group] for label, group in series(found).items()} == {
        "sglp · gradnorm · prune_ratio=0.5": [2, 4]
    }
    assert [s.label for s in beside(found)] == ["tail · prune_ratio=0.5"]


def test_predicted_is_the_sum_over_segments():
    scores = [
        SetScore(0, (0, 1), 1.0, "made", False),
        SetScore(0, (0, 2), 2.0, "made", False),
        SetScore(1, (3,), 10.0, "made", False),
        SetScore(1, (4,), 20.0, "made", False),
    ]
    made = record(size=5, k=2, removed=(2, 4), scores=scores)._replace(segments=[(0, 2), (3, 4)])
    assert predicted(made, (2, 4)) == 11
    assert predicted(made, (1, 3)) == 22
    assert np.isnan(predicted(made, (1, 2))), "another number of layers a segment"
    nothing = made._replace(scores=[*scores[:3], SetScore(1, (4,), float("nan"), "made", False)])
    assert np.isnan(predicted(nothing, (1, 3)))


def test_predicted_is_the_sum_over_layers_if_layers_were_scored():
    made = record(
        size=4, method="tail", removed=(2, 3), scores=[LayerScore(0, i, 10.0**i, "made", True) for i in range(4)]
    )
    assert predicted(made, (2, 3)) == 11
    assert predicted(made, (1, 3)) == 101


def test_a_prediction_ranks_plans_of_the_same_seed_size_and_tuning():
    scores = [LayerScore(0, i, float(i), "made", True) for i in range(5)]

    def run(removed, quality, **params):
        return record(
            size=5, method="tail", removed=removed, quality=quality, pruned=1 - quality, scores=scores, **params
        )

    ours = run((1,), 0.9)
    plans = [ours, run((2,), 0.8, prune_ratio=0.4), run((3,), 0.7, prune_ratio=0.3), run((4,), 0.75, prune_ratio=0.2)]
    others = [
        run((1,), 0.1, prune_ratio=0.1),  # the same plan as the first: it does not count twice
        run((2,), 0.0, seed=1),
        run((1, 2), 0.0),
        run((2,), 0.0, prune__weights="random"),
        run((2,), 0.0, workload__finetune__epochs=1),
    ]
    (setting,) = (s for s in settings([*others[:1], *plans]) if s.params["prune_ratio"] == 0.5)
    found = prediction(setting, [others[0], *plans, *others[1:]], "accuracy", 1)
    assert (found.plans, found.unknown) == (4, 0)
    assert found.tuned == pytest.approx(spearmanr([9, 8, 7, 6], [0.9, 0.8, 0.7, 0.75]).statistic)
    assert found.pruned == pytest.approx(-found.tuned)
    assert prediction(setting, plans, "accuracy", -1).tuned == pytest.approx(-found.tuned)
    setting.records[0] = ours._replace(scores=scores[:4])
    assert prediction(setting, plans, "accuracy", 1).unknown == 3


@pytest.mark.parametrize("seed", range(10))
def test_partial_correlation_follows_the_formula(seed):
    draw = np.random.default_rng(seed)
    third = draw.integers(0, 5, 20)
    x, y = third + draw.integers(0, 4, 20), third + draw.integers(0, 4, 20)
    xy, xz, yz = (spearmanr(*pair).statistic for pair in ((x, y), (x, third), (y, third)))
    expected = (xy - xz * yz) / ((1 - xz**2) * (1 - yz**2)) ** 0.5
    assert partial_correlation(x, y, third) == pytest.approx(expected, abs=1e-12)
    assert partial_correlation(x, y, [1] * 20) == pytest.approx(xy, abs=1e-12)
    assert np.isnan(partial_correlation(third, y, third))


def test_layers_scored_one_by_one_in_several_segments_predict_by_their_sum():
    scores = [LayerScore(i // 5, i, 2.0**i, "made", True) for i in (3, 8, 7, 2, 0, 1, 4, 5, 6, 9)]
    ours = record("run", k=2, scores=scores)
    assert predicted(ours, [3, 8, 9]) == sum(2.0**i for i in (0, 1, 2, 4, 5, 6, 7))
