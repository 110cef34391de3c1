"""Many methods side by side: worst classes, paired differences, and Holm's adjustment."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from advbook.claims.verdict import in_points
from advbook.studies.schema import load_study
from advbook.zoo.comparison import compare, holm, sure
from advlib import metrics
from advlib.importing import read_predictions

K, N = 5, 400


def table(rates, seed=0):
    """Predictions whose class errors are about these rates; equal seeds share their luck."""
    labels = np.repeat(np.arange(K), N)
    wrong = np.random.default_rng(seed).random(K * N) < np.repeat(rates, N)
    return pd.DataFrame(
        {
            "file_name": [f"{i}.png" for i in range(K * N)],
            "label": labels,
            "predicted_class": np.where(wrong, (labels + 1) % K, labels),
            "predicted_probability": 0.5,
        }
    )


@pytest.fixture(scope="module")
def tables():
    return {
        ("base", 0): table([0.2, 0.3, 0.4, 0.5, 0.8]),
        ("same", 0): table([0.2, 0.3, 0.4, 0.5, 0.8], seed=1),
        ("fair", 0): table([0.3, 0.4, 0.5, 0.6, 0.65], seed=2),
        ("flat", 0): table([0.5] * K, seed=3),
    }


@pytest.fixture(scope="module")
def found(tables):
    bases = {"same": "base", "fair": "base", "flat": "fair"}
    return compare(tables, bases, n_resamples=500)


def test_figures_are_those_of_the_metrics(tables, found):
    for run, row in found.iterrows():
        summary = metrics.class_summary(tables[run, 0])
        assert row.error == pytest.approx(metrics.error(tables[run, 0]))
        assert row.worst == pytest.approx(summary.worst)
        assert row.worst_class == summary.worst_class
        assert row.sd == pytest.approx(summary.sd_noise_corrected)
    assert found.d_sd["fair"] == pytest.approx(found.sd["fair"] - found.sd["base"])
    assert found.d_error["flat"] == pytest.approx(found.error["flat"] - found.error["fair"])
    assert found.d_error.isna().to_dict() == {
        run: run == "base" for run in ("base", "same", "fair", "flat")
    }


def test_a_clear_worst_class_is_sure_and_equal_ones_are_not(found):
    assert found.p_worst["base"] == 1.0 and found.p_worst["flat"] < 0.8


def test_differences_are_paired_and_adjusted(tables, found):
    """McNemar's test of the base's hardest class, whose chi-square is the square of the normal."""
    both = {(run, 0): tables[run, 0] for run in ("base", "same")}
    alone = compare(both, {"same": "base"}, n_resamples=10)
    before, after = (table[table.label == 4] for table in both.values())
    wrong = [(t.predicted_class != t.label).to_numpy() for t in (before, after)]
    fixed, broken = (wrong[0] & ~wrong[1]).sum(), (~wrong[0] & wrong[1]).sum()
    assert alone.d_hardest["same"] == pytest.approx((broken - fixed) / N)
    mcnemar = stats.chi2.sf((fixed - broken) ** 2 / (fixed + broken), 1)
    assert alone.p_hardest["same"] == pytest.approx(mcnemar, rel=0.05)
    # The largest p of three stays as it is, the smallest is three times what it was.
    assert found.p_hardest["same"] == pytest.approx(alone.p_hardest["same"])
    assert found.d_hardest_high["fair"] < 0 and found.base["flat"] == "fair"


def test_holm_as_r_computes_it():
    """p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm") gives 0.03 0.06 0.06 0.02."""
    p = pd.Series([0.01, 0.04, np.nan, 0.03, 0.005], index=list("abcde"))
    expected = [0.03, 0.06, np.nan, 0.06, 0.02]
    np.testing.assert_allclose(holm(p).loc[list("abcde")], expected)


def test_seeds_are_compared_one_by_one_and_their_interval_stands_apart():
    """Two seeds of a base and of a method, and an ablation with the first seed alone."""
    rates = {
        ("base", 0): [0.2, 0.3, 0.4, 0.7, 0.8],
        ("fair", 1): [0.2, 0.3, 0.4, 0.85, 0.6],
        ("base", 1): [0.2, 0.3, 0.4, 0.95, 0.6],
        ("fair", 0): [0.2, 0.3, 0.4, 0.5, 0.8],
        ("early", 0): [0.2, 0.3, 0.4, 0.5, 0.8],
    }
    tables = {key: table(each, seed=i) for i, (key, each) in enumerate(rates.items())}
    wrong = {key: (t.predicted_class != t.label).to_numpy() for key, t in tables.items()}
    found = compare(tables, {"fair": "base", "early": "base"}, n_resamples=500)
    fair, early, base = (found.loc[run] for run in ("fair", "early", "base"))
    assert (fair.n_seeds, early.n_seeds) == (2, 1)
    worst = [wrong["base", s].reshape(K, N).mean(1).max() for s in (0, 1)]
    assert (base.worst, base.worst_min, base.worst_max) == (np.mean(worst), min(worst), max(worst))
    # The worst class of one seed each: of the mean it is 3, which is so in every second draw.
    assert base.worst_class == 3 and base.p_worst == pytest.approx(0.5, abs=0.01)
    assert early.worst_base == worst[0] and fair.worst_base == base.worst
    # Class 3 is the base's hardest over both seeds, for the ablation too.
    hard = {key: one[3 * N : 4 * N].astype(float) for key, one in wrong.items()}
    each = [hard["fair", s] - hard["base", s] for s in (0, 1)]
    apart = np.mean(each, 0)
    half = 1.96 * apart.std(ddof=1) / np.sqrt(N)
    ends = fair[["d_hardest", "d_hardest_low", "d_hardest_high"]]
    assert ends.to_list() == pytest.approx([apart.mean(), apart.mean() - half, apart.mean() + half])
    assert early.d_hardest == pytest.approx((hard["early", 0] - hard["base", 0]).mean())
    spread = abs(each[0].mean() - each[1].mean()) / np.sqrt(2)
    assert fair.d_hardest_between == pytest.approx(spread)
    sds = {key: metrics.class_summary(t).sd_noise_corrected for key, t in tables.items()}
    sds = [sds["fair", s] - sds["base", s] for s in (0, 1)]
    assert (fair.d_sd, fair.d_sd_between) == pytest.approx((np.mean(sds), np.std(sds, ddof=1)))
    # Sure of the images, but of two seeds Student's t is 12.7, and they differ by 10 points.
    assert fair.p_hardest < 0.01 and sure(found, "hardest").to_dict() == {
        "base": False, "fair": False, "early": True,
    }  # fmt: skip
    row = pd.Series([*ends, spread, 2], ["value", "low", "high", "sd", "n_seeds"])
    low, high = (100 * (apart.mean() + sign * 12.7062 * spread / np.sqrt(2)) for sign in (-1, 1))
    said = in_points(row, 1).replace("\N{NO-BREAK SPACE}", " ").replace("\N{MINUS SIGN}", "-")
    assert said.endswith(f"; 2 seeds [{low:.1f}, {high:.1f}]")


def test_one_seed_is_as_it_was_published():
    """FAAL on Fashion-MNIST, to the last digits."""
    folder = load_study("fashion_mnist_zoo").published / "predictions/pgd40"
    tables = {(m, 0): read_predictions(folder / f"{m}-seed0.parquet") for m in ("adv", "faal")}
    row = compare(tables, {"faal": "adv"}).loc["faal"]
    published = {
        "worst": 0.502,
        "p_worst": 0.5579,
        "error_high": 0.2779,
        "sd_low": 0.14858211570747032,
        "d_sd_high": -0.054862435205395466,
        "d_error_low": 0.009462758449553785,
        "d_hardest": -0.302,
    }
    assert row[[*published]].to_dict() == pytest.approx(published, rel=1e-12)
