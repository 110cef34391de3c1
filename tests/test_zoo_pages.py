"""The pages on many methods, made from a tiny study of four with two seeds, and of others."""

import json
import shutil

import altair as alt
import numpy as np
import pandas as pd
import pytest
import yaml
from pandas.io.formats.style import Styler

from advbook.studies import results
from advbook.studies.schema import load_study
from advlib.importing import read_predictions
from conftest import run_notebook

ZOO = {
    "study": "tiny_zoo", "title": "Tiny <zoo>", "dataset": "digits", "model": "cifar_resnet8",
    "zoo": True, "corruptions": "none", "train_images": 320, "test_images": 100,
    "holdout_images": 40, "pretrain_method": "n_fgsm", "pretrain_epochs": 3, "pretrain_lr": 0.1,
    "epochs": 2, "batch_size": 64, "eps": 0.03, "train_steps": 3, "n_resamples": 200,
    "methods": ["pretrained", "adv", "trades", "logit_offset", "wat"], "seeds": [0, 1],
    "own_methods": {"mine": {
        "objective": "notebooks/studies/my_method.py:MyMethod", "title": "Mine <b>",
        "adversarial": True, "options": {"power": 1.0}}},
    "late_epochs": {"adv": 2, "mart": 2},
    "ablations": {"mart": {"method": "mart"}, "mine": {"method": "mine"},
                  "adv_plus": {"method": "adv_plus"}, "half": {
        "method": "logit_offset", "options": {"strength": 0.5}, "title": "Offsets, half"}},
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The study's file; its networks, trained and judged; its result tables."""
    folder = tmp_path_factory.mktemp("zoo")
    file = folder / "tiny_zoo.yaml"
    file.write_text(yaml.safe_dump(ZOO, allow_unicode=True), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADVLIB_RUNS", str(folder / "runs"))
        study = load_study(file)
        run_notebook("data", study=str(file))
        for name, seed in (*study.method_runs, *study.ablation_runs):
            run_notebook("train", study=str(file), method=name, seed=seed)
            run_notebook("evaluate_pgd", study=str(file), method=name, seed=seed)
        run_notebook("evaluate_clean", study=str(file))
        run_notebook("evaluate_clean", study=str(file), ablations_only=True)
        for name in study.late_epochs:
            run_notebook("evaluate_late", study=str(file), method=name)
        output = str(folder / "_build/fresh/tiny_zoo/results")
        run_notebook("study", study=str(file), parts=["study", "ablations", "late"], output=output)
    return folder


@pytest.fixture
def zoo(folder, monkeypatch):
    """The file of that study, whose runs and tables are found."""
    monkeypatch.setenv("ADVLIB_RUNS", str(folder / "runs"))
    monkeypatch.setattr(results, "ROOT", folder)
    return folder / "tiny_zoo.yaml"


def of_kind(ran, kind) -> list:
    """What a notebook shows of one kind, in order."""
    return [value for values in ran.shown.values() for value in values if isinstance(value, kind)]


def drawn(ran) -> list[dict]:
    """The charts that it shows, as a page draws them."""
    return [chart.to_dict() for chart in of_kind(ran, alt.TopLevelMixin)]


def test_every_method_stands_beside_its_base(zoo):
    """On all three pages, by the figures of the prediction tables."""
    study, studies = load_study(zoo), [f"{zoo}:fresh"]
    page = run_notebook("zoo", studies=studies, start="")
    found = page.names
    arrows = found["arrows"].query("condition == 'PGD-40'").set_index("method")
    assert arrows.base.dropna().to_dict() == {
        **dict.fromkeys(("adv_plus", "trades", "logit_offset", "mine", "mart", "half"), "adv"),
        "wat": "trades",
    }  # fmt: skip
    classes = {}
    for name, seed in (*study.method_runs, *study.ablation_runs):
        table = read_predictions(study.runs / f"predictions/pgd40/{name}-seed{seed}.parquet")
        wrong = (table.predicted_class != table.label).groupby(table.label).mean()
        classes.setdefault(name, []).append(wrong)
    for name, row in arrows.iterrows():
        errors, worst = zip(*((one.mean(), one.max()) for one in classes[name]), strict=True)
        assert (row.error, row.worst) == pytest.approx((np.mean(errors), np.mean(worst)), abs=1e-9)
        assert (row.n_seeds, row.worst_max) == (len(worst), max(worst))
    assert arrows.worst_base["wat"] == arrows.worst["trades"]
    assert arrows.worst_base["mart"] == classes["adv"][0].max()  # with the first seed alone
    assert set(arrows.kind) == {*found["MARKS"]}
    cells = found["cells"].set_index("method")
    assert len(cells) == 8 and "Tiny &lt;zoo&gt;" in "".join(found["grids"])
    several = cells["change: average"].str.contains("2\N{NO-BREAK SPACE}seeds [", regex=False)
    assert {*several[several].index} == {"TRADES", "WAT", "Logit offsets"}
    cost = cells["passes (time)"].str.split("\N{NO-BREAK SPACE}")
    assert cost["Adv"] == ["9", "(1.0×)"] and cost["Logit offsets"] == ["0"]
    carried = run_notebook("carries", studies=studies)
    changes = carried.names["changes"].query("condition == 'PGD-40'").set_index("method")
    assert set(changes.index) == {"TRADES", "WAT", "Logit offsets"}
    adv, trades = (sum(classes[name]) / 2 for name in ("adv", "trades"))
    assert changes.value["TRADES"] == pytest.approx((trades - adv)[adv.idxmax()])
    assert len(drawn(page)) == len(drawn(carried)) == 1
    assert '"field": "worst_min"' in json.dumps(drawn(page))  # the range of the seeds


def test_a_study_without_autoattack_stands_beside_one_with_it(zoo, folder):
    """As a reader's own, and the methods of a file of theirs stand among the fairest."""
    made = folder / "_build/fresh/tiny_zoo/results"
    other = shutil.copytree(made, folder / "_build/committed/tiny_zoo/results")
    errors = pd.read_csv(other / "classwise_error.csv").query("benchmark == 'pgd40'")
    both = [errors.assign(condition=name) for name in ("pgd40", "autoattack")]
    pd.concat(both).to_csv(other / "autoattack.csv", index=False)
    found = run_notebook("carries", studies=[f"{zoo}:committed", f"{zoo}:fresh"])
    _, words, pairs = (shown.data for shown in of_kind(found, Styler))
    assert {*words.study} == {"Tiny &lt;zoo&gt;"}
    first = words.iloc[0]
    assert first["class"] == "all classes" and " → " in first["Adv"]
    assert list(pairs)[:2] == ["study", "method"] and len(pairs) > 4
    assert not pairs.isna().any(axis=None) and not words.isna().any(axis=None)


def test_the_choice_of_a_checkpoint_is_shown_for_the_runs_that_kept_them(zoo):
    page = run_notebook("selection", studies=[f"{zoo}:fresh"])
    found = page.names
    assert set(found["table"].name) == {"Adv", "MART"} and len(found["table"]) == 6
    chosen = found["chosen"].set_index(["name", "rule", "by"])
    assert (chosen.xs("last", level="by").epoch == 2).all()
    best = chosen.average.xs("average", level="rule").unstack("by")
    assert (best.test <= best[["last", "validation"]].min(axis=1)).all()
    assert len(drawn(page)) == 1
