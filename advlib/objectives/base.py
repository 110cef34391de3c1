"""The base methods: adversarial training, label augmentation, TRADES and what builds on them."""

import functools
from collections.abc import Callable
from dataclasses import replace

import torch
from torch.nn import functional as F

from advlib.labels import label_augmentation_loss
from advlib.objectives.step import Objective, Step
from advlib.recipes import Recipe, Training

UNTRANSFORMED = -1  # the transformation of a clean image, as in `advlib.labels`


def standard(recipe: Recipe, training: Training, images) -> Objective:
    """Cross-entropy on clean images, on attacked ones or on both; with label augmentation Eq. 4.

    Mixed batches weigh the mean over clean and that over attacked images alike.
    """
    delta = training.delta if recipe.label_augmentation else 0.0
    smoothing = training.delta if recipe.label_smoothing else 0.0
    # The labels were checked once: to look at them in each step is to wait for the device.
    augmented = functools.partial(
        label_augmentation_loss, num_classes=images.num_classes, delta=delta, check=False
    )
    climbs = recipe.extra_logits and training.train_objective == "label_augmentation"

    def climbed(logits, labels, transform, own):
        # The sum, since a mean over the batch would shrink an image's gradient towards underflow.
        return augmented(logits, labels, transform, reduction="sum")

    def objective(step: Step):
        def loss_of(logits, transform):
            if recipe.extra_logits:
                return augmented(logits, step.y, transform)
            return F.cross_entropy(logits.float(), step.y, label_smoothing=smoothing)

        parts = []
        if recipe.mix or not recipe.adversarial:
            parts.append((step.x, torch.full_like(step.y, UNTRANSFORMED)))
        if recipe.adversarial:
            parts.append(step.attack(climbed if climbs else None))
        images, transforms = zip(*parts, strict=True)
        outputs = step.logits(*images)
        losses = [loss_of(*pair) for pair in zip(outputs, transforms, strict=True)]
        return sum(losses) / len(losses), step.wrong(*outputs)

    return objective


def cross_entropy(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The cross-entropy (N,) of each image, in float32."""
    return F.cross_entropy(logits.float(), y, reduction="none")


def divergence(natural: torch.Tensor, attacked: torch.Tensor) -> torch.Tensor:
    """KL(softmax(natural) || softmax(attacked)) of each image, (N,), in float32."""
    attacked, natural = attacked.float().log_softmax(1), natural.float().log_softmax(1)
    return F.kl_div(attacked, natural, reduction="none", log_target=True).sum(1)


def away_from(probabilities: torch.Tensor) -> Callable:
    """What an attack climbs to leave the predictions (N, K): the divergence from them."""

    def climbed(logits, labels, transform, own):
        return F.kl_div(logits.log_softmax(1), probabilities[own], reduction="sum")

    return climbed


def trades_parts(step: Step, **attack) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Cross-entropy on clean images (N,), divergence (N,), and the logits of both, stacked.

    The attack climbs the divergence; the network attacked is in evaluation mode, so that the
    prediction on clean images is computed once. Its start is the threat model's, where the released
    code draws 0.001 of a normal distribution.
    """
    x_adv, _ = step.attack(away_from(step.scores(step.x).softmax(1)), **attack)
    outputs = torch.stack(step.logits(step.x, x_adv))
    return cross_entropy(outputs[0], step.y), divergence(*outputs), outputs


def trades(recipe: Recipe, training: Training, images) -> Objective:
    """TRADES (Zhang et al. 2019, Eq. 5): cross-entropy on clean images and, `beta` times, the
    divergence of the prediction on attacked images from the one on clean images.

    With `beta` 0 nothing is attacked.
    """
    beta = recipe.options["beta"]

    def objective(step: Step):
        if not beta:
            (logits,) = step.logits(step.x)
            return F.cross_entropy(logits.float(), step.y), step.wrong(logits)
        natural, apart, outputs = trades_parts(step)
        return natural.mean() + beta * apart.mean(), step.wrong(*outputs)

    return objective


def mart(recipe: Recipe, training: Training, images) -> Objective:
    """MART (Wang et al. 2020): boosted cross-entropy on attacked images, and `beta` times the
    divergence, weighted by the probability that clean images are taken for another class."""
    beta = recipe.options["beta"]

    def objective(step: Step):
        x_adv, _ = step.attack()
        natural, attacked = step.logits(step.x, x_adv)
        others = attacked.float().softmax(1).scatter(1, step.y[:, None], 0.0)
        # Boosted by the margin term -log(1.0001 - largest other probability).
        losses = (cross_entropy(attacked, step.y) - torch.log(1.0001 - others.amax(1))).mean()
        if beta:
            unsure = 1 - natural.float().softmax(1).gather(1, step.y[:, None])[:, 0]
            losses = losses + beta * (divergence(natural, attacked) * unsure).mean()
        return losses, step.wrong(natural, attacked)

    return objective


def n_fgsm(recipe: Recipe, training: Training, images) -> Objective:
    """N-FGSM (de Jorge et al. 2022): one step of ε from noise uniform in ±2ε, without projection.

    So a training image may be up to 3ε away.
    """

    def objective(step: Step):
        eps = training.threat.eps
        threat = replace(training.threat, steps=1, step_size=eps, clip=False)
        # A ball of 3ε holds every such image, so that the projection does nothing.
        radius = torch.full((len(step.y),), 3 * eps)
        x_adv, _ = step.attack(threat=threat, radius=radius, start=step.x + 2 * eps * step.noise)
        (logits,) = step.logits(x_adv.clamp(0, 1))
        return F.cross_entropy(logits.float(), step.y), step.wrong(logits)

    return objective


def awp(recipe: Recipe, training: Training, images) -> Objective:
    """Adversarial weight perturbation (Wu et al. 2020) of the base method.

    The loss on the attacked images, and its gradient, are those of weights moved by `gamma` of
    their norm to where that loss is larger; in the released code, on TRADES, from the tenth epoch
    on. Weight decay acts on the weights where they were, in that code on the moved ones. The base
    is TRADES with an option `beta`, else adversarial training.
    """
    gamma, beta = recipe.options["gamma"], recipe.options.get("beta", 0)

    def objective(step: Step):
        climbed = away_from(step.scores(step.x).softmax(1)) if beta else None
        x_adv, _ = step.attack(climbed)
        images = [step.x, x_adv] if beta else [x_adv]

        def loss_of(step: Step):
            outputs = step.logits(*images)
            loss = F.cross_entropy(outputs[0].float(), step.y)
            return loss + (beta * divergence(*outputs).mean() if beta else 0), outputs

        if gamma:
            step.perturb(lambda alone: loss_of(alone)[0], gamma)
        loss, outputs = loss_of(step)
        return loss, step.wrong(*outputs)

    return objective


def hat(recipe: Recipe, training: Training, images) -> Objective:
    """HAT (Rade & Moosavi-Dezfooli 2022): TRADES, and `gamma` times the cross-entropy of images
    `far` times as far as the attacked ones, labelled by a standard network."""
    beta, gamma, far = (recipe.options[name] for name in ("beta", "gamma", "far"))

    def objective(step: Step):
        x_adv, _ = step.attack(away_from(step.scores(step.x).softmax(1)))
        images = [step.x, x_adv]
        if gamma:
            images.append(step.x + far * (x_adv - step.x))
            labels = step.helper(x_adv).argmax(1)
        outputs = step.logits(*images)
        loss = F.cross_entropy(outputs[0].float(), step.y)
        loss = loss + beta * divergence(*outputs[:2]).mean()
        if gamma:
            loss = loss + gamma * F.cross_entropy(outputs[2].float(), labels)
        return loss, step.wrong(*outputs[:2])

    return objective
