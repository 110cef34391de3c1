"""PGD, and what it does to a data set: worst case per image, restarts, a batch that stays full."""

import collections
import contextlib
import functools
import math
from collections.abc import Callable, Iterator

import pandas as pd
import torch
from torch import nn
from torch.nn import functional as F

from advlib.attacks.folding import folding
from advlib.data.batches import item_names
from advlib.data.sets import evaluation_batches, stream_seed
from advlib.labels import class_logits, model_logits
from advlib.networks.build import autocast, default_device, pixel_std, resolve_dtype
from advlib.threat import ThreatModel


def pgd_attack(
    model: nn.Module,
    x: torch.Tensor,
    y: torch.Tensor,
    threat: ThreatModel,
    *,
    num_classes: int | None = None,
    generator: torch.Generator | None = None,
    noise: torch.Tensor | None = None,
    objective: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
    radius: torch.Tensor | None = None,
    check: bool = True,
) -> torch.Tensor:
    """Projected gradient descent (Madry et al. 2018): the last iterate of one start.

    Parameters
    ----------
    model : nn.Module
        Images in [0, 1] to logits. Its mode, buffers and its parameters' ``grad`` and
        ``requires_grad`` are left as they were.
    x : float tensor (N, C, H, W) in [0, 1]
    y : int tensor (N,)
        True labels.
    threat : ThreatModel
    num_classes : int, optional
        K, where the model has more logits; None: every logit is a class.
    generator : torch.Generator, optional
        For the random start.
    noise : float tensor (N, C, H, W), optional
        The random start instead of a generator's: the change of each pixel in units of ε.
    objective : callable, optional
        Logits (N, K+M) in float32 and the labels that the attack leaves (N,) to the scalar that it
        climbs, in place of the loss of the threat model (Adv⁺ climbs Eq. 4).
    radius : float tensor (N,), optional
        ε of each image, at least 0, in place of the threat model's; the step stays the threat
        model's.
    check : bool
        False where images and labels are known to be in range: to look at them is to wait for the
        device, batch after batch.

    Returns
    -------
    float tensor (N, C, H, W), every iterate within the ball and, with ``clip``, in [0, 1].

    Raises
    ------
    ValueError, TypeError
        For images, labels or a model that an attack cannot use, such as pixels outside [0, 1],
        labels out of range, or outputs that are no tensor of logits.
    FloatingPointError
        If the network gives an image no finite gradient (looked at only with ``check``).
    """
    iterates = pgd_iterates(
        model,
        x,
        y,
        threat,
        num_classes=num_classes,
        generator=generator,
        noise=noise,
        objective=objective,
        radius=radius,
        check=check,
    )
    return collections.deque(iterates, maxlen=1).pop()


def pgd_iterates(
    model: nn.Module,
    x: torch.Tensor,
    y: torch.Tensor,
    threat: ThreatModel,
    *,
    num_classes: int | None = None,
    generator: torch.Generator | None = None,
    noise: torch.Tensor | None = None,
    objective: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
    radius: torch.Tensor | None = None,
    check: bool = True,
) -> Iterator[torch.Tensor]:
    """The iterates of `pgd_attack` one by one: the start, then one after each step.

    Takes what `pgd_attack` takes. Until it ends or is closed the model stays in the attack's mode,
    its parameters frozen.

    Yields
    ------
    float tensor (N, C, H, W)
    """
    with attack_mode(model, threat.model_mode):
        y = torch.as_tensor(y, device=x.device)
        y = _attacked_label(model, x, y, threat, num_classes, check)
        if noise is None:
            noise = start_noise(x.shape, threat, generator, x.device)
        eps, step = _radius(model, x, threat, radius)
        x_adv = _start(x, noise, eps, threat)
        yield x_adv
        for _ in range(threat.steps if threat.eps else 0):
            _, gradient = logits_and_gradient(model, x_adv, y, threat, num_classes, objective)
            x_adv = _step(x, x_adv, gradient, eps, step, threat)
            yield x_adv
        if check:  # once, since each look waits for the device
            _check_finite(x_adv.flatten(1).isfinite().all(1), range(len(x)), "gradient")


def evaluate_attack(
    model: nn.Module,
    dataset,
    threat: ThreatModel,
    *,
    num_classes: int,
    batch_size: int | None = None,
    device: torch.device | str | None = None,
    seed: int = 0,
    dtype: str = "auto",
    workers: int = 0,
    indices: torch.Tensor | None = None,
    progress: Callable[[int], None] | None = None,
) -> pd.DataFrame:
    """Attack every image of a data set and keep each image's worst case.

    Parameters
    ----------
    model : nn.Module
        Images in [0, 1] to K or K+M logits.
    dataset : advlib.data.sets.Images, or a sequence of (x, y) or (x, y, file_name)
    threat : ThreatModel
    num_classes : int
        K: errors are counted over the first K logits.
    batch_size : int, optional
        Images attacked at once; None: `default_batch_size`.
    device : optional
        None: CUDA, MPS or the CPU, by availability.
    seed : int
        The start of an image is drawn from (seed, file name, restart), on the device.
    dtype : {"auto", "float32", "bfloat16"}
        Of the search. What is recorded is always computed in float32.
    workers : int
        Processes that decode images.
    indices : int tensor, optional
        Only these images.
    progress : callable, optional
        Called with the number of images finished.

    Returns
    -------
    DataFrame
        A prediction table with ``linf`` (largest change of a pixel) and ``steps_used``.

    Raises
    ------
    ValueError, TypeError
        For images, labels or a model that an attack cannot use; also where there are no images.
    FloatingPointError
        With their names, for images without a finite logit or gradient: neither robust nor broken.

    Notes
    -----
    Where an iterate counts as soon as it is misclassified and the attack leaves the true label
    (``success="any"``, ``label_source="true"``), images wrong from the start are not attacked,
    and broken ones leave the batch and are replaced. Otherwise every image is attacked to the end.
    That holds with ``model_mode="train"`` too, where an image's neighbours in its batch matter: the
    batches are fixed and mixed, in an order drawn from the seed (data sets often come sorted by
    class, and one class alone has other batch statistics), and dropout is drawn from the seed too.
    With ``model_mode="eval"`` the search runs on the network with its batch norm folded
    (`advlib.attacks.folding`); what is recorded is computed on `model` itself.
    """
    device = torch.device(device or default_device())
    model = model.to(device, memory_format=torch.channels_last)
    search_dtype = resolve_dtype(dtype, device)
    batch_size = batch_size or default_batch_size(dataset, device)
    search, tables, order = None, [], None
    # Sixteen batches at a time: few enough to hold in memory, enough to keep a batch full.
    chunk = 16 * batch_size
    if threat.model_mode == "train":
        positions = torch.arange(len(dataset)) if indices is None else torch.as_tensor(indices)
        generator = torch.Generator().manual_seed(stream_seed(seed, "batches"))
        order = torch.randperm(len(positions), generator=generator)
        indices = positions[order]
        # Batch norm needs two images: no batch may be left with one.
        n = len(positions)
        sizes = [*range(batch_size, 1, -1), *range(batch_size + 1, n + 1)]
        chunk = batch_size = next((size for size in sizes if n % size != 1), batch_size)
    chunks = evaluation_batches(
        dataset, batch_size=chunk, workers=workers, device=device, indices=indices
    )
    for x, y, index in chunks:
        if search is None:
            search = folding(model, x[:2])() if threat.model_mode == "eval" else model
        chunk_names = item_names(dataset, index.tolist())
        # In evaluation mode once for all: looking at every layer takes its time.
        steady = threat.model_mode == "eval"
        with attack_mode(search, "eval") if steady else _seeded(seed, chunk_names[0], device):
            outcome = _attack_chunk(
                model,
                search,
                x,
                y,
                chunk_names,
                threat,
                num_classes,
                batch_size,
                seed,
                search_dtype,
                progress,
            )
        table = pd.DataFrame({name: values.cpu().numpy() for name, values in outcome.items()})
        table.insert(0, "file_name", chunk_names)
        table.insert(1, "label", y.cpu().numpy())
        tables.append(table)
    table = pd.concat(tables, ignore_index=True)
    return table if order is None else table.iloc[order.argsort()].reset_index(drop=True)


def default_batch_size(dataset, device: torch.device | str) -> int:
    """Images attacked at once where nobody says: fixed, since another size rounds differently.

    128; on a GPU, which so few small images leave idle, 512 of up to 64 px.
    """
    if torch.device(device).type != "cuda":
        return 128
    x, _, _ = next(evaluation_batches(dataset, batch_size=1, device="cpu", indices=[0]))
    return 512 if x.shape[-1] <= 64 else 128


def _attack_chunk(
    model, search, x, y, names, threat, num_classes, batch_size, seed, search_dtype, progress
):
    """Attack images that fit in memory; returns a column of outcomes each, in their order."""
    # Stopping early is exact only if the error and the attack are about the same label, and no
    # image looks at its neighbours.
    together = threat.model_mode == "train"
    stop_early = threat.success == "any" and threat.label_source == "true" and not together
    clean = classify(model, x, num_classes, batch_size)
    outcome = {
        "predicted_class": clean[0],
        "predicted_probability": clean[1],
        "linf": torch.zeros(len(x), device=x.device),
        "steps_used": torch.zeros(len(x), dtype=torch.int32, device=x.device),
    }
    _check_finite(clean[1].isfinite(), names, "logits")
    broken = (clean[0] != y) & stop_early
    if progress and stop_early:
        progress(int(broken.sum()))
    with attack_mode(model, threat.model_mode):
        attacked_label = torch.cat(
            [
                _attacked_label(model, xb, yb, threat, num_classes)
                for xb, yb in zip(x.split(batch_size), y.split(batch_size), strict=True)
            ]
        )
    eps, step = _radius(model, x, threat)
    # In training mode for the pass alone, so that verdicts see the buffers as they were.
    mode = contextlib.nullcontext
    if threat.model_mode == "train":
        mode = functools.partial(attack_mode, search, "train")
    for restart in range(threat.n_restarts):
        final = restart == threat.n_restarts - 1
        queue = torch.nonzero(~broken | together).flatten()
        # Images under attack, their iterates and the steps taken; the first `batch_size` of them
        # take the next step. Iterates that look misclassified or are the last wait for a verdict
        # until they fill a batch of their own.
        image, x_adv, taken = queue[:0], x[:0], queue[:0].int()
        waiting = []
        while len(queue) or len(image) or waiting:
            new = queue[: max(0, batch_size - len(image))]
            if len(new):
                queue = queue[len(new) :]
                noise = _image_noise(x, new, names, threat, seed, restart)
                image = torch.cat([image, new])
                x_adv = torch.cat([x_adv, _start(x[new], noise, eps, threat)])
                taken = torch.cat([taken, new.new_zeros(len(new), dtype=torch.int32)])
            if len(image):
                (image, later_image), (x_adv, later_x), (taken, later_taken) = (
                    (part[:batch_size], part[batch_size:]) for part in (image, x_adv, taken)
                )
                suspect = (taken == threat.steps) | (threat.eps == 0)
                # The images of a batch in train mode are at one step: after the last there is no
                # pass, which the broken ones would be missing from.
                over = together and bool(suspect.all())
                if over:
                    gradient = torch.zeros_like(x_adv)
                else:
                    with mode(), autocast(x.device, search_dtype):
                        logits, gradient = logits_and_gradient(
                            search, x_adv, attacked_label[image], threat, num_classes
                        )
                if threat.success == "any" and not over:
                    wrong = class_logits(logits, num_classes).argmax(1) != y[image]
                    # In train mode the search sees other logits than the error does: look at all.
                    suspect |= (wrong if threat.model_mode == "eval" else True) & ~broken[image]
                x_next = _step(x[image], x_adv, gradient, eps, step, threat)
                ended = ~suspect & (taken + 1 == threat.steps)
                for mask, iterate, count in (
                    (suspect, x_adv, taken),
                    (ended, x_next, taken + 1),
                ):
                    leave = torch.nonzero(mask).flatten()
                    if len(leave):
                        kept = (image, iterate, x_next, count)
                        waiting.append([part[leave] for part in kept])
                stay = torch.nonzero(~(suspect | ended)).flatten()
                image = torch.cat([image[stay], later_image])
                x_adv = torch.cat([x_next[stay], later_x])
                taken = torch.cat([taken[stay] + 1, later_taken])
            # In train mode at once, so that the images of a batch stay together.
            full = together or sum(len(part[0]) for part in waiting) >= batch_size
            if waiting and full or not (len(queue) or len(image)):
                judged, iterate, following, count = map(torch.cat, zip(*waiting, strict=True))
                waiting = []
                predicted, probability = classify(model, iterate, num_classes, batch_size)
                finite = iterate.flatten(1).isfinite().all(1) & probability.isfinite()
                _check_finite(finite | broken[judged], names, "gradient", judged)
                last = (count == threat.steps) | (threat.eps == 0)
                found = (predicted != y[judged]) & ~broken[judged]
                # A survivor's record is its last iterate of the last restart.
                write = found | (last & ~broken[judged] & final)
                written = judged[write]
                outcome["predicted_class"][written] = predicted[write]
                outcome["predicted_probability"][written] = probability[write]
                outcome["linf"][written] = (iterate[write] - x[written]).abs().flatten(1).amax(1)
                outcome["steps_used"][written] = count[write]
                broken[judged[found]] = True
                if progress:
                    # In train mode the broken ones of a restart go through the next as well.
                    gone = last & final if together else last & (broken[judged] | final)
                    done = gone | (found & stop_early)
                    progress(int(done.sum()))
                on = torch.nonzero(~(last | (found & stop_early))).flatten()
                image = torch.cat([image, judged[on]])
                x_adv = torch.cat([x_adv, following[on]])
                taken = torch.cat([taken, count[on] + 1])
                if together:  # dropout is drawn by the place in the batch
                    image, order = image.sort()
                    x_adv, taken = x_adv[order], taken[order]
    return outcome


@torch.no_grad()
def classify(model, x, num_classes, batch_size):
    """Predicted class and its probability over the K class logits, in float32."""
    classes, probabilities = [], []
    with attack_mode(model, "eval"), autocast(x.device, torch.float32):
        for batch in x.split(batch_size):
            logits = class_logits(model_logits(model, batch), num_classes).float()
            probability, predicted = logits.softmax(1).max(1)
            classes.append(predicted)
            probabilities.append(probability)
    return torch.cat(classes), torch.cat(probabilities)


def logits_and_gradient(model, x_adv, y, threat, num_classes, objective=None):
    """One forward and one input-gradient pass; no parameter gradient is computed."""
    x_adv = x_adv.detach().requires_grad_(True)
    with torch.enable_grad():
        logits = model_logits(model, x_adv)
        if not logits.requires_grad:
            raise ValueError(
                "the logits have no gradient: an attack needs a model without no_grad or detach "
                "inside, called outside torch.inference_mode"
            )
        if objective is None:
            seen = _seen_logits(logits, threat, num_classes)
            # The sum keeps gradients of an image independent of the batch it sits in.
            loss = _LOSSES[threat.loss](seen.float(), y).sum()
        else:
            loss = objective(logits.float(), y)
    return logits.detach(), torch.autograd.grad(loss, x_adv)[0]


def _margin(logits, y):
    """The largest other logit less that of the label, (N,)."""
    others = logits.scatter(1, y[:, None], -math.inf)
    return others.amax(1) - logits.gather(1, y[:, None])[:, 0]


def _dlr(logits, y):
    """The margin over the distance of the largest logit from the third largest, (N,)."""
    if logits.shape[1] < 3:
        raise ValueError(
            f"the loss 'dlr' needs 3 logits or more, the attack sees {logits.shape[1]}: choose "
            "'margin' or 'cross_entropy'"
        )
    top = logits.topk(3, dim=1).values
    return _margin(logits, y) / (top[:, 0] - top[:, 2]).clamp_min(1e-12)


_LOSSES = {
    "cross_entropy": functools.partial(F.cross_entropy, reduction="none"),
    "margin": _margin,
    "dlr": _dlr,
}


def _seen_logits(logits, threat, num_classes):
    if threat.attack_logits == "all" or num_classes is None:
        return logits
    return class_logits(logits, num_classes)


def _check_finite(finite, names, what, images=None) -> None:
    """Refuse to judge images by values that are no numbers: neither robust nor broken."""
    if len(odd := torch.nonzero(~finite).flatten()):
        odd = [repr(names[i]) for i in (odd if images is None else images[odd]).tolist()]
        cause = {
            "logits": "look for weights or pixels that are no numbers",
            "gradient": "look in the network for a division by 0 or the root of 0, as where a "
            "constant image is divided by its own deviation",
        }
        raise FloatingPointError(
            f"the network gives no finite {what} for {len(odd)} of {len(finite)} images "
            f"({', '.join(odd[:3])}{', …' * (len(odd) > 3)}), so that they are neither robust nor "
            f"broken: {cause[what]}, or leave these images out"
        )


def _attacked_label(model, x, y, threat, num_classes, check=True):
    """Check the batch, and return the label that the attack leaves."""
    if check:
        integer = not (y.is_floating_point() or y.is_complex() or y.dtype == torch.bool)
        if not (torch.is_tensor(x) and len(x) and y.shape == x.shape[:1] and integer):
            raise ValueError(
                "an attack takes a tensor of one image or more, (N, C, H, W), and as labels one "
                f"whole number for each, (N,); got {type(x).__name__} {tuple(x.shape)} and labels "
                f"{tuple(y.shape)} of {str(y.dtype).removeprefix('torch.')}"
            )
        y = y.long()
        low, high = float(x.min()), float(x.max())
        if not (low >= 0 and high <= 1):
            raise ValueError(
                f"images are in [0, 1], got [{low:.3g}, {high:.3g}]: pass pixels as they are and "
                "put the normalisation inside the model (advlib.networks.build.Normalize)"
            )
    predicted = threat.label_source == "predicted"
    if predicted or (check and num_classes is None):
        with torch.no_grad():
            seen = _seen_logits(model_logits(model, x if predicted else x[:1]), threat, num_classes)
    if check:
        low, high, classes = int(y.min()), int(y.max()), num_classes or seen.shape[1]
        if low < 0 or high >= classes:
            raise ValueError(
                f"labels are in [0, {classes}), got {low} to {high}: check the order and the "
                "number of classes"
            )
    return seen.argmax(1) if predicted else y


def _radius(model, x, threat, radius=None):
    """eps and step in pixels: numbers, or tensors (N or 1, C or 1, 1, 1)."""
    eps = threat.eps if radius is None else radius.to(x).view(-1, 1, 1, 1)
    if threat.eps_space == "pixel":
        return eps, threat.step
    std = pixel_std(model).to(x.device)
    return eps * std, threat.step * std


def start_noise(
    shape: tuple, threat: ThreatModel, generator: torch.Generator | None, device: torch.device
) -> torch.Tensor:
    """Random starts of a batch (N, C, H, W), in units of ε, drawn on the generator's device.

    Uniform in [-1, 1] for Linf; for L2 uniform in the unit ball; zeros without a random start.
    """
    if not threat.random_start:
        return torch.zeros(shape, device=device)
    source = {"generator": generator, "device": generator.device if generator else device}
    if threat.norm == "Linf":
        return torch.rand(shape, **source).mul_(2).sub_(1).to(device)
    direction = torch.randn(shape, **source)
    direction /= _l2(direction)
    radius = torch.rand(shape[0], 1, 1, 1, **source)
    return (direction * radius ** (1 / direction[0].numel())).to(device)


def _image_noise(x, images, names, threat, seed, restart):
    """Drawn on the device: a GPU would wait longer for a CPU's draws than its steps take."""
    draws = []
    for i in images.tolist():
        generator = torch.Generator(x.device).manual_seed(stream_seed(seed, names[i], restart))
        draws.append(start_noise((1, *x.shape[1:]), threat, generator, x.device))
    return torch.cat(draws)


def _start(x, noise, eps, threat):
    return _project(x, x + eps * noise, eps, threat)


def _step(x, x_adv, gradient, eps, step, threat):
    """Climb by one step and return to the ball: the sign for Linf, the direction for L2."""
    if threat.norm == "Linf":
        # The sign of what is no number would be 0, and an image that stays looks robust. By the sum
        # it becomes no number itself, as for L2; nothing has to wait for the device.
        ascent = gradient.sign() + 0 * gradient
    else:
        # The steepest way in the attack's own units, which differ between channels in normalised
        # space; by its largest element first, since squares of small ones are zero.
        tiny = torch.finfo(gradient.dtype).tiny
        ascent = gradient * step if isinstance(step, torch.Tensor) else gradient
        ascent = ascent / ascent.abs().amax((1, 2, 3), keepdim=True).clamp_min(tiny)
        ascent = ascent / _l2(ascent).clamp_min(tiny)
    return _project(x, x_adv + step * ascent, eps, threat)


def _project(x, x_adv, eps, threat):
    if threat.norm == "Linf":
        x_adv = torch.minimum(torch.maximum(x_adv, x - eps), x + eps)
    else:
        # In normalised space eps is per channel and the ball an ellipsoid: measured in its units.
        if isinstance(eps, torch.Tensor):
            scaled = torch.where(eps > 0, (x_adv - x) / eps, 0)
        else:
            scaled = (x_adv - x) / eps if eps else x_adv * 0
        x_adv = x + eps * scaled / _l2(scaled).clamp_min(1)
    return x_adv.clamp(0, 1) if threat.clip else x_adv


def _l2(x):
    return x.flatten(1).norm(dim=1).view(-1, 1, 1, 1)


@contextlib.contextmanager
def attack_mode(model, mode):
    """The model in `mode` with frozen parameters; afterwards everything is as it was."""
    modes = [(module, module.training) for module in model.modules()]
    frozen = [p for p in model.parameters() if p.requires_grad]
    buffers = [b.clone() for b in model.buffers()] if mode == "train" else []
    try:
        model.train(mode == "train")
        for parameter in frozen:
            parameter.requires_grad_(False)
        yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter in frozen:
            parameter.requires_grad_(True)
        with torch.no_grad():
            for buffer, before in zip(model.buffers(), buffers, strict=False):
                buffer.copy_(before)


@contextlib.contextmanager
def _seeded(seed, name, device):
    """torch's own generators, which dropout draws from, lent and seeded."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(stream_seed(seed, "dropout", name))
        yield
