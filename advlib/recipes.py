"""Training methods as data. What they compute is in `advlib.objectives`; this needs no torch."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from advlib.threat import ThreatModel
from advlib.zoo import ZOO


@dataclass(frozen=True)
class Recipe:
    """A training method: its title, what it attacks, what a step costs, its options.

    Attributes
    ----------
    title : str
        As tables and charts show it.
    objective : str
        A name of `advlib.objectives.OBJECTIVES`.
    adversarial, mix : bool
        Trains on attacked images; `mix`: on as many clean ones as well.
    extra_logits : bool
        K+M logits instead of K.
    label_augmentation : bool
        Eq. 3 and 4 with the training's delta; else delta is 0.
    label_smoothing : bool
        torch's, with the training's delta.
    options : mapping
        The objective's own settings with their defaults, such as TRADES' beta.
    forwards : int
        Forward passes per step beside those of the attack and of training; one with a gradient
        by the weights counts as 3.
    validation : bool
        Looks at validation images after each epoch.
    helper : str
        The method whose trained network is consulted; empty: none.
    epoch_average : bool
        Hands over an average of the weights after each epoch, with the option `decay`, in place
        of the training's `ema`.
    post_hoc : bool
        Trains nothing: it changes the helper (`advlib.offsets.tune_offsets`).
    steps : int, optional
        Of the attack; None: the threat model's.
    base : str
        The method that it builds on and is compared with; empty: none.
    """

    title: str
    adversarial: bool = False
    mix: bool = False
    extra_logits: bool = False
    label_augmentation: bool = False
    label_smoothing: bool = False
    objective: str = "standard"
    options: Mapping[str, float] = field(default_factory=dict)
    forwards: int = 0
    validation: bool = False
    helper: str = ""
    epoch_average: bool = False
    post_hoc: bool = False
    steps: int | None = None
    base: str = ""

    def passes(self, steps: int) -> int:
        """The cost of a training step per image, in forward passes, with an attack of `steps`.

        A forward pass and the gradient by the image take as many multiplications as two forward
        passes; with the gradient by the weights, three. So a clean step is 3, PGD-K (Madry et al.
        2018) adds 2 K, and a mixed batch trains on both halves: for K = 10 that is 3, 23 and 26.
        """
        if self.post_hoc:
            return 0
        return 3 * (1 + self.mix) + 2 * (self.steps or steps) * self.adversarial + self.forwards


_ON_ADV = {"adversarial": True, "base": "adv"}
_AUGMENTED = {"extra_logits": True, "label_augmentation": True}
RECIPES: dict[str, Recipe] = {
    "pretrained": Recipe("Pretrained"),
    "std": Recipe("Std"),
    "adv": Recipe("Adv", adversarial=True),
    "adv_plus": Recipe("Adv⁺", **_AUGMENTED, **_ON_ADV),
    "adv_mix": Recipe("Adv mixed", mix=True, **_ON_ADV),
    "adv_plus_mix": Recipe("Adv⁺ mixed", mix=True, **_AUGMENTED, **_ON_ADV | {"base": "adv_mix"}),
    "adv_smoothing": Recipe("Adv smoothing", label_smoothing=True, **_ON_ADV),
    "adv_extra_logit": Recipe("Adv extra logit", extra_logits=True, **_ON_ADV),
    **{name: Recipe(**_ON_ADV | what) for name, what in ZOO.items()},
}
"""Recipes by the id of the method, in the order in which tables and charts show them."""


@dataclass(frozen=True)
class Training:
    """How a network is trained, whatever the method.

    Attributes
    ----------
    epochs, batch_size : int
    lr : float
        At the start, or the highest of the one-cycle schedule.
    schedule : {"cosine", "one_cycle"}
    lr_final_factor : float
        The last learning rate as a part of `lr`.
    momentum, weight_decay : float
        Of SGD.
    augment : {"none", "crop", "crop_flip", "random_resized_crop"}
    threats : tuple of ThreatModel
        One, or one for each transformation logit; images take turns.
    num_transforms : int
        M, the number of transformation logits of methods that have them.
    delta : float
        In [0, 1): weight of the transformation label (Eq. 3), or of label smoothing.
    train_objective : {"label_augmentation", "cross_entropy"}
        What the attack of a method with extra logits climbs.
    ema : float
        Decay of an averaged copy of the weights, updated every step and handed over at the end;
        0: no copy.
    accumulate : int
        How many equal pieces a process computes its part of a batch in.
    dtype : {"auto", "float32", "bfloat16"}
    workers : int
        Processes that decode image files.
    """

    epochs: int
    batch_size: int
    lr: float = 0.01
    schedule: str = "cosine"
    lr_final_factor: float = 1e-4
    momentum: float = 0.9
    weight_decay: float = 1e-4
    augment: str = "none"
    threats: tuple[ThreatModel, ...] = (ThreatModel(success="last"),)
    num_transforms: int = 1
    delta: float = 0.03
    train_objective: str = "label_augmentation"
    ema: float = 0.0
    accumulate: int = 1
    dtype: str = "auto"
    workers: int = 0

    def lr_at(self, step: int, total: int) -> float:
        """The learning rate of a step, counted from 0, of `total` steps."""
        schedule = {"cosine": cosine_lr, "one_cycle": one_cycle_lr}[self.schedule]
        return schedule(self.lr, self.lr_final_factor, step, total)


def cosine_lr(base: float, final_factor: float, step: int, total: int) -> float:
    """Cosine annealing per step, from `base` at step 0 down to `base * final_factor`."""
    final = base * final_factor
    return final + (base - final) * (1 + math.cos(math.pi * step / total)) / 2


def one_cycle_lr(peak: float, final_factor: float, step: int, total: int) -> float:
    """Up from `peak` / 25 over the first 30 % of the steps, then down to `peak * final_factor`.

    Both ways along a cosine (Smith & Topin 2019), as `torch.optim.lr_scheduler.OneCycleLR` counts.
    """
    top, last = 0.3 * total - 1, total - 1
    if step <= top:
        return cosine_lr(peak, 1 / 25, top - step, top)
    return cosine_lr(peak, final_factor, step - top, last - top)


def with_options(recipe: Recipe, **options: float) -> Recipe:
    """The recipe with other values of its options; ValueError for one that it does not have."""
    for name in options.keys() - recipe.options.keys():
        known = ", ".join(recipe.options) or "none"
        raise ValueError(f"{recipe.title} has no option {name!r}: known are {known}")
    return replace(recipe, options={**recipe.options, **options})
