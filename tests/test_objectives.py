"""Objectives against their formulas, computed by hand on a few numbers.

Most steps here have a network of which only the logits are known; where the path of an attack
counts, a linear network is attacked, and the path is walked again step by step.
"""

import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import optimize
from torch import nn
from torch.nn import functional as F

from advlib.attacks.pgd import attack_mode
from advlib.objectives import OBJECTIVES, Networks, Step
from advlib.objectives.class_budgets import dafa_weights
from advlib.objectives.class_weights import confusion_weights, worst_weights
from advlib.objectives.state import ClassMethod
from advlib.recipes import RECIPES, Training, with_options
from advlib.steps import backward
from advlib.threat import ThreatModel

EPS, STEPS = 0.1, 5
Y = torch.tensor([0, 1, 2, 0, 1, 0])


def training(batch_size=6):
    threat = ThreatModel(eps=EPS, steps=STEPS, success="last")
    return Training(epochs=9, batch_size=batch_size, threats=(threat,))


def made(method, classes=3, labels=Y, **options):
    images = SimpleNamespace(num_classes=classes, labels=labels)
    recipe = with_options(RECIPES[method], **options)
    return OBJECTIVES[recipe.objective](recipe, training(), images)


def known(*logits, y=Y, teacher=None, classes=3):
    """A step with these logits on clean, attacked and farther images; and how it is attacked."""
    x, x_adv, attacks = torch.zeros(len(y), 1, 1, 1), torch.ones(len(y), 1, 1, 1), []

    class Known(Step):
        def logits(self, *images):
            return [logits[int(i.max())] for i in images]

        def scores(self, images):
            return logits[int(images.max())].detach()

        def helper(self, images):
            return teacher[int(images.max())] if isinstance(teacher, list) else teacher

        def attack(self, objective=None, **how):
            attacks.append({"objective": objective, **how})
            return x_adv, None

    networks = Networks(None, training(), classes)
    return Known(x, y, torch.arange(len(y)), None, networks), attacks


def random_logits(number, size=6, classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return list(2 * torch.randn(number, size, classes, generator=generator))


def numpy(*logits):
    """Softmax in double precision."""
    found = [np.exp(z.double().numpy()) for z in logits]
    return [p / p.sum(1, keepdims=True) for p in found]


def ce(p, y=Y):
    return -np.log(p[np.arange(len(y)), y])


def kl(p, q):
    return (p * np.log(p / q)).sum(1)


def loss_of(objective, step):
    return objective(step)[0].item()


def close(found, expected):
    np.testing.assert_allclose(np.asarray(found), np.asarray(expected), rtol=1e-5, atol=1e-6)


# A network that is attacked, and the path of the attack.


def linear(classes=3, seed=1):
    """A network whose boundaries meet at grey, so that the path of an attack crosses some."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, classes))
    with torch.no_grad():
        model[1].bias.copy_(-model[1].weight.sum(1) / 2)
    return model


def attacked_step(model, size=40, **networks):
    """A step on images of 4 pixels, most labelled as predicted, and the images trained on."""
    generator = torch.Generator().manual_seed(2)
    x = 0.2 + 0.6 * torch.rand(size, 1, 2, 2, generator=generator)
    noise = 2 * torch.rand(x.shape, generator=generator) - 1
    y = model(x).argmax(1)
    y[::4] = (y[::4] + 1) % 3
    trained_on = []

    def forward(*images):
        trained_on.extend(images)
        return [model(i) for i in images]

    nets = Networks(model, training(), 3, forward=forward, **networks)
    return Step(x, y, torch.arange(size), noise, nets), trained_on


def path(step, climbed, start=None, radius=EPS, size=None, steps=STEPS):
    """The iterates of an attack, walked by hand."""
    size = 2.5 * EPS / STEPS if size is None else size
    x_adv = (step.x + EPS * step.noise).clamp(0, 1) if start is None else start
    found = [x_adv]
    for _ in range(steps):
        x_adv = x_adv.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(climbed(step.networks.model(x_adv)), x_adv)
        x_adv = x_adv.detach() + size * gradient.sign()
        x_adv = torch.minimum(torch.maximum(x_adv, step.x - radius), step.x + radius).clamp(0, 1)
        found.append(x_adv)
    return found


def wrong_on(step, images):
    return step.networks.model(images).argmax(1) != step.y


def away(step):
    p = step.networks.model(step.x).softmax(1).detach()
    return lambda z: (p * (p.log() - z.log_softmax(1))).sum()


def label_loss(y):
    return lambda z: F.cross_entropy(z, y, reduction="sum")


# What methods share


def test_what_cannot_be_meant_is_refused():
    with pytest.raises(ValueError, match="schedule is one of cosine, one_cycle, got 'cosin'"):
        dataclasses.replace(training(), schedule="cosin")
    several = dataclasses.replace(training(), threats=(ThreatModel(), ThreatModel(steps=1)))
    for method in ("gairat", "ham", "cfa", "frl", "n_fgsm"):  # of which ε, of which steps?
        with pytest.raises(ValueError, match="attacks in one way, got 2 threats"):
            images = SimpleNamespace(num_classes=3, labels=Y)
            objective = OBJECTIVES[RECIPES[method].objective](RECIPES[method], several, images)
            objective(None)


def test_a_method_may_extend_what_calls_the_hooks():
    """Methods of one's own were written so before there were `set_up` and `look_back`."""

    class Mine(ClassMethod):
        def __init__(self, recipe, training, images):
            super().__init__(recipe, training, images)
            self.per_class("weight")

        def end_epoch(self, validation):
            super().end_epoch(validation)
            self.weight += self.epochs

    mine = Mine(RECIPES["adv"], training(), SimpleNamespace(num_classes=3))
    mine.end_epoch(None)
    assert list(mine.state_dict()) == ["epochs", "weight"] and mine.began()
    assert mine.weight.tolist() == [1, 1, 1]


# Base methods


def test_trades_and_mart_are_their_formulas():
    logits = random_logits(2)
    p, q = numpy(*logits)
    step, _ = known(*logits)
    close(loss_of(made("trades"), step), ce(p).mean() + 6 * kl(p, q).mean())
    others = q.copy()
    others[np.arange(6), Y] = 0
    boosted = ce(q) - np.log(1.0001 - others.max(1))
    unsure = 1 - p[np.arange(6), Y]
    close(loss_of(made("mart"), step), boosted.mean() + 5 * (kl(p, q) * unsure).mean())
    close(loss_of(made("mart", beta=0.0), step), boosted.mean())


def test_the_attack_of_trades_climbs_the_divergence():
    step, trained_on = attacked_step(linear())
    made("trades")(step)
    torch.testing.assert_close(trained_on[0], step.x)
    torch.testing.assert_close(trained_on[1], path(step, away(step))[-1])


def test_n_fgsm_takes_one_step_from_noise_of_two_eps_without_projection():
    step, trained_on = attacked_step(linear())
    made("n_fgsm")(step)
    start = (step.x + 2 * EPS * step.noise).requires_grad_()
    loss = F.cross_entropy(step.networks.model(start), step.y, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, start)
    expected = (start + EPS * gradient.sign()).detach().clamp(0, 1)
    torch.testing.assert_close(trained_on[0], expected)
    assert EPS < (trained_on[0] - step.x).abs().max() <= 3 * EPS + 1e-6


@pytest.mark.parametrize("method", ["awp", "trades_awp"])
def test_awp_moves_weights_by_gamma_of_their_norm_and_puts_them_back(method):
    model, gamma = linear(), RECIPES[method].options["gamma"]
    step, trained_on = attacked_step(model)
    before = [p.detach().clone() for p in model.parameters()]
    made(method)(step)
    weight, bias = (p.detach().clone() for p in model.parameters())
    moved = weight - before[0]
    assert moved.norm() == pytest.approx(gamma * before[0].norm().item(), rel=1e-4)
    assert torch.equal(bias, before[1])
    step.networks.put_back()
    images_of_step = list(trained_on)

    def loss():
        outputs = [model(images) for images in images_of_step]
        if method == "awp":
            return F.cross_entropy(outputs[0], step.y)
        p, q = (z.log_softmax(1) for z in outputs)
        return F.cross_entropy(outputs[0], step.y) + 6 * (p.exp() * (p - q)).sum(1).mean()

    (uphill,) = torch.autograd.grad(loss(), model[1].weight)
    assert F.cosine_similarity(moved.flatten(), uphill.flatten(), dim=0) > 1 - 1e-4
    # The step's gradient is that at the moved weights, which then are where they were, bit for bit.
    model.zero_grad()
    backward(made(method), step, 1)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))
    found = model[1].weight.grad.clone()
    with torch.no_grad():
        model[1].weight.copy_(weight)
    (expected,) = torch.autograd.grad(loss(), model[1].weight)
    torch.testing.assert_close(found, expected)


def test_hat_learns_the_helper_s_labels_farther_out():
    logits, teacher = random_logits(3), random_logits(3, seed=1)
    step, _ = known(*logits, teacher=teacher)
    p, q, far = numpy(*logits)  # images at 0, 1, and 2 times the attack's way
    labels = teacher[1].argmax(1)  # of the attacked images
    expected = ce(p).mean() + 2.5 * kl(p, q).mean() + 0.5 * ce(far, labels).mean()
    close(loss_of(made("hat"), step), expected)


def test_sat_moves_targets_to_predictions_and_weighs_them():
    logits = random_logits(2)
    step, _ = known(*logits)
    p, q = numpy(*logits)
    objective = made("sat", begin=1)
    target = np.eye(3)[Y]
    close(loss_of(objective, step), ce(p).mean() + 6 * kl(p, q).mean())
    for _ in range(2):
        objective.end_epoch(None)
        target = 0.9 * target + 0.1 * p
        weight = target.max(1) / target.max(1).mean()
        losses = -(target * np.log(p)).sum(1)
        close(loss_of(objective, step), (weight * losses).mean() + 6 * kl(p, q).mean())
        close(objective.targets, target)


# Methods that treat images apart


def survived_steps(step, iterates):
    return sum((~wrong_on(step, images)).double() for images in iterates[:-1])


def test_gairat_weighs_images_by_the_steps_they_survive():
    step, trained_on = attacked_step(linear())
    objective, y = made("gairat", begin=1), step.y
    iterates = path(step, label_loss(y))
    p = numpy(step.networks.model(iterates[-1]).detach())[0]
    close(loss_of(objective, step), ce(p, y).mean())
    torch.testing.assert_close(trained_on[0], iterates[-1])
    objective.end_epoch(None)
    kappa = survived_steps(step, iterates)
    assert 0 < kappa.mean() < STEPS and len(kappa.unique()) > 2
    weight = (1 + np.tanh(-1 + 5 * (1 - 2 * kappa.numpy() / STEPS))) / 2
    close(loss_of(objective, step), (weight / weight.mean() * ce(p, y)).mean())


def test_ham_trains_on_images_that_are_soon_wrong():
    step, trained_on = attacked_step(linear())
    loss, wrong = made("ham", first=2)(step)
    iterates = path(step, label_loss(step.y))
    hard = wrong_on(step, iterates[2])
    assert 10 < hard.sum() < 40 and len(wrong) == hard.sum()
    torch.testing.assert_close(trained_on[0], iterates[-1][hard])
    logits = step.networks.model(iterates[-1][hard])
    torch.testing.assert_close(loss, F.cross_entropy(logits, step.y[hard]))
    with torch.no_grad():
        step.networks.model[1].bias.copy_(torch.tensor([9.0, 0.0, 0.0]))
    made("ham", first=2)(dataclasses.replace(step, y=torch.zeros_like(step.y)))
    assert len(trained_on[1]) == 40  # none is wrong, so all go on


def test_bat_takes_the_last_correct_image_and_one_beyond_the_boundary():
    step, trained_on = attacked_step(linear())
    loss, y = loss_of(made("bat"), step), step.y
    iterates = path(step, away(step))
    last, beyond, kinds = [], [], set()
    for i in range(len(y)):
        seen = [bool(wrong_on(step, images)[i]) for images in iterates[:-1]]
        places = [place for place, wrong in enumerate(seen) if wrong]
        last.append(iterates[max(0, places[0] - 1) if places else -1][i])
        beyond.append(iterates[places[1] if len(places) > 1 else -1][i])
        kinds.add(min(places[0], 1) if places else None)
    assert kinds == {0, 1, None}  # wrong from the start, on the way, never
    torch.testing.assert_close(trained_on[1], torch.stack(last))
    torch.testing.assert_close(trained_on[2], torch.stack(beyond))
    clean, p, q = numpy(*(step.networks.model(images).detach() for images in trained_on))
    expected = ce(p, y).mean() + 6 * kl(clean, q).mean()
    expected += kl(p, np.full_like(p, 1 / 3)).mean() + kl(q, np.full_like(q, 1 / 3)).mean()
    close(loss, expected)


# Class weights


def test_inverse_accuracy():
    logits = random_logits(2)
    step, _ = known(*logits)
    objective = made("inverse_accuracy", power=2.0)
    q = numpy(logits[1])[0]
    close(loss_of(objective, step), ce(q).mean())
    objective.end_epoch(None)
    right = q.argmax(1) == Y.numpy()
    t = np.array([max(right[Y == k].mean(), 0.01) for k in range(3)])
    assert len(set(t)) > 1
    weight = t**-2.0 / (t**-2.0).mean()
    close(loss_of(objective, step), (weight[Y] * ce(q)).mean())


def test_group_dro_follows_an_average_of_the_class_losses():
    logits = random_logits(2)
    objective, average = made("group_dro", eta=2.0), np.full(3, math.log(3))
    q = numpy(logits[1])[0]
    for y in (Y, torch.tensor([0, 0, 0, 1, 1, 1])):  # then no image of class 2
        step, _ = known(*logits, y=y)
        for k in set(y.tolist()):
            average[k] = 0.9 * average[k] + 0.1 * ce(q, y)[y == k].mean()
        weight = 3 * np.exp(2 * average) / np.exp(2 * average).sum()
        close(loss_of(objective, step), (weight[y] * ce(q, y)).mean())


def test_cfol_gives_the_classes_the_weights_they_would_be_drawn_with():
    logits = random_logits(2)
    step, _ = known(*logits)
    objective, score = made("cfol", gamma=0.4, eta=0.3), np.zeros(3)
    q = numpy(logits[1])[0]
    for _ in range(3):
        chance = 0.4 / 3 + 0.6 * np.exp(score) / np.exp(score).sum()
        close(loss_of(objective, step), (3 * chance[Y] * ce(q)).mean())
        np.add.at(score, Y.numpy(), 3 * 0.3 * (q.argmax(1) != Y.numpy()))
    close(objective.score, score)
    assert len(set(score)) > 1


@pytest.mark.parametrize("radius", [0.05, 0.5, 2.0])
def test_faal_weights_are_the_worst_within_the_divergence(radius):
    gain = np.array([-3.0, 1.5, 0.0, -0.2])

    def divergence(p):
        return -np.log(4 * p).mean()

    found = worst_weights(torch.tensor(gain), radius).numpy()
    assert found.sum() == pytest.approx(1) and (found > 0).all()
    assert divergence(found) == pytest.approx(radius, rel=1e-6)
    constraints = [
        {"type": "eq", "fun": lambda p: p.sum() - 1},
        {"type": "ineq", "fun": lambda p: radius - divergence(p)},
    ]
    best = optimize.minimize(
        lambda p: -p @ gain,
        np.full(4, 0.25),
        bounds=[(1e-9, 1)] * 4,
        constraints=constraints,
        options={"ftol": 1e-12, "maxiter": 1000},
    )
    assert best.success
    np.testing.assert_allclose(found, best.x, atol=1e-3)
    assert found @ gain >= best.x @ gain - 1e-5


def test_faal_is_uniform_where_nothing_is_worse_or_nothing_allowed():
    uniform = torch.full((3,), 1 / 3, dtype=torch.float64)
    torch.testing.assert_close(worst_weights(torch.full((3,), -0.7).double(), 0.5), uniform)
    torch.testing.assert_close(worst_weights(torch.tensor([1.0, 2, 3]).double(), 0.0), uniform)


def test_faal_sums_margins_of_the_softmax_by_class():
    logits = random_logits(2)
    q = numpy(logits[1])[0]
    others = q.copy()
    others[np.arange(6), Y] = 0
    margin = others.max(1) - q[np.arange(6), Y]
    gain = torch.tensor([margin[Y == k].sum() for k in range(3)])
    weight = 3 * worst_weights(gain, 0.5).numpy()
    close(loss_of(made("faal"), known(*logits)[0]), (weight[Y] * ce(q)).mean())


def validation_of(*logits, **more):
    """Validation images with these logits."""
    return lambda: iter([known(*logits, **more)[0]])


def test_wat_hedges_over_the_classes_and_their_mean():
    logits = random_logits(2)
    p, q = numpy(*logits)
    step, _ = known(*logits)
    objective, total = made("wat", eta=0.3), np.zeros(4)
    close(loss_of(objective, step), ce(p).mean() + 6 * kl(p, q).mean())
    for seed in (5, 6):
        seen = random_logits(2, seed=seed)
        objective.end_epoch(validation_of(*seen))
        v, w = numpy(*seen)
        costs = ce(v) + 6 * kl(v, w)
        costs = [costs[Y == k].mean() for k in range(3)]
        total += [*costs, np.mean(costs)]
        weight = 3 * np.exp(0.3 * total) / np.exp(0.3 * total).sum()
        losses = ce(p) + 6 * kl(p, q)
        published = (weight[Y] * losses).mean() + weight[3] * losses.mean()
        close(loss_of(objective, step), published / (2 * 3 / 4))


def test_csr_weighs_pairs_of_classes_by_the_leading_spectrum():
    seen = random_logits(2, size=60, seed=3)
    y = torch.arange(60) % 3
    objective = made("csr")
    logits = random_logits(2)
    p, q = numpy(*logits)
    step, _ = known(*logits)
    trades = 0.7 * ce(p).mean() + 6 * kl(p, q).mean()
    close(loss_of(objective, step), trades + 0.3 * ce(q).mean())
    objective.end_epoch(validation_of(*seen, y=y))
    scores = seen[1].numpy().copy()
    scores[np.arange(60), y] *= 0.9
    confusions = np.zeros((3, 3))
    for true, predicted in zip(y, scores.argmax(1), strict=True):
        confusions[predicted, true] += predicted != true
    # The leading singular vectors, by power iteration.
    v = np.ones(3)
    for _ in range(500):
        v = confusions.T @ (confusions @ v)
        v /= np.linalg.norm(v)
    u = confusions @ v / np.linalg.norm(confusions @ v)
    product = np.outer(u, v)
    g = 2 * (product - product.min()) / (product.max() - product.min()) + 0.01
    close(objective.spectrum, g)
    g = g[q.argmax(1), Y]
    close(loss_of(objective, step), trades + 0.3 * (g * (np.log(g) + ce(q))).mean())
    assert (confusion_weights(torch.eye(3, dtype=torch.float64)) == 1).all()


# Class budgets and targets


def test_cfa_margins_and_weights_follow_the_classes():
    """After an epoch a class has (base + its share of correct images) of ε and of β."""
    y = torch.tensor([0, 0, 0, 0, 1, 1])  # no image of class 2
    right = 5.0 * F.one_hot(torch.tensor([0, 0, 0, 1, 0, 0]), 3)
    scale = np.array([1.25, 0.5, 1.0])
    objective = made("cfa_margins")
    for expected in ([EPS] * 6, [0.125] * 4 + [0.05] * 2):
        step, attacks = known(right, right, y=y)
        objective(step)
        close(attacks[0]["radius"], expected)
        assert objective.end_epoch(None) is False
    close(objective.scale, scale)
    objective, logits = made("cfa_weights"), [random_logits(1)[0], right]
    p, q = numpy(*logits)
    step, attacks = known(*logits, y=y)
    close(loss_of(objective, step), ce(p, y).mean() + 6 * kl(p, q).mean())
    objective.end_epoch(None)
    beta = 6 * scale[y]
    published = ce(p, y) / (1 + beta) + kl(p, q) * beta / (1 + beta)
    close(loss_of(objective, step), 7 * published.mean())
    assert attacks[-1]["radius"] is None


def test_cfa_averages_where_the_worst_class_is_good_enough():
    objective = made("cfa_average", threshold=0.5, begin=2)
    good, bad = F.one_hot(Y, 3).float(), F.one_hot(torch.tensor([0, 1, 2, 1, 1, 1]), 3).float()
    kept = [objective.end_epoch(validation_of(bad, found)) for found in (good, good, bad)]
    assert kept == [False, True, False]  # not yet begun; class 0 is right for 1 image of 3


def test_frl_multipliers_follow_violations():
    y = torch.arange(30) % 3
    found = {"clean": [0.1, 0.6, 0.2], "attacked": [0.3, 0.9, 0.9]}  # errors of the classes

    def logits_with(errors):
        wrong = torch.tensor([(i // 3) / 10 < errors[i % 3] - 1e-9 for i in range(30)])
        return F.one_hot((y + wrong) % 3, 3).float()

    objective = made("frl_margin", tau=0.07, limit=0.02)
    validation = validation_of(*map(logits_with, found.values()), y=y)
    clean, boundary = np.zeros(3), np.zeros(3)
    error = np.array(found["clean"])
    gap = np.array(found["attacked"]) - error
    for _ in range(2):
        objective.end_epoch(validation)
        clean = np.maximum(0, clean + 0.05 * (error - error.mean() - 0.07))
        boundary = np.maximum(0, boundary + 0.1 * (gap - gap.mean() - 0.07))
        clean *= min(1, 0.02 / clean.sum())
        boundary *= min(1, 0.02 / boundary.sum())
    close(objective.clean, clean)
    close(objective.boundary, boundary)
    margin = 2 * 0.2 * (gap - gap.mean() - 0.07)  # of two epochs
    close(objective.margin, margin)
    logits = random_logits(2)
    p, q = numpy(*logits)
    step, attacks = known(*logits)
    loss = loss_of(objective, step)
    a, b = (1 / 3 + m - m.mean() for m in (clean, boundary))
    expected = (a[Y] * ce(p)).sum() / a[Y].sum() + 1.5 * (b[Y] * kl(p, q)).sum() / b[Y].sum()
    close(loss, expected)
    radius = EPS * np.clip(np.exp(2 * margin), 0.98, 3)
    assert radius.min() == 0.98 * EPS < EPS < radius.max()
    close(attacks[0]["radius"], radius[Y])


def test_dafa_moves_weight_to_the_harder_of_two_classes():
    mean = np.random.default_rng(0).dirichlet(np.ones(5), 5) + 0.3 * np.eye(5)
    expected = np.ones(5)
    for i in range(5):
        for j in range(5):
            if mean[i, i] < mean[j, j]:
                expected[i] += 0.7 * mean[i, j] * mean[j, j]
                expected[j] -= 0.7 * mean[i, j] * mean[j, j]
    found = dafa_weights(torch.tensor(mean), 0.7)
    close(found, expected)
    assert found.sum().item() == pytest.approx(5)


@pytest.mark.parametrize("method", ["dafa", "dafa_at"])
def test_dafa_weighs_the_cross_entropy_and_the_budget_once_and_for_all(method):
    logits = random_logits(2)
    p, q = numpy(*logits)
    objective = made(method, lam=0.5, begin=1)
    mean = torch.tensor(np.stack([q[Y == k].mean(0) for k in range(3)]))
    for weight in (np.ones(3), dafa_weights(mean, 0.5).numpy()):
        step, attacks = known(*logits)
        expected = (weight[Y] * ce(q)).mean()
        if method == "dafa":
            expected = (weight[Y] * ce(p)).mean() + 6 * kl(p, q).mean()
        close(loss_of(objective, step), expected)
        close(attacks[0]["radius"], EPS * weight[Y])
        close(attacks[0]["step_size"], 2.5 * EPS / STEPS * weight[Y])
        objective.end_epoch(None)
    other, _ = known(*random_logits(2, seed=8))
    before = objective.weight.clone()
    objective(other)
    objective.end_epoch(None)
    assert torch.equal(objective.weight, before)
    greedy = made(method, lam=50.0, begin=1)
    greedy(step)
    with pytest.raises(ValueError, match="lam of 50 .* choose a smaller lam"):
        greedy.end_epoch(None)


def test_dafa_as_coded_takes_two_steps_and_ends_in_the_common_ball():
    step, trained_on = attacked_step(linear())
    objective, size = made("dafa_at", coded=1), 2.5 * EPS / STEPS
    objective.weight.copy_(torch.tensor([0.5, 1.0, 1.5]))
    weight = objective.weight[step.y].view(-1, 1, 1, 1)
    expected = path(step, label_loss(step.y), steps=0)[0]
    for _ in range(STEPS):
        uphill = (path(step, label_loss(step.y), expected, 9, 1e-3, 1)[1] - expected).sign()
        for by in (weight, torch.ones_like(weight)):
            moved = expected + by * size * uphill - step.x
            expected = step.x + moved.clamp(-by * EPS, by * EPS)
        expected = expected.clamp(0, 1)
    objective(step)
    torch.testing.assert_close(trained_on[0], expected)
    assert (expected - step.x).abs().amax((1, 2, 3))[weight.flatten() > 1].max() < EPS + 1e-6
    assert [float(radius) for radius in step.networks.radii] == pytest.approx([EPS])
    objective.threat = dataclasses.replace(objective.threat, norm="L2")
    with pytest.raises(ValueError, match="DAFA as coded is for Linf, got L2"):
        objective(step)


def test_an_image_is_attacked_with_its_own_radius_and_step():
    step, _ = attacked_step(linear(), 6)
    radius, size = torch.linspace(0.01, 0.2, 6), torch.linspace(0.2, 0.01, 6)
    found, _ = step.attack(radius=radius, step_size=size, start=step.x)
    for i in range(6):
        walked = path(step, label_loss(step.y), step.x, radius[i], size[i])[-1]
        torch.testing.assert_close(found[i], walked[i])


def targets_of(objective, y, classes=4):
    """The target of each image, by the gradient of what the attack climbs."""
    step, attacks = known(*random_logits(2, len(y), classes), y=y, classes=classes)
    objective(step)
    logits = torch.zeros(len(y), classes, requires_grad=True)
    attacks[0]["objective"](logits, y, None, slice(None)).backward()
    assert ((logits.grad > 0).sum(1) == 1).all()
    return logits.grad.argmax(1)


@pytest.mark.parametrize("method", ["fair_tat", "random_targets"])
def test_fair_tat_draws_targets_among_the_other_classes(method):
    torch.manual_seed(0)
    y = torch.arange(40_000) % 4
    objective = made(method, 4)
    objective.predicted.sums.zero_()
    share = np.zeros(4)
    for epoch in range(2):
        target = targets_of(objective, y)
        assert (target != y).all()
        for k in range(4):
            chance = np.where(np.arange(4) == k, 0, np.exp(2 * share))
            found = np.bincount(target[y == k], minlength=4) / 10_000
            np.testing.assert_allclose(found, chance / chance.sum(), atol=0.02)
        if epoch == 0:
            objective.predicted.sums.zero_()
            # Class 3 draws half of the wrong predictions.
            predicted = torch.tensor([[0, 3], [2, 3], [2, 2], [3, 0]]).flatten()
            given = torch.arange(4).repeat_interleave(2)
            objective.predicted.add(given, F.one_hot(predicted, 4))
            objective.end_epoch(None)
            if method == "fair_tat":
                share = np.array([0.25, 0, 0.25, 0.5])
                close(objective.false_positives, share)
                close(objective.scale, [1.0, 0.5, 1.5, 1.0])


def test_fair_tat_has_cfa_s_margins():
    step, attacks = known(*random_logits(2))
    objective = made("fair_tat")
    objective.scale.copy_(torch.tensor([0.7, 1.3, 1.1]))
    objective(step)
    close(attacks[0]["radius"], EPS * np.array([0.7, 1.3, 1.1])[Y])
    close(loss_of(objective, step), ce(numpy(random_logits(2)[1])[0]).mean())


# Distillation


def test_fair_ard_weighs_classes_that_break_early():
    teacher = linear(seed=7)
    step, _ = attacked_step(linear(), helper=teacher)
    objective, y = made("fair_ard", temperature=4.0), step.y
    with attack_mode(teacher, "eval"):
        goal = numpy(teacher(step.x).detach() / 4)[0]
    iterates = path(step, label_loss(y))
    found = numpy(step.networks.model(iterates[-1]).detach() / 4)[0]
    close(loss_of(objective, step), 16 * kl(goal, found).mean())
    objective.end_epoch(None)
    kappa = survived_steps(step, iterates).numpy()
    kappa = np.array([kappa[y == k].mean() for k in range(3)])
    weight = np.clip(3 * kappa**-2.0 / (kappa**-2.0).sum(), 5 / 6, 5 / 2)
    close(objective.weight, weight)
    assert len(set(weight)) > 1
    close(loss_of(objective, step), 16 * (weight[y] * kl(goal, found)).mean())


@pytest.mark.parametrize("shared", [0, 1])
def test_absld_sharpens_the_teacher_for_hard_classes(shared):
    logits, teacher = random_logits(2), random_logits(1, seed=4)[0]
    objective = made("absld", rate=0.4, shared=shared)
    clean, attacked = np.ones(3), np.ones(3)
    p, q = numpy(*logits)
    for _ in range(3):
        step, attacks = known(*logits, teacher=teacher)
        pair = (clean * attacked, clean * attacked) if shared else (clean, attacked)
        goals = numpy(*(teacher / torch.tensor(t)[Y][:, None] for t in pair))
        expected = 5 / 6 * kl(goals[1], q).mean() + 1 / 6 * kl(goals[0], p).mean()
        close(loss_of(objective, step), expected)
        climbed = attacks[0]["objective"](logits[1], Y, None, slice(None))
        close(climbed, kl(goals[1], q).sum())
        objective.end_epoch(None)
        for t, losses in ((clean, ce(p)), (attacked, ce(q))):
            by_class = np.array([losses[Y == k].mean() for k in range(3)])
            above = by_class - by_class.mean()
            t[:] = np.clip(t - 0.4 * above / np.abs(above).max(), 0.5, 5)
    close(objective.clean, clean)
    close(objective.attacked, attacked)
    assert clean.min() == 0.5 and clean.max() > 1
