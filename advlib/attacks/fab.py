"""FAB-T (Croce & Hein 2020): the nearest point on a linearised boundary, again and again."""

from typing import NamedTuple

import torch

from advlib.attacks.pgd import _each, logits_and_gradient
from advlib.labels import class_logits, model_logits

BEYOND = 1.05  # how far a step goes, of the way to the boundary
BACK = 0.9  # what is kept of the change that has crossed it
FROM_IMAGE = 0.1  # the largest weight of the step that starts from the image itself
PIXELS = (1, 2, 3)
ROUNDS = 30  # of Newton's method, at most; some five are enough


class Walk(NamedTuple):
    """Images on their way to the boundary between their label and a target."""

    row: torch.Tensor  # (n,) int64, the number of the walk
    x: torch.Tensor  # (n, C, H, W), the images
    label: torch.Tensor  # (n,) int64, which the attack leaves
    target: torch.Tensor  # (n,) int64, to which it goes
    x_adv: torch.Tensor  # (n, C, H, W), the iterates
    taken: torch.Tensor  # (n,) int64, steps taken
    nearest: torch.Tensor  # (n,), the smallest change that was misclassified

    @property
    def best(self) -> torch.Tensor:
        """What stands when the walk ends: FAB knows nothing better than the image."""
        return self.x


def start_walk(x, label, target, row) -> Walk:
    """Images (n, C, H, W) where they are: the standard version starts at no other point."""
    far = torch.full_like(x[:, 0, 0, 0], torch.inf)
    return Walk(row, x, label, target, x, torch.zeros_like(label), far)


def walk_on(model, walk, threat, num_classes) -> tuple[torch.Tensor, torch.Tensor, Walk]:
    """The next iterates, which of them the search sees broken (n,), and the walk from there.

    An iterate is broken if it is misclassified within the ball. A misclassified one outside it is
    taken back towards its image all the same.
    """
    x, x_adv, label = walk.x, walk.x_adv, walk.label

    def margins(logits):
        chosen = logits.float().gather(1, torch.stack([walk.target, label], 1))
        return chosen[:, 0] - chosen[:, 1]

    logits, gradient = logits_and_gradient(
        model, x_adv, label, threat, num_classes, lambda logits, _: margins(logits).sum()
    )
    # Of the linearised margin, here and at the image.
    offset = margins(logits)
    at_image = offset + (gradient * (x - x_adv)).sum(PIXELS)
    step = crossing(x_adv, gradient, offset, threat.norm)
    direct = crossing(x, gradient, at_image, threat.norm)
    near, far = (_size(change, threat.norm).clamp_min(1e-8) for change in (step, direct))
    share = _each((near / (near + far)).clamp_max(FROM_IMAGE))
    x_adv = torch.lerp(x_adv + BEYOND * step, x + BEYOND * direct, share).clamp(0, 1)
    with torch.no_grad():
        logits = class_logits(model_logits(model, x_adv), num_classes or logits.shape[1])
    wrong, size = logits.argmax(1) != label, _size(x_adv - x, threat.norm)
    broken = (wrong & (size <= threat.eps)) | ~margins(logits).isfinite()
    return (
        x_adv,
        broken,
        walk._replace(
            x_adv=torch.where(_each(wrong), torch.lerp(x, x_adv, BACK), x_adv),
            taken=walk.taken + 1,
            nearest=torch.where(wrong, torch.minimum(size, walk.nearest), walk.nearest),
        ),
    )


def crossing(x, gradient, offset, norm) -> torch.Tensor:
    """The smallest change of x (n, C, H, W) within [0, 1] at which linear functions are zero.

    Their values at x are `offset` (n,). Where nothing within [0, 1] is far enough, the change leads
    to its corner.

    The change is λ in each pixel for Linf, λ times the gradient for L2, cut off where the pixel
    reaches 0 or 1. What it adds to the function is concave in λ and made of straight pieces, so
    that Newton's method from λ = 0 never overshoots and ends at the exact λ, without sorting.
    """
    largest = gradient.abs().amax(PIXELS, keepdim=True)
    largest = largest.clamp_min(torch.finfo(gradient.dtype).tiny)
    ascent = gradient / (largest * _each(torch.where(offset > 0, -1, 1)))
    wanted, weight = _each(offset.abs()) / largest, ascent.abs()
    room = torch.where(ascent > 0, 1 - x, x * (ascent < 0))
    # Pixel i adds min(λ · slope, weight · room): it is free until λ reaches its end.
    slope, end = (weight, room) if norm == "Linf" else (weight.square(), room / weight)
    added, size = weight * room, torch.zeros_like(wanted)
    total = added.sum(PIXELS, keepdim=True)
    for _ in range(ROUNDS):
        free = (end > size).to(x)
        stopped = total - (added * free).sum(PIXELS, keepdim=True)
        steepness = (slope * free).sum(PIXELS, keepdim=True).clamp_min(1e-30)
        further = torch.maximum(((wanted - stopped) / steepness).clamp_max(1e30), size)
        if torch.equal(further, size):
            break
        size = further
    change = torch.minimum(size if norm == "Linf" else size * weight, room)
    return change * ascent.sign()


def _size(change, norm):
    return change.abs().amax(PIXELS) if norm == "Linf" else change.square().sum(PIXELS).sqrt()
