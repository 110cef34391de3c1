"""Methods for classes that are robust alike: budgets of the classes, and chosen targets."""

from dataclasses import replace

import torch
from torch.nn import functional as F

from advlib.objectives.base import cross_entropy, trades_parts
from advlib.objectives.state import ClassMethod, Steps, Tally, mean_one, validation_means
from advlib.objectives.step import Step
from advlib.recipes import Recipe


class Cfa(ClassMethod):
    """CFA (Wei et al. 2023): margins, weights and averaging that follow the classes.

    t_k is the share of class k's attacked training images of an epoch that were right, at the ε
    they had. After `begin` epochs (10 in the paper):

    * `margins`: the ε of class k is (`base` + t_k) ε.
    * `weights`: on TRADES, β_k = (`base` + t_k) β, and an image's loss is
      (CE + β_k KL) (1 + β) / (1 + β_k): 1 + β times the paper's, which so is TRADES where
      β_k = β.
    * with an averaged copy of the weights (FAWA): an epoch enters the average if the worst class
      has a robust accuracy of at least `threshold` on validation images.

    With an option `beta` the base is TRADES, else adversarial training.
    """

    def set_up(self, recipe: Recipe, images) -> None:
        self.averages = recipe.epoch_average
        self.per_class("scale", 1.0)
        self.right = Tally(self.num_classes)

    def forward(self, step: Step):
        scale, beta = self.scale[step.y], self.options.get("beta")
        radius = scale * self.threat.eps if self.options["margins"] else None
        if beta is None:
            x_adv, _ = step.attack(radius=radius)
            (logits,) = step.logits(x_adv)
            wrong = step.wrong(logits)
            self.right.add(step.y, ~wrong)
            return F.cross_entropy(logits.float(), step.y), wrong
        natural, apart, outputs = trades_parts(step, radius=radius)
        self.right.add(step.y, ~step.wrong(outputs[1]))
        share = scale if self.options["weights"] else torch.ones_like(scale)
        weight = (1 + beta) / (1 + beta * share)
        loss = (weight * natural).mean() + beta * (weight * share * apart).mean()
        return loss, step.wrong(*outputs)

    def look_back(self, validation: Steps) -> bool:
        right = self.right.means()
        if not self.began():
            return False
        # A class without an image keeps its scale.
        self.scale.copy_(torch.where(right.isnan(), self.scale, self.options["base"] + right))
        if not self.averages:
            return False
        error = class_errors(validation, self.num_classes)[:, 1].max()
        return bool(1 - error >= self.options["threshold"])


class Dafa(ClassMethod):
    """DAFA (Lee et al. 2024): weight moves from easier classes to the harder ones they resemble.

    When `begin` epochs have ended (70 of 110 in the paper), the class means p_i of the softmax on
    the last one's attacked training images fix the weights once and for all: of two classes the
    harder, i with p_i(i) < p_j(j), gains `lam` p_i(j) p_j(j), and the other loses as much. They
    multiply ε and the step of the attack, and the cross-entropy; on TRADES (an option `beta`) that
    of the clean images alone. On adversarial training the released code differs: each step is
    followed by one of the base method's size along the same gradient, and ends in the base method's
    ball. The option `coded` does so, for an L∞ attack. A weight that would not be positive raises
    ValueError.
    """

    def set_up(self, recipe: Recipe, images) -> None:
        self.per_class("weight", 1.0)
        self.softmax = Tally(self.num_classes, self.num_classes)

    def forward(self, step: Step):
        weight, beta = self.weight[step.y], self.options.get("beta")
        reach = {"radius": self.threat.eps * weight, "step_size": self.threat.step * weight}
        if beta is None:
            coded = self.options["coded"]
            x_adv = self._two_steps(step, weight) if coded else step.attack(**reach)[0]
            outputs = step.logits(x_adv)
            loss = (weight * cross_entropy(outputs[0], step.y)).mean()
        else:
            natural, apart, outputs = trades_parts(step, **reach)
            loss = (weight * natural).mean() + beta * apart.mean()
        self.softmax.add(step.y, outputs[-1].detach().float().softmax(1))
        return loss, step.wrong(*outputs)

    def _two_steps(self, step: Step, weight: torch.Tensor) -> torch.Tensor:
        x, eps, size = step.x, self.threat.eps, self.threat.step
        if self.threat.norm != "Linf":
            raise ValueError(f"DAFA as coded is for Linf, got {self.threat.norm}: set coded to 0")
        weight, everywhere = weight.view(-1, 1, 1, 1), torch.full_like(weight, 2.0)
        x_adv = (x + eps * step.noise).clamp(0, 1)
        one = replace(self.threat, steps=1, step_size=1.0, clip=False)
        for _ in range(self.threat.steps):
            uphill, _ = step.attack(threat=one, start=x_adv, radius=everywhere)
            uphill = (uphill - x_adv).sign()
            for by in (weight, 1):
                x_adv = x_adv + by * size * uphill
                x_adv = torch.minimum(torch.maximum(x_adv, x - by * eps), x + by * eps)
            x_adv = x_adv.clamp(0, 1)
        step.networks.radii[-self.threat.steps :] = [x.new_tensor(eps)]  # not those that steps had
        return x_adv

    def look_back(self, validation: Steps) -> None:
        mean = self.softmax.means()
        if self.epochs == self.options["begin"]:
            weight = dafa_weights(mean, self.options["lam"])
            if weight.min() <= 0:
                raise ValueError(
                    f"with a lam of {self.options['lam']:g} the least weight of a class is "
                    f"{weight.min():.3g}, and no ε is less than 0: choose a smaller lam"
                )
            self.weight.copy_(weight)


def dafa_weights(mean: torch.Tensor, lam: float) -> torch.Tensor:
    """DAFA's class weights (K,), of sum K, from the mean softmax of each class (K, K)."""
    own = mean.diagonal()
    harder = own[:, None] < own[None, :]
    moves = torch.where(harder, mean * own[None, :], 0.0)  # from the easier j to the harder i
    return 1 + lam * (moves.sum(1) - moves.sum(0))


class FairTat(ClassMethod):
    """FAIR-TAT (Medi et al. 2025): attacks towards classes that attract false predictions.

    The target is drawn from softmax(2 CFPS) among the other classes, CFPS_k the share of class k
    among the wrong predictions of the epoch before, in which all true classes count alike;
    uniformly in the first epoch and without `guided`. With `margins` the ε of class k is
    (0.5 + t_k) ε, as in CFA; t_k is then of targeted attacks. The averaged weights of the paper are
    left to the training's `ema`.
    """

    def set_up(self, recipe: Recipe, images) -> None:
        self.per_class("scale", 1.0)
        self.per_class("false_positives")
        self.predicted = Tally(self.num_classes, self.num_classes)

    def forward(self, step: Step):
        climbed = None
        if self.options["targeted"]:
            chance = (2 * self.false_positives).exp().expand(len(step.y), -1)
            target = chance.scatter(1, step.y[:, None], 0.0).multinomial(1)[:, 0]

            def climbed(logits, labels, transform, own):
                return -F.cross_entropy(logits, target[own], reduction="sum")

        scale = self.scale[step.y]
        radius = self.threat.eps * scale if self.options["margins"] else None
        x_adv, _ = step.attack(climbed, radius=radius)
        (logits,) = step.logits(x_adv)
        self.predicted.add(step.y, F.one_hot(logits.argmax(1), self.num_classes))
        return F.cross_entropy(logits.float(), step.y), step.wrong(logits)

    def look_back(self, validation: Steps) -> None:
        shares = self.predicted.means()
        right = shares.diagonal()
        self.scale.copy_(torch.where(right.isnan(), self.scale, 0.5 + right))
        if self.options["guided"]:
            wrong = shares.nan_to_num().fill_diagonal_(0).sum(0)
            self.false_positives.copy_(wrong / wrong.sum().clamp_min(1e-12))


class Frl(ClassMethod):
    """FRL (Xu et al. 2021): TRADES with class weights, and budgets, that follow violations.

    After each epoch class k's clean error and boundary error (clean less robust accuracy) on
    validation images are compared with their means and the tolerance `tau`; what is above is the
    violation. Multipliers move by `rate_clean` and `rate_boundary` times it, are cut at 0 and
    rescaled to a sum of at most `limit`; a class weighs 1/K and its multiplier less their mean,
    over the mean weight of the batch. With `rate_margin` a class's ε is multiplied by exp(2 λ),
    within 0.98 and 3, where λ moves by that rate times the boundary violation and is not cut. The
    released code looks at validation images before each epoch, the first too, takes a longer step
    with larger ε, and a version of it divides by the sum of both weights, which halves the loss.
    """

    def set_up(self, recipe: Recipe, images) -> None:
        for name in ("clean", "boundary", "margin"):
            self.per_class(name)

    def forward(self, step: Step):
        factor = (2 * self.margin).exp().clamp(0.98, 3)[step.y]
        radius = self.threat.eps * factor if self.options["rate_margin"] else None
        natural, apart, outputs = trades_parts(step, radius=radius)
        clean, boundary = (self._weights(step, m) for m in (self.clean, self.boundary))
        loss = (clean * natural).mean() + self.options["beta"] * (boundary * apart).mean()
        return loss, step.wrong(*outputs)

    def _weights(self, step, multipliers):
        weight = 1 + self.num_classes * (multipliers - multipliers.mean())
        return mean_one(weight[step.y])

    def look_back(self, validation: Steps) -> None:
        errors = class_errors(validation, self.num_classes)
        clean, boundary = errors[:, 0], errors[:, 1] - errors[:, 0]
        for multipliers, found, rate in (
            (self.clean, clean, self.options["rate_clean"]),
            (self.boundary, boundary, self.options["rate_boundary"]),
        ):
            moved = multipliers + rate * (found - found.mean() - self.options["tau"])
            moved = moved.clamp_min(0)
            multipliers.copy_(moved * min(1, self.options["limit"] / max(moved.sum(), 1e-12)))
        over = boundary - boundary.mean() - self.options["tau"]
        self.margin += self.options["rate_margin"] * over


def class_errors(validation: Steps, num_classes: int) -> torch.Tensor:
    """Clean and adversarial error of each class on validation images, (K, 2)."""

    def wrong(step: Step):
        found = [step.scores(images).argmax(1) != step.y for images in (step.x, step.attack()[0])]
        return torch.stack(found, 1)

    return validation_means(validation, num_classes, wrong)
