"""Methods beyond the paper's: against their formulas, at their neutral settings, resumed."""

import dataclasses

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from advbook.studies.identity import training_of
from advbook.studies.inputs import images_of
from advlib.attacks.pgd import pgd_attack
from advlib.networks.build import build_model
from advlib.objectives import OBJECTIVES, Step, trades_loss
from advlib.recipes import RECIPES, Training, with_options
from advlib.threat import ThreatModel
from advlib.train import fit


def network():
    torch.manual_seed(0)
    return build_model("cifar_resnet8", num_classes=10, mean=(0.3,), std=(0.4,))


class Stopped(Exception):
    pass


def trained(study, recipe, folder, stop=None, **changes):
    """The weights of a run, killed after step `stop` and resumed if that is given."""
    training = dataclasses.replace(training_of(study, "adv"), **changes)

    def on_step(done):
        if done == stop:
            raise Stopped

    how = dict(seed=0, folder=folder, checkpoint_seconds=0)
    images = images_of(study, "train")
    if stop is not None:
        with pytest.raises(Stopped):
            fit(network(), images, training, recipe, on_step=on_step, **how)
    fit(network(), images, training, recipe, **how)
    return load_file(folder / "checkpoint.safetensors")


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_trades_is_its_formula():
    torch.manual_seed(0)
    natural, attacked, y = torch.randn(5, 4), torch.randn(5, 4), torch.tensor([0, 1, 2, 3, 0])
    p, q = natural.softmax(1), attacked.softmax(1)
    expected = -p[torch.arange(5), y].log().mean() + 6 * (p * (p / q).log()).sum(1).mean()
    torch.testing.assert_close(trades_loss(natural, attacked, y, beta=6.0), expected)


def test_the_attack_of_trades_climbs_the_divergence(tiny_study):
    """Attacked images diverge more from the clean prediction than their start, for every image."""
    model, training = network().eval(), training_of(tiny_study, "adv")
    objective = OBJECTIVES["trades"](RECIPES["trades"], training, 10)
    x, y = torch.rand(8, 1, 8, 8), torch.randint(0, 10, (8,))
    clean = model(x).softmax(1).detach()
    noise = 2 * torch.rand_like(x) - 1
    found = []

    def attack(climbed):
        threat = dataclasses.replace(training.threats[0], eps=0.1, step_size=None, steps=10)

        def all_of(logits, labels):
            return climbed(logits, labels, None, slice(None))

        x_adv = pgd_attack(model, x, y, threat, noise=noise, objective=all_of)
        for images in ((x + 0.1 * noise).clamp(0, 1), x_adv):
            found.append(F.kl_div(model(images).log_softmax(1), clean, reduction="none").sum(1))
        return x_adv, None

    objective(Step(x, y, lambda *images: [model(i) for i in images], attack, lambda _: clean))
    start, end = found
    assert (end > start).all()


def test_neutral_settings_are_the_base_method_bit_for_bit(tiny_study, tmp_path):
    base = {m: trained(tiny_study, RECIPES[m], tmp_path / m) for m in ("std", "adv")}
    for method, options, like in (
        ("trades", {"beta": 0.0}, "std"),
        ("cfa", {"begin": 100}, "adv"),
    ):
        recipe = with_options(RECIPES[method], **options)
        found = trained(tiny_study, recipe, tmp_path / f"{method} neutral")
        assert same(found, base[like]), method
        assert not same(trained(tiny_study, RECIPES[method], tmp_path / method), base[like])
    with pytest.raises(ValueError, match="TRADES has no option 'gamma': known are beta"):
        with_options(RECIPES["trades"], gamma=1.0)


@pytest.mark.parametrize("stop", [3, 5, 8])  # inside an epoch of 5 steps, at its end, after it
def test_a_method_with_class_state_and_averaged_weights_resumes(tiny_study, tmp_path, stop):
    whole = trained(tiny_study, RECIPES["cfa"], tmp_path / "whole", ema=0.9)
    assert same(trained(tiny_study, RECIPES["cfa"], tmp_path / "killed", stop, ema=0.9), whole)
    assert not same(trained(tiny_study, RECIPES["cfa"], tmp_path / "plain"), whole)


def test_radii_follow_the_classes():
    """After an epoch a class has (base + its share of correct images) eps."""
    threats = (ThreatModel(eps=0.1, success="last"),)
    training = Training(epochs=2, batch_size=6, threats=threats)
    recipe = with_options(RECIPES["cfa"], base=0.5, begin=1)
    objective = OBJECTIVES["class_margins"](recipe, training, 3)
    y = torch.tensor([0, 0, 0, 0, 1, 1])  # no image of class 2
    predicted = torch.tensor([0, 0, 0, 1, 0, 0])
    radii = []

    def attack(climbed, radius):
        radii.append(radius)
        return torch.zeros(6, 1), torch.zeros(6, dtype=torch.long)

    step = Step(torch.zeros(6, 1), y, lambda x: [F.one_hot(predicted, 3).float()], attack, None)
    for _ in range(2):
        objective(step)
        objective.end_epoch()
    assert torch.equal(radii[0], torch.full((6,), 0.1))
    torch.testing.assert_close(radii[1], torch.tensor([0.125] * 4 + [0.05] * 2))
    assert objective.scale.tolist() == [1.25, 0.5, 1.0]


def test_averaged_weights_are_the_mean_that_the_decay_says(tiny_study, tmp_path):
    """With decay 0 the average is the network itself; else it lies between its past states."""
    plain = trained(tiny_study, RECIPES["std"], tmp_path / "plain")
    assert same(trained(tiny_study, RECIPES["std"], tmp_path / "none", ema=1e-12), plain)
