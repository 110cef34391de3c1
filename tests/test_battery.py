"""The battery on real digits: what it must find, and whom it must leave alone."""

import dataclasses
import functools
import json
import shutil
import sys

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from torch import nn

from advbook.audit import battery as battery_module
from advbook.audit import battery_errors, predictions
from advbook.audit import battery_tests as battery_verdicts
from advbook.audit.battery import STRENGTHS, battery, battery_conditions
from advbook.audit.predictions import battery_predictions
from advbook.build.pages import outdated
from advbook.charts.audit import error_against
from advbook.studies import evaluate as evaluation
from advbook.studies.identity import data_settings, training_settings
from advbook.studies.results import Shown
from advbook.studies.runs import read_run, train_method
from advbook.studies.schema import ROOT, load_study
from advlib import metrics
from advlib.attacks import strong
from advlib.attacks.autoattack import COMPONENTS as AUTOATTACK
from advlib.attacks.autoattack import autoattack
from advlib.data.sets import load_dataset, stratified_subset
from advlib.importing import read_predictions
from advlib.predictions import read_facts, write_predictions
from advlib.threat import ThreatModel
from conftest import as_text, marks, run_notebook

THREAT = ThreatModel(eps=0.15, steps=40)


class Quantise(nn.Module):
    """Five grey levels: the gradient of rounding is zero everywhere."""

    def forward(self, x):
        return torch.round(4 * x) / 4


class QuantiseToBytes(nn.Module):
    """The same by way of whole numbers, which carry no gradient at all."""

    def forward(self, x):
        return (4 * x + 0.5).byte().float() / 4


class Scale(nn.Module):
    """Logits so large that the softmax saturates, and the cross-entropy's gradient vanishes."""

    def forward(self, x):
        return 10_000 * x


def judged(model, images, networks=None, queries=100):
    """With fewer steps, draws and queries than a first look: what these find is not at stake."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(battery_module, "STEPS", (1, 100))
        patch.setattr(battery_module, "NOISE_DRAWS", 10)
        patch.setitem(STRENGTHS, "quick", {"steps": 20, "targets": 3, "queries": queries})
        table, facts = battery(
            model, images, THREAT, num_classes=10, sources=networks, strength="quick"
        )
    found = battery_verdicts.battery_verdicts(table, facts)
    return found.set_index("test"), battery_verdicts.overall(found), table, facts


@pytest.fixture(scope="module")
def adv(digit_networks):
    """The robust network on 450 test digits: with fewer than 446 the battery cannot acquit."""
    enough = stratified_subset(load_dataset("digits", "test"), 450)
    return judged(digit_networks["adv"], enough, {"std": digit_networks["std"]})


@pytest.fixture
def few_images(digit_images):
    """Fifty test digits: enough to see that a network hides its gradient."""
    return stratified_subset(digit_images, 50)


def test_an_honest_network_does_not_alarm(adv):
    found, verdict, table, facts = adv
    assert not (found.verdict == battery_verdicts.ALARMING).any(), found.measured.tolist()
    assert not (found.verdict == battery_verdicts.NOT_RUN).any()
    assert not (found.verdict == battery_verdicts.TOO_FEW).any()
    assert verdict in (battery_verdicts.EXPECTED, battery_verdicts.LOOK)
    broken = battery_verdicts.broken_images(table)
    assert 0.1 < broken.pgd40.mean() < 0.8  # else the test would say nothing


def test_a_standard_network_is_not_robust_but_does_not_alarm(digit_networks, digit_images):
    sources = {"adv": digit_networks["adv"]}
    found, verdict, table, _ = judged(digit_networks["std"], digit_images, sources)
    assert not (found.verdict == battery_verdicts.ALARMING).any(), found.measured.tolist()
    assert verdict == battery_verdicts.TOO_FEW  # a hundred images do not acquit
    assert battery_verdicts.broken_images(table).pgd40.mean() > 0.7


@pytest.mark.parametrize("layer", [Quantise(), QuantiseToBytes()])
def test_a_quantising_layer_alarms(digit_networks, few_images, layer):
    masked = nn.Sequential(layer, *digit_networks["adv"])
    found, verdict, _, _ = judged(masked, few_images, {"adv": digit_networks["adv"]})
    assert verdict == battery_verdicts.ALARMING
    assert found.verdict["gradients"] == battery_verdicts.ALARMING
    assert found.verdict["eps_unbounded"] == battery_verdicts.ALARMING


def test_saturated_logits_alarm(digit_networks, few_images):
    masked = nn.Sequential(*digit_networks["adv"], Scale())
    found, verdict, _, _ = judged(masked, few_images)
    assert verdict == battery_verdicts.ALARMING
    assert found.verdict["gradients"] == battery_verdicts.ALARMING
    assert found.verdict["losses"] == battery_verdicts.ALARMING
    assert found.verdict["autoattack"] == battery_verdicts.ALARMING
    assert found.verdict["transfer"] == battery_verdicts.NOT_RUN  # no other network was given


def test_the_conditions_are_what_their_names_say():
    conditions = battery_conditions(THREAT, 10)
    assert {t.norm for t in conditions.values()} == {"Linf"}
    radii = sorted({t.eps for t in conditions.values()})
    np.testing.assert_allclose(radii, [0, 0.0375, 0.075, 0.15, 0.3, 0.6, 1.0])
    assert conditions["pgd40"] == THREAT
    assert conditions["steps_100"] == dataclasses.replace(THREAT, steps=100)
    assert conditions["fgsm"].step == 0.15 and not conditions["fgsm"].random_start
    assert conditions["noise"].n_restarts == 100 and conditions["noise"].step < 1e-6
    assert "loss_dlr" not in battery_conditions(THREAT, 2)
    far = battery_conditions(ThreatModel(norm="L2", eps=2.0), 10, largest=8.0)
    assert max(t.eps for t in far.values()) == 8.0


def test_every_condition_keeps_its_radius(adv):
    _, _, table, facts = adv
    radii = {name: threat["eps"] for name, threat in facts["conditions"].items()}
    largest = table.groupby("attack").linf.max()
    for name, linf in largest.items():
        assert linf <= radii.get(name, 0.15) + 1e-6
    assert largest["noise"] > 0.14  # drawn in the whole ball
    assert set(AUTOATTACK) < set(largest.index)


def test_autoattack_keeps_the_worst_case(adv):
    broken = battery_verdicts.broken_images(adv[2])
    for before, after in zip(("clean", *AUTOATTACK), AUTOATTACK, strict=False):
        assert (broken[after] | ~broken[before]).all()
    assert abs(broken.square.mean() - broken.pgd40.mean()) < 0.1


def shorter(attack):
    """The attack in 2 steps at most: what is asked for is kept, and here that is what counts."""

    def wrapped(model, images, *given, **options):
        *labels, threat = given  # `pgd_attack` is given these too
        threat = dataclasses.replace(threat, steps=min(threat.steps, 2))
        return attack(model, images, *labels, threat, **options)

    return wrapped


@pytest.fixture
def short(monkeypatch):
    """Few steps, draws and queries, for what does not depend on what the attacks find."""
    for name in ("evaluate_attack", "pgd_attack"):
        monkeypatch.setattr(battery_module, name, shorter(getattr(battery_module, name)))
    monkeypatch.setattr(battery_module, "STEPS", (1, 2))
    monkeypatch.setattr(battery_module, "NOISE_DRAWS", 2)
    monkeypatch.setitem(STRENGTHS, "quick", {"steps": 3, "targets": 2, "queries": 10})


@pytest.mark.parametrize("change", [{"eps_space": "normalized"}, {"label_source": "predicted"}])
def test_other_threat_models_are_refused(digit_networks, digit_images, change):
    with pytest.raises(ValueError, match=next(iter(change))):
        battery(
            digit_networks["adv"],
            digit_images,
            dataclasses.replace(THREAT, **change),
            num_classes=10,
        )


def test_a_killed_battery_goes_on(digit_networks, digit_images, tmp_path, short):
    few = stratified_subset(digit_images, 20)
    done = []

    def killed(name):
        done.append(name)
        if name == "noise":
            raise KeyboardInterrupt

    options = {"num_classes": 10, "strength": "quick"}
    with pytest.raises(KeyboardInterrupt):
        battery(digit_networks["adv"], few, THREAT, **options, folder=tmp_path, progress=killed)
    written = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.parquet")}
    assert {path.stem for path in written} == set(done)
    table, _ = battery(digit_networks["adv"], few, THREAT, **options, folder=tmp_path)
    assert all(path.stat().st_mtime_ns == time for path, time in written.items())
    whole, _ = battery(digit_networks["adv"], few, THREAT, **options)
    pd.testing.assert_frame_equal(table, whole, check_dtype=False)


@pytest.mark.parametrize("count, n", [(0, 500), (3, 500), (500, 500), (7, 10)])
def test_intervals_are_exact(count, n):
    low, high = battery_verdicts.interval(count, n)
    wanted = stats.binomtest(count, n).proportion_ci(method="exact")
    assert (low, high) == pytest.approx((wanted.low, wanted.high))


def made_up(n=500, **broken):
    """A table in which PGD breaks the first 200 images, and each condition those given."""
    conditions = {"clean": 50, "pgd40": 200, "steps_100": 200, "fgsm": 150, "noise": 60}
    conditions |= {"restarts_5": 203, "loss_margin": 212, "eps_0.2": 400, "eps_1": n}
    conditions |= {"apgd_ce": 205, "apgd_t": 218, "fab_t": 218, "square": 218} | broken
    rows = []
    for name, count in conditions.items():
        images = range(count) if isinstance(count, int) else count
        wrong = np.isin(np.arange(n), list(images)).astype(int)
        rows.append(pd.DataFrame({"file_name": np.arange(n), "label": 0, "predicted_class": wrong}))
        rows[-1]["attack"] = name
    radii = {"clean": 0, "pgd40": 0.1, "eps_0.2": 0.2, "eps_1": 1.0}
    facts = {
        "conditions": {n: {"eps": radii.get(n, 0.1), "steps": 100} for n in conditions},
        "zero_gradients": {"cross_entropy, image": []},
        **{"logits_change": 0.0, "predictions_change": 0, "outputs": "logits"},
    }
    return pd.concat(rows, ignore_index=True), facts


def verdict_of(test, facts=(), **broken):
    table, known = made_up(**broken)
    return battery_verdicts.battery_verdicts(table, known | dict(facts)).set_index("test").loc[test]


@pytest.mark.parametrize(
    "test, condition, expected, look, alarming",
    [
        # Images that fall though PGD breaks the first 200; 500 in all, so 0.2 points are one.
        ("iterative", "fgsm", 203, 210, 220),
        ("noise", "noise", 203, 210, 220),
        ("square", "square", 221, 228, 240),
        ("steps", "steps_100", 205, 220, 240),
        ("restarts", "restarts_5", 205, 220, 240),
        ("losses", "loss_margin", 225, 245, 270),
        ("autoattack", "square", 225, 245, 270),
        ("eps_unbounded", "eps_1", 495, 480, 460),
    ],
)
def test_verdicts_follow_the_thresholds(test, condition, expected, look, alarming):
    for count, wanted in zip((expected, look, alarming), battery_verdicts.VERDICTS, strict=False):
        assert verdict_of(test, **{condition: count}).verdict == wanted, count


def test_differences_are_counted_image_by_image():
    """Noise breaks fewer images than PGD, but others: the errors alone would not show it."""
    found = verdict_of("noise", noise=range(180, 300))
    assert found["count"] == 100 and found.verdict == battery_verdicts.ALARMING


def test_networks_are_compared_image_by_image():
    """Ten images more under PGD-40, forty fewer under AutoAttack: paired, so that they are known
    to a point, where either error is known to four."""
    ends = {"adv": made_up()[0], "adv_plus": made_up(pgd40=210, square=178)[0]}
    ends = [part.assign(method=method) for method, part in ends.items()]
    table = pd.concat([ends[0], ends[1].iloc[::-1]], ignore_index=True)
    found = battery_errors.change_rows(table, "adv", "adv_plus", 400).set_index("condition")
    assert found.value.to_dict() == pytest.approx({"pgd40": 0.02, "square": -0.08})
    assert 0.005 < found.low["pgd40"] < 0.02 < found.high["pgd40"] < 0.035
    plain = table[table.attack != "square"]
    assert len(battery_errors.change_rows(plain, "adv", "adv_plus", 50)) == 1


def test_clean_mistakes_are_no_difference():
    """The clean mistakes (the first 50) count as broken where an attack repairs them."""
    found = verdict_of("iterative", pgd40=range(10, 200))
    assert found["count"] == 0


def test_a_few_images_never_alarm():
    table, facts = made_up(n=20, clean=0, pgd40=2, noise=6, eps_1=20)
    assert battery_verdicts.interval(4, 20)[0] > 0.02
    found = battery_verdicts.battery_verdicts(table, facts).set_index("test")
    assert found.verdict["noise"] == battery_verdicts.LOOK


FOUND_OF_20 = {"clean": 2, "fgsm": 6, "noise": 3, "eps_0.2": 15, "eps_1": 20}
FOUND_OF_20 |= dict.fromkeys(["pgd40", "steps_100", "restarts_5", "loss_margin", "apgd_ce"], 8)
FOUND_OF_20 |= {"apgd_t": 10, "fab_t": 10, "square": 11}


def test_too_few_images_do_not_acquit():
    """AutoAttack breaks 11 of 20 images where PGD breaks 8: that may be anything."""
    table, facts = made_up(n=20, **FOUND_OF_20)
    found = battery_verdicts.battery_verdicts(table, facts)
    assert (found[found.high > found.threshold].verdict == battery_verdicts.TOO_FEW).all()
    by_test = found.set_index("test").verdict
    assert by_test["autoattack"] == by_test["noise"] == battery_verdicts.TOO_FEW
    assert battery_verdicts.overall(found) == battery_verdicts.TOO_FEW
    # What is clear with few images is said all the same.
    table, facts = made_up(n=20, **FOUND_OF_20 | {"noise": 20})
    found = battery_verdicts.battery_verdicts(table, facts)
    assert found.set_index("test").verdict["noise"] == battery_verdicts.ALARMING
    assert battery_verdicts.overall(found) == battery_verdicts.ALARMING


def test_five_hundred_images_acquit():
    table, facts = made_up()
    found = battery_verdicts.battery_verdicts(table, facts)
    assert battery_verdicts.overall(found) == battery_verdicts.EXPECTED
    # One way of finding none to five of 500 for each of the thresholds.
    for test, condition in (("noise", "noise"), ("steps", "steps_100"), ("losses", "loss_margin")):
        for count in range(6):
            verdict = verdict_of(test, **{condition: 200 + count}).verdict
            look = test == "noise" and count >= 4
            assert verdict == (battery_verdicts.LOOK if look else battery_verdicts.EXPECTED)


def test_from_enough_images_on_every_count_decides():
    counted = battery_verdicts.WEAKER, battery_verdicts.MORE, battery_verdicts.OTHER
    counted += ({"tolerance": 0, "alarm": battery_verdicts.TESTS["gradients"].alarm},)

    def undecided(n):
        intervals = [battery_verdicts.interval(count, n) for count in range(n // 10 + 1)]
        return any(
            low <= sizes["tolerance"] and high > sizes["alarm"]
            for sizes in counted
            for low, high in intervals
        )

    enough = 446
    assert undecided(enough - 1)
    assert not any(undecided(n) for n in (enough, 450, 475, 500, 600, 1000, 2000))


def test_flags_of_the_forward_pass():
    assert verdict_of("deterministic", {"logits_change": 9e-5}).verdict == battery_verdicts.EXPECTED
    for change in (2e-4, float("nan")):
        flagged = verdict_of("deterministic", {"logits_change": change})
        assert flagged.verdict == battery_verdicts.ALARMING
    probabilities = {"outputs": "probabilities"}
    assert verdict_of("logits", probabilities).verdict == battery_verdicts.ALARMING
    # Where PGD breaks everything there is nothing left to doubt.
    assert verdict_of("logits", probabilities, pgd40=500).verdict == battery_verdicts.LOOK
    few = verdict_of("logits", probabilities, n=20, **FOUND_OF_20 | {"pgd40": 16})
    assert few.verdict == battery_verdicts.LOOK


def test_zero_gradients_count_where_pgd_leaves_the_image():
    broken = {"zero_gradients": {"dlr, start": list(range(200))}}
    assert verdict_of("gradients", broken).verdict == battery_verdicts.EXPECTED
    one = {"zero_gradients": {"dlr, start": [200], "cross_entropy, image": [200]}}
    found = verdict_of("gradients", one)
    assert (found.verdict, found["count"]) == (battery_verdicts.LOOK, 1)
    many = {"zero_gradients": {"cross_entropy, image": list(range(200, 230))}}
    assert verdict_of("gradients", many).verdict == battery_verdicts.ALARMING


def test_a_part_of_the_battery_cannot_acquit():
    table, facts = made_up()
    part = battery_verdicts.battery_verdicts(table[~table.attack.isin(AUTOATTACK)], facts)
    assert battery_verdicts.overall(part) == battery_verdicts.NOT_RUN
    alarmed = table[~table.attack.isin(AUTOATTACK)].copy()
    alarmed.loc[alarmed.attack == "noise", "predicted_class"] = 1
    part = battery_verdicts.battery_verdicts(alarmed, facts)
    assert battery_verdicts.overall(part) == battery_verdicts.ALARMING


def test_our_own_thresholds_are_said_to_be_ours():
    """AutoAttack gives both sizes of the flags, and where it warns for Square and gradients."""
    for name, test in battery_verdicts.TESTS.items():
        theirs = {"deterministic": "", "logits": "", "square": "alarm ours"}
        wanted = (theirs | {"gradients": "alarm ours"}).get(name, "both sizes ours")
        assert wanted in test.source and ("ours" in test.source) == bool(wanted), name


def test_charts_hold_what_the_table_says(adv):
    _, _, table, facts = adv
    errors = battery_errors.attack_errors(table).assign(method="Adv")
    radii = {name: threat["eps"] for name, threat in facts["conditions"].items()}
    against = errors[errors.attack.isin(battery_verdicts.radii(facts))]
    against = against.assign(eps=against.attack.map(radii)).sort_values("eps")
    spec = error_against(against, "eps", "ε", marked=0.15).to_dict()
    (rows,) = spec["datasets"].values()
    assert [row["eps"] for row in rows] == pytest.approx([0, 0.0375, 0.075, 0.15, 0.3, 0.6, 1])
    values = [row["value"] for row in rows]
    assert values == sorted(values) and values[-1] == 1


@pytest.fixture(scope="module")
def networks(tiny_study, tmp_path_factory):
    """The folder of the runs of three trained networks."""
    folder = tmp_path_factory.mktemp("networks")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADVLIB_RUNS", str(folder))
        for method in ("pretrained", "std", "adv"):
            train_method(tiny_study, method, 0)
    return folder


@pytest.fixture
def trained(networks, tiny_study):
    """A study whose runs are a copy of them."""
    shutil.copytree(networks, tiny_study.runs.parent)
    return tiny_study


def test_the_battery_of_a_study_gives_the_table_that_the_chapter_reads(trained, short):
    study = dataclasses.replace(trained, methods=["pretrained", "std"], battery_images=20)
    path = battery_predictions(study, "std", 0, strength="quick")
    table, facts = read_predictions(path), read_facts(path)
    assert path == study.runs / "audit/battery/std-seed0.parquet"
    assert facts["n_images"] == facts["subset"] == 20
    assert facts["threat"] == study.threat("pgd40").to_dict()
    found = battery_verdicts.battery_verdicts(table, facts).set_index("test")
    assert found.verdict["transfer"] != battery_verdicts.NOT_RUN
    with pytest.raises(FileNotFoundError, match="not trained yet"):
        battery_predictions(dataclasses.replace(study, methods=["std", "adv_plus"]), "std", 0)


def test_what_is_kept_is_made_anew_where_it_would_differ(trained, monkeypatch, short):
    study = dataclasses.replace(trained, methods=["pretrained", "std"], battery_images=10)
    made = []

    def evaluate(study):
        """How many conditions are computed, not read."""
        made.clear()
        battery_predictions(study, "std", 0, strength="quick")
        return len(made)

    def keep(path, make, names):
        made.extend([] if path.is_file() else [path])
        return kept(path, make, names)

    kept = battery_module.kept
    monkeypatch.setattr(battery_module, "kept", keep)
    every = evaluate(study)
    assert every > 10 and evaluate(study) == 0
    # One more method is one more source.
    study = dataclasses.replace(study, methods=["pretrained", "std", "adv"])
    assert evaluate(study) == every + 1
    # And another checkpoint under a source's name is another source.
    hashes = {"pretrained": "0123456789abcdef"}

    def read_other_run(study, method, seed):
        run = read_run(study, method, seed)
        return run | {"checkpoint_hash": hashes.get(method, run["checkpoint_hash"])}

    monkeypatch.setattr(predictions, "read_run", read_other_run)
    assert evaluate(study) == every + 1
    # AutoAttack's settings decide what it finds.
    monkeypatch.setitem(STRENGTHS, "quick", STRENGTHS["quick"] | {"queries": 20})
    assert evaluate(study) == every + 1 and evaluate(study) == 0


@pytest.fixture
def asks(trained, monkeypatch):
    """A study that asks for AutoAttack on a draw, a short one here."""
    short = {"steps": 3, "targets": 2, "queries": 10}
    whole = functools.partial(evaluation.evaluate_strong, **short)
    monkeypatch.setattr(evaluation, "evaluate_strong", whole)
    monkeypatch.setattr(strong, "FIRST", 20)  # two of a class
    return dataclasses.replace(trained, methods=["pretrained", "adv"], autoattack_width=0.2)


def test_a_study_under_autoattack_on_a_draw(asks, monkeypatch, tmp_path):
    """Its table is read again with the draw, from Parquet and from CSV, and PGD-40 is not rerun."""
    study = asks
    path = evaluation.strong_predictions(study, "adv", 0)
    table, facts = read_predictions(path), read_facts(path)
    assert path == study.runs / "audit/autoattack/adv-seed0.parquet" and facts["width"] == 0.2
    pgd40 = read_predictions(study.runs / "predictions/pgd40/adv-seed0.parquet")
    by_name = table.set_index("file_name").loc[pgd40.file_name.tolist()]
    broken = (pgd40.label != pgd40.predicted_class).to_numpy()
    assert ((by_name.broken_by == "cheap").to_numpy() == broken).all()
    found = metrics.two_phase(table)
    error = found.statistics.iloc[0]
    assert error.high_drawn - error.value <= 0.2 and error.value - error.low_drawn <= 0.2
    assert found.classes.drawn.sum() < found.classes.standing.sum()

    table.to_csv(tmp_path / "drawn.csv", index=False)
    again = metrics.two_phase(read_predictions(tmp_path / "drawn.csv"))
    pd.testing.assert_frame_equal(again.classes, found.classes, check_dtype=False)

    monkeypatch.setattr(evaluation, "evaluate_attack", None)
    shutil.rmtree(study.runs / "parts")
    evaluation.strong_predictions(study, "adv", 0)
    assert read_predictions(path).equals(table)
    with pytest.raises(ValueError, match="digits asks for no AutoAttack: set autoattack_width"):
        evaluation.strong_predictions(dataclasses.replace(study, autoattack_width=None), "adv", 0)


def test_every_image_beside_the_draw(asks, monkeypatch, tmp_path, capsys):
    """What `benchmarks/every_image.py` writes: an image fares the same in the draw and in all."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import every_image

    short = {"steps": 3, "targets": 2, "queries": 10}
    monkeypatch.setattr(every_image, "autoattack", functools.partial(autoattack, **short))
    file = tmp_path / "digits.yaml"
    file.write_text(json.dumps(asks.to_dict()))
    command = ["every_image.py", "--study", str(file), "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", command)
    every_image.main()
    spent = pd.read_csv(tmp_path / "every_image.csv").set_index(["sample", "component"])
    found = read_predictions(tmp_path / "every_image.parquet").set_index("file_name").broken_by
    draw = read_predictions(asks.runs / "audit/autoattack/adv-seed0.parquet").set_index("file_name")
    draw = draw[draw.drawn]
    assert spent.attacked["draw", "apgd_ce"] == len(draw) < spent.attacked["every image", "apgd_ce"]
    assert ((found[draw.index] == "") != (draw.broken_by == "")).sum() <= 1  # rounding
    assert spent.attacked["every image", "apgd_ce"] == (found != "clean").sum()
    capsys.readouterr()
    every_image.main()  # all of it is there
    assert not capsys.readouterr().out
    assert len(pd.read_csv(tmp_path / "every_image.csv")) == len(spent)


def test_pages_show_autoattack_beside_pgd40(asks, tmp_path):
    """The tables of a study's page, and the chart of *Is the robustness real?* drawn from them."""
    for method in asks.methods:
        facts = read_facts(evaluation.strong_predictions(asks, method, 0))
    of_images = {"fingerprint": facts["data"], "images": 100, "title": "Digits"}
    data = {"train": {"fingerprint": facts["settings"]["data"]}, "test": of_images}
    data |= {"class_names": list("0123456789"), "settings": data_settings(asks)}
    (asks.runs / "data.json").write_text(json.dumps(data))
    file = tmp_path / "digits.yaml"
    file.write_text(json.dumps(asks.to_dict()))
    made = tmp_path / "results"
    run_notebook("study", study=str(file), parts=["autoattack"], output=str(made))
    rows = pd.read_csv(made / "autoattack.csv", dtype={"group": str})
    assert (rows.n_images[rows.group != "all classes"] == 10).all()
    errors = rows[rows.statistic == "error"]
    for method, own in errors.groupby("method"):
        pgd40 = read_predictions(asks.runs / f"predictions/pgd40/{method}-seed0.parquet")
        value = own.pivot(index="group", columns="condition", values="value")
        known = [*metrics.class_error(pgd40).error, metrics.error(pgd40)]  # "all classes" is last
        assert value.pgd40.tolist() == pytest.approx(known)
        assert (value.autoattack >= value.pgd40 - 1e-9).all()

    cells = nbformat.read(ROOT / "notebooks/robust.ipynb", as_version=4).cells
    page, chart = {}, []
    exec(cells[2].source.split("_, own =")[0], page)  # imports
    page |= {"display": chart.append, "of_interest": lambda table: table}
    page["shown"] = {"mine": Shown(asks, "fresh", "Mine", made)}
    exec(next(cell.source for cell in cells if cell.id == "strong"), page)
    (drawn,) = chart[0].to_dict()["datasets"].values()
    assert {row["network"] for row in drawn} == {"Mine: Pretrained", "Mine: Adv"}
    assert marks(chart[0]).count('aria-roledescription="point"') == len(drawn) == 2 * 2 * 11
    exec(next(cell.source for cell in cells if cell.id == "strong-all"), page)
    keys = ["method", "group", "condition", "statistic"]
    error = rows.set_index(keys).value["adv"]["all classes"]
    shown = [f"{100 * error[attack, 'error']:.1f}" for attack in ("pgd40", "autoattack")]
    said = next(row for row in as_text(chart[1]).split("<tr") if "Mine: Adv, seed 0" in row)
    assert f"{shown[0]} → {shown[1]} [" in said


def test_the_study_says_how_many_images_are_attacked_at_once(trained, monkeypatch, short):
    study = dataclasses.replace(trained, methods=["pretrained", "std"], battery_images=10)
    sizes = set()

    def spy(function):
        def wrapped(*arguments, **options):
            sizes.add(options["batch_size"])
            return function(*arguments, **options)

        return wrapped

    for name in ("evaluate_attack", "evaluation_batches", "autoattack"):
        monkeypatch.setattr(battery_module, name, spy(getattr(battery_module, name)))
    path = battery_predictions(
        dataclasses.replace(study, eval_batch_size=7), "std", 0, strength="quick"
    )
    assert read_facts(path)["batch_size"] == 7 and sizes == {2, 7}  # two: a look at the images
    sizes.clear()
    path = battery_predictions(study, "std", 0, strength="quick")
    assert read_facts(path)["batch_size"] == 128 and sizes == {2, 128}


def test_the_tables_of_a_battery_with_few_images_and_few_classes(tmp_path):
    """What was not run, or has too few images to tell, says so; the errors name their images."""
    file = tmp_path / "mine.yaml"
    settings = {"study": "mine", "dataset": "digits", "model": "cifar_resnet8"}
    settings |= {"methods": ["std", "adv"], "pretrain_epochs": 1}
    file.write_text(json.dumps(settings))  # JSON is YAML
    study = load_study(file)
    data = {"train": {"fingerprint": "train"}, "test": {"fingerprint": "x", "images": 100}}
    data |= {"class_names": ["a", "b", "c"], "settings": data_settings(study)}
    study.runs.mkdir(parents=True)
    (study.runs / "data.json").write_text(json.dumps(data))
    found = {"clean": 5, "fgsm": 10, "noise": 6, "eps_0.2": 40, "eps_1": 60, "apgd_ce": 20}
    found |= dict.fromkeys(["pgd40", "steps_100", "restarts_5", "loss_margin"], 20)
    table, facts = made_up(n=60, **found | {"fab_t": 21, "square": 21})
    table = table[table.attack != "apgd_t"].astype({"file_name": str})
    table["predicted_probability"] = 0.5
    settings = STRENGTHS["quick"] | {"components": ["apgd_ce", "fab_t", "square"]}
    facts |= {"autoattack": settings, "data": "x", "split": "test", "seed": 0}
    facts |= {"threat": study.threat("pgd40").to_dict(), "subset": study.battery_images}
    facts |= {"data_title": "Digits", "dtype": "float32", "device": "cpu", "checkpoint_hash": "0"}
    for strength in ("quick", "standard"):  # a first look is no audit
        for method in study.methods:
            facts["settings"] = training_settings(study, method, 0, "train", "start")
            facts["strength"] = strength
            write_predictions(table, study.runs / f"audit/battery/{method}-seed0.parquet", **facts)
        why = outdated(study, study.runs, "battery")
        assert ("made with another strength" in why) == (strength == "quick"), why
    made = tmp_path / "results"
    run_notebook("study", study=str(file), parts=["battery"], output=str(made))
    verdicts = pd.read_csv(made / "battery.csv")
    assert set(verdicts.verdict) >= {battery_verdicts.TOO_FEW, battery_verdicts.NOT_RUN}
    assert set(verdicts.method) == {"std", "adv"}
    errors = pd.read_csv(made / "battery-errors.csv")
    assert errors.n_images.eq(60).all()
    value = errors[errors.method == "adv"].set_index("condition").value
    assert value["fab_t"] == pytest.approx(21 / 60) and "apgd_t" not in value
