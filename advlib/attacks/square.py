"""The Square attack (Andriushchenko et al. 2020): random squares, no gradient."""

import functools
import math
from typing import NamedTuple

import torch

from advlib.attacks.pgd import _each, _l2, _margin, _seen_logits
from advlib.labels import class_logits, model_logits
from advlib.networks.device import autocast

SHARE = 0.8  # of the image that the first squares cover
FORGOTTEN = 0.9  # of the doubt that remains at the next image that is asked twice
HALVED_AT = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # of 10,000 queries


class Hunt(NamedTuple):
    """Images under attack, and the best that was found of each."""

    x: torch.Tensor  # (n, C, H, W), the images
    label: torch.Tensor  # (n,) int64, which the attack leaves
    draws: torch.Tensor  # (n, draws_needed) in [0, 1)
    taken: torch.Tensor  # (n,) int64, queries taken
    best: torch.Tensor  # (n, C, H, W)
    margin: torch.Tensor  # (n,), of the best: the largest other logit less the label's; inf: wrong
    rough: torch.Tensor  # (n,), its margin in the type in which all proposals are asked
    doubt: torch.Tensor  # (n,), how far off the type was lately in what a proposal gains


def draws_needed(shape: tuple, queries: int) -> int:
    """How many random numbers an image of a batch (N, C, H, W) needs: for its start, then a query.

    A query takes two places, a turn, and a sign of each channel.
    """
    _, channels, height, width = shape
    side = max(height // 5, 1)
    cells = max((height // side) * (width // side), width)
    return (channels + 1) * cells + queries * (channels + 5)


def start_hunt(x, label, draws, threat) -> Hunt:
    """Images (n, C, H, W) at their starts: stripes, or for L2 a grid of bumps."""
    n, channels, height, width = x.shape
    if threat.norm == "Linf":
        change = _sign(draws[:, : channels * width].view(n, channels, 1, width))
    else:
        side, change = max(height // 5, 1), torch.zeros_like(x)
        rows, columns = height // side, width // side
        cells = draws[:, : (channels + 1) * rows * columns].view(n, -1, channels + 1)
        bump = _bump(side).to(x)
        for k in range(rows * columns):
            top = (height - rows * side) // 2 + k // columns * side
            left = (width - columns * side) // 2 + k % columns * side
            cell = torch.where(_each(cells[:, k, 0] > 0.5), bump.T, bump)
            cell = cell * _sign(cells[:, k, 1:, None, None])
            change[:, :, top : top + side, left : left + side] = cell
        change = change / _l2(change)
    x_adv = (x + threat.eps * change).clamp(0, 1)
    none = [torch.full_like(label, -math.inf, dtype=torch.float32) for _ in range(3)]
    return Hunt(x, label, draws, torch.zeros_like(label), x_adv, *none)


def hunt_on(model, hunt, threat, num_classes, queries, dtype=torch.float32) -> Hunt:
    """The hunt after one more query; of an image that has taken all, after its last one again.

    In a `dtype` that rounds more than float32 most proposals are seen to gain nothing. Those that
    may gain something, for all that it was off lately, are asked in float32, which decides.
    """
    propose = _linf_square if threat.norm == "Linf" else _l2_square
    hunt, x_adv = propose(hunt, threat.eps, queries)
    x_adv = torch.where(_each(hunt.taken == 0), hunt.best, x_adv)
    asked = functools.partial(_asked, model, threat, num_classes)
    rows, rough, doubt = torch.arange(len(x_adv), device=x_adv.device), hunt.rough, hunt.doubt
    if dtype != torch.float32:
        rough, _ = asked(dtype, x_adv, hunt.label)
        rows = rows[~(rough <= hunt.rough - doubt)]  # so that what is no number is seen
    margin = torch.full_like(hunt.margin, -math.inf)
    if len(rows):
        found, wrong = asked(torch.float32, x_adv[rows], hunt.label[rows])
        off = torch.where(hunt.taken == 0, 0, hunt.rough - hunt.margin)[rows]
        off = (rough[rows] - found - off).abs()
        doubt = doubt.index_copy(0, rows, torch.maximum(off, FORGOTTEN * doubt[rows]))
        margin[rows] = torch.where(wrong, math.inf, found)  # of which nothing is higher: it stays
    better = ~(margin <= hunt.margin)
    best = torch.where(_each(better), x_adv, hunt.best)
    margin = torch.where(better, margin, hunt.margin)
    rough = torch.where(better, rough, hunt.rough)
    return Hunt(*hunt[:3], hunt.taken + 1, best, margin, rough, doubt)


def _asked(model, threat, num_classes, dtype, x_adv, label):
    """The margins (n,), and which images are misclassified."""
    with autocast(x_adv.device, dtype):
        logits = model_logits(model, x_adv).float()
    wrong = class_logits(logits, num_classes or logits.shape[1]).argmax(1) != label
    return _margin(_seen_logits(logits, threat, num_classes), label), wrong


def _linf_square(hunt, eps, queries):
    """In a square, each channel of the change jumps to one border of the ball.

    Images in which nothing moves, unless they are few, go on to their next query, up to the last.
    """
    x_adv, sides, rows = hunt.best.clone(), _sides(hunt.x, 1), slice(None)
    while True:
        stage, places, _, signs = _drawn(hunt, queries, rows)
        square, *_ = _square(hunt.x, sides[stage], *places[:2])
        there = (hunt.x[rows] + eps * signs).clamp(0, 1)
        x_adv[rows] = torch.where(square, there, hunt.best[rows])
        same = _l2(x_adv - hunt.best).flatten() == 0
        rows = torch.nonzero(same & (hunt.taken > 0) & (hunt.taken < queries)).flatten()
        if len(rows) <= len(x_adv) // 16:
            return hunt, x_adv
        hunt = hunt._replace(taken=hunt.taken.index_add(0, rows, torch.ones_like(rows)))


def _l2_square(hunt, eps, queries):
    """The change in one square moves to another, where it takes the shape of a bump."""
    x, change = hunt.x, hunt.best - hunt.x
    stage, places, turned, signs = _drawn(hunt, queries, slice(None))
    sides = _sides(x, 3)
    to, rows, columns = _square(x, sides[stage], *places[:2])
    source, *_ = _square(x, sides[stage], *places[2:])
    room = (eps**2 - _l2(change).square()).clamp_min(0) / x.shape[1]
    room = room + _plane(change * (to | source)).square()
    table = x.new_zeros(len(sides), 2, *x.shape[2:])
    for bumps, side in zip(table, sides.tolist(), strict=True):
        bumps[0, :side, :side], bumps[1, :side, :side] = _bump(side), _bump(side).T
    shape = table[_each(stage), _each(turned.long()), rows.clamp_min(0), columns.clamp_min(0)]
    inside = change * to
    shape = to * (shape * signs + inside / _plane(inside).clamp_min(1e-12))
    shape = shape / _plane(shape).clamp_min(1e-12) * room.sqrt()
    change = torch.where(to, shape, change * ~source)
    return hunt, (x + eps * change / _l2(change).clamp_min(1e-12)).clamp(0, 1)


def _drawn(hunt, queries, rows):
    """Of the next query: stage of the schedule (n,), places (4, n), turn (n,), channels' signs."""
    query = (hunt.taken[rows] - 1).clamp(0, queries - 1)
    stage = (query[:, None] > query.new_tensor(HALVED_AT)).sum(1)
    numbers = hunt.draws[:, -queries * (hunt.x.shape[1] + 5) :].view(len(hunt.x), queries, -1)
    numbers = numbers[torch.arange(len(hunt.x), device=query.device)[rows], query]
    return stage, numbers[:, :4].T, numbers[:, 4] > 0.5, _sign(numbers[:, 5:, None, None])


def _sides(x, least) -> torch.Tensor:
    """Of the squares at each stage: at least this long, for L2 odd."""
    shares = [SHARE / 2**stage for stage in range(len(HALVED_AT) + 1)]
    sides = [max(round(math.sqrt(share * x[0, 0].numel())), least) for share in shares]
    sides = [min(s + (least == 3 and s % 2 == 0), *x.shape[2:]) for s in sides]
    return torch.tensor(sides, device=x.device)


def _square(x, side, u, v):
    """Squares of sides (n,) at places in [0, 1): masks, and the pixels' rows and columns there."""
    rows, columns = (
        torch.arange(length, device=x.device) - (place * (length - side + 1)).long()[:, None]
        for length, place in zip(x.shape[2:], (u, v), strict=True)
    )
    rows, columns, side = rows[:, None, :, None], columns[:, None, None, :], _each(side)
    return (rows >= 0) & (rows < side) & (columns >= 0) & (columns < side), rows, columns


@functools.lru_cache
def _bump(side: int) -> torch.Tensor:
    """Two pyramids beside each other, one up and one down, (side, side), of norm 1."""
    halves = []
    for height in (side // 2, side - side // 2):
        steps = 1 / torch.arange(1, max(height, side) // 2 + 2).square()
        far = torch.maximum(
            (torch.arange(height) - height // 2).abs()[:, None],
            (torch.arange(side) - side // 2).abs(),
        )
        half = steps.flip(0).cumsum(0).flip(0)[far]
        halves.append(half / half.norm())
    return torch.cat([halves[0], -halves[1]]) / torch.cat(halves).norm()


def _sign(draws):
    return torch.where(draws > 0.5, 1.0, -1.0)


def _plane(x):
    """The length of each channel, (n, C, 1, 1)."""
    return x.square().sum((2, 3), keepdim=True).sqrt()
