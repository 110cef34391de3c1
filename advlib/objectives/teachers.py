"""Methods that learn from a robust teacher: distillation with class weights or temperatures."""

import torch

from advlib.objectives.base import away_from, cross_entropy, divergence
from advlib.objectives.images import survived
from advlib.objectives.state import ClassMethod, Steps, Tally
from advlib.objectives.step import Step
from advlib.recipes import Recipe


class FairArd(ClassMethod):
    """Fair-ARD (Yue et al. 2023): distillation on attacked images with class weights.

    Class k weighs K κ_k^-`power` / Σ κ^-`power`, within 5/6 and 5/2, with κ_k the mean number of
    attack steps survived in the epoch before. The loss is T² KL(teacher(x)/T ‖ student(x_adv)/T),
    where the released code divides by the number of classes; with `power` 0 it is ARD's (Goldblum
    et al. 2020) without its clean term.
    """

    def set_up(self, recipe: Recipe, images) -> None:
        self.per_class("weight", 1.0)
        self.steps = Tally(self.num_classes)

    def forward(self, step: Step):
        x_adv, share = survived(step)
        self.steps.add(step.y, share)
        (logits,) = step.logits(x_adv)
        t = self.options["temperature"]
        losses = t**2 * divergence(step.helper(step.x) / t, logits.float() / t)
        return (self.weight[step.y] * losses).mean(), step.wrong(logits)

    def look_back(self, validation: Steps) -> None:
        # Survived steps are counted in parts of all; one step of a hundred is the least.
        weight = self.steps.means().nan_to_num(1.0).clamp_min(0.01) ** -self.options["power"]
        self.weight.copy_((weight / weight.mean()).clamp(5 / 6, 5 / 2))


class Absld(ClassMethod):
    """ABSLD (Zhao et al. 2024): distillation with a temperature for each class of the teacher.

    After each epoch T_k falls by `rate` times how far the class's loss is above the mean, in parts
    of the largest distance, within 0.5 and 5: hard classes learn from sharper labels. Attacked and
    clean images have temperatures of their own. The loss is 5/6 of the divergence on attacked
    images, which the attack climbs, and 1/6 of that on clean ones; the released code divides it by
    the number of classes, and `rate` by 10 whenever the learning rate falls. With `shared` both are
    divided by the product of the two temperatures, as in that code.
    """

    def set_up(self, recipe: Recipe, images) -> None:
        self.per_class("clean", 1.0)
        self.per_class("attacked", 1.0)
        self.losses = Tally(self.num_classes, 2)

    def forward(self, step: Step):
        teacher = step.helper(step.x)
        clean, attacked = (t[step.y][:, None] for t in (self.clean, self.attacked))
        if self.options["shared"]:
            clean = attacked = clean * attacked
        x_adv, _ = step.attack(away_from((teacher / attacked).softmax(1)))
        natural, at = step.logits(step.x, x_adv)
        loss = 5 / 6 * divergence(teacher / attacked, at).mean()
        loss = loss + 1 / 6 * divergence(teacher / clean, natural).mean()
        with torch.no_grad():
            both = [cross_entropy(logits, step.y) for logits in (natural, at)]
        self.losses.add(step.y, torch.stack(both, 1))
        return loss, step.wrong(natural, at)

    def look_back(self, validation: Steps) -> None:
        found = zip((self.clean, self.attacked), self.losses.means().T, strict=True)
        for temperature, losses in found:
            above = (losses - losses.nanmean()).nan_to_num()
            change = self.options["rate"] * above / above.abs().max().clamp_min(1e-12)
            temperature.copy_((temperature - change).clamp(0.5, 5))
