"""metrics: the formulas by hand, the paper's arithmetic, and the coverage of the intervals."""

import itertools
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from advbook.studies.schema import ROOT
from advlib import metrics
from advlib.metrics import intervals
from advlib.metrics.intervals import corrected_variance, replicates
from advlib.metrics.tables import averages, checked


def make_table(labels, predicted):
    names = [f"{i:05d}.png" for i in range(len(labels))]
    return pd.DataFrame(
        {
            "file_name": names,
            "label": labels,
            "predicted_class": predicted,
            "predicted_probability": 0.5,
        }
    )


def table_of(wrong_counts, n):
    """One class per entry (an int n: all of that size); the given number of images is wrong."""
    sizes = np.broadcast_to(n, len(wrong_counts))
    labels = np.repeat(np.arange(len(sizes)), sizes)
    wrong = np.concatenate([np.arange(m) < k for k, m in zip(wrong_counts, sizes, strict=True)])
    return make_table(labels, np.where(wrong, (labels + 1) % max(2, len(sizes)), labels))


def corruption_table(errors):
    """errors: (corruption, severity) -> number of wrong images among 4."""
    parts = [table_of([k], 4).assign(corruption=c, severity=s) for (c, s), k in errors.items()]
    return pd.concat(parts, ignore_index=True)


def full_corruption_table():
    """CE_c = .25 for the corruptions of even position, .5 for the others."""
    return corruption_table(
        {(c, s): 1 + i % 2 for i, c in enumerate(metrics.CORRUPTIONS) for s in range(1, 6)}
    )


# ---------------------------------------------------------------- checks at the door

METRICS = [
    metrics.error,
    metrics.class_error,
    metrics.class_summary,
    metrics.confusion,
    metrics.summarise,
]


@pytest.mark.parametrize("metric", METRICS)
def test_bad_tables_are_refused(metric):
    table = table_of([1, 2], 4)
    with pytest.raises(ValueError, match="label.*predicted_class"):
        metric(table[["file_name"]])
    with pytest.raises(ValueError, match="empty"):
        metric(table.iloc[:0])
    with pytest.raises(ValueError, match="2 rows repeat.*00000.png"):
        metric(pd.concat([table, table.iloc[:2]]))
    with pytest.raises(ValueError, match="missing values.*predicted_class"):
        metric(table.assign(predicted_class=[np.nan] + [0.0] * 7))
    with pytest.raises(ValueError, match="class numbers"):
        metric(table.assign(predicted_class=table["predicted_class"].astype(str)))


def test_several_conditions_without_by_are_refused_and_the_columns_named():
    table = pd.concat([table_of([1, 2], 4).assign(method=m) for m in ("std", "adv")])
    with pytest.raises(ValueError, match=r"by= .*\['method'\]"):
        metrics.error(table)
    with pytest.raises(ValueError, match="lacks the columns seed; it has"):
        metrics.error(table, by=["method", "seed"])


def random_table(seed, n=60, conditions=(("fog", 1), ("fog", 2), ("snow", 1))):
    """``n`` images of six classes (names in no order) under each condition."""
    rng = np.random.default_rng(seed)
    table = make_table(rng.permutation(n) % 6, 0).sample(frac=1, random_state=seed)
    parts = [table.assign(corruption=c, severity=s) for c, s in conditions]
    table = pd.concat(parts, ignore_index=True)
    return table.assign(predicted_class=(table["label"] + rng.integers(0, 3, len(table))) % 6)


def with_categories(table, seed):
    """The same rows as read from a Parquet file: categories in any order, small integers."""
    rng, columns = np.random.default_rng(seed), ["file_name", "corruption"]
    types = {"label": np.int16, "predicted_class": np.int32, "severity": np.int8}
    for column in columns:
        categories = rng.permutation([*table[column].unique(), "never seen"])
        types[column] = pd.CategoricalDtype(categories)
    return table.astype(types)


def test_categories_and_small_integers_change_nothing():
    """Categories sort by their own order: the images of two tables would be paired wrongly."""
    by, options = ["corruption", "severity"], {"check_dtype": False, "check_index_type": False}
    a, b = random_table(0), random_table(1)
    b["label"] = b["file_name"].map(a.drop_duplicates("file_name").set_index("file_name")["label"])
    a_again, b_again = with_categories(a, 0), with_categories(b, 1)
    one, one_again = (t[t["corruption"] == "snow"] for t in (a, a_again))
    other, other_again = (t[t["corruption"] == "snow"] for t in (b, b_again))
    annotations = pd.DataFrame({"file_name": one["file_name"], "factor": ["pose", "color"] * 30})
    groups = {0: "x", 1: "y", 2: "x", 3: "y", 4: "y", 5: "y"}
    calls = [
        *((metric, (a, by), (a_again, by)) for metric in METRICS[:2]),
        (metrics.confusion, (a, by), (a_again, by)),
        (metrics.class_changes, (one, other), (one_again, other_again)),
        (metrics.factor_error, (a, annotations, by), (a_again, annotations.astype("category"), by)),
        (metrics.error_ratio, (one, annotations), (one_again, annotations.astype("category"))),
        (metrics.group_error, (one, groups), (one_again, pd.Series(groups))),
    ]
    for metric, plain, categorical in calls:
        pd.testing.assert_frame_equal(metric(*plain), metric(*categorical), **options)
    for first, second in ((a, b), (a_again, b), (a, b_again), (a_again, b_again)):
        result = metrics.summarise(first, paired_with=second, n_resamples=50)
        expected = metrics.summarise(a, paired_with=b, n_resamples=50)
        pd.testing.assert_frame_equal(result, expected)


def test_rows_are_counted_in_the_right_condition():
    """Against pandas' own grouping, with conditions that do not hold the same images."""
    table = random_table(2).sample(frac=0.6, random_state=0)
    keys = ["corruption", "severity", "label"]
    grouped = table.assign(wrong=table["label"] != table["predicted_class"]).groupby(keys)["wrong"]
    expected = grouped.agg(n_images="size", error="mean").reset_index()
    result = metrics.class_error(with_categories(table, 3), keys[:2])
    pd.testing.assert_frame_equal(result[expected.columns], expected, check_dtype=False, rtol=1e-12)


def test_rows_without_a_condition_are_refused_not_dropped():
    table = with_categories(random_table(0), 0)
    clean = table[table["corruption"] == "snow"].assign(corruption=None, severity=np.nan)
    both = pd.concat([table, clean])
    for metric in (*METRICS[:2], metrics.corruption_error):
        with pytest.raises(ValueError, match="missing values.*corruption.*severity"):
            metric(both, *([["corruption", "severity"]] if metric in METRICS else []))
    with pytest.raises(ValueError, match="missing values.*corruption"):
        metrics.summarise(both)


def test_the_input_is_left_alone():
    table = table_of([1, 2], 4)
    before = table.copy()
    metrics.class_changes(table, table)
    metrics.multilabel_error(table, {name: {0} for name in table["file_name"]})
    metrics.summarise(table, n_resamples=10)
    pd.testing.assert_frame_equal(table, before)


# ---------------------------------------------------------------- averages


def test_error_is_over_images_and_mean_is_over_classes():
    table = table_of([2, 0], [2, 6])
    assert metrics.error(table) == 0.25
    assert metrics.class_summary(table)["mean"] == 0.5


def test_by_gives_one_row_a_condition():
    parts = {"std": table_of([1, 0], 4), "adv": table_of([3, 2], 4)}
    table = pd.concat([t.assign(method=m) for m, t in parts.items()])
    assert metrics.error(table, by="method").set_index("method")["error"].to_dict() == {
        "std": 0.125,
        "adv": 0.625,
    }
    classes = metrics.class_error(table, by=["method"])
    assert list(classes.columns) == ["method", "label", "n_images", "error", "low", "high"]
    assert classes.set_index(["method", "label"])["error"]["adv", 0] == 0.75


PAPER = {  # Tables 1 and 2, per cent, and what the text makes of them
    "25.24": (94.06, 70.32),
    "54.19": (20.87, 32.18),
    "22.99": (58.06, 71.41),
    "65.23": (94.06, 32.70),
    "27.93": (20.87, 26.70),
    "14.42": (58.06, 66.43),
    "17.03": (32.18, 26.70),
    "6.97": (71.41, 66.43),
    "53.50": (70.32, 32.70),
    "7.87": (15.24, 14.04),
    "2.79": (15.77, 15.33),
}


@pytest.mark.parametrize("printed", PAPER)
def test_the_papers_percentages_follow_from_its_tables(printed):
    assert f"{100 * abs(metrics.relative_reduction(*PAPER[printed])):.2f}" == printed


def test_the_papers_573_comes_out_as_574():
    assert f"{100 * metrics.relative_reduction(17.78, 16.76):.2f}" == "5.74"


def test_relative_reduction_signs_arrays_and_zero():
    assert metrics.relative_reduction(0.2, 0.3) == pytest.approx(-0.5)  # an increase is negative
    np.testing.assert_allclose(metrics.relative_reduction([0.4, 0.0], [0.1, 0.2]), [0.75, np.nan])
    result = metrics.relative_reduction(pd.Series({"a": 0.4, "b": 0.0}), 0.1)
    assert result["a"] == pytest.approx(0.75) and np.isnan(result["b"])
    assert np.isnan(metrics.relative_reduction(0.0, 0.0))


# ---------------------------------------------------------------- corruptions


def test_corruption_error_is_the_mean_over_severities():
    table = corruption_table(
        {("fog", s): k for s, k in zip((5, 1, 2, 3, 4), (4, 0, 1, 1, 2), strict=True)}
    )
    result = metrics.corruption_error(table)
    assert result.to_dict("list") == {"corruption": ["fog"], "corruption_error": [0.4]}


def test_mean_corruption_error_by_hand_and_keyed_by_name():
    table = full_corruption_table().sample(frac=1, random_state=0)  # position must not matter
    assert metrics.mean_corruption_error(table) == pytest.approx((8 * 0.25 + 7 * 0.5) / 15)
    alexnet = metrics.ALEXNET_CORRUPTION_ERROR
    assert alexnet["brightness"] == 0.564592 and alexnet["jpeg_compression"] == 0.6065
    expected = np.mean([(0.25, 0.5)[i % 2] / alexnet[c] for i, c in enumerate(metrics.CORRUPTIONS)])
    backwards = dict(reversed(alexnet.items()))
    assert metrics.mean_corruption_error(table, reference=backwards) == pytest.approx(expected)


def test_mce_of_the_reference_itself_is_one_and_extra_corruptions_do_not_count():
    table = full_corruption_table()
    ours = metrics.corruption_error(table).set_index("corruption")["corruption_error"].to_dict()
    assert metrics.mean_corruption_error(table, reference=ours) == pytest.approx(1)
    extra = corruption_table({("speckle_noise", s): 4 for s in range(1, 6)})
    assert metrics.mean_corruption_error(
        pd.concat([table, extra])
    ) == metrics.mean_corruption_error(table)


def test_missing_corruptions_and_severities_are_listed():
    table = full_corruption_table()
    gap = table[~((table["corruption"] == "snow") & (table["severity"].isin([2, 5])))]
    with pytest.raises(ValueError, match=r"snow must hold .* by severity are {1: 4, 3: 4, 4: 4}"):
        metrics.corruption_error(gap)
    short = table[~table["corruption"].isin(["fog", "contrast"])]
    with pytest.raises(ValueError, match="fog, contrast"):
        metrics.mean_corruption_error(short)
    with pytest.raises(ValueError, match="missing from the reference: snow"):
        metrics.mean_corruption_error(
            table, reference={c: 1.0 for c in metrics.CORRUPTIONS if c != "snow"}
        )
    with pytest.raises(ValueError, match="fog must hold"):
        metrics.corruption_error(table.replace({"severity": {5: 6}})[table["corruption"] == "fog"])
    with pytest.raises(ValueError, match="snow must hold"):  # an image lost in one cell
        metrics.corruption_error(table.drop(table.index[table["corruption"] == "snow"][0]))


def study_of_corruptions(seed, n=40):
    """``n`` images of two classes under all 75 conditions; an image is hard in all or in none."""
    rng = np.random.default_rng(seed)
    hard, odds = np.tile(rng.normal(0, 1, n), 75), np.repeat(rng.normal(0, 1, 75), n)
    cells = [(c, s) for c in metrics.CORRUPTIONS for s in range(1, 6)]
    names, severities = (np.repeat(values, n) for values in zip(*cells, strict=True))
    table = pd.concat([make_table(np.arange(n) % 2, 0)] * 75, ignore_index=True)
    wrong = rng.random(len(table)) < 1 / (1 + np.exp(-hard - odds))
    return table.assign(
        predicted_class=(table["label"] + wrong) % 2, corruption=names, severity=severities
    )


def test_mce_interval_of_both_conventions():
    table, other = study_of_corruptions(0), study_of_corruptions(1)
    for t in (table, other):
        found = metrics.bootstrap(t, "error", n_resamples=9).value
        assert found == pytest.approx(metrics.mean_corruption_error(t))
    # Resample the images one by one, and write the formula out.
    rng, values = np.random.default_rng(0), []
    draws = np.stack([rng.integers(0, 20, (4000, 20)) * 2 + k for k in (0, 1)], 1).reshape(4000, 40)
    for t in (table, other):
        wrong = (t["label"] != t["predicted_class"]).to_numpy().reshape(15, 5, 40).mean(1)
        values.append(wrong.mean(0)[draws].mean(1))
    ends = [0.025, 0.975]
    result = metrics.bootstrap(table, "error")
    np.testing.assert_allclose(result[1:], np.quantile(values[0], ends), atol=0.006)
    paired = metrics.bootstrap(table, "error", paired_with=other)
    np.testing.assert_allclose(paired[1:], np.quantile(values[0] - values[1], ends), atol=0.008)


def test_mce_leaves_further_corruptions_out_and_names_what_is_missing():
    table = study_of_corruptions(0)
    fog = table[table["corruption"] == "fog"]
    extra = pd.concat([table, fog.assign(corruption="speckle_noise", predicted_class=9)])
    how = {"statistic": "error", "n_resamples": 50}
    assert metrics.bootstrap(extra, **how) == metrics.bootstrap(table, **how)
    for reference in (None, metrics.ALEXNET_CORRUPTION_ERROR):
        with pytest.raises(ValueError, match="missing from the corruption table: fog"):
            metrics.mean_corruption_error(table[table["corruption"] != "fog"], reference)
    swapped = table.replace({"file_name": {"00000.png": "x.png"}})
    swapped = pd.concat([table[table["corruption"] != "fog"], swapped.loc[fog.index]])
    with pytest.raises(ValueError, match="row in every condition"):  # as many, but other images
        metrics.bootstrap(swapped, **how)


# ---------------------------------------------------------------- factors and label sets


def test_factor_error_and_ratio_by_hand():
    table = make_table([0, 0, 0, 0, 1, 1, 1, 1], [0, 1, 1, 0, 1, 0, 1, 1])  # wrong: 1, 2, 5
    annotations = pd.DataFrame(  # image 1 has two factors; 6 and 7 none; one image is elsewhere
        [
            (1, "pose"),
            (0, "pose"),
            (1, "style"),
            (2, "style"),
            (3, "color"),
            (4, "color"),
            (5, "color"),
            (99, "darker"),
        ],
        columns=["number", "factor"],
    )
    annotations["file_name"] = [f"{i:05d}.png" for i in annotations["number"]]
    errors = metrics.factor_error(table, annotations).set_index("factor")
    assert errors["n_images"].to_dict() == {"color": 3, "darker": 0, "pose": 2, "style": 2}
    assert errors["error"].drop("darker").to_dict() == {"color": 1 / 3, "pose": 0.5, "style": 1}
    assert np.isnan(errors["error"]["darker"])
    annotated = metrics.error_ratio(table, annotations)
    assert list(annotated.columns) == ["factor", "error_ratio"]
    np.testing.assert_allclose(annotated["error_ratio"], [2 / 3, np.nan, 1, 2])  # over 3 of 6
    over_all = metrics.error_ratio(table, annotations, denominator="all")
    np.testing.assert_allclose(over_all["error_ratio"], [8 / 9, np.nan, 4 / 3, 8 / 3])  # 3 of 8
    no_factor = pd.DataFrame({"file_name": ["00006.png"], "factor": [None]})
    with_none = metrics.error_ratio(table, pd.concat([annotations, no_factor]))
    np.testing.assert_allclose(with_none["error_ratio"], [7 / 9, np.nan, 7 / 6, 7 / 3])  # 3 of 7
    right = table.assign(predicted_class=table["label"])
    assert metrics.error_ratio(right, annotations)["error_ratio"].isna().all()


def factor_study(seed, paired=False):
    """Three classes of 30 images; factors overlap; "rare" has three images, "odd" none."""
    rng = np.random.default_rng(seed)
    labels = np.repeat([0, 1, 2], 30)
    table = make_table(labels, np.where(rng.random(90) < 0.4, -1, labels))
    names = table["file_name"].to_numpy()
    parts = {"pose": names[rng.random(90) < 0.6], "color": names[::3], "rare": names[[3, 40, 41]]}
    annotations = pd.concat(
        pd.DataFrame({"file_name": files, "factor": name}) for name, files in parts.items()
    )
    none = pd.DataFrame({"file_name": [names[1], "elsewhere.png"], "factor": [None, "odd"]})
    return table, pd.concat([annotations, none])


def test_factors_by_group_are_those_of_each_group():
    table, annotations = factor_study(0)
    table["half"] = np.where(np.arange(90) % 2, "b", "a")
    table.loc[40:41, "half"] = "a"  # then b holds one image of "rare", or none
    errors = metrics.factor_error(table, annotations, by="half")
    for half in ("a", "b"):
        expected = metrics.factor_error(table[table["half"] == half], annotations)
        rows = errors[errors["half"] == half].drop(columns="half").reset_index(drop=True)
        pd.testing.assert_frame_equal(rows, expected)
    by_class = metrics.factor_error(table, annotations, by="label")
    assert list(by_class.columns) == ["label", "factor", "n_images", "error"]
    assert len(by_class) == 3 * 4 and by_class.query("factor == 'rare'")["n_images"].sum() == 3


def factor_summary(table, annotations, paired_with=None, **how):
    """Of one table, or of the difference of two."""
    tables = {"after": table} | ({} if paired_with is None else {"before": paired_with})
    sides = (["after"], [*tables][1:])
    return next(metrics.factor_summary(metrics.together(tables), annotations, [sides], **how))


def test_factor_intervals_agree_with_a_plain_bootstrap():
    table, annotations = factor_study(0)
    other = factor_study(1)[0]
    summary = factor_summary(table, annotations, n_resamples=4000)
    paired = factor_summary(table, annotations, paired_with=other, n_resamples=4000)
    values = {}
    for mark, t in (("a", table), ("b", other)):
        errors = metrics.factor_error(t, annotations)
        ratios = metrics.error_ratio(t, annotations)
        values[mark] = np.stack([errors["error"], ratios["error_ratio"]])
    columns = ["error", "error_ratio"]
    assert summary["factor"].to_list() == ["color", "odd", "pose", "rare"]
    assert summary["n_images"].to_list() == errors["n_images"].to_list()
    np.testing.assert_allclose(summary[columns].to_numpy().T, values["a"])
    np.testing.assert_allclose(paired[columns].to_numpy().T, values["a"] - values["b"], atol=1e-12)
    # image by image
    draws = np.random.default_rng(5).integers(0, 30, (4000, 3, 30)) + [[0], [30], [60]]
    draws = draws.reshape(4000, 90)
    counted = table["file_name"].isin(annotations["file_name"]).to_numpy()[draws]
    replicates = []
    for t in (table, other):
        wrong = (t["label"] != t["predicted_class"]).to_numpy()[draws]
        model = (wrong * counted).sum(1) / counted.sum(1)
        for factor in ("color", "pose"):
            files = annotations.loc[annotations["factor"] == factor, "file_name"]
            has = table["file_name"].isin(files).to_numpy()[draws]
            error = (wrong * has).sum(1) / has.sum(1)
            replicates.append([error, error / model])
    replicates = np.array(replicates).reshape(2, 2, 2, 4000)  # table, factor, figure
    names = [["low", "high"], ["ratio_low", "ratio_high"]]
    for result, drawn in ((summary, replicates[0]), (paired, replicates[0] - replicates[1])):
        for i, factor in enumerate(("color", "pose")):
            row = result.set_index("factor").loc[factor]
            for k in (0, 1):
                expected = np.quantile(drawn[i, k], [0.025, 0.975])
                np.testing.assert_allclose(row[names[k]].to_list(), expected, atol=0.06)


def test_no_interval_of_a_factor_where_none_is_honest():
    table, annotations = factor_study(0)
    ends = ["low", "high", "ratio_low", "ratio_high"]
    options = {"n_resamples": 200}
    rows = factor_summary(table, annotations, **options).set_index("factor")
    assert rows.loc["odd", ["error", "error_ratio", *ends]].isna().all()  # it has no image
    assert rows.loc[["color", "pose"], ends].notna().all(axis=None)
    rare = table["file_name"].isin(annotations.query("factor == 'rare'")["file_name"])
    wrong = table.assign(predicted_class=table["predicted_class"].mask(rare, -1))
    row = factor_summary(wrong, annotations, **options).set_index("factor").loc["rare"]
    assert row["error"] == 1 and row["error_ratio"] > 1 and row[ends].isna().all()
    same = factor_summary(table, annotations, paired_with=table, **options)
    assert (same["error"].dropna() == 0).all() and same[ends].isna().all(axis=None)
    single = table.assign(label=np.arange(90))
    assert factor_summary(single, annotations, **options)[ends].isna().all(axis=None)
    with pytest.raises(ValueError, match="same images"):
        factor_summary(table, annotations, paired_with=table.iloc[:50])


@pytest.mark.parametrize("paired", [False, True])
def test_coverage_of_factor_intervals(paired):
    """40 classes of 25 images, four factors, the last with about 30 images in all."""
    rng, repeats, labels = np.random.default_rng(8), 100, np.repeat(np.arange(40), 25)
    share = rng.dirichlet([10, 6, 3, 0.7], 40)  # of a class's images, by factor
    p = rng.beta(2, 5, 40)[:, None] * [0.7, 1.1, 1.5, 2.0]
    p, q = np.minimum(p, 0.95), np.minimum(p, 0.95) * [0.9, 0.6, 1.0, 0.8]

    def truth(p):
        errors = (share * p).sum(0) / share.sum(0)
        return np.concatenate([errors, errors / ((share * p).sum() / 40)])

    target = truth(p) - (truth(q) if paired else 0)
    hits, shown, estimates, widths = np.zeros(8), np.zeros(8), [], []
    for seed in range(repeats):
        factor = (rng.random(1000)[:, None] > share.cumsum(1)[labels, :3]).sum(1)
        luck, own = rng.random((2, 1000))
        luck = [luck, np.where(rng.random(1000) < 2 / 3, luck, own)]
        a, b = (
            make_table(labels, np.where(u < rate[labels, factor], -1, labels))
            for u, rate in zip(luck, (p, q), strict=True)
        )
        annotations = pd.DataFrame({"file_name": a["file_name"], "factor": factor})
        rows = factor_summary(
            a, annotations, paired_with=b if paired else None, n_resamples=200, seed=seed
        )
        low, high, value = (
            rows[[name, ratio]].to_numpy().T.ravel()
            for name, ratio in (
                ("low", "ratio_low"),
                ("high", "ratio_high"),
                ("error", "error_ratio"),
            )
        )
        hits += (low <= target) & (target <= high)
        shown += ~np.isnan(low)
        estimates.append(value)
        widths.append(high - low)
    spare = 3.3 * (0.95 * 0.05 / repeats) ** 0.5 + 0.02  # chance; few resamples, few images
    assert (shown > 0.9 * repeats).all() and (hits / shown >= 0.95 - spare).all(), hits / shown
    width = np.nanmean(widths, axis=0) / (2 * 1.96 * np.std(estimates, axis=0))
    np.testing.assert_allclose(width, 1, atol=0.25)


def test_factor_errors_are_refused_where_they_mean_nothing():
    table = table_of([1], 4)
    annotations = pd.DataFrame({"file_name": ["00000.png"], "factor": ["pose"]})
    with pytest.raises(ValueError, match="denominator"):
        metrics.error_ratio(table, annotations, denominator="some")
    with pytest.raises(ValueError, match="annotation table lacks.*factor"):
        metrics.factor_error(table, annotations[["file_name"]])
    with pytest.raises(ValueError, match="twice"):
        metrics.factor_error(table, pd.concat([annotations, annotations]))
    with pytest.raises(ValueError, match="00000.png.*val/1.png"):
        metrics.factor_error(table, annotations.assign(file_name="val/1.png"))


def test_multilabel_error_by_hand():
    table = make_table([0, 0, 0, 1, 1], [0, 1, 1, 1, 0])
    sets = dict(zip(table["file_name"], [{0, 2}, {0, 1}, set(), [0], {1}], strict=True))
    # right, right (second label), no labels, wrong although it is the label, wrong
    assert metrics.multilabel_error(table, sets) == 0.5
    assert metrics.multilabel_error(table, sets, unlabelled="error") == 0.6
    with pytest.raises(ValueError, match="class numbers .* got such as '0'"):
        metrics.multilabel_error(table, {name: {str(i) for i in s} for name, s in sets.items()})
    judged = metrics.multilabel_table(table, sets)
    assert metrics.class_error(judged)["error"].to_list() == [0, 1]  # by the table's own label
    assert metrics.class_summary(judged)["mean"] == 0.5
    assert metrics.bootstrap(judged, "error", n_resamples=10).value == 0.5
    with pytest.raises(ValueError, match="no entry.*00000.png"):
        metrics.multilabel_error(table, {})
    with pytest.raises(ValueError, match="unlabelled"):
        metrics.multilabel_error(table, sets, unlabelled="ignore")
    with pytest.raises(ValueError, match="missing values.*correct"):  # judged and not judged
        metrics.error(pd.concat([judged.assign(method="a"), table.assign(method="b")]), by="method")


def test_the_column_correct_decides_what_counts():
    table = table_of([1, 2], 4)
    right = np.arange(8) % 4 > 0
    for values in (right, right.astype(float)):
        judged = table.assign(correct=values)
        assert metrics.error(judged) == 0.25 and metrics.correct(judged).tolist() == right.tolist()
    assert metrics.correct(table).tolist() == (table.label == table.predicted_class).tolist()
    with pytest.raises(ValueError, match="correct must hold True or False"):
        metrics.error(table.assign(correct=2))


def test_images_checked_together_give_the_figures_of_their_tables():
    rng, labels = np.random.default_rng(0), np.repeat(np.arange(4), 25)
    tables = {k: make_table(labels, (labels + (rng.random(100) < k / 9)) % 4) for k in range(1, 5)}
    shared, how = metrics.together(tables), {"n_resamples": 300}
    for after, before in (([2], []), ([1, 3], []), ([3], [1]), ([4, 3], [1, 2])):
        figure = shared.of(after, before)
        sides = [tables[k] for k in after], [tables[k] for k in before]
        same = metrics.bootstrap(sides[0], "error", sides[1], **how)
        assert metrics.bootstrap(figure, "error", **how) == same and not np.isnan(same.low)
        whole = metrics.summarise(sides[0], paired_with=sides[1], **how)
        pd.testing.assert_frame_equal(metrics.summarise(figure, **how), whole, check_exact=True)
    with pytest.raises(ValueError, match="no partner"):
        metrics.together(tables | {"fewer": tables[1][:60]})


def test_judged_tables_of_several_benchmarks():
    """Every metric takes the judgement of the label sets, also where it differs from the label."""
    rng, labels = np.random.default_rng(0), np.repeat(np.arange(4), 10)
    parts = {b: make_table(labels, rng.integers(0, 4, 40)) for b in ("clean", "pgd40")}
    sets = {name: set(rng.choice(4, 2)) for name in parts["clean"]["file_name"]}
    judged = {b: metrics.multilabel_table(t, sets) for b, t in parts.items()}
    both = pd.concat([t.assign(benchmark=b) for b, t in judged.items()], ignore_index=True)
    annotations = pd.DataFrame({"file_name": both["file_name"].unique(), "factor": "pose"})
    groups = dict.fromkeys(range(2), "low") | dict.fromkeys(range(2, 4), "high")
    by_label = both["label"] != both["predicted_class"]
    assert (by_label != ~both["correct"]).any()
    for metric, more in ((metrics.class_error, []), (metrics.factor_error, [annotations])):
        whole = metric(both, *more, by="benchmark")
        for b, part in judged.items():
            rows = whole[whole["benchmark"] == b].drop(columns="benchmark")
            pd.testing.assert_frame_equal(rows.reset_index(drop=True), metric(part, *more))
    for part in judged.values():
        wrong = 1 - part["correct"].mean()
        sizes = metrics.group_error(part, groups)
        assert np.average(sizes["error"], weights=sizes["n_images"]) == pytest.approx(wrong)
        assert factor_summary(part, annotations, n_resamples=9)["error"][0] == wrong
        assert metrics.class_summary(part)["mean"] == pytest.approx(wrong)
    pooled = metrics.bootstrap(both, "error", n_resamples=9).value
    assert pooled == pytest.approx(1 - both["correct"].mean())


# ---------------------------------------------------------------- classes


@pytest.mark.parametrize(("wrong", "n"), [(0, 50), (50, 50), (7, 50), (1, 1), (13, 1000)])
def test_wilson_interval_agrees_with_scipy(wrong, n):
    row = metrics.class_error(table_of([wrong], n)).iloc[0]
    expected = stats.binomtest(wrong, n).proportion_ci(0.95, method="wilson")
    assert row["error"] == wrong / n
    np.testing.assert_allclose([row["low"], row["high"]], expected, atol=1e-12)


def test_class_summary_by_hand():
    s = metrics.class_summary(table_of([0, 1, 4, 2], 4))  # errors 0, 1/4, 1, 1/2
    assert s["mean"] == 0.4375
    assert s["sd"] == pytest.approx(0.13671875**0.5)
    # noise 3/4 * mean(0, 3/16, 0, 1/4)/3 = 0.02734375
    assert s["sd_noise_corrected"] == pytest.approx(0.109375**0.5)
    assert (s["worst"], s["worst_class"], s["best"], s["gap"]) == (1, 2, 0, 1)
    assert s["worst_decile"] == 1
    assert s["cv"] == pytest.approx(0.13671875**0.5 / 0.4375)
    assert s["sd_normalised"] == pytest.approx((0.13671875 / (0.4375 * 0.5625)) ** 0.5)
    assert (s["n_classes"], s["n_images"]) == (4, 16)


def test_worst_decile_is_the_mean_of_a_tenth_of_the_classes():
    wrong = np.arange(30)[::-1]
    assert metrics.class_summary(table_of(wrong, 30))["worst_decile"] == pytest.approx(28 / 30)
    assert metrics.class_summary(table_of(wrong[:9], 30))["worst_decile"] == pytest.approx(29 / 30)


def test_noise_correction_is_unbiased_with_classes_of_different_sizes():
    rng = np.random.default_rng(0)
    p, n = rng.beta(2, 5, 40), rng.integers(2, 30, 40)
    squares = [
        corrected_variance(averages(checked(table_of(rng.binomial(n, p), n)), ["label"]))[1]
        for _ in range(200)
    ]
    assert np.mean(squares) == pytest.approx(p.var(), abs=4 * np.std(squares) / 200**0.5)


def test_classes_of_one_image_are_left_out_of_the_noise_correction():
    with_single = metrics.class_summary(table_of([0, 1, 4, 2, 1], [4, 4, 4, 4, 1]))
    without = metrics.class_summary(table_of([0, 1, 4, 2], 4))
    assert with_single["sd_noise_corrected"] == pytest.approx(without["sd_noise_corrected"])
    assert with_single["sd"] != without["sd"]


def test_what_is_undefined_is_nan_and_never_zero():
    spread = ["sd", "sd_noise_corrected", "gap", "cv", "sd_normalised"]
    one_class = metrics.class_summary(table_of([3], 10))
    one_image_a_class = metrics.class_summary(table_of([0, 1, 1], 1))
    for summary in (one_class, one_image_a_class):
        assert summary[spread].isna().all()
    assert one_class["mean"] == 0.3 and one_image_a_class["mean"] == pytest.approx(2 / 3)
    for wrong, undefined in (([0, 0], ["cv", "sd_normalised"]), ([5, 5], ["sd_normalised"])):
        summary = metrics.class_summary(table_of(wrong, 5))
        assert list(summary.index[summary.isna()]) == undefined
        assert summary["sd"] == summary["sd_noise_corrected"] == summary["gap"] == 0


@pytest.mark.parametrize(
    ("mean", "sd", "noise"),
    [(20.87, 15.65, 5.4), (32.17, 17.78, 6.2), (94.06, 4.71, 3.3), (32.70, 15.33, 6.3)],
)
def test_sampling_noise_in_the_papers_cells(mean, sd, noise):
    """1,000 classes of 50 images with a cell's mean and SD: what the correction takes off."""
    mean, sd = mean / 100, sd / 100
    size = mean * (1 - mean) / sd**2 - 1
    quantiles = stats.beta.ppf((np.arange(1000) + 0.5) / 1000, mean * size, (1 - mean) * size)
    s = metrics.class_summary(table_of(np.round(50 * quantiles).astype(int), 50))
    assert (s["mean"], s["sd"]) == (pytest.approx(mean, abs=0.002), pytest.approx(sd, abs=0.002))
    removed = (s["sd"] ** 2 - s["sd_noise_corrected"] ** 2) ** 0.5
    assert 100 * removed == pytest.approx(noise, abs=0.1)


def test_class_changes_by_hand():
    labels = np.repeat([0, 1, 2], 20)
    first, second = np.zeros(60, bool), np.zeros(60, bool)
    first[:12] = True  # class 0: 12 wrong, all but one of them put right
    second[11:12] = True
    second[20:32] = True  # class 1: 12 right ones broken
    first[40], second[41] = True, True  # class 2: one each way
    a, b = (make_table(labels, np.where(w, 9, labels)) for w in (first, second))
    result = metrics.class_changes(a, b.sample(frac=1, random_state=0))
    assert result["change"].to_list() == ["gains", "loses", "no change"]
    np.testing.assert_allclose(result["difference"], [-11 / 20, 12 / 20, 0])
    np.testing.assert_allclose(result["p_value"], [2 * 0.5**11, 2 * 0.5**12, 1])
    np.testing.assert_allclose(result["q_value"], [3 * 0.5**11, 3 * 2 * 0.5**12, 1])
    same = metrics.class_changes(a, a)
    assert (same["p_value"] == 1).all() and (same["change"] == "no change").all()


def test_class_changes_finds_little_where_nothing_differs():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(300), 50)
    a, b = (make_table(labels, np.where(rng.random(15_000) < 0.3, -1, labels)) for _ in range(2))
    result = metrics.class_changes(a, b)
    assert (result["change"] != "no change").sum() <= 1 < (result["p_value"] < 0.05).sum()


def test_confusion_agrees_with_scikit_learn():
    sklearn_metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    table = make_table(rng.integers(0, 6, 200), rng.integers(0, 6, 200))
    pairs = metrics.confusion(table)
    matrix = pairs.pivot(index="label", columns="predicted_class", values="n_images").fillna(0)
    expected = sklearn_metrics.confusion_matrix(table["label"], table["predicted_class"])
    np.testing.assert_array_equal(matrix.to_numpy(), expected)
    np.testing.assert_allclose(pairs.groupby("label")["share"].sum(), 1)
    row = pairs[(pairs["label"] == 2) & (pairs["predicted_class"] == 3)].iloc[0]
    assert row["share"] == expected[2, 3] / expected[2].sum()


GROUPS = {0: "dog", 1: "dog", 2: "cat", 3: "cat", 4: "cat", 5: "fish"}


def test_group_errors_by_hand():
    table = table_of([1, 3, 0, 2, 4, 2], [4, 4, 2, 4, 10, 5])
    rows = metrics.group_error(table, GROUPS)
    assert list(rows.columns) == "group n_classes n_images error mean sd low high".split()
    rows = rows.set_index("group")
    assert rows["n_classes"].to_dict() == {"cat": 3, "dog": 2, "fish": 1}
    assert rows["n_images"].to_dict() == {"cat": 16, "dog": 8, "fish": 5}
    assert rows["error"].to_dict() == {"cat": 6 / 16, "dog": 0.5, "fish": 0.4}
    np.testing.assert_allclose(rows["mean"], [0.3, 0.5, 0.4])
    np.testing.assert_allclose(rows["sd"], [np.std([0, 0.5, 0.4]), 0.25, np.nan])
    interval = stats.binomtest(6, 16).proportion_ci(0.95, method="wilson")
    np.testing.assert_allclose(rows.loc["cat", ["low", "high"]].to_list(), interval, atol=1e-12)
    one, summary = metrics.group_error(table, dict.fromkeys(range(6), "all")), metrics.class_summary
    assert one["sd"][0] == pytest.approx(summary(table)["sd"])
    assert np.isnan(metrics.group_error(table_of([1, 0], 1), GROUPS)["sd"][0])  # one image a class


def test_classes_without_a_group_are_refused():
    table = make_table([0, 1], [0, 7])
    assert len(metrics.group_error(table, GROUPS)) == 1  # it looks at the labels only
    for groups in ({0: "dog"}, {0: "dog", 1: None}, {"0": "dog", "1": "dog"}):
        with pytest.raises(ValueError, match="every label: it lacks"):
            metrics.group_error(table, groups)


# ---------------------------------------------------------------- uncertainty


def test_intervals_agree_with_a_plain_bootstrap():
    """Draw image by image, and write the formulas out."""
    # Small classes, so that the noise, and where the interval is centred, matter.
    sizes, rng = [4, 5, 6, 7, 8, 9, 10, 11], np.random.default_rng(1)
    a = table_of([1, 0, 5, 2, 1, 8, 4, 10], sizes)
    b = table_of([2, 2, 4, 5, 1, 7, 5, 6], sizes)
    wrong = np.column_stack([t["label"] != t["predicted_class"] for t in (a, b)])
    classes = np.split(wrong, np.cumsum(sizes)[:-1])
    drawn = [c[rng.integers(0, n, (20_000, n))] for c, n in zip(classes, sizes, strict=True)]
    means = np.stack([d.mean(1) for d in drawn], 1)  # (20000, 8 classes, 2 tables)
    observed = np.stack([c.mean(0) for c in classes])

    def noise(p):
        return 7 / 8 * (p * (1 - p) / (np.array(sizes)[:, None] - 1)).mean(-2)

    replicates = means.var(1) - noise(means)
    variance, corrected = observed.var(0), observed.var(0) - noise(observed)
    ends = [0.975, 0.025]
    steps = np.quantile(replicates[:, 0] - variance[0], ends)
    difference = np.sqrt(np.maximum(replicates, 0)) - np.sqrt(variance)
    errors = np.concatenate(drawn, 1).mean(1)
    expected = {
        (False, "error"): np.quantile(errors[:, 0], ends[::-1]),
        (False, "mean"): np.quantile(means[..., 0].mean(1), ends[::-1]),
        (False, "sd_noise_corrected"): np.sqrt(corrected[0] - steps),
        (True, "error"): np.quantile(errors[:, 0] - errors[:, 1], ends[::-1]),
        (True, "mean"): np.quantile((means[..., 0] - means[..., 1]).mean(1), ends[::-1]),
        (True, "sd_noise_corrected"): np.sqrt(corrected[0])
        - np.sqrt(corrected[1])
        - np.quantile(difference[:, 0] - difference[:, 1], ends),
    }
    for (paired, name), interval in expected.items():
        ours = metrics.bootstrap(a, name, paired_with=b if paired else None, n_resamples=20_000)
        step = 1 / 60 if name == "error" else 0  # the error moves in steps of one image
        np.testing.assert_allclose(
            ours[1:], interval, atol=0.006 + step, err_msg=f"{paired} {name}"
        )


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("conditions", [1, 3])
def test_ends_of_the_error_are_those_of_all_resamples(conditions, paired):
    rng = np.random.default_rng(conditions)
    labels = np.repeat([0, 4, 7], [2, 3, 4])
    parts = [make_table(labels, rng.integers(0, 2, 9) * labels) for _ in range(2 * conditions)]
    a, b = (
        pd.concat([t.assign(attack=str(i)) for i, t in enumerate(parts[half::2])])
        for half in (0, 1)
    )
    wrong = [
        t.assign(wrong=t.label != t.predicted_class).groupby("file_name").wrong.mean()
        for t in (a, b)
    ]
    values = (wrong[0] - wrong[1] if paired else wrong[0]).to_numpy()
    drawn = [
        itertools.product(np.flatnonzero(labels == c), repeat=n)
        for c, n in {0: 2, 4: 3, 7: 4}.items()
    ]
    every = [values[np.concatenate(images)].mean() for images in itertools.product(*drawn)]
    expected = np.quantile(np.round(every, 9), [0.025, 0.975], method="inverted_cdf")
    found = metrics.bootstrap(a, "error", paired_with=b if paired else None, n_resamples=1)
    np.testing.assert_allclose(found, [values.mean(), *expected], atol=1e-8)
    rows = metrics.summarise(a, paired_with=b if paired else None, n_resamples=50)
    assert tuple(rows.loc[0, ["value", "low", "high"]]) == found


def test_replicates_of_the_corrected_variance_lie_around_the_observed_variance():
    """Resampling adds noise, the correction takes off as much: without bias, at any class size."""
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2, 3, 4], [1, 3, 4, 5, 6])  # the single image plays no part
    values = rng.random((19, 2)).round(1)
    variances = replicates(labels, values, 100_000, seed=0).variance
    observed = np.stack([values[labels == c].mean(0) for c in range(1, 5)]).var(0)
    np.testing.assert_allclose(
        variances.mean(0), observed, atol=4 * variances.std(0).max() / 100_000**0.5
    )


def test_values_are_those_of_the_metrics_and_of_their_differences():
    a, b = table_of([1, 5, 9, 3], 10), table_of([2, 2, 6, 4], 10)
    expected = [{"error": metrics.error(t), **metrics.class_summary(t)} for t in (a, b)]
    for name in metrics.STATISTICS:
        assert metrics.bootstrap(a, name, n_resamples=9).value == pytest.approx(expected[0][name])
        assert metrics.bootstrap(a, name, paired_with=b, n_resamples=9).value == pytest.approx(
            expected[0][name] - expected[1][name]
        )
    rows = metrics.summarise(a, n_resamples=50, seed=3)
    assert rows["statistic"].to_list() == list(metrics.STATISTICS) and set(rows["n_images"]) == {40}
    row = rows.set_index("statistic").loc["mean"]
    assert tuple(row[["value", "low", "high"]]) == metrics.bootstrap(
        a, "mean", n_resamples=50, seed=3
    )


def test_a_new_statistic_is_one_entry(monkeypatch):
    entry = intervals.Statistic(
        "three times the mean",
        "%",
        lambda of: 3 * of.errors.mean(),
        lambda of: of.percentiles(3 * of.drawn.mean),
    )
    monkeypatch.setitem(metrics.STATISTICS, "thrice", entry)
    a, b = table_of([1, 5, 9, 3], [10, 10, 10, 20]), table_of([2, 2, 6, 4], [10, 10, 10, 20])
    assert metrics.class_summary(a)["thrice"] == 3 * metrics.class_summary(a)["mean"]
    rows = metrics.summarise(a, paired_with=b, n_resamples=99).set_index("statistic")
    ends = ["value", "low", "high"]
    np.testing.assert_allclose(rows.loc["thrice", ends], 3 * rows.loc["mean", ends], rtol=1e-12)
    found = metrics.bootstrap(a, "thrice", paired_with=b, n_resamples=99)
    assert found == tuple(rows.loc["thrice", ends])
    assert metrics.headings("thrice", "cv") == {
        "thrice": "three times the mean (%)",
        "cv": "SD / mean",
    }


def test_an_image_carries_all_its_rows():
    a = table_of([3, 8, 15], 20)
    thrice = pd.concat([a.assign(corruption="fog", severity=s) for s in (1, 2, 3)])
    once, stacked = (metrics.summarise(t, n_resamples=500) for t in (a, thrice))
    pd.testing.assert_frame_equal(once, stacked)  # three times the rows, no more images
    # Rows that differ: the image's value is its mean, and its noise that of fractions.
    part = pd.concat([a.assign(severity=1), table_of([9, 2, 4], 20).assign(severity=2)])
    means = (
        part.assign(wrong=part["label"] != part["predicted_class"])
        .groupby(["label", "file_name"])["wrong"]
        .mean()
        .groupby("label")
    )
    variance = means.mean().var(ddof=0) - 2 / 3 * (means.var() / 20).mean()
    result = metrics.bootstrap(part, "sd_noise_corrected", n_resamples=200)
    assert result.value == pytest.approx(variance**0.5)
    assert result.low < result.value < result.high
    with pytest.raises(ValueError, match="row in every condition"):
        metrics.bootstrap(part.iloc[:-1], "mean")
    with pytest.raises(ValueError, match="several labels"):
        metrics.bootstrap(part.assign(label=np.arange(len(part))), "mean")


def test_bootstrap_is_reproducible_and_ignores_the_order_of_rows():
    a, b = table_of([3, 8, 15], 20), table_of([5, 5, 10], 20)
    first = metrics.bootstrap(a, "sd_noise_corrected", paired_with=b, n_resamples=300, seed=7)
    shuffled = metrics.bootstrap(
        a.sample(frac=1, random_state=0),
        "sd_noise_corrected",
        paired_with=b.sample(frac=1, random_state=1),
        n_resamples=300,
        seed=7,
    )
    assert first == shuffled
    assert first != metrics.bootstrap(
        a, "sd_noise_corrected", paired_with=b, n_resamples=300, seed=8
    )


def test_pairing_uses_the_images():
    """Two models that fail on the same images differ with less uncertainty than on different."""
    a, b = table_of([20, 30], 100), table_of([25, 35], 100)
    other_images = b.assign(
        predicted_class=b["predicted_class"].to_numpy().reshape(2, 100)[:, ::-1].ravel()
    )
    close, far = (
        metrics.bootstrap(a, "mean", paired_with=t, n_resamples=2000) for t in (b, other_images)
    )
    assert close.value == pytest.approx(far.value) == pytest.approx(-0.05)
    assert far.high - far.low > 2 * (close.high - close.low)
    same = metrics.bootstrap(a, "mean", paired_with=a, n_resamples=50)
    assert same.value == 0 and np.isnan(same.low)  # nothing varies: no interval


def test_pairs_must_match():
    a = table_of([3, 8], 20)
    for compare in (
        metrics.class_changes,
        lambda x, y: metrics.bootstrap(x, "mean", paired_with=y),
    ):
        with pytest.raises(ValueError, match="same images.*1 have no partner.*00039.png"):
            compare(a, a.iloc[:-1])
        with pytest.raises(ValueError, match="same labels.*2 have no partner"):
            compare(a, a.assign(label=[1] + a["label"].to_list()[1:]))


def test_no_interval_where_none_is_honest():
    a = table_of([3, 8, 15], 20)
    for name in ("sd", "worst", "worst_decile", "gap", "cv", "sd_normalised"):
        result = metrics.bootstrap(a, name, n_resamples=20)
        assert np.isfinite(result.value) and np.isnan(result.low) and np.isnan(result.high)
    # all right; all wrong; one image a class: resampling would give an interval of width zero
    for table in (
        table_of([0, 0], 9),
        table_of([9, 9], 9),
        table_of([0, 1, 1], 1),
        table_of([0, 1, 1, 2], [1, 1, 1, 3]),
    ):
        result = metrics.bootstrap(table, "error", n_resamples=20)
        assert np.isfinite(result.value) and np.isnan(result.low) and np.isnan(result.high)
    assert np.isnan(metrics.bootstrap(table_of([3], 9), "sd_noise_corrected", n_resamples=20)).all()
    with pytest.raises(ValueError, match="'median'.*sd_noise_corrected"):
        metrics.bootstrap(a, "median")
    with pytest.raises(ValueError, match="n_resamples"):
        metrics.bootstrap(a, "mean", n_resamples=0)


def correlated_classes(rng, n_classes):
    """True errors of two methods over classes (clean errors like the paper's), rank-correlated."""
    a, b = np.sort(rng.beta(2.2, 4.6, n_classes)), np.sort(rng.beta(2.0, 5.5, n_classes))
    return a, b[np.argsort(np.arange(n_classes) + rng.normal(0, 0.15 * n_classes, n_classes))]


@pytest.mark.parametrize(
    ("n_classes", "n", "repeats", "n_resamples"), [(300, 50, 20, 100), (10, 400, 60, 200)]
)
def test_coverage(n_classes, n, repeats, n_resamples):
    """The 95 % intervals hold the truth; the naive percentile interval of the SD does not."""
    rng = np.random.default_rng(12)
    labels = np.repeat(np.arange(n_classes), n)
    hits = {
        key: 0
        for key in (
            "mean",
            "sd_noise_corrected",
            "d mean",
            "d sd_noise_corrected",
            "naive sd",
            "naive holds its own estimate",
        )
    }
    for seed in range(repeats):
        p, q = correlated_classes(rng, n_classes)
        shared, own = rng.random((2, len(labels)))  # two in three images are as hard for both
        luck = np.where(rng.random(len(labels)) < 2 / 3, shared, own)
        a = pd.DataFrame(
            {
                "file_name": np.arange(len(labels)),
                "label": labels,
                "predicted_class": np.where(shared < p[labels], -1, labels),
            }
        )
        b = a.assign(predicted_class=np.where(luck < q[labels], -1, labels))
        for mark, table in (("", None), ("d ", b)):
            result = metrics.summarise(a, paired_with=table, n_resamples=n_resamples, seed=seed)
            result = result.set_index("statistic")
            for name, true in (("mean", np.mean), ("sd_noise_corrected", np.std)):
                truth = true(p) - (true(q) if mark else 0)
                hits[mark + name] += result.at[name, "low"] <= truth <= result.at[name, "high"]
        errors = (a["predicted_class"] == -1).to_numpy().reshape(n_classes, n).mean(1)
        low, high = np.quantile(
            (rng.binomial(n, errors, (n_resamples, n_classes)) / n).std(1), [0.025, 0.975]
        )
        hits["naive sd"] += low <= np.std(p) <= high
        hits["naive holds its own estimate"] += low <= np.std(errors) <= high
    coverage = {key: count / repeats for key, count in hits.items()}
    spare = 3.3 * (0.95 * 0.05 / repeats) ** 0.5 + 0.01  # chance, and that of few resamples
    for key in ("mean", "sd_noise_corrected", "d mean", "d sd_noise_corrected"):
        assert 0.95 - spare <= coverage[key], (key, coverage)
    if n_classes == 300:
        assert coverage["naive sd"] <= 0.05, coverage
        assert coverage["naive holds its own estimate"] <= 0.05, coverage


def test_intervals_are_no_wider_than_needed():
    """Too wide would pass the coverage test: compare with the SD of the estimates themselves."""
    rng = np.random.default_rng(3)
    p, _ = correlated_classes(rng, 50)
    runs = [
        metrics.summarise(table_of(rng.binomial(50, p), 50), n_resamples=200, seed=i).set_index(
            "statistic"
        )
        for i in range(100)
    ]
    for name in ("mean", "sd_noise_corrected"):
        estimates = np.std([r.at[name, "value"] for r in runs])
        width = np.mean([r.at[name, "high"] - r.at[name, "low"] for r in runs])
        assert width / (2 * 1.96 * estimates) == pytest.approx(1, abs=0.25)


def test_full_imagenet_size():
    """10,000 resamples of 50,000 images in 1,000 classes fit in time and memory."""
    rng = np.random.default_rng(0)
    result = metrics.bootstrap(
        table_of(rng.binomial(50, rng.beta(2, 5, 1000)), 50), "sd_noise_corrected"
    )
    assert result.low < result.value < result.high < result.low + 0.02


def test_the_benchmark_runs(tmp_path):
    command = [sys.executable, ROOT / "benchmarks" / "imagenet_size.py", "--folder", tmp_path]
    command += ["--images", "60", "--classes", "12", "--resamples", "20"]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("predictions/c*/*-seed0.parquet"))) == 6
    steps = {line.split("  ")[0] for line in done.stdout.splitlines()}
    assert {"read and check", "intervals of the mCE", "all"} <= steps, done.stdout


def test_a_table_differs_from_itself_by_nothing_that_resampling_shows():
    table = pd.DataFrame({"file_name": list("abcd"), "label": [0, 0, 1, 1]})
    table["predicted_class"] = [0, 1, 1, 0]
    value, low, high = metrics.bootstrap(table, "error", table, n_resamples=50)
    assert value == 0 and np.isnan(low) and np.isnan(high)
    # Nor does its spread over the classes.
    rows = metrics.summarise(table_of([3, 8], 20), paired_with=table_of([3, 8], 20), n_resamples=50)
    assert rows[["low", "high"]].isna().all(axis=None)


def test_means_over_seeds_that_differ_by_rounding_alone_have_no_interval():
    """Of 5 seeds 1/5 - 1/5 - ... is some 1e-17, and not alike for all images."""
    tables = [random_table(seed, 403, [("fog", 1)]) for seed in range(5)]
    tables = [t.assign(label=tables[0]["label"], file_name=tables[0]["file_name"]) for t in tables]
    for name in ("error", "mean", "sd_noise_corrected"):
        value, low, high = metrics.bootstrap(tables, name, tables, n_resamples=50)
        assert value == pytest.approx(0) and np.isnan(low) and np.isnan(high), name
