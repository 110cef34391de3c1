"""Methods of the field in training: neutral settings, resume, what they ask for."""

import dataclasses
import re
from collections import OrderedDict

import nbformat
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from advbook.studies.identity import training_of
from advbook.studies.inputs import images_of
from advbook.studies.places import ROOT
from advbook.studies.schema import Study
from advlib.networks.build import Normalize
from advlib.recipes import RECIPES, with_options
from advlib.train import fit
from advlib.zoo import ZOO


def network():
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 4, 3, 2, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()]
    net = nn.Sequential(*layers, nn.Linear(36, 10))
    return nn.Sequential(OrderedDict(normalize=Normalize((0.3,), (0.4,)), net=net))


class Stopped(Exception):
    pass


@pytest.fixture(scope="module")
def parts():
    """Training and validation images, and how they are trained on: two epochs of two steps."""
    study = Study(
        study="zoo", dataset="digits", model="cifar_resnet8", train_images=60, holdout_images=20,
        epochs=2, batch_size=30, lr=0.1, eps=0.1, train_steps=3, pretrain_epochs=1,
    )  # fmt: skip
    return images_of(study, "train"), images_of(study, "holdout"), training_of(study, "adv")


def trained(parts, recipe, folder, stop=None, late_epochs=0, **changes):
    """The weights of a run, killed after step `stop` and resumed if that is given."""
    images, validation, training = parts
    training = dataclasses.replace(training, **changes)

    def on_step(done):
        if done == stop:
            raise Stopped

    how = dict(seed=0, folder=folder, checkpoint_seconds=0, validation=validation)
    how["late_epochs"] = late_epochs
    how |= {"helper": network()}
    if stop is not None:
        with pytest.raises(Stopped):
            fit(network(), images, training, recipe, on_step=on_step, **how)
    fit(network(), images, training, recipe, **how)
    return load_file(folder / "checkpoint.safetensors")


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture(scope="module")
def base(parts, tmp_path_factory):
    """Weights of the base methods."""
    recipes = {
        "std": RECIPES["std"],
        "adv": RECIPES["adv"],
        "trades": RECIPES["trades"],
        "trades 1.5": with_options(RECIPES["trades"], beta=1.5),
        "trades 2.5": with_options(RECIPES["trades"], beta=2.5),
    }
    return {k: trained(parts, r, tmp_path_factory.mktemp(k)) for k, r in recipes.items()}


NEUTRAL = {
    "trades": ({"beta": 0.0}, "std"),
    "awp": ({"gamma": 0.0}, "adv"),
    "trades_awp": ({"gamma": 0.0}, "trades"),
    "sat": ({"momentum": 1.0, "begin": 0}, "trades"),
    "hat": ({"gamma": 0.0}, "trades 2.5"),
    "gairat": ({"lam": float("inf"), "begin": 0}, "adv"),
    "inverse_accuracy": ({"power": 0.0}, "adv"),
    "group_dro": ({"eta": 0.0}, "adv"),
    "frl": ({"rate_clean": 0.0, "rate_boundary": 0.0}, "trades 1.5"),
    "frl_margin": (
        {"rate_clean": 0.0, "rate_boundary": 0.0, "rate_margin": 0.0},
        "trades 1.5",
    ),
    "cfa": ({"margins": 0, "threshold": 2.0}, "adv"),
    "cfa_margins": ({"begin": 100}, "adv"),
    "cfa_average": ({"begin": 100}, "adv"),
    "cfa_weights": ({"begin": 100}, "trades"),
    "cfa_trades": ({"begin": 100}, "trades"),
    "wat": ({"eta": 0.0}, "trades"),
    "cfol": ({"gamma": 1.0}, "adv"),
    "faal": ({"r": 0.0}, "adv"),
    "dafa": ({"lam": 0.0}, "trades"),
    "dafa_at": ({"lam": 0.0}, "adv"),
    "fair_tat": ({"targeted": 0, "margins": 0}, "adv"),
    "random_targets": ({"targeted": 0}, "adv"),
    "ham": ({"first": 0}, "adv"),
    "csr": ({"weight": 0.0}, "trades"),
}


@pytest.mark.parametrize("method", NEUTRAL)
def test_a_neutral_setting_is_the_base_method_bit_for_bit(parts, base, tmp_path, method):
    options, like = NEUTRAL[method]
    neutral = with_options(RECIPES[method], **options)
    assert same(trained(parts, neutral, tmp_path / "neutral"), base[like])


def test_the_page_on_the_methods_has_each_one_and_its_neutral_setting():
    cells = nbformat.read(ROOT / "notebooks/methods.ipynb", 4).cells
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    heads = [section.split("\n")[1] for section in text.split("\n### ")[1:]]
    for method in ZOO:
        (head,) = [line for line in heads if f"`{method}`" in line]
        costs = {RECIPES[name].passes(10) for name in re.findall(r"passes_(\w+)`", head)}
        assert RECIPES[method].passes(10) in costs or RECIPES[method].post_hoc, method
        options, _ = NEUTRAL.get(method, ({}, ""))
        assert all(f"`{name}: {value:g}`" in head for name, value in options.items()), method


# Where the published setting does nothing in two epochs of three attack steps.
SHORT = {"ham": {"first": 1}, "cfa_average": {"threshold": 0.0}}


@pytest.mark.parametrize(
    "method", [m for m, r in RECIPES.items() if r.objective not in ("standard", "offsets")]
)
def test_a_method_resumes_and_is_no_base_method(parts, base, tmp_path, method):
    """Killed in the second epoch, when what it learnt from the first one counts."""
    recipe = with_options(RECIPES[method], **SHORT.get(method, {}))
    whole = trained(parts, recipe, tmp_path / "whole")
    assert same(trained(parts, recipe, tmp_path / "killed", 3), whole)
    for like in base:
        assert not same(whole, base[like]) or (method, like) == ("trades", "trades")


@pytest.mark.parametrize("stop", [1, 2, 3])  # inside an epoch of 2 steps, at its end, after it
def test_a_method_resumes_with_averaged_weights(parts, tmp_path, stop):
    whole = trained(parts, RECIPES["cfa_margins"], tmp_path / "whole", ema=0.9)
    killed = trained(parts, RECIPES["cfa_margins"], tmp_path / "killed", stop, ema=0.9)
    assert same(killed, whole)
    assert not same(trained(parts, RECIPES["cfa_margins"], tmp_path / "plain"), whole)


def test_averaged_weights_are_the_mean_that_the_decay_says(parts, tmp_path):
    """With next to no decay the average is the network itself."""
    plain = trained(parts, RECIPES["std"], tmp_path / "plain")
    assert same(trained(parts, RECIPES["std"], tmp_path / "none", ema=1e-12), plain)


def test_an_average_by_epochs_is_that_of_the_kept_epochs(parts, tmp_path):
    """The first kept epoch is copied, the second weighs 1 - decay."""
    average = {}
    for decay in (0.0, 0.25, 1 - 1e-12):
        recipe = with_options(RECIPES["cfa_average"], threshold=0.0, decay=decay)
        average[decay] = trained(parts, recipe, tmp_path / str(decay))
    second, mixed, first = average.values()
    for name, values in mixed.items():
        if values.is_floating_point():
            expected = 0.25 * first[name] + 0.75 * second[name]
            torch.testing.assert_close(values, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_late_epochs_are_kept_as_they_would_be_handed_over(parts, tmp_path, ema):
    """The last one is what is handed over; a run that was killed keeps the same ones."""
    images, validation, training = parts
    training = dataclasses.replace(training, epochs=3, ema=ema)
    whole = trained((images, validation, training), RECIPES["adv"], tmp_path / "w", late_epochs=2)
    killed = trained(
        (images, validation, training), RECIPES["adv"], tmp_path / "k", 5, late_epochs=2
    )
    kept = {path.name: load_file(path) for path in sorted((tmp_path / "w").glob("epoch-*"))}
    assert list(kept) == ["epoch-2.safetensors", "epoch-3.safetensors"]
    assert same(kept["epoch-3.safetensors"], whole) and same(killed, whole)
    assert not same(kept["epoch-2.safetensors"], whole)
    assert same(load_file(tmp_path / "k" / "epoch-2.safetensors"), kept["epoch-2.safetensors"])


def test_the_log_says_the_mean_radius_of_the_attack(parts, tmp_path):
    """CFA's budgets follow the classes from the second epoch on; clean training attacks nothing."""
    images, _, training = parts

    def radii(method):
        trained(parts, RECIPES[method], tmp_path / method, accumulate=2)
        return pd.read_csv(tmp_path / method / "log.csv").eps.to_numpy()

    eps = training.threats[0].eps
    assert radii("std") == pytest.approx(0) and radii("trades") == pytest.approx(eps)
    first, _, second, _ = radii("cfa_margins")
    assert first == pytest.approx(eps) and 0.5 * eps < second < 1.5 * eps != second


def test_what_a_method_needs_is_asked_for(parts, tmp_path):
    images, validation, training = parts
    for method, said in (("wat", "WAT needs validation images"), ("hat", "HAT needs a helper")):
        with pytest.raises(ValueError, match=said):
            fit(network(), images, training, RECIPES[method], seed=0, folder=tmp_path)
    with pytest.raises(ValueError, match="first is less than the 3 steps of the attack, got 3"):
        trained(parts, RECIPES["ham"], tmp_path)
    few = dataclasses.replace(validation, **{
        "labels": validation.labels[:2], "pixels": validation.pixels[:2],
        "file_names": validation.file_names[:2], "positions": None,
    })  # fmt: skip
    with pytest.raises(ValueError, match="no validation image is of class"):
        trained((images, few, training), RECIPES["wat"], tmp_path / "few")
    with pytest.raises(ValueError, match="TRADES has no option 'gamma': known are beta"):
        with_options(RECIPES["trades"], gamma=1.0)
