"""Methods that treat images apart: by how hard they are, or by the path of their attack."""

from dataclasses import replace

import torch
from torch.nn import functional as F

from advlib import distributed
from advlib.objectives.base import away_from, cross_entropy, divergence, trades_parts
from advlib.objectives.state import ClassMethod, mean_one
from advlib.objectives.step import Objective, Step
from advlib.recipes import Recipe, Training


class SelfAdaptive(ClassMethod):
    """SAT (Huang et al. 2020) on TRADES: the clean term's labels follow the network's predictions.

    When an image is trained on, its target moves towards the prediction by 1 - `momentum`; it
    weighs as much as its largest probability (mean 1 in a batch). Before `begin` epochs have ended
    (70 in the paper) targets are the labels.
    """

    def set_up(self, recipe: Recipe, images) -> None:
        self.register_buffer("targets", F.one_hot(images.labels, self.num_classes).float())

    def forward(self, step: Step):
        _, apart, outputs = trades_parts(step)
        natural, momentum = outputs[0].float(), self.options["momentum"]
        target = self.targets[step.index]
        if self.began():
            target = momentum * target + (1 - momentum) * natural.detach().softmax(1)
            self.targets[distributed.rows(step.index)] = distributed.rows(target)
        losses = -(target * natural.log_softmax(1)).sum(1)
        loss = (losses * mean_one(target.amax(1))).mean()
        return loss + self.options["beta"] * apart.mean(), step.wrong(*outputs)


def survived(step: Step) -> tuple[torch.Tensor, torch.Tensor]:
    """Attacked images, and the share of the attack's steps that began at a correct prediction."""
    right = torch.zeros_like(step.y, dtype=torch.float32)

    def climbed(logits, labels, transform, own):
        right[own] += (logits.detach().argmax(1) == labels).float()
        return F.cross_entropy(logits, labels, reduction="sum")

    x_adv, _ = step.attack(climbed)
    return x_adv, right / step.networks.training.threat.steps


class Gairat(ClassMethod):
    """GAIRAT (Zhang et al. 2021): images that an attack breaks in fewer steps weigh more.

    The weight is (1 + tanh(`lam` + 5 (1 - 2 κ/K))) / 2 with mean 1 in the batch, κ the steps
    survived of K. Before `begin` epochs have ended (60 in the paper) weights are uniform. It is
    robust to little but PGD.
    """

    def forward(self, step: Step):
        x_adv, share = survived(step)
        (logits,) = step.logits(x_adv)
        weight = torch.ones_like(share)
        if self.began():
            weight = mean_one((1 + torch.tanh(self.options["lam"] + 5 * (1 - 2 * share))) / 2)
        return (weight * cross_entropy(logits, step.y)).mean(), step.wrong(logits)


def ham(recipe: Recipe, training: Training, images) -> Objective:
    """HAM (Lin et al. 2025): after `first` steps of the attack only images that are wrong go on.

    The others are left out of the step. If none is wrong, all go on (the released code then trains
    on none); with `first` 0 all do.
    """
    first, threat = int(recipe.options["first"]), training.threat
    if first >= threat.steps:
        raise ValueError(f"first is less than the {threat.steps} steps of the attack, got {first}")
    early = replace(threat, steps=max(1, first), step_size=threat.step)
    late = replace(threat, steps=threat.steps - first, step_size=threat.step)

    def objective(step: Step):
        start, weight = None, torch.ones_like(step.y, dtype=torch.float32)
        if first:
            start, _ = step.attack(threat=early)
            hard = step.scores(start).argmax(1) != step.y
            if not distributed.total(hard.sum()):
                hard = ~hard
            # A process without a hard image computes its others, which then weigh nothing.
            own = torch.nonzero(hard if hard.any() else ~hard)[:, 0]
            step, start, weight = step.part(own), start[own], weight[own] * hard[own]
        x_adv, _ = step.attack(threat=late, start=start)
        (logits,) = step.logits(x_adv)
        loss = (weight * cross_entropy(logits, step.y)).sum() / distributed.mean(weight.sum())
        return loss, step.wrong(logits)

    return objective


def bat(recipe: Recipe, training: Training, images) -> Objective:
    """BAT (Sun et al. 2023): the last image of the attack's path that is classified correctly, and
    one just beyond the boundary.

    The latter is the first that is wrong after another that was wrong. An image whose start is
    wrong has the start as the former; where the path ends before, its end is taken. Cross-entropy
    on the former, `beta` times the divergence of the prediction on the latter from the clean one,
    and `uniform` times that of the uniform one from both. The released code follows two paths from
    two starts, here both are on one.
    """
    beta, uniform = recipe.options["beta"], recipe.options["uniform"]
    threat = training.threats[0]
    one = replace(threat, steps=1, step_size=threat.step)

    def objective(step: Step):
        away = away_from(step.scores(step.x).softmax(1))
        wrong = torch.zeros_like(step.y, dtype=torch.bool)

        def climbed(logits, labels, transform, own):
            wrong[own] = logits.detach().argmax(1) != labels
            return away(logits, labels, transform, own)

        last = beyond = x_adv = (step.x + threat.eps * step.noise).clamp(0, 1)
        once = twice = torch.zeros_like(wrong).view(-1, 1, 1, 1)  # how often wrong so far
        for _ in range(threat.steps):
            after, _ = step.attack(climbed, threat=one, start=x_adv)
            now = wrong.view(-1, 1, 1, 1)
            beyond = torch.where(twice, beyond, x_adv)
            once, twice = once | now, twice | (once & now)
            last = torch.where(once, last, x_adv)
            x_adv = after
        last, beyond = torch.where(once, last, x_adv), torch.where(twice, beyond, x_adv)
        natural, at_last, at_beyond = step.logits(step.x, last, beyond)
        loss = F.cross_entropy(at_last.float(), step.y)
        loss = loss + beta * divergence(natural, at_beyond).mean()
        for logits in (at_last, at_beyond):
            loss = loss + uniform * divergence(logits, torch.zeros_like(logits)).mean()
        return loss, step.wrong(at_last, at_beyond)

    return objective
