"""Which run is compared with which, and the tables of made-up audits."""

import dataclasses
from html import escape

import numpy as np
import pandas as pd
import pytest
import yaml

from advbook.audit import ablations, ledger
from advbook.studies.identity import training_settings
from advbook.studies.schema import load_study
from advbook.studies.switches import ledger_threats
from advlib.predictions import write_predictions
from conftest import as_text, run_notebook
from test_claims import evidence, figure, made_up_run, predictions

ATTACKS = [{}, {"steps": 1, "step_size": 0.1}]
ABLATIONS = {
    "adv_smoothing": {"method": "adv_smoothing"},
    "adv_extra_logit": {"method": "adv_extra_logit"},
    "strong_label": {"method": "adv_plus", "delta": 0.3, "title": "Adv⁺, δ = 0.3"},
    "mix_no_label": {"method": "adv_plus_mix", "delta": 0.0},
    "adv_two": {"method": "adv", "transforms": ATTACKS},
    "plus_two": {"method": "adv_plus", "transforms": ATTACKS},
    "new_head": {"method": "adv_plus", "replace_head": True},
    "cross_entropy": {"method": "adv_plus", "train_objective": "cross_entropy"},
    "adv_predicted": {"method": "adv", "train_label_source": "predicted"},
    "plus_predicted": {"method": "adv_plus", "train_label_source": "predicted"},
    "longer": {"method": "adv", "epochs": 20},
}
HOSTILE = "</script>*{{ 7 * 7 }}*|"
METHODS = ["pretrained", "std", "adv", "adv_plus", "adv_mix", "adv_plus_mix"]


@pytest.fixture
def study():
    return dataclasses.replace(load_study("digits"), methods=METHODS, ablations=ABLATIONS)


def test_settings_that_do_nothing_to_a_run_tell_no_runs_apart(study):
    """The head of a network without extra logits is never widened, so never replaced."""
    other = dataclasses.replace(study, replace_head=True, ablations={})
    same = ablations.ingredients(study, "adv")
    theirs = ablations.ingredients(other, "adv")
    differ = {key for key in same if same[key] != theirs[key]}
    assert differ == {"replace_head"}


def test_the_attack_of_a_run_without_extra_logits_climbs_the_cross_entropy(study):
    """As `advlib.objectives.base.standard` does, whatever the study says of Eq. 4."""
    climbs = {m: ablations.ingredients(study, m)["train_objective"] for m in METHODS[2:]}
    assert climbs == {
        **dict.fromkeys(["adv", "adv_mix"], "cross_entropy"),
        **dict.fromkeys(["adv_plus", "adv_plus_mix"], "label_augmentation"),
    }
    for name in ("adv_smoothing", "adv_two", "cross_entropy"):
        assert ablations.ingredients(study, name)["train_objective"] == "cross_entropy", name


def test_every_run_is_compared_with_what_it_builds_on(study):
    rows = ablations.comparisons(study)
    assert set(rows.itertuples(index=False, name=None)) == {
        *(("adv_plus", "adv"), ("adv_plus_mix", "adv_mix"), ("adv_mix", "adv")),
        *(("adv_extra_logit", "adv"), ("adv_smoothing", "adv")),
        *(("adv_plus", "adv_extra_logit"), ("strong_label", "adv_extra_logit")),
        ("cross_entropy", "adv"),  # the same attack
        ("adv_plus", "cross_entropy"),  # what the attack climbs
        *(("adv_two", "adv"), ("adv_predicted", "adv"), ("longer", "adv")),
        *(("strong_label", "adv_plus"), ("plus_two", "adv_plus"), ("new_head", "adv_plus")),
        *(("cross_entropy", "adv_plus"), ("plus_predicted", "adv_plus")),
        ("mix_no_label", "adv_plus_mix"),
    }
    assert not rows.duplicated().any()
    assert not {"std", "pretrained"} & set(ablations.adversarial_runs(study))
    assert ablations.same_attack(study) == "cross_entropy"
    assert ablations.same_attack(dataclasses.replace(study, ablations={})) is None


@pytest.fixture
def tables(study):
    """All runs alike, but the extra logit alone is worse under PGD-40."""
    whole = dataclasses.replace(study, methods=[*study.methods], corruptions="none")
    parts = []
    names = [*whole.methods, *whole.ablations]
    stand_in = dataclasses.replace(whole, ablations={}, methods=METHODS)
    base = evidence(stand_in, clean={m: 0.3 for m in METHODS}, pgd40={m: 0.5 for m in METHODS})
    worse = evidence(stand_in, pgd40={"adv": np.linspace(0.6, 1.0, 10)})["pgd40", "adv", 0]
    for name in names:
        for benchmark in ("clean", "pgd40"):
            table = base[benchmark, "adv", 0]
            if (name, benchmark) == ("adv_extra_logit", "pgd40"):
                table = worse
            parts.append(table.assign(benchmark=benchmark, method=name, seed=0))
    return pd.concat(parts, ignore_index=True)


def test_differences_are_the_run_less_its_control(study, tables):
    pairs = ablations.comparisons(study)
    found = ablations.differences(tables, pairs, 200).set_index(["run", "control"])
    robust = found[(found.benchmark == "pgd40") & (found.statistic == "error")]
    logit = robust.loc[("adv_extra_logit", "adv")]
    assert logit.value == pytest.approx(0.3) and logit.low > 0.2
    assert robust.loc[("adv_plus", "adv_extra_logit")].value == pytest.approx(-0.3)
    assert robust.loc[("adv_plus", "adv")].value == 0
    assert len(found) == 4 * len(pairs)


@pytest.fixture
def audited(tmp_path):
    """A made-up run of two seeds with ablations, and its study file."""
    values = {"study": "audited", "dataset": "digits", "model": "cifar_resnet8", "eps": 0.1}
    values |= {"pretrain_epochs": 1, "methods": ["std", "adv", "adv_plus"], "seeds": [0, 1]}
    values |= {"n_resamples": 100, "corruption_images": 200}
    kept = ("adv_extra_logit", "adv_smoothing", "strong_label")
    values["ablations"] = {name: ABLATIONS[name] for name in kept}
    values["ablations"]["strong_label"] = ABLATIONS["strong_label"] | {"title": HOSTILE}
    file = tmp_path / "audited.yaml"
    file.write_text(yaml.safe_dump(values, allow_unicode=True))
    made_up_run(load_study(file), {"adv_extra_logit": 0.7})
    return file


def all_text(page) -> str:
    """What the page shows, as text."""
    return "".join(as_text(value) for values in page.shown.values() for value in values)


def test_the_tables_have_each_run_against_its_control(audited, tmp_path):
    given = {"study": str(audited), "output": str(tmp_path / "out")}
    page = run_notebook("study", **given, parts=["ablations"])
    assert escape(HOSTILE) in figure(page, "tab-ablations") and HOSTILE not in all_text(page)
    rows = pd.read_csv(tmp_path / "out/ablations.csv")
    difference = rows[(rows.method == "adv_extra_logit") & (rows.group == "less adv")]
    clean = difference[(difference.benchmark == "clean") & (difference.statistic == "error")]
    assert clean.value.item() == pytest.approx(0.3) and clean.low.item() > 0.1


def made_up_ledger(study, n_images) -> None:
    """The ledger's tables beside `made_up_run`: every switch, of the first `n_images` images."""
    for number, run in enumerate([*study.methods, *study.ablations]):
        threats = ledger_threats(study, run)
        parts = [
            predictions(0.2 + 0.02 * i, number).assign(attack=name, linf=0.0)
            for i, name in enumerate([ledger.CLEAN, *threats])
        ]
        table = pd.concat(parts)
        facts = {"settings": training_settings(study, run, 0, "train-images", "start")}
        facts |= {"data": "images", "split": "test", "data_title": "Digits", "method": run}
        facts |= {"seed": 0, "dtype": "float32", "device": "cpu", "checkpoint_hash": "none"}
        facts |= {"threat": threats["default"].to_dict(), "subset": study.ledger_images, "same": {}}
        facts |= {"threats": {name: threat.to_dict() for name, threat in threats.items()}}
        path = study.runs / "audit" / "ledger" / f"{run}-seed0.parquet"
        write_predictions(table[table.file_name < f"{n_images:04d}"], path, **facts)


def test_the_switches_of_a_study_with_neither_adv_nor_mixed_batches(tmp_path):
    """Ablations stand for Adv and Adv⁺, and are called what they are."""
    values = {"study": "few", "dataset": "digits", "model": "cifar_resnet8", "eps": 0.1}
    values |= {"pretrain_epochs": 1, "methods": ["std", "adv_plus"], "corruptions": "none"}
    values |= {"n_resamples": 20, "ledger_images": 100}
    titles = {"adv_two": "Adv, two", "plus_two": HOSTILE}
    values["ablations"] = {k: ABLATIONS[k] | {"title": title} for k, title in titles.items()}
    file = tmp_path / "few.yaml"
    file.write_text(yaml.safe_dump(values, allow_unicode=True))
    made_up_run(load_study(file))
    made_up_ledger(load_study(file), 100)
    page = run_notebook("study", study=str(file), parts=["ledger"], output=str(tmp_path / "out"))
    assert "Adv⁺" in figure(page, "tab-ledger") and HOSTILE not in all_text(page)
    tried = pd.read_csv(tmp_path / "out/ledger-combinations.csv")
    assert set(tried.pair) >= {f"{HOSTILE} beside Adv, two"}
    rows = pd.read_csv(tmp_path / "out/ledger.csv")
    errors = rows[(rows.method == "std") & (rows.statistic == "error")].set_index("condition").value
    assert errors["clean"] == pytest.approx(0.2) and errors["default"] >= errors["clean"]
    assert rows.n_images.eq(100).all()


def test_a_run_on_the_line_between_std_and_adv_is_not_off_it():
    images = 2000
    std, adv = np.array([0.1, 0.2, 0.3]), np.array([0.2, 0.4, 0.6])

    def tables(own):
        parts = []
        for name, errors in {"std": std, "adv": adv, "adv_mix": own}.items():
            for label, error in enumerate(errors):
                guessed = np.full(images, label)
                guessed[: round(images * error)] = (label + 1) % 3
                files = [f"{label}-{i}" for i in range(images)]
                part = {"file_name": files, "label": label, "predicted_class": guessed}
                parts.append(pd.DataFrame(part | {"method": name}))
        return pd.concat(parts)

    value, low, high = ablations.off_the_line(tables((std + adv) / 2), "adv_mix", 200)
    assert abs(value) < 1e-3 and low < 0 < high
    value, low, high = ablations.off_the_line(tables(np.full(3, 0.3)), "adv_mix", 200)
    assert high < 0 and value == pytest.approx(-(std.std() + adv.std()) / 2, abs=0.01)
