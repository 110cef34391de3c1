"""Methods for classes that are robust alike: weights of the classes."""

import math

import torch
from torch.nn import functional as F

from advlib import distributed
from advlib.objectives.base import away_from, cross_entropy, divergence, trades_parts
from advlib.objectives.state import ClassMethod, Steps, Tally, by_class, validation_means
from advlib.objectives.step import Objective, Step
from advlib.recipes import Recipe, Training


class InverseAccuracy(ClassMethod):
    """Adversarial training with class weights (1 / t_k)^`power`, of mean 1: a plain remedy.

    t_k is the share of the class's attacked training images of the epoch before that were right, at
    least 0.01. Before `begin` epochs have ended weights are uniform.
    """

    def set_up(self, recipe: Recipe, images) -> None:
        self.per_class("weight", 1.0)
        self.right = Tally(self.num_classes)

    def forward(self, step: Step):
        x_adv, _ = step.attack()
        (logits,) = step.logits(x_adv)
        wrong = step.wrong(logits)
        self.right.add(step.y, ~wrong)
        return (self.weight[step.y] * cross_entropy(logits, step.y)).mean(), wrong

    def look_back(self, validation: Steps) -> None:
        right = self.right.means().nan_to_num(1.0)  # a class without an image is no hard one
        if self.began():
            weight = right.clamp_min(0.01) ** -self.options["power"]
            self.weight.copy_(weight / weight.mean())


class GroupDRO(ClassMethod):
    """Group DRO (Sagawa et al. 2020) with classes as groups: weights ∝ exp(`eta` L_k), of mean 1.

    L_k is an average of the class's adversarial losses that forgets a tenth with each batch; it
    begins at log K.
    """

    def set_up(self, recipe: Recipe, images) -> None:
        self.per_class("loss", math.log(self.num_classes))
        self.now = Tally(self.num_classes)

    def forward(self, step: Step):
        x_adv, _ = step.attack()
        (logits,) = step.logits(x_adv)
        losses = cross_entropy(logits, step.y)
        self.now.add(step.y, losses)
        found = self.now.means()
        self.loss.copy_(torch.where(found.isnan(), self.loss, 0.9 * self.loss + 0.1 * found))
        weight = self.num_classes * (self.options["eta"] * self.loss).softmax(0)
        return (weight[step.y] * losses).mean(), step.wrong(logits)


class Cfol(ClassMethod):
    """CFOL (Pethick et al. 2023) as weights: adversarial training with class weights K P_k.

    P = `gamma`/K + (1 - `gamma`) softmax(w), and w_k grows by `eta` / P_k for each attacked image
    of class k that is wrong. The paper draws the classes of a batch from P; here the batch is
    drawn as ever and weighed, so that all methods see the same images, and a wrong image of class k
    adds K `eta`, as one drawn from P does in the mean.
    """

    def set_up(self, recipe: Recipe, images) -> None:
        self.per_class("score")

    def forward(self, step: Step):
        gamma, classes = self.options["gamma"], self.num_classes
        chance = gamma / classes + (1 - gamma) * self.score.softmax(0)
        x_adv, _ = step.attack()
        (logits,) = step.logits(x_adv)
        wrong = step.wrong(logits)
        found = by_class(wrong.to(self.score.dtype), step.y, classes)
        self.score += self.options["eta"] * classes * distributed.total(found)
        loss = (classes * chance[step.y] * cross_entropy(logits, step.y)).mean()
        return loss, wrong


def faal(recipe: Recipe, training: Training, images) -> Objective:
    """FAAL (Zhang et al. 2024): class weights K p of each batch, the worst within KL(u‖p) ≤ `r`.

    p maximises the sum over the batch of p_y m_y, with m_k the mean over the class's images of
    the largest other probability less that of the label. The paper trains two epochs more with it.
    """

    def objective(step: Step):
        x_adv, _ = step.attack()
        (logits,) = step.logits(x_adv)
        p = logits.detach().float().softmax(1)
        own = p.gather(1, step.y[:, None])
        margin = (p.scatter(1, step.y[:, None], 0.0).amax(1, keepdim=True) - own)[:, 0]
        # The sum over a class's images; a class that the batch lacks has no part in it.
        gain = by_class(margin, step.y, images.num_classes)
        # Found on the CPU, since each step of the search would wait for the device.
        p = worst_weights(distributed.total(gain).cpu().double(), recipe.options["r"]).to(gain)
        weight = images.num_classes * p[step.y]
        loss = (weight * cross_entropy(logits, step.y)).mean()
        return loss, step.wrong(logits)

    return objective


def worst_weights(gain: torch.Tensor, radius: float) -> torch.Tensor:
    """The p (K,) that maximises the sum of p `gain` within KL(u‖p) ≤ `radius`, u uniform.

    At the optimum p is proportional to 1 / (μ - gain), and the divergence falls with μ: bisection.
    """
    gain = gain - gain.max()
    if not radius or gain.min() > -1e-9:
        return torch.full_like(gain, 1 / len(gain))

    def at(log_gap):
        p = 1 / (math.exp(log_gap) - gain)
        p = p / p.sum()
        return p, -(p * len(gain)).log().mean()

    low, high = math.log(1e-12), math.log(1e6) + math.log(-gain.min())
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if at(middle)[1] > radius else (low, middle)
    return at(high)[0]


class Wat(ClassMethod):
    """WAT (Li & Liu 2023): TRADES with class weights by hedging over the classes and their mean.

    The weights are proportional to exp(`eta` S): S_k sums the TRADES losses of the class on
    validation images over the epochs, and one expert more the means of all classes. The loss is
    divided by 2 K / (K + 1), which it is a multiple of where all weights are equal, so that it has
    TRADES' scale.
    """

    def set_up(self, recipe: Recipe, images) -> None:
        self.register_buffer("cost", torch.zeros(self.num_classes + 1))

    def forward(self, step: Step):
        natural, apart, outputs = trades_parts(step)
        weights = (self.options["eta"] * self.cost).softmax(0) * (self.num_classes + 1) / 2
        weight = (weights[:-1] + weights[-1])[step.y]
        loss = (weight * natural).mean() + self.options["beta"] * (weight * apart).mean()
        return loss, step.wrong(*outputs)

    def look_back(self, validation: Steps) -> None:
        def losses(step: Step):
            clean = step.scores(step.x)
            x_adv, _ = step.attack(away_from(clean.softmax(1)))
            apart = divergence(clean, step.scores(x_adv))
            return cross_entropy(clean, step.y) + self.options["beta"] * apart

        costs = validation_means(validation, self.num_classes, losses)
        self.cost += torch.cat([costs, costs.mean()[None]])


class Csr(ClassMethod):
    """CSR (Jin et al. 2025): TRADES and a term for pairs of classes that the network confuses.

    The confusions M[predicted, true] of attacked validation images, with the label's logit
    multiplied by 0.9, have the leading singular vectors u and v; G is u vᵀ brought to
    [0.01, 2.01]. The term is g (log g - log p_y) of attacked images, g = G[predicted, true], and
    weighs `weight`; the clean term weighs 1 - `weight`. The paper trains two epochs more with it,
    and counts on training images before each; here G is 1 everywhere in the first epoch.
    """

    def set_up(self, recipe: Recipe, images) -> None:
        self.register_buffer("spectrum", torch.ones(self.num_classes, self.num_classes))

    def forward(self, step: Step):
        natural, apart, outputs = trades_parts(step)
        weight = self.options["weight"]
        loss = (1 - weight) * natural.mean() + self.options["beta"] * apart.mean()
        if weight:
            attacked = outputs[1].float()
            g = self.spectrum[attacked.argmax(1), step.y]
            loss = loss + weight * (g * (g.log() + cross_entropy(attacked, step.y))).mean()
        return loss, step.wrong(*outputs)

    def look_back(self, validation: Steps) -> None:
        def predicted(step: Step):
            scores, own = step.scores(step.attack()[0]), step.y[:, None]
            scores = scores.scatter(1, own, 0.9 * scores.gather(1, own))
            return F.one_hot(scores.argmax(1), self.num_classes)

        confusions = validation_means(validation, self.num_classes, predicted).T
        self.spectrum.copy_(confusion_weights(confusions))


def confusion_weights(confusions: torch.Tensor) -> torch.Tensor:
    """CSR's G (K, K) from the confusions M[predicted, true]; ones where nothing is confused."""
    confusions = confusions.clone().fill_diagonal_(0)
    if not confusions.any():
        return torch.ones_like(confusions)
    u, _, v = torch.linalg.svd(confusions)
    product = u[:, :1] @ v[:1]
    low, high = product.min(), product.max()
    return 2 * (product - low) / (high - low).clamp_min(1e-12) + 0.01
