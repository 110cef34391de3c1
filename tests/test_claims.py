"""The paper's claims on made-up tables whose outcome is known, and the page that shows them."""

import dataclasses
import json
import re

import numpy as np
import pandas as pd
import pytest
import yaml

from advbook.audit.analysis import with_real
from advbook.charts.verdict import shares_of_the_paper
from advbook.claims import claims, verdict
from advbook.claims import evidence as measured
from advbook.studies import results
from advbook.studies.identity import data_settings, training_settings
from advbook.studies.schema import ROOT, load_study
from advbook.studies.tables import read_audit, read_tables, with_spread
from advlib import metrics
from advlib.data import annotations
from advlib.metrics import over_seeds, t_interval
from advlib.predictions import write_predictions
from conftest import as_text, run_notebook

PAPER = pd.read_csv(ROOT / "results/paper/published.csv")
CLASSES, EACH = 10, 20


def predictions(errors, seed=0) -> pd.DataFrame:
    """A table of 10 classes of 20 images, with these class errors (or one for all) exactly.

    Which images are wrong is drawn afresh for another seed.
    """
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(CLASSES), EACH)
    counts = np.round(np.broadcast_to(errors, CLASSES) * EACH).astype(int)
    wrong = np.concatenate([rng.permutation(EACH) < count for count in counts])
    return pd.DataFrame(
        {
            "file_name": [f"{i:04d}.png" for i in range(len(labels))],
            "label": labels,
            "predicted_class": np.where(wrong, (labels + 1) % CLASSES, labels),
            "predicted_probability": 0.5,
        }
    )


def corrupted(errors: dict, seed=0) -> pd.DataFrame:
    """75 conditions: errors by corruption, those that are not named 0.5."""
    parts = [
        predictions(errors.get(name, 0.5), seed + 10 * i + severity).assign(
            corruption=name, severity=severity
        )
        for i, name in enumerate(metrics.CORRUPTIONS)
        for severity in range(1, 6)
    ]
    return pd.concat(parts, ignore_index=True)


@pytest.fixture
def study():
    """Without corrupted images, which take the longest."""
    methods = ["std", "adv", "adv_plus"]
    quick = load_study("digits", corruptions="none", corruption_images=None)
    return dataclasses.replace(quick, methods=methods, n_resamples=300)


@pytest.fixture
def corrupted_study(study):
    return dataclasses.replace(study, corruptions="generated", n_resamples=100)


def evidence(study, **errors) -> dict:
    """Tables of a study, by benchmark: class errors by method; all else 0.5."""
    tables = {}
    for seed in study.seeds:
        for number, method in enumerate(study.methods):
            draw = 1000 * seed + number
            for benchmark in ("clean", "pgd40"):
                table = predictions(errors.get(benchmark, {}).get(method, 0.5), draw)
                tables[benchmark, method, seed] = table
            if study.corruptions != "none":
                table = corrupted(errors.get("corruptions", {}).get(method, {}), draw)
                tables["corruptions", method, seed] = table
    return tables


def verdict_of(comparisons, claim, variant="adversarial batches"):
    judged = claims.verdicts(comparisons).set_index(["variant", "claim"])
    return judged.loc[(variant, claim)]


# ---------------------------------------------------------------- the claims themselves


def test_the_papers_own_numbers_have_the_signs_that_it_claims():
    for claim in claims.CLAIMS.values():
        for comparison in claim.comparisons:
            difference = claims.published_difference(PAPER, claim, comparison)
            assert np.isnan(difference) or np.sign(difference) == comparison.sign != 0


@pytest.mark.parametrize(
    "claim, before, per_cent",  # the percentages that the paper's text gives, a rise below zero
    [
        ("raises_clean", 0.2087, -54.19),
        ("raises_mce", 0.5806, -22.99),
        ("lowers_pgd40", 0.9406, 25.24),
        ("clean", 0.3218, 17.03),
        ("mce", 0.7141, 6.97),
        ("pgd40", 0.7032, 53.50),
        ("sd_real", 0.1524, 7.87),
        ("sd_pgd40", 0.1577, 2.79),
    ],
)
def test_published_differences_give_the_papers_percentages(claim, before, per_cent):
    claim = claims.CLAIMS[claim]
    difference = claims.published_difference(PAPER, claim, claim.comparisons[0])
    assert round(-100 * difference / before, 2) == per_cent


def test_claims_about_corruptions_name_every_one():
    most = claims.CLAIMS["std_corruptions"]
    conditions = [(c.part, c.severity) for c in most.comparisons]
    every = [(name, severity) for name in metrics.CORRUPTIONS for severity in range(1, 6)]
    assert most.most and conditions == every
    corruptions = claims.CLAIMS["corruptions"].comparisons
    assert [c.part for c in corruptions] == list(metrics.CORRUPTIONS)
    assert sum(c.sign == -1 for c in corruptions) == 13
    assert {c.part for c in corruptions if c.sign == 0} == set(claims.EXCEPTIONS)


# ---------------------------------------------------------------- known outcomes


def test_a_claim_holds_fails_is_open_or_is_not_measured(corrupted_study):
    study = corrupted_study
    tables = evidence(
        study,
        clean={"std": 0.8, "adv": 0.6, "adv_plus": 0.2},
        pgd40={"adv": 0.3, "adv_plus": 0.7},
    )
    found = measured.compare(study, tables, PAPER)
    assert verdict_of(found, "clean").verdict == claims.ALIKE  # of one training
    assert verdict_of(found, "pgd40").verdict == claims.UNLIKE
    assert verdict_of(found, "mce").verdict == claims.OPEN
    real = verdict_of(found, "sd_real")
    assert real.verdict == claims.ABSENT == verdict_of(found, "ratios").verdict
    absent = found[found.variant == "adversarial batches"].groupby("claim").absent.first()
    assert "ImageNet's validation images" in absent["sd_real"] and "no stand-in" in absent["ratios"]
    mixed = verdict_of(found, "clean", "mixed batches")
    assert mixed.verdict == claims.ABSENT
    absent = found[(found.variant == "mixed batches") & (found.claim == "clean")].absent.item()
    assert absent == "the study has no adv_mix and no adv_plus_mix among its methods"
    # Std and Adv err alike everywhere; PGD-40 is lower after Adv.
    assert verdict_of(found, "raises_clean").verdict == claims.UNLIKE
    assert verdict_of(found, "lowers_pgd40").verdict == claims.ALIKE
    assert verdict_of(found, "raises_mce").verdict == claims.OPEN


def test_the_mixed_pair_is_judged_by_its_own_tables(study):
    study = dataclasses.replace(
        study, methods=["std", "adv", "adv_plus", "adv_mix", "adv_plus_mix"]
    )
    tables = evidence(study, clean={"adv_mix": 0.2, "adv_plus_mix": 0.6})
    found = measured.compare(study, tables, PAPER)
    assert verdict_of(found, "clean", "mixed batches").verdict == claims.UNLIKE
    assert verdict_of(found, "clean").verdict == claims.OPEN


def test_a_spread_is_judged_by_its_noise_corrected_sd(study):
    even, uneven = np.full(CLASSES, 0.5), np.linspace(0.05, 0.95, CLASSES)
    tables = evidence(study, clean={"std": even, "adv": uneven})
    found = measured.compare(study, tables, PAPER)
    row = found[(found.claim == "widens_clean") & (found.absent == "")].iloc[0]
    std, adv = (metrics.class_summary(tables["clean", method, 0]) for method in ("std", "adv"))
    assert row.value == pytest.approx(adv.sd_noise_corrected - std.sd_noise_corrected)
    assert row.raw == pytest.approx(adv.sd - std.sd) and row.raw != row.value
    expected = metrics.bootstrap(
        tables["clean", "adv", 0],
        "sd_noise_corrected",
        tables["clean", "std", 0],
        n_resamples=study.n_resamples,
    )
    assert (row.low, row.high) == pytest.approx(tuple(expected)[1:])
    assert verdict_of(found, "widens_clean").verdict == claims.ALIKE
    shown = verdict.numbers(found, claims.verdicts(found)).set_index("claim")
    cell = shown["raw SD"]["Adversarial training widens the class-wise SD, clean"]
    assert cell == f"{100 * row.raw:.2f}; paper 2.13"  # raw beside raw


def test_std_has_the_lowest_spread_only_if_it_is_lower_than_both(study):
    even, uneven = np.full(CLASSES, 0.5), np.linspace(0.05, 0.95, CLASSES)
    both = evidence(study, pgd40={"std": even, "adv": uneven, "adv_plus": uneven})
    assert verdict_of(measured.compare(study, both, PAPER), "std_lowest").verdict == claims.ALIKE
    one = evidence(study, pgd40={"std": uneven, "adv": np.append(uneven[1:], 1), "adv_plus": even})
    found = verdict_of(measured.compare(study, one, PAPER), "std_lowest")
    assert found.verdict == claims.UNLIKE and found.n_against == 1


def test_the_two_exceptions_do_not_decide_the_claim_about_corruptions(corrupted_study):
    study = corrupted_study
    everywhere = {name: 0.1 for name in metrics.CORRUPTIONS}
    but_two = everywhere | {name: 0.9 for name in claims.EXCEPTIONS}
    one_of_the_13 = everywhere | {"fog": 0.9}
    for better, expected, n_hold in (
        (everywhere, claims.ALIKE, 13),
        (but_two, claims.ALIKE, 13),
        (one_of_the_13, claims.UNLIKE, 12),
    ):
        tables = evidence(study, corruptions={"adv_plus": better})
        found = verdict_of(measured.compare(study, tables, PAPER), "corruptions")
        assert found.verdict == expected and found.n_tests == 13
        assert (found.n_hold, found.n_against) == (n_hold, 13 - n_hold)


# ---------------------------------------------------------------- at the ceiling


@pytest.mark.parametrize("error, at_the_ceiling", [(1.0, True), (0.99, True), (0.985, False)])
def test_a_spread_that_the_ceiling_leaves_no_room_decides_nothing(study, error, at_the_ceiling):
    """Std is wrong on (nearly) every image: its SD is below any other's, whatever Adv is like."""
    flat = np.append(np.ones(CLASSES - 1), 1 - CLASSES * (1 - error))
    uneven = np.linspace(0.05, 0.95, CLASSES)
    tables = evidence(study, pgd40={"std": flat, "adv": uneven, "adv_plus": uneven})
    found = measured.compare(study, tables, PAPER)
    judged = verdict_of(found, "std_lowest")
    assert judged.verdict == (claims.CEILING if at_the_ceiling else claims.ALIKE)
    rows = found[(found.claim == "std_lowest") & (found.absent == "")]
    assert verdict.mark(rows, judged.verdict) == ("–" if at_the_ceiling else "●¹")


def test_the_ceiling_speaks_against_no_claim_and_only_about_spreads(study):
    uneven = np.linspace(0.05, 0.95, CLASSES)
    tables = evidence(study, pgd40={"std": uneven, "adv": 1.0, "adv_plus": uneven})
    tables |= {
        ("clean", "adv", 0): predictions(0.5, 1),
        ("clean", "adv_plus", 0): predictions(0.0),
    }
    found = measured.compare(study, tables, PAPER)
    lowest = verdict_of(found, "std_lowest")  # Adv's SD is 0: lower than Std's, by the ceiling
    assert lowest.verdict == claims.CEILING and lowest.n_against == 1
    rows = found[(found.claim == "std_lowest") & (found.absent == "")]
    shown = verdict.numbers(found, claims.verdicts(found)).set_index("claim")
    title = claims.CLAIMS["std_lowest"].title
    assert (shown.share[title] == "–").all()  # no size where nothing is said
    assert title not in set(verdict.shares(found, claims.verdicts(found)).claim)
    assert not claims.size_excluded(rows)
    assert verdict_of(found, "clean").verdict == claims.ALIKE  # an error, not a spread
    assert verdict_of(found, "pgd40").verdict == claims.ALIKE


def judged(rows) -> str:
    return claims.judge(rows)["verdict"]


def comparison_rows(values, half=0.01, sign=-1, n_seeds=2, sd=0.0, claim="clean"):
    """Comparisons of one claim, with intervals of this half width over the images."""
    values = np.asarray(values, float)
    return pd.DataFrame(
        {
            "claim": claim,
            "sign": sign,
            "value": values,
            "low": values - half,
            "high": values + half,
            "absent": "",
            "part": "",
            **dict.fromkeys(["error_before", "error_after"], np.nan),
            "before": "adv",
            "after": "adv_plus",
            "sd": sd,
            "n_seeds": n_seeds,
        }
    )


def test_one_interval_of_fifteen_may_lie_on_the_other_side_by_chance():
    # 95 % and 15 tests: the normal quantiles 1.96 and 2.94, so that 1.5 times the width decides.
    held = [-0.05] * 14
    assert judged(comparison_rows([*held, 0.0145])) == claims.OPEN
    assert judged(comparison_rows([*held, 0.0155])) == claims.FAILS
    assert judged(comparison_rows([0.0101])) == claims.FAILS  # one test, not widened
    assert judged(comparison_rows([*held, -0.0101])) == claims.HOLDS


def test_one_of_fifteen_may_lie_on_the_other_side_by_the_chance_of_training():
    """Student's t with two degrees of freedom at 0.025 / 15 a side is 17.28, not 4.30."""
    held = [-0.5] * 14
    for value, verdict_ in ((0.099, claims.OPEN), (0.1, claims.FAILS)):  # 17.28 / sqrt(3) SDs
        rows = comparison_rows([*held, value], n_seeds=3, sd=0.01)
        assert judged(rows) == verdict_


def test_one_training_behind_a_comparison_makes_the_claim_one_of_one_training():
    rows = comparison_rows([-0.5, -0.5], sd=0.01).assign(n_seeds=[3, 1])
    assert judged(rows) == claims.ALIKE


def test_both_sides_are_counted_alike_and_the_widened_ones_decide():
    """Three of thirteen on the other side, one of them also by intervals for thirteen tests."""
    rows = comparison_rows([-0.05] * 8 + [0.0, 0.0, 0.011, 0.011, 0.05], claim="corruptions")
    rows["part"] = ["a"] * 10 + ["snow", "fog", "frost"]
    found = claims.judge(rows)
    counts = {"n_tests": 13, "n_hold": 8, "n_against": 3}
    assert found == {"verdict": claims.FAILS, **counts}
    assert judged(rows.head(12)) == claims.OPEN


def test_most_is_a_majority_on_either_side():
    """8 of 15; what decides is widened for 8 tests: by 2.73 / 1.96 = 1.395."""

    def of(values):
        return judged(comparison_rows(values, sign=1, claim="std_corruptions"))

    assert of([0.05] * 8 + [-0.05] * 7) == claims.HOLDS
    assert of([0.05] * 7 + [-0.05] * 8) == claims.FAILS
    assert of([0.05] * 7 + [-0.05] * 7 + [0.0]) == claims.OPEN
    assert of([0.0136] * 8 + [0.0] * 7) == claims.OPEN
    assert of([0.0142] * 8 + [0.0] * 7) == claims.HOLDS
    assert of([0.0] * 7 + [-0.0142] * 8) == claims.FAILS


def test_seeds_that_do_not_tell_leave_a_claim_open():
    """Student's t with two degrees of freedom: 4.303 / sqrt(3) = 2.484 SDs on either side."""
    for value, verdict_ in ((-0.05, claims.HOLDS), (0.05, claims.FAILS)):
        clear = comparison_rows([value], n_seeds=3, sd=0.0199)
        assert judged(clear) == verdict_
        assert judged(clear.assign(sd=0.0203)) == claims.OPEN
    for value, verdict_ in ((-0.05, claims.ALIKE), (0.05, claims.UNLIKE), (0.0, claims.OPEN)):
        one = comparison_rows([value], n_seeds=1, sd=np.nan)
        assert judged(one) == verdict_  # no verdict on a method
    low, high = t_interval(np.array([0.1, 0.1]), np.array([0.01, np.nan]), np.array([3, 1]))
    assert low[0] == pytest.approx(0.1 - 0.02484, abs=1e-5) and low[1] == -np.inf == -high[1]


def test_without_an_interval_nothing_is_decided():
    rows = comparison_rows([-0.05]).assign(low=np.nan, high=np.nan)
    assert judged(rows) == claims.OPEN


def test_no_interval_leaves_no_effect_outside(study):
    """All of Adv's images wrong, all of Adv+'s right: no interval that anything lies outside of."""
    tables = evidence(study, pgd40={"adv": 1.0, "adv_plus": 0.0})
    found = measured.compare(study, tables, PAPER)
    assert found[(found.claim == "pgd40") & (found.absent == "")].low.isna().all()
    rows = found[(found.claim == "pgd40") & (found.absent == "")]
    assert verdict.mark(rows, judged(rows)) == "○¹" and not claims.size_excluded(rows)


@pytest.mark.parametrize(
    "value, half, sd, excluded",
    [
        (0.0, 0.01, 0.002, True),
        (0.05, 0.01, 0.002, True),  # the other way
        (0.0, 0.06, 0.002, False),  # the images leave room for it
        (0.0, 0.01, 0.03, False),  # the seeds do: 2.484 SDs
        (-0.2, 0.01, 0.002, False),  # far more than the paper's
    ],
)
def test_a_size_is_excluded_if_images_and_seeds_end_short_of_it(value, half, sd, excluded):
    rows = comparison_rows([value], half=half, n_seeds=3, sd=sd).assign(expected=-0.05)
    assert claims.size_excluded(rows) == excluded
    assert not claims.size_excluded(rows.assign(expected=np.nan))
    assert claims.size_excluded(rows.assign(n_seeds=1, sd=np.nan)) == (excluded or sd == 0.03)


def test_the_papers_effect_is_scaled_to_the_room_and_corrected_for_noise(study):
    """From 0.75 to a clean error of 0.5 are 25 points: an effect of 37.62 cannot occur."""
    tables = evidence(study, clean={"adv_plus": 0.5}, pgd40={"adv": 0.75, "adv_plus": 0.75})
    found = measured.compare(study, tables, PAPER)
    rows = found[(found.claim == "pgd40") & (found.absent == "")]
    assert rows.room.iloc[0] == pytest.approx(0.5 - 0.75)
    assert rows.paper_room.iloc[0] == pytest.approx(0.2670 - 0.7032)  # of the paper's Table 1
    share = 0.3762 / (0.7032 - 0.2670)
    assert rows.expected.iloc[0] == pytest.approx(-0.25 * share)
    assert claims.size_excluded(rows)
    # The variance of the class errors less that of 50 images: mean (1 - mean) - sd² a class.
    corrected = [np.sqrt(sd**2 - 0.999 * (mean * (1 - mean) - sd**2) / 49)
                 for mean, sd in ((0.3217, 0.1778), (0.2669, 0.1676))]  # fmt: skip
    rows = found[(found.claim == "sd_clean") & (found.absent == "")]
    assert rows.expected.iloc[0] == pytest.approx(corrected[1] - corrected[0], abs=1e-6)
    spared = evidence(study, clean={"adv_plus": 0.8}, pgd40={"adv": 0.75, "adv_plus": 0.75})
    spared = measured.compare(study, spared, PAPER)
    assert spared[spared.claim == "pgd40"].expected.isna().all()


def test_real_evidence_is_the_clean_table_judged_anew(study, monkeypatch):
    """Images without a label are dropped, and methods that the paper does not compare."""
    monkeypatch.setattr(annotations, "real_label_sets", lambda: SETS)
    study = dataclasses.replace(study, dataset="imagenet", methods=["pretrained", "std", "adv"])
    names = [f"ILSVRC2012_val_{i:08d}.JPEG" for i in range(CLASSES * EACH)]
    SETS = {name: {0, 1} if i % 2 else set() for i, name in enumerate(names)}
    keys = [(b, m, 0) for b in ("clean", "pgd40") for m in study.methods]
    made = {key: predictions(0.3, i).assign(file_name=names) for i, key in enumerate(keys)}
    tables = measured.evidence_of(study, with_real(study, made))
    benchmarks = ("clean", "real", "pgd40")
    assert set(tables) == {(b, m, 0) for b in benchmarks for m in ("std", "adv")}
    expected = metrics.multilabel_table(made["clean", "adv", 0], SETS)
    assert len(expected) == CLASSES * EACH / 2
    assert metrics.error(tables["real", "adv", 0]) == metrics.error(expected)
    assert tables["real", "adv", 0].file_name.tolist() == expected.file_name.tolist()
    for key in [key for key in tables if key[0] != "real"]:
        assert metrics.error(tables[key]) == metrics.error(made[key])


def test_seeds_and_images_are_kept_apart(study):
    study = dataclasses.replace(study, seeds=[0, 1])
    tables = evidence(study, clean={"adv": 0.6, "adv_plus": 0.2})
    tables["clean", "adv_plus", 1] = predictions(0.4, 7)
    found = measured.compare(study, tables, PAPER)
    row = found[(found.claim == "clean") & (found.absent == "")].iloc[0]
    assert row.value == pytest.approx(-0.3)  # of -0.4 and -0.2
    # Over images: each is drawn with what both seeds' networks make of it.
    wrong = [
        np.mean([(t.label != t.predicted_class).to_numpy() for t in
                 (tables["clean", method, seed] for seed in (0, 1))], axis=0)
        for method in ("adv", "adv_plus")
    ]  # fmt: skip
    rng, classes = np.random.default_rng(0), np.arange(CLASSES * EACH).reshape(CLASSES, EACH)
    drawn = [(wrong[1] - wrong[0])[rng.permuted(np.repeat(classes, EACH, axis=1), axis=1)[:, :EACH]]
             .mean() for _ in range(4000)]  # fmt: skip
    assert (row.low, row.high) == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.006)
    assert row.sd == pytest.approx(0.2 / np.sqrt(2))  # of -0.4 and -0.2, with n - 1
    assert row.n_seeds == 2


def test_error_ratios_come_from_people_s_annotations(study, monkeypatch):
    """ImageNet-X: Std fails on style and texture alone, the others equally on every image."""
    study = dataclasses.replace(study, dataset="imagenet")
    factors = annotations.imagenet_x().dropna()
    chosen = factors[factors.factor.isin(["style", "texture", "pose"])]
    chosen = chosen.groupby("factor").head(150)
    # Each comparison reads them: of 46,110 images, the tables below know these.
    monkeypatch.setattr(annotations, "imagenet_x", lambda *_: chosen)
    rng = np.random.default_rng(0)
    base = {"file_name": chosen.file_name.to_numpy(), "label": np.arange(len(chosen)) % 5}
    hard = chosen.factor.isin(["style", "texture"]).to_numpy()
    tables = {}
    for method in study.methods:
        rate = np.where(hard, 0.9, 0.1) if method == "std" else np.full(len(chosen), 0.5)
        wrong = rng.random(len(chosen)) < rate
        table = pd.DataFrame(base | {"predicted_probability": 0.5})
        table["predicted_class"] = np.where(wrong, 999, table.label)
        for benchmark in ("clean", "real", "pgd40"):
            tables[benchmark, method, 0] = table
    found = measured.compare(study, tables, PAPER)
    assert verdict_of(found, "ratios").verdict == claims.ALIKE
    row = found[(found.claim == "ratios") & (found["after"] == "adv") & (found.part == "style")]
    ratio = {m: metrics.error_ratio(tables["clean", m, 0], chosen) for m in ("std", "adv")}
    ratio = {m: r.set_index("factor").error_ratio["style"] for m, r in ratio.items()}
    assert row.value.iloc[0] == pytest.approx(ratio["adv"] - ratio["std"])


def test_the_mixed_pair_may_be_an_ablation_of_the_first_seed(tmp_path, monkeypatch):
    """It is judged by the tables of the audit, if they are there; of corruptions it has none."""
    monkeypatch.setenv("ADVLIB_RUNS", str(tmp_path))
    mixed = {"adv_mix": {"method": "adv_mix"}, "adv_plus_mix": {"method": "adv_plus_mix"}}
    other = {"adv_plus_delta_0.3": {"method": "adv_plus", "delta": 0.3}}
    values = {"methods": ["std", "adv", "adv_plus"], "seeds": [0, 1], "n_resamples": 50}
    values["corruption_images"] = 200
    study = load_study("digits", **values, ablations=mixed | other)
    made_up_run(study, {"adv_plus_mix": 0.2})
    whole = {key: table for key, table, _ in read_tables(study, "fresh")}
    tables = measured.evidence_of(study, whole, read_audit(study, "fresh", "ablations")[0])
    names = {key for key in tables if key[1] in mixed}
    assert names == {(b, m, 0) for b in ("clean", "pgd40") for m in mixed}
    assert not any(method in other for _, method, _ in tables)
    found = measured.compare(study, tables, PAPER)
    clean = verdict_of(found, "clean", "mixed batches")
    assert clean.verdict == claims.ALIKE
    assert verdict_of(found, "mce", "mixed batches").verdict == claims.ABSENT
    mce = found[(found.claim == "mce") & (found.variant == "mixed batches")].absent.item()
    assert "attacked images alone" in mce
    assert not any(method in mixed for _, method, _ in measured.evidence_of(study, whole))


# ---------------------------------------------------------------- what the page says


def test_a_mark_says_the_verdict_the_seeds_and_the_largest_effect_left():
    """Of the intervals over images and over seeds (2.484 SDs of three) the one further out."""
    for claim, seeds, sd, verdict_, expected in (
        ([-0.05], 3, 0.001, claims.HOLDS, "●"),
        ([0.05], 1, np.nan, claims.UNLIKE, "✕¹"),
        ([-0.005], 3, 0.001, claims.OPEN, "○ ≤ 1.5"),  # images: 0.5 and 1.0 points
        ([-0.005], 3, 0.01, claims.OPEN, "○ ≤ 3.0"),  # seeds: 0.5 and 2.484, rounded up
        ([0.0099], 1, np.nan, claims.OPEN, "○¹ ≤ 0.1"),
        ([-0.005] * 2, 1, np.nan, claims.OPEN, "○¹"),  # of which one?
        ([-0.05], 3, 0.001, claims.CEILING, "–"),
    ):
        rows = comparison_rows(claim, n_seeds=seeds, sd=sd)
        assert verdict.mark(rows, verdict_).replace("\u00a0", " ") == expected
    rise = comparison_rows([0.005], sign=1, n_seeds=1)  # a rise is claimed
    assert verdict.at_most(rise) == pytest.approx(0.015)
    assert np.isnan(verdict.at_most(rise.assign(low=np.nan)))


def test_numbers_and_chart_say_what_the_tables_say(study):
    study = dataclasses.replace(study, seeds=[0, 1])
    tables = evidence(study, clean={"adv": 0.6, "adv_plus": 0.2}, pgd40={"adv": 0.9})
    found = measured.compare(study, tables, PAPER)
    judged = claims.verdicts(found)
    shown = verdict.numbers(found, judged)
    assert list(shown.claim.drop_duplicates()) == [
        claim.title
        for name, claim in claims.CLAIMS.items()
        if (judged[judged.claim == name].verdict != claims.ABSENT).any()
    ]
    clean = shown.set_index("claim").loc["Label augmentation lowers the clean error"]
    assert clean.here.startswith("−40.00 [−") and "2\u00a0seeds [−40.00" in clean.here
    assert (clean.paper, clean["share"], clean["raw SD"]) == ("−5.48", "730 %", "–")  # 40 / 5.48

    table = verdict.shares(found, judged)
    assert set(table.variant) == {"adversarial batches"}  # no mixed pair here
    row = table.set_index("claim").loc["Label augmentation lowers the clean error"]
    assert row["share"] == pytest.approx(0.4 / 0.0548)
    # In order, though the paper's figure is below 0; the seeds agree.
    assert row.low < row["share"] < row.high and row.seeds_low == pytest.approx(row.seeds_high)
    robust = table.set_index("claim").loc["Label augmentation lowers the PGD-40 error"]
    # From 0.9 to a clean error of 0.2 are 70 points, of which 40 are closed, in the paper 86 %.
    assert robust["share"] == pytest.approx(40 / 70 * 43.62 / 37.62)
    import vl_convert

    drawn = table.replace({"adversarial batches": "attacked only"}).assign(study="Digits")
    spec = shares_of_the_paper(drawn, (-0.5, 2)).to_dict()
    svg = vl_convert.vegalite_to_svg(spec)
    inside = table["share"].between(-0.5, 2).sum()
    shapes = re.findall(
        r'aria-label="[^"]*" role="graphics-symbol" aria-roledescription="point"', svg
    )
    assert len(shapes) == inside < len(table)
    assert ">7.3 ▸<" in svg and "null" not in svg and "%<" not in svg
    assert "Difference: −40.00 [" in svg and "points" in svg  # not per cent
    few = drawn.assign(seeds_low=np.nan, seeds_high=np.nan)  # of one seed
    few = shares_of_the_paper(few, (-0.5, 2))
    assert "null" not in vl_convert.vegalite_to_svg(few.to_dict())


@pytest.mark.parametrize("effect, sd", [(0.0057, 0.0094), (-0.0057, 0.002), (0.02, 0.03)])
def test_so_many_seeds_show_an_effect_four_times_of_five(effect, sd):
    n = int(verdict.seeds_needed(effect, sd))
    rng = np.random.default_rng(0)
    seen = {}
    for seeds in (n - 1, n):
        drawn = rng.normal(effect, sd, (40_000, seeds))
        low, high = t_interval(drawn.mean(1), drawn.std(1, ddof=1), np.full(40_000, seeds))
        seen[seeds] = np.mean(low > 0 if effect > 0 else high < 0)
    assert seen[n - 1] < verdict.POWER + 0.01 and seen[n] > verdict.POWER - 0.01
    assert verdict.seeds_needed(effect, 1e-9) == 2 and verdict.seeds_needed(1e-9, sd) == np.inf
    assert np.isnan(verdict.seeds_needed(effect, np.nan))


def test_so_many_images_show_an_effect_four_times_of_five():
    """Of images that differ with a probability, by a normal test: worked by hand."""
    half = 1.96 * np.sqrt(0.01 / 1000)  # 1 % of 1,000 pairs differ, either way alike
    row = pd.Series({"low": -half, "high": half, "n_images": 1000})
    by_hand = (1.96 + 0.8416) ** 2 * 0.01 / 0.002**2
    assert verdict.images_needed(0.002, row) == pytest.approx(by_hand, rel=1e-3)


def test_a_claim_that_was_measured_in_part_has_no_numbers(study):
    study = dataclasses.replace(study, methods=["std", "adv"], seeds=[0, 1, 2])
    found = measured.compare(study, evidence(study), PAPER)
    judged = claims.verdicts(found)
    lowest = judged.set_index(["variant", "claim"]).loc["adversarial batches", "std_lowest"]
    assert lowest.verdict == claims.ABSENT
    assert claims.CLAIMS["std_lowest"].title not in set(verdict.numbers(found, judged).claim)


# ---------------------------------------------------------------- several seeds


def test_spread_over_seeds_by_hand():
    rows = pd.DataFrame(
        {"method": list("bbba"), "seed": [0, 1, 2, 0], "value": [0.1, 0.2, 0.6, 0.5]}
    )
    over = over_seeds(rows, ["method"])
    assert over.method.tolist() == ["b", "a"] and over.n_seeds.tolist() == [3, 1]
    assert over["mean"].tolist() == pytest.approx([0.3, 0.5])
    assert over.sd[0] == pytest.approx(np.sqrt(0.07)) and np.isnan(over.sd[1])
    assert (
        with_spread(0.3, over.sd[0]) == "30.00\u00a0±\u00a026.46"
        and with_spread(0.5, np.nan) == "50.00"
    )
    with pytest.raises(ValueError, match="several rows for one seed"):
        over_seeds(pd.concat([rows, rows.tail(1)]), ["method"])


def made_up_run(study, errors=None) -> None:
    """Fresh tables of a study, its ablations included, as its notebooks write them."""
    errors = errors or {}
    images = len(predictions(0.5))
    data = {"train": {"title": "Digits", "fingerprint": "train-images", "images": 9}}
    data |= {"test": {"title": "Digits", "fingerprint": "images", "images": images}}
    names = [str(i) for i in range(CLASSES)]
    (study.runs / "train").mkdir(parents=True)
    record = data | {"class_names": names, "settings": data_settings(study)}
    (study.runs / "data.json").write_text(json.dumps(record))
    measured = predictions(0.5)[["file_name", "label"]]
    for i, name in enumerate(annotations.MEASURES):
        measured[name] = np.random.default_rng(i).random(images)
    measured.to_parquet(study.runs / "measures.parquet")
    for number, (method, seed) in enumerate([*study.method_runs, *study.ablation_runs]):
        log = {"method": method, "seed": seed, "epoch": [1.0], "step": [9], "lr": [0.1]}
        log = pd.DataFrame(log | {"loss": [1.0], "error": [0.5], "images_per_second": [100]})
        log.to_csv(study.runs / "train" / f"{method}-seed{seed}.csv", index=False)
        settings = training_settings(study, method, seed, "train-images", "none")
        facts = {"settings": settings, "data": "images", "split": "test", "data_title": "Digits"}
        facts |= {"checkpoint_hash": "none", "threat": None, "corruptions": None}
        facts |= {"dtype": "torch.float32", "device": "cpu"}
        tables = {
            "clean": predictions(errors.get(method, 0.4), number),
            "pgd40": predictions(0.6, 100 + number),
            "corruptions": corrupted({}, 200 + number),
        }
        for benchmark, table in tables.items():
            own = (
                facts | {"threat": study.threat("pgd40").to_dict()}
                if benchmark == "pgd40"
                else facts
            )
            own = own | {"corruptions": "generated"} if benchmark == "corruptions" else own
            path = study.runs / "predictions" / benchmark / f"{method}-seed{seed}.parquet"
            if method in study.methods or benchmark != "corruptions":
                write_predictions(table, path, **own)


def figure(page, name) -> str:
    """What the one cell of a figure shows, as text."""
    (value,) = page.shown[name]
    return as_text(value)


@pytest.fixture
def two_seeds(tmp_path, monkeypatch):
    """A made-up run with two seeds, and its study file; result tables are looked for beside it."""
    monkeypatch.setattr(results, "ROOT", tmp_path)
    values = {"study": "two_seeds", "dataset": "digits", "model": "cifar_resnet8", "eps": 0.1}
    values |= {"pretrain_epochs": 1, "methods": ["std", "adv", "adv_plus"], "seeds": [0, 1]}
    file = tmp_path / "two_seeds.yaml"
    file.write_text(yaml.safe_dump(values | {"n_resamples": 100, "corruption_images": 200}))
    made_up_run(load_study(file), {"adv_plus": 0.1})
    return file


# An effect of exactly 0, as none is measured: it takes infinitely many images.
@pytest.mark.filterwarnings("ignore:divide by zero encountered:RuntimeWarning")
def test_pages_give_mean_and_sd_over_two_seeds(two_seeds, tmp_path):
    made = tmp_path / "_build/fresh/two_seeds/results"  # where pages by question look for them
    page = run_notebook("study", study=str(two_seeds), output=str(made))
    assert "±" in figure(page, "tab-corruptions") and "±" in figure(page, "tab-errors")

    out = tmp_path / "out"
    page = run_notebook("verdict", studies=[f"{two_seeds}:fresh"], output=str(out))
    grid = figure(page, "tab-verdict")
    assert "two_seeds, your run<br>*attacked only*" in grid
    assert "clean and attacked" not in grid  # not measured here
    assert "[lowers the clean error](costs.ipynb) | −5.48 | ● |" in grid
    (folded,) = page.shown["numbers"]
    behind = as_text(folded)
    assert "The numbers behind the marks" in behind
    assert "−30.00 [−3" in behind and "2\u00a0seeds [−30.00,\u00a0−30.00]" in behind
    table = pd.read_csv(out / "verdict.csv")
    assert len(table) == len(claims.VARIANTS) * len(claims.CLAIMS)


def test_tables_of_a_network_taken_as_it_is_and_of_networks_without_mistakes(tmp_path):
    """Published weights are not trained here; where no image is wrong, no mistake has a group."""
    file = tmp_path / "as_it_is.yaml"
    values = {"study": "as_it_is", "dataset": "digits", "model": "cifar_resnet8", "eps": 0.1}
    values |= {"pretrain_epochs": 1, "methods": ["pretrained", "std"], "corruptions": "none"}
    values |= {"groups": {"small": list("01234"), "large": list("56789")}, "n_resamples": 100}
    file.write_text(yaml.safe_dump(values))
    study = load_study(file)
    made_up_run(study, dict.fromkeys(study.methods, 0.0))
    columns = ["epoch", "step", "lr", "loss", "error", "images_per_second", "method", "seed"]
    trained = [[epoch, epoch, 0.1, 1 / epoch, 0.1, 100, "std", 0] for epoch in (1, 2)]
    for method, rows, how in (
        ("pretrained", [], {}),
        ("std", trained, {"dtype": "torch.float32", "device": "cpu"}),
    ):
        path = study.runs / "train" / f"{method}-seed0.csv"
        pd.DataFrame(rows, columns=columns).to_csv(path, index=False)
        facts = {"how": how, "checkpoint_hash": "none"}
        path.with_suffix(".json").write_text(json.dumps(facts))
    page = run_notebook("study", study=str(file), output=str(tmp_path / "out"))
    shown = figure(page, "tab-groups")
    assert "nan" not in shown and "0.00" in shown
    logs = pd.read_csv(tmp_path / "out/training.csv")
    assert set(logs.method) == {"std"}  # nothing was trained of the other
    kinds = pd.read_csv(tmp_path / "out/groups.csv").set_index(["benchmark", "statistic"]).value
    assert kinds["clean", "error"].eq(0).all()
