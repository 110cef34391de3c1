"""Training objectives, one for each family of methods.

An objective is built once per run, ``OBJECTIVES[recipe.objective](recipe, training, num_classes)``,
and called once per step with a `Step`. It returns the loss and, for the log, the logits that count.
An objective with a state of its own is an ``nn.Module``: its buffers are saved with the checkpoint,
and its ``end_epoch`` is called after each epoch.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from advlib import distributed
from advlib.labels import class_logits, label_augmentation_loss
from advlib.recipes import Recipe, Training

UNTRANSFORMED = -1  # the transformation of a clean image, as in `advlib.labels`


@dataclass(frozen=True)
class Step:
    """The images of one step, and what an objective may do with them.

    Attributes
    ----------
    x : float tensor (N, C, H, W) in [0, 1]
    y : int tensor (N,)
    logits : callable
        Maps batches of images to the logits of each. Called once per step, with all batches.
    attack : callable
        ``attack(objective=None, *, radius=None)`` gives attacked images (N, C, H, W) and the
        transformation of each (N,). ``objective(logits, labels, transform, own)`` is the scalar
        that the attack climbs, a sum over the images `own` (a slice of the N); None: the threat
        model's loss. `radius` is ε per image, (N,).
    predict : callable
        Maps images to the class probabilities of the attacked network, without a graph.
    """

    x: torch.Tensor
    y: torch.Tensor
    logits: Callable[..., list[torch.Tensor]]
    attack: Callable[..., tuple[torch.Tensor, torch.Tensor]]
    predict: Callable[[torch.Tensor], torch.Tensor]


Objective = Callable[[Step], tuple[torch.Tensor, list[torch.Tensor]]]


def standard(recipe: Recipe, training: Training, num_classes: int) -> Objective:
    """Cross-entropy on clean images, on attacked ones or on both; with label augmentation Eq. 4.

    Mixed batches weigh the mean over clean and that over attacked images alike.
    """
    delta = training.delta if recipe.label_augmentation else 0.0
    smoothing = training.delta if recipe.label_smoothing else 0.0
    # The labels were checked once: to look at them in each step is to wait for the device.
    augmented = functools.partial(
        label_augmentation_loss, num_classes=num_classes, delta=delta, check=False
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
        return sum(losses) / len(losses), outputs

    return objective


def trades(recipe: Recipe, training: Training, num_classes: int) -> Objective:
    """TRADES (Zhang et al. 2019, Eq. 5): cross-entropy on clean images and, `beta` times, the
    divergence of the prediction on attacked images from the one on clean images.

    The attack climbs that divergence; the network attacked is in evaluation mode, so that the
    prediction on clean images is computed once. Its start is the threat model's, where the released
    code draws 0.001 of a normal distribution. With `beta` 0 nothing is attacked.
    """
    beta = recipe.options["beta"]

    def objective(step: Step):
        if not beta:
            outputs = step.logits(step.x)
            return F.cross_entropy(outputs[0].float(), step.y), outputs
        clean = step.predict(step.x)

        def climbed(logits, labels, transform, own):
            return F.kl_div(logits.log_softmax(1), clean[own], reduction="sum")

        x_adv, _ = step.attack(climbed)
        natural, attacked = step.logits(step.x, x_adv)
        return trades_loss(natural, attacked, step.y, beta=beta), [natural, attacked]

    return objective


def trades_loss(
    natural: torch.Tensor, attacked: torch.Tensor, y: torch.Tensor, *, beta: float
) -> torch.Tensor:
    """Cross-entropy(natural, y) + beta * KL(softmax(natural) || softmax(attacked)), batch means.

    Parameters
    ----------
    natural, attacked : float tensor (N, K)
        Logits of clean and of attacked images; gradients flow into both.
    y : int tensor (N,)
    beta : float
    """
    natural, attacked = natural.float(), attacked.float()
    apart = F.kl_div(
        attacked.log_softmax(1), natural.log_softmax(1), reduction="batchmean", log_target=True
    )
    return F.cross_entropy(natural, y) + beta * apart


class ClassMargins(nn.Module):
    """CFA's class-wise margins (Wei et al. 2023, CCM) on the standard objective.

    After each epoch the radius of class k becomes (`base` + t_k) ε, with t_k the share of the
    class's attacked training images of that epoch that were classified correctly, at the radius
    they had. Until `begin` epochs have passed every class has ε.
    """

    def __init__(self, recipe: Recipe, training: Training, num_classes: int):
        super().__init__()
        self.options = recipe.options
        self.objective = standard(recipe, training, num_classes)
        self.eps = training.threats[0].eps
        self.num_classes = num_classes
        for name in ("scale", "right", "seen"):
            start = torch.ones if name == "scale" else torch.zeros
            self.register_buffer(name, start(num_classes, dtype=torch.float64))
        self.register_buffer("epochs", torch.zeros((), dtype=torch.int64))

    def forward(self, step: Step):
        radius = self.scale.to(step.x.dtype)[step.y] * self.eps
        attack = functools.partial(step.attack, radius=radius)
        loss, outputs = self.objective(Step(step.x, step.y, step.logits, attack, step.predict))
        right = class_logits(outputs[-1], self.num_classes).argmax(1) == step.y
        self.right.index_add_(0, step.y, right.double())
        self.seen.index_add_(0, step.y, torch.ones_like(step.y, dtype=torch.float64))
        return loss, outputs

    def end_epoch(self) -> None:
        """New radii, from the images of the epoch on all processes."""
        self.epochs += 1
        right, seen = distributed.mean(torch.stack([self.right, self.seen]))
        if self.epochs >= self.options["begin"]:
            # A class without an image keeps its radius.
            share = torch.where(seen > 0, self.options["base"] + right / seen, self.scale)
            self.scale.copy_(share)
        self.right.zero_()
        self.seen.zero_()


OBJECTIVES: dict[str, Callable[[Recipe, Training, int], Objective]] = {
    "standard": standard,
    "trades": trades,
    "class_margins": ClassMargins,
}
