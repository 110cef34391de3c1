"""The choice of a checkpoint: networks of late epochs, and what choosing does to the figures."""

import dataclasses

import numpy as np
import pytest

from advbook.audit.predictions import late_predictions
from advbook.studies.inputs import images_of
from advbook.studies.runs import load_run, train_method
from advbook.zoo.selection import class_errors, optimism
from advlib.attacks.worst_case import evaluate_attack
from advlib.importing import read_predictions
from advlib.predictions import read_facts

LABELS = np.repeat(np.arange(10), 1_000)


def errors(rates, n_networks, seed=0):
    """Independent errors (E, N) of networks that are equally good."""
    rng = np.random.default_rng(seed)
    return rng.random((n_networks, len(LABELS))) < np.repeat(rates, 1_000)


def test_late_networks_are_judged_on_test_and_validation_images(tiny_study):
    study = dataclasses.replace(
        tiny_study, methods=["pretrained", "adv"], holdout_images=40, train_images=100, epochs=3,
        late_epochs={"adv": 2},
    )  # fmt: skip
    train_method(study, "pretrained", 0)
    train_method(study, "adv", 0)
    path = late_predictions(study, "adv", 0)
    table, facts = read_predictions(path), read_facts(path)
    assert sorted(table.attack.unique()) == ["epoch-2", "epoch-3"]
    assert table.groupby("attack").size().tolist() == [facts["n_images"]] * 2
    assert facts["threat"]["steps"] == 10 and facts["threat"]["eps"] == study.eps
    assert [len(found) for found in facts["validation"].values()] == [10, 10]
    threat = study.late_threat
    own = evaluate_attack(
        load_run(study, "adv", 0)[0], images_of(study, "test"), threat, num_classes=10
    )
    last = table[table.attack == "epoch-3"]
    assert last.predicted_class.tolist() == own.predicted_class.tolist()
    with pytest.raises(ValueError, match="trained for 3 epochs, keep at most so many, got 4"):
        dataclasses.replace(study, late_epochs={"adv": 4})
    with pytest.raises(ValueError, match="late_epochs"):
        dataclasses.replace(study, late_epochs={"pretrained": 1})
    for kept in (study.runs / "models").glob("adv-*/epoch-2*"):
        kept.unlink()
    with pytest.raises(FileNotFoundError, match="remove that folder and papermill"):
        late_predictions(study, "adv", 0)


def test_one_checkpoint_has_no_optimism_but_its_worst_class_may_be_noise():
    """The largest of 10 normals lies 1.54 SDs up; a class of 500 images has SD 0.022."""
    apart = optimism(errors([0.9] + [0.5] * 9, 1), LABELS, n_splits=300)
    assert apart.optimism.abs().max() < 0.003 and apart.noise.abs().max() < 0.003
    noise = [optimism(errors([0.5] * 10, 1, s), LABELS, n_splits=40).noise[1] for s in range(12)]
    assert np.mean(noise) == pytest.approx(1.54 * 0.5 / np.sqrt(500), rel=0.2)


def test_the_best_of_equal_checkpoints_looks_better_by_what_normals_say():
    """The least of 8 normals lies 1.42 SDs below the mean; an average of 5,000 has SD 0.007."""
    found = [
        optimism(errors([0.5] * 10, 8, seed), LABELS, n_splits=40, seed=seed) for seed in range(12)
    ]
    average = np.mean([table.set_index("rule").optimism["average"] for table in found])
    assert average == pytest.approx(1.42 * 0.5 / np.sqrt(5_000), rel=0.15)


def test_class_errors_are_those_of_the_metric():
    wrong, labels = errors(np.linspace(0, 0.9, 10), 2), LABELS
    expected = [[wrong[e][labels == k].mean() for k in range(10)] for e in range(2)]
    np.testing.assert_allclose(class_errors(wrong, labels), expected)
