"""The ledger of switches: what they say, that each is run once, and what is made of them."""

import dataclasses
import json
import math
import shutil

import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from advbook.audit import ledger, predictions
from advbook.studies import switches
from advbook.studies.identity import data_settings
from advbook.studies.inputs import audit_set, images_of
from advbook.studies.runs import load_run, train_method
from advbook.studies.schema import STUDIES, load_study
from advbook.studies.tables import read_audit
from advlib.attacks.pgd import pgd_attack
from advlib.attacks.worst_case import evaluate_attack
from advlib.networks.build import Normalize
from advlib.threat import PROTOCOLS, ThreatModel

PAPER = {
    ("clean", "std"): 0.2087,
    ("clean", "adv"): 0.3218,
    ("clean", "adv_plus"): 0.2670,
    ("attacked", "std"): 0.9406,
    ("attacked", "adv"): 0.7032,
    ("attacked", "adv_plus"): 0.3270,
}


# --- the switches ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in switches.LEDGER if name != "default"])
def test_a_switch_changes_what_it_says_and_nothing_else(name):
    study = load_study("fashion_mnist_quick")
    threats = switches.ledger_threats(study)
    default, changed = threats["default"].to_dict(), threats[name].to_dict()
    differ = {key for key in default if changed[key] != default[key]}
    assert differ == set(switches.LEDGER[name].changes) and differ
    for key in differ - {"step_size"}:
        assert changed[key] == switches.LEDGER[name].changes[key]


def test_no_two_switches_are_one_attack_or_share_a_title():
    threats = switches.ledger_threats(load_study("fashion_mnist_quick"))
    assert len(set(threats.values())) == len(threats)
    assert len({switch.title for switch in switches.LEDGER.values()}) == len(switches.LEDGER)


@pytest.mark.parametrize("study_id", [path.stem for path in STUDIES.glob("*.yaml")])
def test_the_named_settings_are_the_protocols_at_the_studys_radius(study_id):
    study = load_study(study_id)
    threats = switches.ledger_threats(study)
    assert threats["default"] == study.threat("pgd40")
    assert threats["earlier_code"] == study.threat("pgd40_earlier_code")
    assert threats["earlier_code"].step == pytest.approx(study.eps / 3)
    in_pixels = dataclasses.replace(threats["earlier_code"], eps_space="pixel")
    assert threats["earlier_code_pixels"] == in_pixels


def test_steps_scale_with_the_radius():
    threats = switches.ledger_threats(load_study("fashion_mnist_quick"))
    steps = {name: threats[name].step for name in ("step_third", "step_madry", "step_small")}
    expected = {"step_third": 0.1 / 3, "step_madry": 2.5 * 0.1 / 40, "step_small": 0.1 / 40}
    assert steps == pytest.approx(expected)


def test_without_transformation_logits_some_switches_repeat_others():
    threats = switches.ledger_threats(load_study("fashion_mnist_quick"))
    assert switches.same_attacks(threats) == {
        "all_logits": "default",
        "last_all_logits": "last",
        "predicted_all_logits": "predicted",
    }


def test_ablations_go_through_fewer_switches():
    study = load_study("fashion_mnist_quick")
    name = next(iter(study.ablations))
    few = switches.ledger_threats(study, name)
    assert tuple(few) == switches.ABLATION_SWITCHES
    assert few == {k: switches.ledger_threats(study, "adv")[k] for k in few}


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("random_start", [True, False])
def test_a_normalised_radius_is_one_in_pixels_for_each_channel(clip, random_start):
    """ε = 0.03 in normalised units against an attack in pixels, written plainly."""
    torch.manual_seed(0)
    std = torch.tensor([0.1, 0.25, 0.6]).view(1, 3, 1, 1)
    normalize = Normalize((0.4, 0.5, 0.3), tuple(std.flatten().tolist()))
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Tanh(), nn.Flatten(), nn.Linear(8 * 36, 5))
    model = nn.Sequential(normalize, net).eval()
    x, y = torch.rand(6, 3, 8, 8).round(decimals=1), torch.tensor([0, 1, 2, 3, 4, 0])
    noise = (2 * torch.rand_like(x) - 1) * random_start
    threat = ThreatModel(eps=0.03, steps=10, eps_space="normalized", clip=clip)
    found = pgd_attack(model, x, y, threat, noise=noise)

    def kept(x_adv):
        x_adv = torch.minimum(torch.maximum(x_adv, x - 0.03 * std), x + 0.03 * std)
        return x_adv.clamp(0, 1) if clip else x_adv

    expected = kept(x + 0.03 * std * noise)
    for _ in range(10):
        leaf = expected.clone().requires_grad_()
        F.cross_entropy(model(leaf), y, reduction="sum").backward()
        expected = kept(expected + 0.03 / 4 * std * leaf.grad.sign())
    torch.testing.assert_close(found, expected)
    largest = (found - x).abs().amax(dim=(0, 2, 3))
    torch.testing.assert_close(largest, 0.03 * std.flatten())
    assert clip or found.min() < 0


# --- running them ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Three trained networks, two of them with a transformation logit, and what readers need."""
    folder = tmp_path_factory.mktemp("ledger")
    values = {"methods": ["pretrained", "adv_plus"], "train_images": 320, "test_images": 100}
    values |= {"pretrain_epochs": 1, "epochs": 1, "train_steps": 1, "ledger_images": 20}
    values["ablations"] = {"plus_delta": {"method": "adv_plus", "delta": 0.2}}
    study = dataclasses.replace(load_study("digits"), **values, dtype="float32")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADVLIB_RUNS", str(folder))
        for method in (*study.methods, *study.ablations):
            train_method(study, method, 0)
        record = {"class_names": list("0123456789"), "settings": data_settings(study)}
        for split in ("train", "test"):
            images = images_of(study, split)
            record[split] = {"fingerprint": images.fingerprint, "images": len(images)}
        (study.runs / "data.json").write_text(json.dumps(record))
    return study, folder


@pytest.fixture
def study(trained, tmp_path):
    """A copy of it that a test may change."""
    shutil.copytree(trained[1], tmp_path / "runs")
    return trained[0]


@pytest.fixture(scope="module")
def made(trained, tmp_path_factory):
    """The folder of the runs with the ledgers of all three, and how many attacks that took."""
    study, folder = trained[0], tmp_path_factory.mktemp("made") / "runs"
    shutil.copytree(trained[1], folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADVLIB_RUNS", str(folder))
        calls, _ = count_attacks(patch)
        for method in (*study.methods, *study.ablations):
            predictions.ledger_predictions(study, method, 0)
    return folder, len(calls)


@pytest.fixture
def with_ledgers(trained, made, tmp_path):
    """A copy of that one."""
    shutil.copytree(made[0], tmp_path / "runs")
    return trained[0]


@pytest.fixture
def attacked(monkeypatch):
    """The threat models that were run; a call may be made to fail."""
    return count_attacks(monkeypatch)


def shorter(threat):
    """The attack in 5 steps, for 40: what is asked for is kept, and here that is what counts."""
    return dataclasses.replace(threat, steps=5)


def count_attacks(monkeypatch):
    calls, real = [], evaluate_attack

    def counted(model, dataset, threat, **options):
        if len(calls) == calls_until_killed[0]:
            raise KeyboardInterrupt
        calls.append(threat)
        return real(model, dataset, shorter(threat), **options)

    calls_until_killed = [math.inf]
    monkeypatch.setattr(predictions, "evaluate_attack", counted)
    return calls, calls_until_killed


def test_every_switch_is_run_once_also_after_a_kill(study, attacked):
    calls, killed_after = attacked
    killed_after[0] = 7
    with pytest.raises(KeyboardInterrupt):
        predictions.ledger_predictions(study, "adv_plus", 0)
    killed_after[0] = math.inf
    table = pd.read_parquet(predictions.ledger_predictions(study, "adv_plus", 0))
    threats = switches.ledger_threats(study)
    assert calls == list(threats.values())  # none of them twice
    assert set(table.attack) == {"clean", *threats}
    assert (table.groupby("attack", observed=True).file_name.nunique() == 20).all()
    predictions.ledger_predictions(study, "adv_plus", 0)
    assert len(calls) == len(threats)
    predictions.ledger_predictions(dataclasses.replace(study, eval_batch_size=7), "adv_plus", 0)
    assert calls[len(threats) :] == calls[: len(threats)]  # another size rounds differently
    predictions.ledger_predictions(study, "pretrained", 0)
    killed_after[0] = len(calls)
    with pytest.raises(KeyboardInterrupt):  # at another radius nothing that was kept is taken
        predictions.ledger_predictions(dataclasses.replace(study, eps=0.05), "pretrained", 0)
    with pytest.raises(ValueError, match="trained with another threat than the study now says"):
        predictions.ledger_predictions(dataclasses.replace(study, eps=0.05), "adv_plus", 0)


def test_rows_are_those_of_the_attack_itself(with_ledgers):
    study = with_ledgers
    table = pd.read_parquet(study.runs / "audit/ledger/adv_plus-seed0.parquet")
    model, _ = load_run(study, "adv_plus", 0)
    images = audit_set(images_of(study, "test"), 20)
    for name in ("default", "last_predicted"):
        threat = shorter(switches.ledger_threats(study)[name])
        direct = evaluate_attack(model, images, threat, num_classes=10, dtype="float32")
        rows = table[table.attack == name]
        assert rows.file_name.tolist() == direct.file_name.tolist()
        assert rows.predicted_class.tolist() == direct.predicted_class.tolist()


def test_what_is_no_other_attack_is_not_run_and_tables_are_read(with_ledgers, made, monkeypatch):
    study = with_ledgers
    table, facts = read_audit(study, "fresh", "ledger")
    repeats = switches.same_attacks(switches.ledger_threats(study))
    same = {method: known["same"] for (_, method, _), known in facts.items()}
    assert same == {"pretrained": repeats, "adv_plus": {}, "plus_delta": {}}
    run = {method: set(part.attack) for method, part in table.groupby("method")}
    assert run["pretrained"] == {"clean", *switches.LEDGER} - set(repeats)
    assert run["plus_delta"] == {"clean", *switches.ABLATION_SWITCHES}
    assert made[1] == sum(map(len, run.values())) - 3  # all but the clean images
    gaps = ledger.gaps(table, n_resamples=50)
    assert set(gaps[gaps.gap == "masking"].method) == {"adv_plus", "plus_delta"}
    changed = switches.LEDGER["unclipped"]._replace(changes={"n_restarts": 2})
    monkeypatch.setitem(switches.LEDGER, "unclipped", changed)
    with pytest.raises(ValueError, match="another threat model under unclipped: run `make audit"):
        read_audit(study, "fresh", "ledger")
    with pytest.raises(ValueError, match="another threat"):
        read_audit(dataclasses.replace(study, eps=0.05), "fresh", "ledger")


# --- what is made of them -------------------------------------------------------------------------


def rows(method, wrong):
    """Four images of two classes; `wrong` says by condition which of them are misclassified."""
    parts = []
    for attack, images in wrong.items():
        part = pd.DataFrame({"file_name": list("abcd"), "label": [0, 0, 1, 1]})
        part["predicted_class"] = part.label ^ part.file_name.isin(list(images))
        parts.append(part.assign(method=method, seed=0, attack=attack))
    return pd.concat(parts, ignore_index=True)


def test_errors_changes_and_gaps_by_hand():
    plus = {"clean": "", "default": "abc", "all_logits": "a", "predicted": "ab"}
    plus |= {"last": "abc", "last_all_logits": "", "last_predicted": "abc"}
    table = pd.concat([rows("adv_plus", plus), rows("adv", {"clean": "", "default": "ab"})])
    errors = ledger.switch_errors(table, n_resamples=200).set_index(["method", "attack"])
    assert errors.value["adv_plus", "default"] == 0.75
    assert errors.change["adv_plus", "all_logits"] == -0.5
    assert math.isnan(errors.change["adv_plus", "clean"])
    assert errors.change_low["adv_plus", "all_logits"] < -0.5
    gaps = ledger.gaps(table, n_resamples=200).set_index(["method", "gap", "success"])
    assert gaps.value.to_dict() == {
        ("adv_plus", "masking", "any"): 0.5,
        ("adv_plus", "masking", "last"): 0.75,
        ("adv_plus", "label", "any"): 0.25,
        ("adv_plus", "label", "last"): 0.0,
    }


def test_one_image_a_class_is_resampled_across_the_classes():
    """Within its class such an image is drawn every time: there would be no interval at all."""
    table = rows("std", {"clean": "ab", "default": "abc"}).assign(label=[0, 1, 2, 3] * 2)
    table["predicted_class"] = table.label + [1, 1, 0, 0, 1, 1, 1, 0]
    errors = ledger.switch_errors(table, n_resamples=400).set_index("attack")
    assert errors.value["clean"] == 0.5
    assert errors.low["clean"] < 0.5 < errors.high["clean"]


def test_the_pattern_is_the_papers_and_lies_at_no_distance_from_itself():
    assert ledger.published_pattern() == PAPER
    zero = {"distance": 0.0, "attacked": 0.0, "clean": 0.0, "ordered": True}
    assert ledger.distance(PAPER, ledger.published_pattern()) == zero


def test_distance_by_hand():
    """Misses of 3, 0, 0 points on clean images and of -4, 12, 1 under attack."""
    miss = dict(zip(ledger.CELLS, (3, 0, 0, -4, 12, 1), strict=True))
    found = ledger.distance({c: PAPER[c] + m / 100 for c, m in miss.items()}, PAPER)
    assert found["distance"] == pytest.approx(math.sqrt((9 + 16 + 144 + 1) / 6))
    assert found["attacked"] == pytest.approx(math.sqrt((16 + 144 + 1) / 3))
    assert found["clean"] == pytest.approx(math.sqrt(3))
    assert found["ordered"]
    tie = PAPER | {("attacked", "adv_plus"): PAPER["attacked", "adv"]}
    assert not ledger.distance(tie, PAPER)["ordered"]


def test_pairs_differ_in_label_augmentation_alone():
    ablations = {
        "plus_delta": {"method": "adv_plus", "delta": 0.2},
        "plus_predicted": {"method": "adv_plus", "train_label_source": "predicted", "delta": 0.1},
        "predicted": {"method": "adv", "train_label_source": "predicted"},
        "mix_steps": {"method": "adv_plus_mix", "train_steps": 2, "title": "Mixed, 2 steps"},
        "smoothing": {"method": "adv_smoothing"},
    }
    study = dataclasses.replace(load_study("fashion_mnist_quick"), ablations=ablations)
    assert ledger.trained_pairs(study) == {
        "Adv⁺ beside Adv": ("adv", "adv_plus"),
        "Adv⁺ mixed beside Adv mixed": ("adv_mix", "adv_plus_mix"),
        "plus_delta beside Adv": ("adv", "plus_delta"),
        "plus_predicted beside predicted": ("predicted", "plus_predicted"),
        "Mixed, 2 steps beside Adv mixed": ("adv_mix", "mix_steps"),
    }


def test_combinations_apply_one_switch_to_all_three():
    values = [("std", "clean", 0.21), ("std", "default", 1.0), ("std", "predicted", 0.94)]
    values += [("adv", "clean", 0.32), ("adv", "default", 0.6), ("adv", "predicted", 0.7)]
    values += [("adv_plus", "clean", 0.27), ("adv_plus", "default", 0.6)]
    values += [("adv_plus", "predicted", 0.33), ("adv_plus", "all_logits", 0.5)]
    values += [("short", "clean", 0.27), ("short", "default", 0.2)]
    errors = pd.DataFrame(values, columns=["method", "attack", "value"])
    same = {"std": {"all_logits": "default"}, "adv": {"all_logits": "default"}}
    pairs = {"own": ("adv", "adv_plus"), "ablation": ("adv", "short")}
    found = ledger.combinations(errors, same, pairs, PAPER)
    assert found[["pair", "switch", "ordered"]].to_numpy().tolist() == [
        ["own", "Predicted label", True],
        ["ablation", "Default", True],
        ["own", "All logits", True],
        ["own", "Default", False],
    ]
    all_logits = found.set_index("switch").loc["All logits"]
    assert (all_logits.attacked_std, all_logits.attacked_adv_plus) == (1.0, 0.5)
    assert found.distance[0] < 1 and found.distance.is_monotonic_increasing
    assert len(ledger.combinations(errors, same, {}, PAPER)) == 0


def test_protocols_still_hold_the_papers_radius():
    """Step sizes in the ledger are stated at it."""
    shares = {"pgd40_half": 0.5, "pgd40_double": 2}
    assert all(t.eps == 0.03 * shares.get(name, 1) for name, t in PROTOCOLS.items())
