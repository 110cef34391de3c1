"""Training methods as data. What they compute is in `advlib.objectives`; this needs no torch."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from advlib.threat import ThreatModel, check_choices
from advlib.zoo import ZOO


@dataclass(frozen=True)
class Recipe:
    """A training method: its title, what it attacks, what a step costs, its options."""

    title: str  #: as tables and charts show it
    adversarial: bool = False  #: trains on attacked images
    mix: bool = False  #: trains on as many clean ones as well
    extra_logits: bool = False  #: K+M logits instead of K
    label_augmentation: bool = False  #: Eq. 3 and 4 with the training's delta; else delta is 0
    label_smoothing: bool = False  #: torch's, with the training's delta
    objective: str = "standard"  #: a name of `advlib.objectives.OBJECTIVES`
    #: The objective's own settings with their defaults, such as TRADES' beta.
    options: Mapping[str, float] = field(default_factory=dict)
    #: Forward passes per step beside those of the attack and of training; one with a gradient by
    #: the weights counts as 3.
    forwards: int = 0
    validation: bool = False  #: looks at validation images after each epoch
    helper: str = ""  #: the method whose trained network is consulted; empty: none
    #: Hands over an average of the weights after each epoch, with the option `decay`, in place of
    #: the training's `ema`.
    epoch_average: bool = False
    #: Trains nothing: it changes the helper (`advlib.offsets.tune_offsets`).
    post_hoc: bool = False
    steps: int | None = None  #: of the attack; None: the threat model's
    base: str = ""  #: the method that it builds on and is compared with; empty: none

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
    """How a network is trained, whatever the method."""

    epochs: int
    batch_size: int  #: images per step, over all processes
    lr: float = 0.01  #: at the start, or the highest of the one-cycle schedule
    schedule: str = "cosine"  #: or "one_cycle"
    lr_final_factor: float = 1e-4  #: the last learning rate as a part of `lr`
    momentum: float = 0.9  #: of SGD
    weight_decay: float = 1e-4  #: of SGD
    augment: str = "none"  #: or "crop", "crop_flip", "random_resized_crop"
    #: One, or one for each transformation logit; images take turns.
    threats: tuple[ThreatModel, ...] = (ThreatModel(success="last"),)
    num_transforms: int = 1  #: M, the number of transformation logits of methods that have them
    delta: float = 0.03  #: in [0, 1): weight of the transformation label (Eq. 3), or of smoothing
    #: What the attack of a method with extra logits climbs, or "cross_entropy".
    train_objective: str = "label_augmentation"
    #: Decay of an averaged copy of the weights, updated every step and handed over at the end; 0:
    #: no copy.
    ema: float = 0.0
    accumulate: int = 1  #: how many equal pieces a process computes its part of a batch in
    dtype: str = "auto"  #: or "float32", "bfloat16"
    workers: int = 0  #: processes that decode image files

    def __post_init__(self):
        objectives = ("label_augmentation", "cross_entropy")
        check_choices(self, {"schedule": tuple(_SCHEDULES), "train_objective": objectives})

    @property
    def threat(self) -> ThreatModel:
        """The only threat model; ValueError where there are several."""
        if len(self.threats) > 1:
            raise ValueError(f"this method attacks in one way, got {len(self.threats)} threats")
        return self.threats[0]

    def lr_at(self, step: int, total: int) -> float:
        """The learning rate of a step, counted from 0, of `total` steps."""
        return _SCHEDULES[self.schedule](self.lr, self.lr_final_factor, step, total)


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


_SCHEDULES = {"cosine": cosine_lr, "one_cycle": one_cycle_lr}
