"""APGD (Croce & Hein 2020): PGD that finds the length of its steps by itself."""

import math
from typing import NamedTuple

import torch
from torch import nn

from advlib.attacks.pgd import (
    _LOSSES,
    _attacked_label,
    _check_finite,
    _each,
    _l2,
    _project,
    _radius,
    _seen_logits,
    _step,
    attack_mode,
    logits_and_gradient,
    start_noise,
)
from advlib.labels import check_range, class_logits, model_logits
from advlib.threat import ThreatModel

RHO = 0.75  # share of the steps that must have raised the loss, else the step is halved
INERTIA = 0.25  # weight of the step before


def apgd_attack(
    model: nn.Module,
    x: torch.Tensor,
    y: torch.Tensor,
    threat: ThreatModel,
    *,
    num_classes: int | None = None,
    target: torch.Tensor | None = None,
    generator: torch.Generator | None = None,
    noise: torch.Tensor | None = None,
    check: bool = True,
) -> torch.Tensor:
    """Auto-PGD (Croce & Hein 2020): the last misclassified iterate, or the one of the highest loss.

    Parameters
    ----------
    model, x, y, num_classes, generator, check
        As in `advlib.attacks.pgd.pgd_attack`.
    threat : ThreatModel
        Its ``steps`` are taken (AutoAttack takes 100) on its ``loss``; of ``step_size`` and
        ``n_restarts`` nothing is used.
    target : int tensor (N,), optional
        A class for each image to be taken to: the attack climbs the targeted DLR instead of the
        threat model's loss (APGD-T).
    noise : float tensor (N, C, H, W), optional
        The start instead of a generator's, in units of ε. Drawn starts lie on the ball's border.

    Returns
    -------
    float tensor (N, C, H, W), within the ball and, with ``clip``, in [0, 1].

    Raises
    ------
    ValueError, TypeError
        As `pgd_attack`; also where a DLR has too few logits, and for a target out of range.
    FloatingPointError
        If the network gives an image no finite gradient (looked at only with ``check``).
    """
    with attack_mode(model, threat.model_mode):
        y = torch.as_tensor(y, device=x.device)
        y = _attacked_label(model, x, y, threat, num_classes, check)
        if check and target is not None:
            check_range("target", target, 0, num_classes or model_logits(model, x[:1]).shape[1])
            if (target == y).any():
                raise ValueError("a target is another class than the label")
        if noise is None:
            noise = border_noise(x.shape, threat, generator, x.device)
        eps, _ = _radius(model, x, threat)
        climb, found = start_climb(x, noise, y, target, eps, threat), x
        wrong_once = torch.zeros_like(y, dtype=torch.bool)
        for _ in range(threat.steps + 1):
            x_adv = climb.x_adv
            wrong, climb = climb_on(model, climb, eps, threat, num_classes, target is not None)
            found = torch.where(wrong[:, None, None, None], x_adv, found)
            wrong_once |= wrong
        if check:
            _check_finite(climb.loss.isfinite(), range(len(x)), "gradient")
        return torch.where(wrong_once[:, None, None, None], found, climb.best)


class Climb(NamedTuple):
    """Images under attack: where each of them is, and what its steps have shown."""

    x: torch.Tensor  # (n, C, H, W), the images
    label: torch.Tensor  # (n,) int64, which the attack leaves
    target: torch.Tensor  # (n,) int64, to which a targeted one goes
    x_adv: torch.Tensor  # (n, C, H, W), the iterates
    before: torch.Tensor  # (n, C, H, W), the iterates before them
    best: torch.Tensor  # (n, C, H, W), those of the highest loss
    best_gradient: torch.Tensor  # (n, C, H, W), the gradient there
    taken: torch.Tensor  # (n,) int64, steps taken
    step: torch.Tensor  # (n,), its length in units of ε
    loss: torch.Tensor  # (n,), of the iterate before
    best_loss: torch.Tensor  # (n,)
    checked_loss: torch.Tensor  # (n,), the highest at the last checkpoint
    rises: torch.Tensor  # (n,) int64, steps since then that raised the loss
    halved: torch.Tensor  # (n,) bool, whether the step was halved there


def border_noise(shape, threat, generator, device) -> torch.Tensor:
    """Random starts (N, C, H, W) on the border of the ball, in units of ε."""
    noise = start_noise(shape, threat, generator, device)
    size = noise.abs().amax((1, 2, 3), keepdim=True) if threat.norm == "Linf" else _l2(noise)
    return noise / size.clamp_min(torch.finfo(noise.dtype).tiny)


def start_climb(x, noise, label, target, eps, threat) -> Climb:
    """Images (n, C, H, W) at their starts."""
    x_adv = _project(x, x + eps * noise, eps, threat)
    zero, count = x.new_zeros(len(x)), label.new_zeros(len(x))
    return Climb(
        x=x,
        label=label,
        target=label if target is None else target.long(),
        x_adv=x_adv,
        before=x_adv.clone(),
        best=x_adv.clone(),
        best_gradient=torch.zeros_like(x),
        taken=count,
        step=zero + 2,
        loss=zero,
        best_loss=zero - math.inf,
        checked_loss=zero.clone(),
        rises=count.clone(),
        halved=count.bool(),
    )


def climb_on(model, climb, eps, threat, num_classes, targeted) -> tuple[torch.Tensor, Climb]:
    """Which iterates the model sees misclassified (n,), and the climb after one more step."""
    x, x_adv = climb.x, climb.x_adv

    def losses(logits):
        seen = _seen_logits(logits, threat, num_classes).float()
        if targeted:
            return _targeted_dlr(seen, climb.label, climb.target)
        return _LOSSES[threat.loss](seen, climb.label)

    logits, gradient = logits_and_gradient(
        model, x_adv, climb.label, threat, num_classes, lambda logits, y: losses(logits).sum()
    )
    wrong = class_logits(logits, num_classes or logits.shape[1]).argmax(1) != climb.label
    loss, first = losses(logits), climb.taken == 0
    best, best_gradient = climb.best, climb.best_gradient
    better = _each(loss > climb.best_loss)
    best = torch.where(better, x_adv, best)
    best_gradient = torch.where(better, gradient, best_gradient)
    best_loss = torch.maximum(loss, climb.best_loss)
    checked_loss = torch.where(first, loss, climb.checked_loss)
    rises = torch.where(first, 0, climb.rises + (loss > climb.loss))
    # At a checkpoint, images that rose too seldom, or that have found nothing better at the step
    # they have, halve it and go on from the best they know.
    window = torch.tensor(_windows(threat.steps), device=x.device)[climb.taken]
    check = window > 0
    stuck = (rises <= RHO * window) | (~climb.halved & (checked_loss >= best_loss))
    stuck &= check
    step = torch.where(stuck, climb.step / 2, climb.step)
    here = torch.where(_each(stuck), best, x_adv)
    gradient = torch.where(_each(stuck), best_gradient, gradient)
    there = _step(x, here, gradient, eps, _each(step) * eps, threat)
    inertia = torch.where(first, 0, INERTIA).to(x)
    there = here + (there - here) * _each(1 - inertia) + (here - climb.before) * _each(inertia)
    return wrong, climb._replace(
        x_adv=_project(x, there, eps, threat),
        before=here,
        best=best,
        best_gradient=best_gradient,
        taken=climb.taken + 1,
        step=step,
        # The published code compares the first step with 0 instead of the loss at the start.
        loss=torch.where(first, 0, loss),
        best_loss=best_loss,
        checked_loss=torch.where(check, best_loss, checked_loss),
        rises=torch.where(check, 0, rises),
        halved=torch.where(check, stuck, climb.halved | first),
    )


def _windows(steps: int) -> list[int]:
    """For each number of steps taken, how many a checkpoint there looks back on; 0: there is none.

    The first after 22 % of the steps, the windows 3 % shorter each time, down to 6 %.
    """
    window, least, less = (max(int(share * steps), 1) for share in (0.22, 0.06, 0.03))
    windows, end = [0] * (steps + 1), window
    while end <= steps:
        windows[end] = window
        window = max(window - less, least)
        end += window
    return windows


def _targeted_dlr(logits, y, target):
    """The target's logit less the label's, over the spread of the four largest, (N,)."""
    if logits.shape[1] < 4:
        raise ValueError(
            f"the targeted DLR needs 4 logits or more, the attack sees {logits.shape[1]}: leave "
            "the target out"
        )
    top = logits.topk(4, dim=1).values
    margin = (logits.gather(1, target[:, None]) - logits.gather(1, y[:, None]))[:, 0]
    return margin / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2).clamp_min(1e-12)
