"""Many methods side by side: worst classes, paired differences, and Holm's adjustment."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from advbook.zoo.comparison import compare, holm
from advlib import metrics

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
        "base": table([0.2, 0.3, 0.4, 0.5, 0.8]),
        "same": table([0.2, 0.3, 0.4, 0.5, 0.8], seed=1),
        "fair": table([0.3, 0.4, 0.5, 0.6, 0.65], seed=2),
        "flat": table([0.5] * K, seed=3),
    }


@pytest.fixture(scope="module")
def found(tables):
    bases = {"same": "base", "fair": "base", "flat": "fair"}
    return compare(tables, bases, n_resamples=500)


def test_figures_are_those_of_the_metrics(tables, found):
    for run, row in found.iterrows():
        summary = metrics.class_summary(tables[run])
        assert row.error == pytest.approx(metrics.error(tables[run]))
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
    alone = compare({k: tables[k] for k in ("base", "same")}, {"same": "base"}, n_resamples=10)
    before, after = (tables[run][lambda t: t.label == 4] for run in ("base", "same"))
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


def test_a_base_that_was_not_run_is_named(tables):
    with pytest.raises(ValueError, match="the base trades is not among the runs: base, same"):
        compare(tables, {"same": "trades"}, n_resamples=10)
