"""The battery on real digits: what it must find, and whom it must leave alone."""

import copy
import dataclasses
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from torch import nn
from torch.nn import functional as F

from advlib import battery as battery_module
from advlib import battery_verdicts, charts_battery
from advlib.attacks import evaluate_attack, pgd_attack
from advlib.battery import AUTOATTACK, autoattack, battery, battery_conditions, battery_predictions
from advlib.data import load_dataset, stratified_subset
from advlib.predictions import read_facts, read_predictions
from advlib.runs import train_method
from advlib.study import ROOT
from advlib.threat import ThreatModel

THREAT = ThreatModel(eps=0.15, steps=40)


def small_network(outputs=10, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(512, outputs)),
    )


def trained(adversarial, outputs=10):
    """A few hundred steps on the digits that are not tested, with Madry's training or without."""
    images = load_dataset("digits", "train")
    x, y = images.pixels.float() / 255, images.labels
    model, generator = small_network(outputs), torch.Generator().manual_seed(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    attack = dataclasses.replace(THREAT, steps=5, success="last")
    for _ in range(250):
        batch = torch.randint(len(x), (64,), generator=generator)
        shown = x[batch]
        if adversarial:
            shown = pgd_attack(model, shown, y[batch], attack, num_classes=10, generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(model(shown), y[batch]).backward()
        optimizer.step()
    optimizer.zero_grad()
    return model.eval()


@pytest.fixture(scope="module")
def networks():
    return {"std": trained(False), "adv": trained(True, outputs=11)}


@pytest.fixture(scope="module")
def images():
    return stratified_subset(load_dataset("digits", "test"), 100)


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


def judged(model, images, networks=None, **options):
    table, facts = battery(
        model, images, THREAT, num_classes=10, sources=networks, strength="quick", **options
    )
    found = battery_verdicts.battery_verdicts(table, facts)
    return found.set_index("test"), battery_verdicts.overall(found), table, facts


@pytest.fixture(scope="module")
def adv(networks, images):
    return judged(networks["adv"], images, {"std": networks["std"]})


def test_an_honest_network_does_not_alarm(adv):
    found, (verdict, words), table, facts = adv
    assert not (found.verdict == battery_verdicts.ALARMING).any(), found.words.tolist()
    assert not (found.verdict == battery_verdicts.NOT_RUN).any()
    assert verdict in (battery_verdicts.EXPECTED, battery_verdicts.LOOK) and "lower bound" in words
    broken = battery_verdicts.broken_images(table)
    assert 0.1 < broken.pgd40.mean() < 0.8  # else the test would say nothing


def test_a_standard_network_is_not_robust_but_does_not_alarm(networks, images):
    found, (verdict, _), table, _ = judged(networks["std"], images, {"adv": networks["adv"]})
    assert verdict != battery_verdicts.ALARMING, found.words.tolist()
    assert battery_verdicts.broken_images(table).pgd40.mean() > 0.7


@pytest.mark.parametrize("layer", [Quantise(), QuantiseToBytes()])
def test_a_quantising_layer_alarms(networks, images, layer):
    masked = nn.Sequential(layer, *networks["adv"])
    found, (verdict, words), _, _ = judged(masked, images, {"adv": networks["adv"]})
    assert verdict == battery_verdicts.ALARMING
    assert found.verdict["gradients"] == battery_verdicts.ALARMING
    assert found.verdict["eps_unbounded"] == battery_verdicts.ALARMING
    assert "Are there gradients?" in words


def test_saturated_logits_alarm(networks, images):
    masked = nn.Sequential(*networks["adv"], Scale())
    found, (verdict, _), _, _ = judged(masked, images)
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


def test_apgd_agrees_with_our_pgd_on_the_same_loss(networks, images):
    """Another implementation of nearly the same attack breaks the same images, bar a few."""
    model = networks["adv"]
    known = {"num_classes": 10}
    clean = evaluate_attack(model, images, THREAT.with_eps(0), **known)
    ours = evaluate_attack(
        model, images, dataclasses.replace(THREAT, steps=100), **known, dtype="float32"
    )
    found = autoattack(model, images, THREAT, clean=clean, strength="quick", **known)
    wrong = found["apgd_ce"].label != found["apgd_ce"].predicted_class
    assert (wrong != (ours.label != ours.predicted_class)).mean() < 0.03


def test_autoattack_leaves_network_and_generator_as_they_were(networks, images):
    model = copy.deepcopy(networks["adv"])
    before, clean = (
        torch.get_rng_state(),
        evaluate_attack(model, images, THREAT.with_eps(0), num_classes=10),
    )
    few = stratified_subset(images, 20)
    clean = clean[clean.file_name.isin(few.file_names)].reset_index(drop=True)
    autoattack(model, few, THREAT, num_classes=10, clean=clean, strength="quick")
    assert torch.equal(before, torch.get_rng_state())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_an_attack_that_leaves_the_ball_stops_the_battery(networks, images, monkeypatch):
    monkeypatch.setattr(battery_module, "_component", lambda *_: lambda x, y: (x + 0.2).clamp(0, 1))
    few = stratified_subset(images, 20)
    clean = evaluate_attack(networks["adv"], few, THREAT.with_eps(0), num_classes=10)
    with pytest.raises(RuntimeError, match="apgd_ce leaves the ball"):
        autoattack(networks["adv"], few, THREAT, num_classes=10, clean=clean)


@pytest.mark.parametrize("change", [{"eps_space": "normalized"}, {"label_source": "predicted"}])
def test_other_threat_models_are_refused(networks, images, change):
    with pytest.raises(ValueError, match=next(iter(change))):
        battery(networks["adv"], images, dataclasses.replace(THREAT, **change), num_classes=10)


def test_a_killed_battery_goes_on(networks, images, tmp_path):
    few = stratified_subset(images, 20)
    done = []

    def killed(name):
        done.append(name)
        if name == "apgd_t":
            raise KeyboardInterrupt

    options = {"num_classes": 10, "strength": "quick", "folder": tmp_path}
    with pytest.raises(KeyboardInterrupt):
        battery(networks["adv"], few, THREAT, **options, progress=killed)
    written = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.parquet")}
    assert len(written) == len(done)
    table, _ = battery(networks["adv"], few, THREAT, **options)
    assert all(path.stat().st_mtime_ns == time for path, time in written.items())
    whole, _ = battery(networks["adv"], few, THREAT, num_classes=10, strength="quick")
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
        "conditions": {name: {"eps": radii.get(name, 0.1)} for name in conditions},
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


def test_clean_mistakes_are_no_difference():
    """The clean mistakes (the first 50) count as broken where an attack repairs them."""
    found = verdict_of("iterative", pgd40=range(10, 200))
    assert found["count"] == 0


def test_a_few_images_never_alarm():
    table, facts = made_up(n=20, clean=0, pgd40=2, noise=6, eps_1=20)
    assert battery_verdicts.interval(4, 20)[0] > 0.02
    found = battery_verdicts.battery_verdicts(table, facts).set_index("test")
    assert found.verdict["noise"] == battery_verdicts.LOOK


def test_flags_of_the_forward_pass():
    assert verdict_of("deterministic", {"logits_change": 9e-5}).verdict == battery_verdicts.EXPECTED
    for change in (2e-4, float("nan")):
        flagged = verdict_of("deterministic", {"logits_change": change})
        assert flagged.verdict == battery_verdicts.ALARMING
    probabilities = {"outputs": "probabilities"}
    assert verdict_of("logits", probabilities).verdict == battery_verdicts.ALARMING
    # Where PGD breaks everything there is nothing left to doubt.
    assert verdict_of("logits", probabilities, pgd40=500).verdict == battery_verdicts.LOOK


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
    assert battery_verdicts.overall(part)[0] == battery_verdicts.NOT_RUN
    alarmed = table[~table.attack.isin(AUTOATTACK)].copy()
    alarmed.loc[alarmed.attack == "noise", "predicted_class"] = 1
    part = battery_verdicts.battery_verdicts(alarmed, facts)
    assert battery_verdicts.overall(part)[0] == battery_verdicts.ALARMING


def test_the_sources_are_in_the_bibliography():
    known = (ROOT / "book/references.bib").read_text(encoding="utf-8")
    for test in battery_verdicts.TESTS.values():
        assert all(f"{{{key}," in known for key in test.keys)


def test_verdicts_and_charts_need_no_torch():
    modules = "advlib.battery_verdicts, advlib.charts_battery"
    code = f"import sys, {modules}; assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_charts_hold_what_the_table_says(adv):
    _, _, table, facts = adv
    errors = battery_verdicts.attack_errors(table).assign(method="Adv")
    radii = {name: threat["eps"] for name, threat in facts["conditions"].items()}
    against = errors[errors.attack.isin(battery_verdicts.radii(facts))]
    against = against.assign(eps=against.attack.map(radii)).sort_values("eps")
    spec = charts_battery.error_against(against, "eps", "ε", marked=0.15).to_dict()
    (rows,) = spec["datasets"].values()
    assert [row["eps"] for row in rows] == pytest.approx([0, 0.0375, 0.075, 0.15, 0.3, 0.6, 1])
    values = [row["value"] for row in rows]
    assert values == sorted(values) and values[-1] == 1
    assert charts_battery.attack_errors(errors[errors.attack.isin(AUTOATTACK)]).to_dict()
    cells = errors[errors.attack == "transfer_std"].assign(source="Std", target="Adv")
    assert charts_battery.transfer_matrix(cells).to_dict()


def test_the_battery_of_a_study_gives_the_table_that_the_chapter_reads(tiny_study, tmp_path):
    study = dataclasses.replace(tiny_study, methods=["pretrained", "std"], battery_images=20)
    for method in study.methods:
        train_method(study, method, 0)
    path = battery_predictions(study, "std", 0, strength="quick")
    table, facts = read_predictions(path), read_facts(path)
    assert path == study.runs / "audit/battery/std-seed0.parquet"
    assert facts["n_images"] == facts["subset"] == 20
    assert facts["threat"] == study.threat("pgd40").to_dict()
    found = battery_verdicts.battery_verdicts(table, facts).set_index("test")
    assert found.verdict["transfer"] != battery_verdicts.NOT_RUN
    with pytest.raises(FileNotFoundError, match="not trained yet"):
        battery_predictions(dataclasses.replace(study, methods=["std", "adv"]), "std", 0)
