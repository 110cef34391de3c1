"""Attacks told to use the predicted label, against a library that does so when given no label."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from advlib.attacks.pgd import pgd_attack
from advlib.threat import ThreatModel

pytest.importorskip("art", reason="adversarial-robustness-toolbox: `make test` installs it")


@pytest.fixture(scope="module")
def weak_model():
    """A linear classifier of the digits that is wrong about a good part of them."""
    digits = load_digits()
    x = torch.tensor(digits.images / 16, dtype=torch.float32)[:, None]
    y = torch.tensor(digits.target)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(20):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model.eval(), x[:200], y[:200]


@pytest.mark.parametrize("clip", [True, False])
def test_the_predicted_label_is_what_art_takes_without_labels(weak_model, clip):
    from art.attacks.evasion import ProjectedGradientDescentPyTorch
    from art.estimators.classification import PyTorchClassifier

    model, x, y = weak_model
    eps, step, steps = 0.1, 0.025, 10
    classifier = PyTorchClassifier(
        model=model,
        loss=nn.CrossEntropyLoss(),
        input_shape=(1, 8, 8),
        nb_classes=10,
        clip_values=(0, 1) if clip else None,
        device_type="cpu",
    )
    attack = ProjectedGradientDescentPyTorch(
        classifier, eps=eps, eps_step=step, max_iter=steps, num_random_init=0, verbose=False
    )
    theirs = torch.tensor(attack.generate(x.numpy()))  # no labels
    threat = ThreatModel(
        eps=eps,
        steps=steps,
        step_size=step,
        random_start=False,
        label_source="predicted",
        clip=clip,
        success="last",
    )
    ours = pgd_attack(model, x, y, threat)
    # Where a gradient is 0 but for rounding, its sign is chance: on a few pixels of the border.
    assert ((ours - theirs).abs() < 1e-5).float().mean() > 0.999
    with torch.no_grad():
        classes = [model(images).argmax(1) for images in (x, ours, theirs)]
    assert (classes[1] == classes[2]).all()
    true = pgd_attack(model, x, y, ThreatModel(**{**threat.to_dict(), "label_source": "true"}))
    wrong = classes[0] != y
    assert 0.05 < wrong.float().mean() < 0.5
    # Left to itself the attack pushes misclassified images about, some onto their true class.
    errors = [float((model(images).argmax(1) != y).float().mean()) for images in (ours, true)]
    assert errors[0] < errors[1]
    assert np.isclose(float((ours - x).abs().max()), eps, atol=1e-5)
