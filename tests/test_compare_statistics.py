"""The comparison's numbers, against definitions and other libraries."""

import numpy as np
import pytest
from scipy.stats import spearmanr
from synthetic_runs import record

from experiments.correlation import predicted, prediction
from experiments.settings import asked, beside, by_model, changed, distinct, reference, series, settings
from experiments.statistics import pareto_front, partial_correlation, rank_correlation, shares, spread, stability
from sglp.scores import LayerScore, SetScore


def test_spread_is_that_of_the_definition():
    values = [0.3, 0.7, 0.2, 0.9]
    found = spread(values)
    mean = sum(values) / 4
    deviation = (sum((value - mean) ** 2 for value in values) / 3) ** 0.5
    assert found == pytest.approx((4, mean, deviation, deviation / 2))
    assert spread([0.5]) == (1, 0.5, None, None)


@pytest.mark.parametrize("seed", range(30))
def test_pareto_front_is_what_no_point_beats(seed):
    draw = np.random.default_rng(seed)
    points = [tuple(map(float, pair)) for pair in draw.integers(0, 5, (draw.integers(1, 12), 2))]
    by_force = {
        i
        for i, (cost, quality) in enumerate(points)
        if not any(c <= cost and q >= quality and (c, q) != (cost, quality) for c, q in points)
    }
    front = pareto_front(points)
    assert set(front) == by_force
    assert len(front) == len(by_force)
    assert [points[i][0] for i in front] == sorted(points[i][0] for i in front)


@pytest.mark.parametrize("seed", range(10))
def test_rank_correlation_of_one_group_is_spearmans(seed):
    draw = np.random.default_rng(seed)
    x, y = draw.integers(0, 6, 15), draw.integers(0, 6, 15)  # with ties
    found, theirs = rank_correlation([(x, y)]), spearmanr(x, y)
    assert found == pytest.approx(theirs.statistic, abs=1e-12)


def test_rank_correlation_of_groups_is_pearsons_of_centred_ranks():
    groups = [([1.0, 3.0, 2.0], [10.0, 20.0, 30.0]), ([100.0, 200.0, 300.0, 400.0], [4.0, 3.0, 2.0, 1.0])]
    x, y = np.array([-1, 1, 0, -1.5, -0.5, 0.5, 1.5]), np.array([-1, 0, 1, 1.5, 0.5, -0.5, -1.5])
    assert rank_correlation(groups) == pytest.approx(np.corrcoef(x, y)[0, 1])


def test_nothing_to_rank_is_no_correlation():
    assert rank_correlation([]) is None
    assert rank_correlation([([1.0], [2.0])]) is None
    assert rank_correlation([([1.0, 1.0], [2.0, 3.0])]) is None


def test_stability_is_the_mean_jaccard_similarity():
    assert stability([(1, 2, 3), (2, 3, 4), (1, 2, 3)]) == pytest.approx((2 / 4 + 1 + 2 / 4) / 3)
    assert stability([(), ()]) == 1
    assert stability([(1,)]) is None
    assert shares([(0, 1), (1, 3)], 4) == [0.5, 1, 0, 0.5]


def test_dials_that_a_method_does_not_use_make_no_other_question():
    tail, rank = record(method="tail").dials, record(method="mine:rank").dials
    none = {"k", "segment.by"}
    of_sglp = {"score.criterion", "score.search", "workload.scoring.max_combinations"}
    assert tail.keys() - asked(tail).keys() == none | of_sglp
    assert rank.keys() - asked(rank).keys() == of_sglp
    assert asked(record().dials) == record().dials


def test_settings_are_all_that_differs_but_in_the_seed():
    records = [record(seed=seed, k=k) for k in (2, 3) for seed in (1, 0)]
    records += [record(seed=0, k=3, prune__weights="random"), record(method="tail", k=3), record(method="tail", seed=1)]
    found = {setting.label: setting for setting in settings(records)}
    assert {label: [r.dials["seed"] for r in setting.records] for label, setting in found.items()} == {
        "sglp · k=2": [0, 1],
        "sglp · k=3": [0, 1],
        "sglp · k=3 · weights=random": [0],
        "tail": [0, 1],
    }


def test_labels_leave_out_what_is_usual_and_tell_keys_of_the_same_name_apart():
    records = [record(workload__finetune__epochs=epochs) for epochs in (15, 15, 20)]
    assert [s.label for s in settings(records)] == ["sglp", "sglp · epochs=20"]
    older = record()
    del older.dials["score.search"]
    assert [s.label for s in settings([*records, older])] == ["sglp", "sglp · epochs=20", "sglp · score.search absent"]
    twice = [record(prune__epochs=p, workload__finetune__epochs=f) for p, f in ((1, 1), (1, 1), (1, 2), (2, 1))]
    assert [s.label for s in settings(twice)] == ["sglp", "sglp · finetune.epochs=2", "sglp · prune.epochs=2"]


def test_the_same_question_counts_once():
    records = [record("old", k=3), record("other", k=4), record("new", k=3), record("tail", method="tail")]
    records.append(record("tail again", method="tail", k=7))
    found, left_out = distinct(records)
    assert [r.name for r in found] == ["new", "other", "tail again"]
    assert left_out == {"old": "asks the same as new", "tail": "asks the same as tail again"}


def test_models_are_told_apart_by_what_makes_the_dense_network():
    records = [record(), record(k=2), record(workload__architecture__kwargs__depth=110), record(model="another")]
    groups = by_model(records)
    assert {name: len(group) for name, group in groups.items()} == {
        "another": 1,
        "net · depth=110": 1,
        "net · depth=56": 2,
    }


def test_ablations_start_near_the_committed_dials_or_from_what_has_most_neighbours():
    found = settings(
        [record(k=3), record(k=4), record(k=3, score__search="sequential"), record(k=5, score__search="sequential")]
    )
    assert reference(found).label == "sglp · k=3"
    assert reference(found, record(k=4, seed=7).dials).label == "sglp · k=4"
    assert (
        reference(found, record(k=5, score__search="sequential", benchmark__rounds=1).dials).label
        == "sglp · k=5 · search=sequential"
    )
    assert changed(record(k=3).dials, record(method="tail", k=3).dials) == ["method"]
    assert changed(asked(record(k=3).dials), asked(record(method="tail", k=9).dials)) == ["method"]


def test_a_series_differs_in_k_alone():
    records = [record(k=k) for k in (4, 2, "auto")] + [record(k=2, score__criterion="loss"), record(method="tail")]
    records.append(record(method="random", prune_ratio=0.3))
    found = settings(records)
    assert {label: [s.dials["k"] for s in group] for label, group in series(found).items()} == {
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
    assert predicted(made, (1, 2)) is None, "another number of layers a segment"
    nothing = made._replace(scores=[*scores[:3], SetScore(1, (4,), float("nan"), "made", False)])
    assert predicted(nothing, (1, 3)) is None


def test_predicted_is_the_sum_over_layers_where_layers_were_scored():
    made = record(
        size=4, method="tail", removed=(2, 3), scores=[LayerScore(0, i, 10.0**i, "made", True) for i in range(4)]
    )
    assert predicted(made, (2, 3)) == 11
    assert predicted(made, (1, 3)) == 101


def test_a_prediction_ranks_plans_of_the_same_seed_size_and_tuning():
    scores = [LayerScore(0, i, float(i), "made", True) for i in range(5)]

    def run(removed, quality, **dials):
        return record(
            size=5, method="tail", removed=removed, quality=quality, pruned=1 - quality, scores=scores, **dials
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
    (setting,) = (s for s in settings([*others[:1], *plans]) if s.dials["prune_ratio"] == 0.5)
    found = prediction(setting, [others[0], *plans, *others[1:]], "accuracy", 1)
    assert (found.plans, found.unknown) == (4, 0)
    assert found.tuned == pytest.approx(spearmanr([9, 8, 7, 6], [0.9, 0.8, 0.7, 0.75]).statistic)
    assert found.pruned == pytest.approx(-found.tuned)
    assert prediction(setting, plans, "accuracy", -1).tuned == pytest.approx(-found.tuned)
    setting.records[0] = ours._replace(scores=scores[:4])
    assert prediction(setting, plans, "accuracy", 1).unknown == 3


@pytest.mark.parametrize("seed", range(10))
def test_partial_correlation_is_that_of_what_a_third_leaves(seed):
    draw = np.random.default_rng(seed)
    third = draw.integers(0, 5, 20)
    x, y = third + draw.integers(0, 4, 20), third + draw.integers(0, 4, 20)
    xy, xz, yz = (spearmanr(*pair).statistic for pair in ((x, y), (x, third), (y, third)))
    expected = (xy - xz * yz) / ((1 - xz**2) * (1 - yz**2)) ** 0.5
    assert partial_correlation(x, y, third) == pytest.approx(expected, abs=1e-12)
    assert partial_correlation(x, y, [1] * 20) == pytest.approx(xy, abs=1e-12)
    assert partial_correlation(third, y, third) is None


def test_layers_scored_one_by_one_in_several_segments_predict_by_their_sum():
    scores = [LayerScore(i // 5, i, 2.0**i, "made", True) for i in (3, 8, 7, 2, 0, 1, 4, 5, 6, 9)]
    ours = record("run", k=2, scores=scores)
    assert predicted(ours, [3, 8, 9]) == sum(2.0**i for i in (0, 1, 2, 4, 5, 6, 7))
