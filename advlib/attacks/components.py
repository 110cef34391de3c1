"""The components of AutoAttack, each on a piece of a data set, in a batch that stays full."""

import torch

from advlib.attacks.apgd import border_noise, climb_on, start_climb
from advlib.attacks.fab import start_walk, walk_on
from advlib.attacks.pgd import _check_finite, classify
from advlib.attacks.square import draws_needed, hunt_on, start_hunt
from advlib.data.batches import stream_seed
from advlib.labels import class_logits
from advlib.networks.device import autocast
from advlib.threat import ThreatModel

CLOSE = 1.1  # ε: what FAB finds nearer in bfloat16 may lie in the ball


class Piece:
    """Images (n, C, H, W) that a component attacks, and those that it has broken."""

    def __init__(self, component, model, search, x, y, names, threat, how):
        self.component, self.model, self.search, self.threat = component, model, search, threat
        self.x, self.y, self.names, self.how = x, y, names, how
        self.image = torch.arange(len(x), device=x.device)
        self.broken, self.linf = torch.zeros_like(y, dtype=torch.bool), x.new_zeros(len(x))
        self.predicted, self.probability = y.clone(), x.new_zeros(len(x))

    def draw(self, image: torch.Tensor, draw, *parts) -> torch.Tensor:
        """What `draw(generator)` gives, (1, …), for each image by its name."""
        seeds = (self.how["seed"], self.component, *parts)
        seeds = [stream_seed(*seeds, self.names[i]) for i in image.tolist()]
        return torch.cat([draw(torch.Generator(self.x.device).manual_seed(s)) for s in seeds])

    def judge(self, image: torch.Tensor, x_adv: torch.Tensor) -> None:
        """Record which of these the model itself misclassifies, in float32."""
        num_classes, threat = self.how["num_classes"], self.threat
        predicted, probability = classify(self.model, x_adv, num_classes, self.how["batch_size"])
        _check_finite(probability.isfinite(), self.names, "gradient", image)
        change = (x_adv - self.x[image]).flatten(1)
        linf = change.abs().amax(1)
        size = linf if threat.norm == "Linf" else change.norm(dim=1)
        wrong = (predicted != self.y[image]) & ~self.broken[image]
        inside = (size <= threat.eps * (1 + 1e-5) + 1e-6) & (x_adv >= 0).flatten(1).all(1)
        if (wrong & ~(inside & (x_adv <= 1).flatten(1).all(1))).any():
            raise RuntimeError(f"{self.component} leaves the ball: its result would be wrong")
        # An image that two targets broke at once is recorded once, by the first.
        order = torch.arange(len(image), device=image.device)
        first = torch.full_like(self.y, len(image))
        first = first.scatter_reduce(0, image[wrong], order[wrong], "amin")
        found = wrong & (first[image] == order)
        rows = image[found]
        self.broken[rows] = True
        self.predicted[rows], self.probability[rows] = predicted[found], probability[found]
        self.linf[rows] = linf[found]


def attack_apgd(piece, dtype, steps, targets) -> None:
    """On the cross-entropy; with targets, from each image to each of them, the likeliest first."""
    x, y, search, num_classes = piece.x, piece.y, piece.search, piece.how["num_classes"]
    threat = ThreatModel(norm=piece.threat.norm, eps=piece.threat.eps, steps=steps)
    image = piece.image.repeat(max(targets, 1))
    target = likeliest_others(piece, targets) if targets else None

    def start(rows):
        shape = (1, *x.shape[1:])
        of, rank = image[rows], rows // len(x)
        noise = torch.empty_like(x[of])
        for number in rank.unique().tolist():
            these = rank == number
            noise[these] = piece.draw(
                of[these], lambda g: border_noise(shape, threat, g, x.device), number
            )
        return start_climb(
            x[of], noise, y[of], target[rows] if targets else None, threat.eps, threat
        )

    def advance(climb):
        seen, ended = climb.x_adv, climb.taken == steps
        with autocast(x.device, dtype):
            wrong, climb = climb_on(search, climb, threat.eps, threat, num_classes, targets > 0)
        return climb, seen, wrong | ~climb.loss.isfinite(), ended

    _refilled(piece, start, advance, image)


def attack_square(piece, dtype, queries) -> None:
    """What `dtype` sees to gain nothing is passed over; float32 decides about the rest."""
    x, device = piece.x, piece.x.device
    numbers = (1, draws_needed(x.shape, queries))

    def start(rows):
        draws = piece.draw(rows, lambda g: torch.rand(numbers, generator=g, device=device))
        return start_hunt(x[rows], piece.y[rows], draws, piece.threat)

    def advance(hunt):
        # What is still here though the search saw it broken was not: the hunt goes on.
        hunt = hunt._replace(margin=hunt.margin.clamp_max(0))
        with torch.no_grad():
            known = piece.threat, piece.how["num_classes"], queries, dtype
            hunt = hunt_on(piece.search, hunt, *known)
        return hunt, hunt.best, ~hunt.margin.isfinite(), hunt.taken > queries

    _refilled(piece, start, advance, piece.image)


def attack_fab(piece, dtype, steps, targets) -> None:
    """From each image to each target, the likeliest first.

    The border of a class lies elsewhere in bfloat16: where its search comes close to the border of
    the ball, float32 searches again.
    """
    x, threat, num_classes = piece.x, piece.threat, piece.how["num_classes"]
    image, target = piece.image.repeat(targets), likeliest_others(piece, targets)
    nearest = x.new_full((len(image),), torch.inf)

    def search(image, target, dtype):
        def start(rows):
            of = image[rows]
            return start_walk(x[of], piece.y[of], target[rows], rows)

        def advance(walk):
            with autocast(x.device, dtype):
                seen, broken, walk = walk_on(piece.search, walk, threat, num_classes)
            nearest[walk.row] = walk.nearest
            return walk, seen, broken, walk.taken == steps

        _refilled(piece, start, advance, image)

    search(image, target, dtype)
    close = (nearest <= CLOSE * threat.eps) & ~piece.broken[image]
    if dtype != torch.float32:
        search(image[close], target[close], torch.float32)


def likeliest_others(piece, count) -> torch.Tensor:
    """The classes beside the label that the search finds likeliest, rank by rank, (count · n,)."""
    with torch.no_grad(), autocast(piece.x.device, torch.float32):
        logits = torch.cat([piece.search(x) for x in piece.x.split(piece.how["batch_size"])])
    logits = class_logits(logits, piece.how["num_classes"])
    return logits.scatter(1, piece.y[:, None], -torch.inf).topk(count, dim=1).indices.T.flatten()


def _refilled(piece, start, advance, image) -> None:
    """Attack in a batch that stays full: where a row ends or its image is broken, the next joins.

    `image` (R,) are the places of the rows' images. `start` gives the state of rows, a named tuple
    of tensors; `advance` that of one pass later, the images that the pass looked at, whether the
    search sees them misclassified, and whether the row ends.
    """
    size, queue = piece.how["batch_size"], torch.arange(len(image), device=image.device)
    rows, queue = queue[:size].clone(), queue[size:]
    state = start(rows)
    while len(rows):
        state, seen, suspect, ended = advance(state)
        if suspect.any():
            piece.judge(image[rows[suspect]], seen[suspect])
        if (last := ended & ~piece.broken[image[rows]]).any():
            piece.judge(image[rows[last]], state.best[last])
        gone = torch.nonzero(ended | piece.broken[image[rows]]).flatten()
        if not len(gone):
            continue
        queue = queue[~piece.broken[image[queue]]]
        new, queue = queue[: len(gone)], queue[len(gone) :]
        if len(new):
            rows[gone[: len(new)]] = new
            for values, fresh in zip(state, start(new), strict=True):
                values[gone[: len(new)]] = fresh
        if len(gone) > len(new):
            kept = torch.ones_like(rows, dtype=torch.bool)
            kept[gone[len(new) :]] = False
            rows, state = rows[kept], type(state)(*(values[kept] for values in state))
