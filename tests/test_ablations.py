"""Which run is the control of which, and what its chapter says on made-up tables."""

import dataclasses
import re
from html import escape

import numpy as np
import pandas as pd
import pytest
import yaml

from advbook.audit import ablations, ledger
from advbook.studies.identity import training_settings
from advbook.studies.schema import load_study
from advlib.predictions import write_predictions
from test_claims import evidence, execute, made_up_run, predictions, shown

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


@pytest.mark.parametrize(
    "run, control, lacking",
    [
        ("adv_extra_logit", "adv", ["logits", "train_objective"]),
        ("adv_plus", "adv_extra_logit", ["label"]),
        ("strong_label", "adv_extra_logit", ["label"]),  # delta = 0, not the paper's delta
        ("adv_smoothing", "adv", ["smoothing"]),
        ("adv_mix", "adv", ["mix"]),
        ("mix_no_label", "adv_mix", ["logits", "train_objective"]),
        ("adv_plus_mix", "mix_no_label", ["label"]),
        ("adv_two", "adv", ["transforms"]),
        ("plus_two", "adv_two", ["logits", "label", "train_objective"]),  # the same images
        ("new_head", "adv_plus", ["replace_head"]),
        ("cross_entropy", "adv", ["logits", "label"]),  # the same attack: the clean pair
        ("adv_predicted", "adv", ["threat.label_source"]),
        ("plus_predicted", "adv_plus", ["threat.label_source"]),
        ("longer", "adv", ["epochs"]),
    ],
)
def test_the_control_lacks_one_ingredient(study, run, control, lacking):
    found, missing = ablations.control(study, run)
    assert (found, sorted(missing)) == (control, sorted(lacking))


def test_the_simplest_run_has_no_control_and_clean_training_is_none(study):
    assert ablations.control(study, "adv") is None
    assert not {"std", "pretrained"} & set(ablations.adversarial_runs(study))


def test_without_a_run_in_between_the_control_lacks_more(study):
    """Mixed batches are never traded for a closer match: they decide the images."""
    few = dataclasses.replace(study, ablations={})
    assert ablations.control(few, "adv_plus_mix")[0] == "adv_mix"
    control, lacking = ablations.control(few, "adv_plus")
    assert (control, set(lacking)) == ("adv", {"logits", "label", "train_objective"})


def test_an_ablation_of_two_things_is_compared_where_one_is_missing(study):
    two = {"method": "adv_plus", "replace_head": True, "delta": 0.3}
    study = dataclasses.replace(study, ablations=ABLATIONS | {"both": two})
    assert ablations.control(study, "both") == ("strong_label", ["replace_head"])


def test_settings_that_do_nothing_to_a_run_tell_no_runs_apart(study):
    """The head of a network without extra logits is never widened, so never replaced."""
    other = dataclasses.replace(study, replace_head=True, ablations={})
    same = ablations.ingredients(study, "adv")
    theirs = ablations.ingredients(other, "adv")
    differ = {key for key in same if same[key] != theirs[key]}
    assert differ == {"replace_head"} and ablations.control(other, "adv") is None


def test_the_attack_of_a_run_without_extra_logits_climbs_the_cross_entropy(study):
    """As `advlib.steps.training_loss` does, whatever the study says of Eq. 4."""
    climbs = {m: ablations.ingredients(study, m)["train_objective"] for m in METHODS[2:]}
    assert climbs == {
        **dict.fromkeys(["adv", "adv_mix"], "cross_entropy"),
        **dict.fromkeys(["adv_plus", "adv_plus_mix"], "label_augmentation"),
    }
    for name in ("adv_smoothing", "adv_two", "cross_entropy"):
        assert ablations.ingredients(study, name)["train_objective"] == "cross_entropy", name


def test_comparisons_ask_also_about_smoothing_and_the_whole(study):
    rows = ablations.comparisons(study)
    asked = set(rows.itertuples(index=False, name=None))
    climbs = "what the attack climbs"
    smoothing = "label and logit, not smoothing (δ = 0.03)"
    assert (smoothing, "cross_entropy", "adv_smoothing") in asked  # the same attack
    assert (f"{smoothing}, and {climbs}", "adv_plus", "adv_smoothing") in asked
    whole = "extra logit, transformation label (δ = 0.03)"
    assert (f"{whole} and {climbs}", "adv_plus", "adv") in asked
    assert (f"{whole} and {climbs}", "adv_plus_mix", "adv_mix") in asked
    assert (whole.replace(",", " and"), "cross_entropy", "adv") in asked  # the same attack
    assert (climbs, "adv_plus", "cross_entropy") in asked
    assert (f"extra logit and {climbs}", "adv_extra_logit", "adv") in asked
    two = f"2 extra logits, transformation label (δ = 0.03) and {climbs}"
    assert (two, "plus_two", "adv_two") in asked
    # The attack that climbs Eq. 4 has the run's own label and logits, so it differs as well.
    both = ", in the loss and in what the attack climbs"
    assert (f"M = 2, not 1{both}, and other images", "plus_two", "adv_plus") in asked
    label = f"transformation label (δ = 0.3){both}"
    assert (label, "strong_label", "adv_extra_logit") in asked
    assert ("epochs = 20", "longer", "adv") in asked
    assert not rows.duplicated(["run", "control"]).any()


def test_a_label_that_the_attack_does_not_climb_is_in_the_loss_alone(study):
    others = {name: run for name, run in ABLATIONS.items() if name != "cross_entropy"}
    study = dataclasses.replace(study, train_objective="cross_entropy", ablations=others)
    rows = ablations.comparisons(study).set_index(["run", "control"]).ingredient
    assert rows["adv_plus", "adv_extra_logit"] == "transformation label (δ = 0.03)"
    assert rows["plus_two", "adv_plus"] == "M = 2, not 1, and other images"
    # Adv⁺ has the attack of Adv itself: there is nothing to part.
    whole = "extra logit and transformation label (δ = 0.03)"
    assert rows["adv_plus", "adv"] == whole
    found = pd.DataFrame(columns=["run", "control", "benchmark", "statistic"])
    assert ablations.attack_or_label(study, found, "clean", "error") == ""
    assert "Adv⁺ − Adv" in ablations.parted_words(study)


def test_the_page_says_whether_a_run_parts_label_from_attack(study):
    said = ablations.parted_words(study)
    assert "without and with label and logit: " in said and "cross_entropy − Adv" in said
    few = {name: ABLATIONS[name] for name in ("adv_extra_logit", "strong_label")}
    said = ablations.parted_words(dataclasses.replace(study, ablations=few))
    assert said.startswith("No two runs of this study differ in label and logit alone")


def test_the_sweep_of_delta_starts_at_the_network_without_a_label(study):
    sweep = ablations.delta_sweep(study)
    found = {family: part for family, part in sweep.groupby("family", sort=False)}
    assert found["Adv⁺"].run.tolist() == ["adv_extra_logit", "adv_plus", "strong_label"]
    assert found["Adv⁺"].delta.tolist() == [0, 0.03, 0.3]
    assert found["Adv⁺ mixed"].run.tolist() == ["mix_no_label", "adv_plus_mix"]
    assert set(found) == {"Adv⁺", "Adv⁺ mixed"}  # alone: plus_two, new_head, …


def test_adv_plus_beside_adv_comes_first_then_its_ingredients_then_mixed_batches(study):
    rows = ablations.comparisons(study)
    order = list(rows[["run", "control"]].itertuples(index=False, name=None))
    between = ablations.same_attack(study)
    assert between == "cross_entropy"
    first = [("adv_plus", "adv"), (between, "adv"), ("adv_plus", between)]
    assert order[:4] == [*first, ("adv_plus", "adv_extra_logit")]
    later = ["adv_extra_logit", "adv_smoothing", "adv_plus_mix", "adv_two"]
    places = [order.index((run, ablations.control(study, run)[0])) for run in later]
    assert places == sorted(places)
    assert ablations.same_attack(dataclasses.replace(study, ablations={})) is None


def test_the_same_attack_is_compared_with_adv_though_another_run_is_nearer(study):
    """The control of cross_entropy is here the network with the logit alone, not Adv."""
    logit = {"method": "adv_extra_logit", "train_objective": "cross_entropy"}
    study = dataclasses.replace(study, ablations=ABLATIONS | {"logit_only": logit})
    assert ablations.control(study, "cross_entropy") == ("logit_only", ["label"])
    pairs = ablations.comparisons(study)
    assert not pairs.duplicated(["run", "control"]).any()
    rows = pairs.set_index(["run", "control"]).ingredient
    assert rows["cross_entropy", "adv"] == "extra logit and transformation label (δ = 0.03)"
    assert "cross_entropy − Adv" in ablations.parted_words(study)
    found = pairs.assign(benchmark="clean", statistic="error", value=-0.03, low=-0.04, high=-0.02)
    line = ablations.attack_or_label(study, found, "clean", "error")
    assert "label and logit under the same training attack: −3.00" in line


@pytest.mark.parametrize(
    "whole, label, attack, said",
    [
        (-0.03, 0.001, -0.03, "only where the training attack alone differs does the change lie"),
        (-0.03, -0.03, 0.001, "only where label and logit alone differ does the change lie"),
        (-0.03, -0.03, 0.001, "the other interval excludes one as large"),  # -0.009 to 0.011
        (-0.03, -0.03, -0.002, "the other interval excludes one as large"),
        (-0.012, -0.012, -0.005, "the other interval allows one as large"),  # -0.015 to 0.005
        (-0.03, -0.02, -0.02, "The images do not tell"),
        (-0.03, 0.03, 0.001, "The images do not tell"),
        (-0.03, 0.03, -0.06, "where the training attack alone differs; the other does so too, in"),
        (-0.03, -0.06, 0.03, "where label and logit alone differ; the other does so too, in the o"),
    ],
)
def test_the_training_attack_is_told_from_label_and_logit(study, whole, label, attack, said):
    pairs = {("adv_plus", "adv"): whole, ("cross_entropy", "adv"): label}
    pairs[("adv_plus", "cross_entropy")] = attack
    rows = [
        {"method": run, "group": f"less {control}", "benchmark": "clean", "statistic": "error",
         "value": value, "low": value - 0.01, "high": value + 0.01}
        for (run, control), value in pairs.items()
    ]  # fmt: skip
    rows.append(rows[0] | {"group": "all"})  # of the run itself
    found = ablations.written_differences(pd.DataFrame(rows))
    line = ablations.attack_or_label(study, found, "clean", "error")
    weak = found.assign(low=-0.01, high=0.01)
    assert ablations.attack_or_label(study, weak, "clean", "error") == ""  # no change to part
    assert line.startswith("Clean error, Adv⁺ − Adv: ") and said in line.rpartition(". ")[2]
    assert ("only where" in line) == ("one as large" in said or "only where" in said)
    if "only where" in said:  # without an interval of the other change
        nowhere = found.value.abs() < 0.03
        none = found.assign(low=found.low.mask(nowhere), high=found.high.mask(nowhere))
        line = ablations.attack_or_label(study, none, "clean", "error")
        assert line.endswith("chance of the images; the images give no interval for the other")
    # One seed shows where a change appears, and not what causes it.
    assert ("of one seed" in line) == ("not tell" not in said)
    assert "comes with label" not in line and "comes with another" not in line
    few = dataclasses.replace(study, ablations={})
    assert ablations.attack_or_label(few, found, "clean", "error") == ""


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


def test_findings_count_what_leaves_out_zero(study, tables):
    pairs = ablations.comparisons(study)
    found = ablations.differences(tables, pairs, 200)
    summary = ablations.run_summary(tables, 200)
    none = pd.DataFrame(columns=["benchmark", "statistic", "sd"])
    lines = ablations.findings(study, found, summary, ablations.delta_sweep(study), none)
    assert len(lines) <= 8  # nothing here has a clear change to part
    clear = (found.low > 0) | (found.high < 0)
    n = found.low.notna().sum()
    assert lines[0].startswith(f"Of {n} intervals over the images {clear.sum()} leave out zero")
    assert f"about {0.05 * n:.0f} would" in lines[0]
    # Of adv_plus and strong_label; the mixed pair has the same images wrong.
    many = len(pairs)
    label = "transformation label, in the loss and in what the attack climbs"
    said = f"lower in 2 of {many} comparisons: {label} (2 of 3: −30.00);"
    assert f"PGD-40 error, points: {said}" in lines[1]
    said = f"higher in 1 of {many} comparisons: extra logit and what the attack"
    assert f"{said} climbs (1 of 2: +30.00)." in lines[1]
    assert lines[2].startswith(f"Clean error, points: lower in 0 of {many}")
    counts = [re.findall(r"(?:lower|higher) in (\d+) of", line) for line in lines[1:5]]
    assert sum(int(count) for line in counts for count in line) == clear.sum()  # all four measures
    # The highest error is that of δ = 0 here: the ends of the one range are not those of the other.
    assert "Adv⁺ between 50.00 and 80.00 % for δ from 0 to 0.3" in lines[5]
    assert lines[-2].startswith("The largest change that leaves out zero is that of ")
    assert "still be the chance of training" in lines[-1]


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


def test_seeds_are_a_yardstick(audited):
    study = load_study(audited)
    found = ablations.spread_over_seeds(study, "fresh")
    assert set(zip(found.run, found.control, strict=True)) == {("adv_plus", "adv")}
    row = found[(found.benchmark == "pgd40") & (found.statistic == "error")].iloc[0]
    assert (row["mean"], row.sd, row.n_seeds) == (0, 0, 2)  # made with the same errors
    one = dataclasses.replace(study, seeds=[0])
    assert ablations.spread_over_seeds(one, "fresh").empty


def test_findings_give_the_spread_over_seeds_of_every_measure_and_pair(study, tables):
    pairs = ablations.comparisons(study)
    found = ablations.differences(tables, pairs, 20)
    summary, sweep = ablations.run_summary(tables, 20), ablations.delta_sweep(study)
    keys = ["run", "control", "benchmark", "statistic", "mean", "sd", "n_seeds"]
    rows = [
        ("adv_plus", "adv", *key, -0.01, 0.001 * (i + 1), 3)
        for i, key in enumerate(ablations.MEASURES)
    ]
    line = ablations.findings(study, found, summary, sweep, pd.DataFrame(rows, columns=keys))[-1]
    ends = "clean error", "PGD-40 error", "on clean images", "under PGD-40"
    wanted = [f"{end} −1.00\xa0±\xa00.{i}0" for i, end in enumerate(ends, 1)]
    assert all(words in line for words in wanted) and "of Adv⁺ − Adv: " in line
    assert (
        line.startswith("Mean ± SD over 3 seeds")
        and "for this pair alone. " in line
        and "may lie 5.0 such SDs" in line
    )
    rows += [("adv_plus_mix", "adv_mix", *row[2:]) for row in rows]
    line = ablations.findings(study, found, summary, sweep, pd.DataFrame(rows, columns=keys))[-1]
    assert "; of Adv⁺ mixed − Adv mixed: " in line and "for these pairs alone. " in line


def test_the_chapter_on_classes_says_whether_the_gaps_narrow(tmp_path):
    """Adv's classes are far apart and Adv⁺'s alike; Std errs on all images and has no spread."""
    values = {"study": "classes", "dataset": "digits", "model": "cifar_resnet8", "eps": 0.1}
    values |= {"pretrain_epochs": 1, "methods": ["std", "adv", "adv_plus"], "seeds": [0, 1]}
    file = tmp_path / "classes.yaml"
    file.write_text(yaml.safe_dump(values | {"n_resamples": 100, "corruption_images": 200}))
    made_up_run(load_study(file), {"std": 1.0, "adv": np.linspace(0.1, 0.9, 10)})
    options = ["-p", "study", str(file), "-p", "output", str(tmp_path / "out")]
    cells = execute("classwise_error", tmp_path, *options).cells
    (text,) = [
        output.data["text/markdown"]
        for cell in cells
        for output in cell.get("outputs", [])
        if "classes are few" in str(output.get("data", {}).get("text/markdown"))
    ]
    clean, robust = text.splitlines()[:2]
    assert (
        clean.startswith("* Clean: Adv⁺ − Adv −")
        and ", narrower (seed 0); in the 2 seeds −" in clean
    )
    assert clean.endswith("Std errs on 100.00 % of the images: no spread to compare.")
    assert "− Std" not in clean and robust.startswith("* PGD-40: Adv − Std ")
    assert robust.count("no clear change") == 3


def as_html(notebook) -> str:
    """What the notebook shows as HTML, its charts among it."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "".join(output.get("data", {}).get("text/html", "") for output in outputs)


def test_the_chapter_shows_each_run_against_its_control(audited, tmp_path):
    options = ["-p", "study", str(audited), "-p", "output", str(tmp_path / "out")]
    notebook = execute("ablations", tmp_path, *options)
    page = shown(notebook, "tab-ablation-differences")
    row = next(line for line in page.splitlines() if "Adv extra logit − Adv |" in line)
    assert "&#60;/script&#62;&#42;&#123;&#123; 7" in page and HOSTILE not in as_html(notebook)
    assert row.startswith("| extra logit and what the attack climbs |") and "**30.00 [" in row
    assert "±" in shown(notebook, "tab-ablation-seeds")
    rows = pd.read_csv(tmp_path / "out/ablations.csv")
    difference = rows[(rows.method == "adv_extra_logit") & (rows.group == "less adv")]
    clean = difference[(difference.benchmark == "clean") & (difference.statistic == "error")]
    assert clean.value.item() == pytest.approx(0.3)


def made_up_ledger(study, n_images) -> None:
    """The ledger's tables beside `made_up_run`: every switch, of the first `n_images` images."""
    for number, run in enumerate([*study.methods, *study.ablations]):
        threats = ledger.ledger_threats(study, run)
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


def test_the_chapter_on_switches_of_a_study_with_neither_adv_nor_mixed_batches(tmp_path):
    """Ablations stand for Adv and Adv⁺: they are called what they are, and no method is None."""
    values = {"study": "few", "dataset": "digits", "model": "cifar_resnet8", "eps": 0.1}
    values |= {"pretrain_epochs": 1, "methods": ["std", "adv_plus"], "corruptions": "none"}
    values |= {"n_resamples": 20, "ledger_images": 100}
    titles = {"adv_two": "Adv, two", "plus_two": HOSTILE}
    values["ablations"] = {k: ABLATIONS[k] | {"title": title} for k, title in titles.items()}
    file = tmp_path / "few.yaml"
    file.write_text(yaml.safe_dump(values, allow_unicode=True))
    made_up_run(load_study(file))
    made_up_ledger(load_study(file), 100)
    options = ["-p", "study", str(file), "-p", "output", str(tmp_path / "out")]
    notebook = execute("ledger", tmp_path, *options)
    page = shown(notebook, "tab-nearest")
    assert "attacked: Adv<" in page and "attacked: Adv⁺<" in page and "None" not in page
    assert f"{escape(HOSTILE)} beside Adv, two" in page and HOSTILE not in as_html(notebook)
    figures = {
        cell.metadata.get("mystnb", {}).get("figure", {}).get("name"): str(cell.outputs)
        for cell in notebook.cells
        if cell.cell_type == "code"
    }
    for name in ("fig-switch-changes", "fig-gaps"):  # points, not per cent
        assert "labelExpr" in figures[name] and '"+.0%"' not in figures[name]
    kinds = set(re.findall(r'"kind": ?"([^"]*)"', figures["fig-combinations"]))
    assert kinds == {"with an ablation"}
    assert "100 test images, as many of each class" in str(notebook.cells)
