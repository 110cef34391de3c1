"""Two-phase sampling: a strong attack on a draw, and intervals that hold the truth."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from advlib import metrics
from advlib.attacks.strong import evaluate_strong
from advlib.attacks.worst_case import evaluate_attack
from advlib.data.sets import load_dataset, stratified_subset
from advlib.metrics import two_phase
from advlib.predictions import check_predictions
from advlib.threat import ThreatModel

THREAT = ThreatModel(eps=0.15)


def drawn_world(errors, falls, sizes, drawn, generator):
    """Images of classes under a cheap attack of these errors, and a strong one on a draw."""
    tables, whole = [], []
    for label, (error, fall, n) in enumerate(zip(errors, falls, sizes, strict=True)):
        standing = generator.binomial(n, 1 - error)
        broken = np.arange(n) >= standing  # by the cheap attack
        falling = (generator.random(n) < fall) & ~broken
        chosen = np.isin(np.arange(n), generator.permutation(standing)[:drawn])
        by = np.where(broken, "cheap", np.where(falling & chosen, "apgd_ce", ""))
        tables.append(pd.DataFrame({"label": label, "broken_by": by, "drawn": chosen}))
        whole.append((broken | falling).mean())
    return pd.concat(tables, ignore_index=True), np.array(whole)


@pytest.mark.parametrize("classes, n, drawn", [(10, 1000, 30), (100, 100, 5)])
def test_two_phase_intervals_hold_the_truth(classes, n, drawn):
    generator = np.random.default_rng(0)
    errors, falls = np.linspace(0.3, 0.8, classes), np.linspace(0.15, 0.03, classes)
    truth = errors + (1 - errors) * falls
    wanted = {"error": truth.mean(), "sd_noise_corrected": truth.std(), "worst": truth.max()}
    wanted["gap"] = truth.max() - truth.min()
    held, values, repeats = dict.fromkeys([*wanted, "class", "drawn", "overall"], 0), [], 30
    for _ in range(repeats):
        table, whole = drawn_world(errors, falls, [n] * classes, drawn, generator)
        _, found, statistics = two_phase(table, n_resamples=300)
        rows = statistics.set_index("statistic")
        for name, value in wanted.items():
            held[name] += rows.low[name] <= value <= rows.high[name]
        held["class"] += ((found.low <= truth) & (truth <= found.high)).mean()
        held["drawn"] += ((found.low_drawn <= whole) & (whole <= found.high_drawn)).mean()
        row = rows.loc["error"]
        held["overall"] += row.low_drawn <= whole.mean() <= row.high_drawn
        values.append(row.value)
    assert min(held.values()) >= 0.85 * repeats, held  # 26 of 30
    assert 0.92 < held["class"] / repeats < 0.99 and 0.92 < held["drawn"] / repeats < 0.99, held
    assert np.mean(values) == pytest.approx(truth.mean(), abs=4 * np.std(values) / repeats**0.5)


def test_two_phase_with_all_drawn_is_the_plain_figure():
    table, whole = drawn_world(
        [0.2, 0.5, 1.0, 0.3], [0.1] * 4, [50, 80, 30, 1], 80, np.random.default_rng(1)
    )
    plain = table.assign(file_name=table.index, predicted_class=table.label)
    plain["predicted_class"] += table.broken_by != ""
    _, classes, statistics = two_phase(table)
    columns = ["label", "n_images", "error", "low", "high"]
    pd.testing.assert_frame_equal(classes[columns], metrics.class_error(plain)[columns])
    for end in ("low_drawn", "high_drawn"):
        assert (classes[end] == classes.error).all()
    assert classes.error.to_numpy() == pytest.approx(whole)
    wanted = metrics.summarise(plain.iloc[:-1])
    found = two_phase(table.iloc[:-1]).statistics
    assert found.value.to_numpy() == pytest.approx(wanted.value.to_numpy())
    ends = found.set_index("statistic").loc["sd_noise_corrected", ["low", "high"]].tolist()
    plain_ends = wanted.set_index("statistic").loc["sd_noise_corrected", ["low", "high"]]
    assert ends == pytest.approx(plain_ends.tolist(), abs=0.03)
    # Where nothing stands, nothing says how far the spread may be off.
    fallen = two_phase(table.assign(broken_by="cheap", drawn=False)).statistics
    fallen = fallen.set_index("statistic")
    assert fallen.low[["sd", "sd_noise_corrected", "cv", "sd_normalised"]].isna().all()
    assert 0 < fallen.low["worst"] < 1
    few = table.assign(drawn=table.drawn & (table.index == 0))
    with pytest.raises(ValueError, match="class 0, 1 of .. standing images were drawn"):
        two_phase(few)


def test_a_draw_agrees_with_autoattack_on_all(digit_networks):
    """All 500 test digits, of which PGD of five steps leaves some 360."""
    images, threat = load_dataset("digits", "test"), dataclasses.replace(THREAT, steps=5)
    known = {"num_classes": 10, "steps": 10, "targets": 2, "queries": 50}
    known["components"] = ["apgd_ce", "apgd_t", "square"]
    model = digit_networks["adv"]
    whole = evaluate_strong(model, images, threat, sample=1000, **known)
    assert (whole.classes.drawn == whole.classes.standing).all()
    assert 5 < whole.classes.broken.sum() < 100
    plain = whole.table.label != whole.table.predicted_class
    assert (plain == (whole.table.broken_by != "")).all()
    check_predictions(whole.table, num_classes=10, n_images=500)

    drawn = evaluate_strong(model, images, threat, sample=12, **known)
    assert (drawn.classes.drawn == np.minimum(12, whole.classes.standing)).all()
    met = drawn.table.drawn  # of each the same verdict, bar rounding
    assert ((drawn.table.broken_by != whole.table.broken_by) & met).sum() <= 1
    inside = drawn.classes.low_drawn <= whole.classes.error + 1e-9
    inside &= whole.classes.error <= drawn.classes.high_drawn + 1e-9
    assert inside.sum() >= 9
    error = drawn.statistics.iloc[0]
    assert error.low_drawn <= plain.mean() <= error.high_drawn

    cheap = evaluate_attack(model, images, threat, num_classes=10)
    wanted = {"error": 0.02, "class": 0.12}
    planned = evaluate_strong(model, images, threat, sample=wanted, cheap=cheap, **known)
    error, classes = planned.statistics.iloc[0], planned.classes
    assert error.high_drawn - error.value <= 0.02 and error.value - error.low_drawn <= 0.02
    assert (classes.high_drawn - classes.error).max() <= 0.12
    assert (classes.error - classes.low_drawn).max() <= 0.12
    assert classes.drawn.sum() < 0.8 * classes.standing.sum()
    with pytest.raises(ValueError, match="cheap table holds other images"):
        evaluate_strong(model, images, threat, sample=2, cheap=cheap[::-1], **known)


def test_a_cheap_table_of_other_images_is_refused(digit_networks, digit_images):
    pairs = list(zip(digit_images.pixels / 255, digit_images.labels, strict=True))
    how = {"num_classes": 10, "sample": 2, "components": ["square"], "queries": 1}
    cheap = evaluate_attack(digit_networks["adv"], pairs, ThreatModel(eps=0.01), num_classes=10)
    with pytest.raises(ValueError, match="the cheap table holds other images"):
        evaluate_strong(
            digit_networks["adv"], pairs[::-1], ThreatModel(eps=0.01), cheap=cheap, **how
        )


def test_a_stopped_draw_goes_on(digit_networks, tmp_path):
    known = {"num_classes": 10, "steps": 5, "components": ["apgd_ce", "square"], "queries": 20}
    known |= {"sample": {"error": 0.01}, "state": tmp_path / "kept"}
    images = stratified_subset(load_dataset("digits", "test"), 300)
    what = digit_networks["adv"], images, THREAT
    done = []

    def stopped(component, n):
        done.append(n)
        if len(done) == 3:  # in the second round
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate_strong(*what, progress=stopped, **known)
    later = []
    found = evaluate_strong(*what, progress=lambda component, n: later.append(n), **known)
    whole = evaluate_strong(*what, **known | {"state": None})
    pd.testing.assert_frame_equal(found.table, whole.table)
    repeated = []
    evaluate_strong(*what, progress=lambda component, n: repeated.append(n), **known)
    assert not repeated and len(later) >= 1
    with pytest.raises(ValueError, match="state of another run .other seed"):
        evaluate_strong(*what, seed=1, **known)


@pytest.mark.parametrize("sample", [1, {}, {"error": 0}, {"classes": 0.1}])
def test_a_sample_that_cannot_be_meant(digit_networks, digit_images, sample):
    with pytest.raises(ValueError, match="sample of a class|half-widths"):
        evaluate_strong(digit_networks["adv"], digit_images, THREAT, num_classes=10, sample=sample)
