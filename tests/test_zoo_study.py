"""Studies of many methods: a shared robust start, options, validation images, helpers."""

import dataclasses

import pytest
import torch

from advbook.studies.identity import digest, recipe_for, recipe_of, training_settings
from advbook.studies.inputs import images_of
from advbook.studies.places import STUDIES
from advbook.studies.runs import load_run, train_method
from advbook.studies.schema import load_study
from advlib import metrics
from advlib.attacks.worst_case import evaluate_attack
from advlib.labels import find_head
from advlib.offsets import tune_offsets


@pytest.fixture
def zoo(tiny_study):
    return dataclasses.replace(
        tiny_study,
        methods=["pretrained", "adv", "trades", "fair_ard", "frl"],
        pretrain_method="n_fgsm",
        holdout_images=20,
        train_images=160,
        epochs=1,
        options={"frl": {"tau": 0.0}},
        ablations={
            "weak": {"method": "trades", "options": {"beta": 1.0}, "title": "TRADES, β = 1"}
        },
    )


def test_methods_share_a_robust_start_and_consult_a_network(zoo):
    """A teacher's network is loaded, recorded, and asked for if it is missing or another one."""
    start = train_method(zoo, "pretrained", 0)
    assert start["settings"]["objective"] == "n_fgsm" and start["settings"]["threat"]["eps"]
    with pytest.raises(FileNotFoundError, match="trades .* is not trained yet"):
        train_method(zoo, "fair_ard", 0)
    teacher = train_method(zoo, "trades", 0)
    taught = train_method(zoo, "fair_ard", 0)
    assert taught["settings"]["consulted"] == teacher["checkpoint_hash"]
    assert taught["settings"]["start"] == start["checkpoint_hash"]
    load_run(zoo, "fair_ard", 0)
    train_method(zoo, "frl", 0)  # looks at validation images
    other = dataclasses.replace(zoo, options={"trades": {"beta": 2.0}})
    train_method(other, "trades", 0)
    with pytest.raises(ValueError, match="another network of trades than"):
        load_run(other, "fair_ard", 0)


def test_offsets_of_the_logits_even_out_the_classes(zoo):
    """The helper's network with another bias, less unequal on the images that it was tuned on."""
    study = dataclasses.replace(
        zoo, methods=["pretrained", "adv", "logit_offset"], holdout_images=100, options={},
        train_images=None, epochs=4, ablations={},
    )  # fmt: skip
    for method in study.methods:
        facts = train_method(study, method, 0)
    adv, run = load_run(study, "adv", 0)
    tuned, _ = load_run(study, "logit_offset", 0)
    assert facts["settings"]["consulted"] == run["checkpoint_hash"]
    before, after = adv.state_dict(), tuned.state_dict()
    changed = [key for key in before if not torch.equal(before[key], after[key])]
    assert changed == [f"{find_head(adv)[0]}.bias"]
    held, worst = images_of(study, "holdout"), {}
    for name, model in (("adv", adv), ("tuned", tuned)):
        found = evaluate_attack(model, held, study.train_threat, num_classes=10)
        worst[name] = metrics.class_error(found).error.max()
    assert worst["tuned"] < worst["adv"]
    lacking = held.subset(torch.nonzero(held.labels != 3)[:, 0].tolist())
    with pytest.raises(ValueError, match="no validation image is of class 3"):
        tune_offsets(adv, lacking, study.train_threat, num_classes=10)
    untouched = dataclasses.replace(study, options={"logit_offset": {"strength": 0.0}})
    train_method(untouched, "logit_offset", 0)
    same, _ = load_run(untouched, "logit_offset", 0)
    assert all(torch.equal(before[key], value) for key, value in same.state_dict().items())


def test_options_decide_a_run_and_are_said_by_study_and_ablation(zoo):
    def name(study, method):
        return digest(training_settings(study, method, 0, "data", "start"))

    assert recipe_for(zoo, "frl").options["tau"] == 0.0
    assert recipe_for(*recipe_of(zoo, "weak")).options["beta"] == 1.0
    assert name(zoo, "weak") != name(zoo, "trades")
    same = dataclasses.replace(zoo, options={"trades": {"beta": 6.0}})
    assert name(same, "trades") == name(zoo, "trades")
    averaged = dataclasses.replace(zoo, ema=0.9)
    assert name(averaged, "adv") != name(zoo, "adv")


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"own_methods": {"mine": {"objective": "a.py:A", "title": "Mine", "base": "trade"}}},
            "own method mine: its base is .* got 'trade'",
        ),
        (
            {"own_methods": {"mine": {"objective": "a.py:A", "title": "M", "base": "mart"}}},
            "own method mine: its base is a method that this study trains too, got 'mart'",
        ),
        (
            {"own_methods": {"mine": {"objective": "a.py:A", "title": "M", "options": {"b": "x"}}}},
            "(?s)own method mine: .*options.b",
        ),
        ({"options": {"frl": {"tua": 1.0}}}, "FRL has no option 'tua': known are beta, tau"),
        ({"holdout_images": 0}, "frl looks at validation images: set holdout_images"),
        (
            {"methods": ["pretrained", "adv", "fair_ard"], "ablations": {}},
            "fair_ard consults the network of trades: add trades to methods",
        ),
        ({"pretrain_method": "nfgsm"}, "pretrain_method .* n_fgsm"),
        (
            {
                **{"zoo": True, "seeds": [0, 1], "methods": ["pretrained", "adv", "wat"]},
                **{"options": {}, "ablations": {"trades": {"method": "trades"}}},
            },
            "wat has several seeds and its base, the ablation trades, the first alone",
        ),
    ],
)
def test_what_a_method_lacks_is_said_before_work_starts(zoo, changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(zoo, **changes)


def test_a_method_of_ones_own_is_a_file_and_a_line(zoo, tmp_path, monkeypatch):
    """The template runs as it is; another text of its file is another method."""
    text = (STUDIES / "my_method.py").read_text(encoding="utf-8")
    mine = tmp_path / "mine.py"
    mine.write_text(text, encoding="utf-8")
    own = {"objective": f"{mine}:MyMethod", "title": "Mine", "adversarial": True}
    own |= {"options": {"power": 1.0}}
    study = dataclasses.replace(
        zoo, methods=["pretrained", "mine"], own_methods={"mine": own}, options={}, ablations={}
    )
    assert study.names["mine"] == "Mine"
    train_method(study, "pretrained", 0)
    train_method(study, "mine", 0)
    load_run(study, "mine", 0)
    mine.write_text(text + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match="another objective_file than"):
        load_run(study, "mine", 0)
    for said, message in (
        ({**own, "objectve": 1}, "objective"),
        ({"title": "Mine"}, "an objective such as"),
    ):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(study, own_methods={"mine": said})
    for said, message in (
        ({**own, "objective": f"{mine}:Lost"}, "has no 'Lost'"),
        ({**own, "options": {"powr": 1.0}}, "asks for 'power', .* gives the options {'powr': 1.0}"),
    ):
        wrong = dataclasses.replace(study, own_methods={"mine": said})
        with pytest.raises(ValueError, match=message):
            train_method(wrong, "pretrained", 1)  # before anything is trained
    assert not list((study.runs / "models").glob("pretrained-seed1-*"))


def test_a_zoo_of_methods_alone_is_audited(zoo):
    """Its pages read what the audit's part of ablations holds, also where there are none."""
    assert dataclasses.replace(zoo, zoo=True, ablations={}).audits == ("ablations",)
    assert load_study("cifar10_zoo").names["pretrained"] == "Start"  # not trained on clean images
    assert "ablations" in load_study("cifar100").audits  # the mixed pair, among its methods


def test_a_method_that_attacks_says_so(zoo):
    """Else its settings would lack the threat model, and its attack the random starts."""
    own = {"objective": "notebooks/studies/my_method.py:MyMethod", "title": "Mine"}
    own |= {"options": {"power": 1.0}}
    study = dataclasses.replace(
        zoo, methods=["pretrained", "mine"], own_methods={"mine": own}, options={}, ablations={}
    )
    train_method(study, "pretrained", 0)
    with pytest.raises(ValueError, match="says `adversarial: true`"):
        train_method(study, "mine", 0)


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("= step.logits(x_adv)", "= [step.scores(x_adv)]", "no gradient: .* from step.logits"),
        (".mean(), wrong", ", wrong", "a pair: the loss, a scalar"),
        (".mean(), wrong", ".mean()", "a pair: the loss, a scalar"),
    ],
)
def test_a_loss_that_trains_nothing_is_said(zoo, tmp_path, old, new, message):
    text = (STUDIES / "my_method.py").read_text(encoding="utf-8")
    mine = tmp_path / "mine.py"
    assert text.count(old) == 1
    mine.write_text(text.replace(old, new), encoding="utf-8")
    own = {"objective": f"{mine}:MyMethod", "title": "Mine", "adversarial": True}
    own |= {"options": {"power": 1.0}}
    changes = {"methods": ["pretrained", "mine"], "own_methods": {"mine": own}, "options": {}}
    study = dataclasses.replace(zoo, **changes, pretrain_epochs=1, ablations={})
    train_method(study, "pretrained", 0)
    with pytest.raises(TypeError, match=message):
        train_method(study, "mine", 0)
