"""PGD: its losses, random start, step and projection."""

import collections
import contextlib
import functools
import math
from collections.abc import Callable, Iterator

import torch
from torch import nn
from torch.nn import functional as F

from advlib.labels import check_pixels, check_range, class_logits, model_logits
from advlib.networks.build import pixel_std
from advlib.networks.device import autocast
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
    step_size: torch.Tensor | None = None,
    start: torch.Tensor | None = None,
    check: bool = True,
) -> torch.Tensor:
    """Projected gradient descent (Madry et al. 2018): the last iterate of one start.

    Parameters
    ----------
    model : nn.Module
        Images in [0, 1] to logits. Its mode, buffers and its parameters' ``grad`` and
        ``requires_grad`` are left as they were.
    x : float tensor (N, C, H, W) in [0, 1]
    y : int tensor (N,), the true labels
    threat : ThreatModel
    num_classes : int, optional
        K, where the model has more logits; None: every logit is a class.
    generator : torch.Generator, optional
        For the random start.
    noise : float tensor (N, C, H, W), optional
        The random start itself: the change of each pixel in units of ε.
    objective : callable, optional
        Maps logits (N, K+M) in float32 and the labels that the attack leaves (N,) to the scalar
        that it climbs, in place of the threat model's loss (Adv⁺ climbs Eq. 4).
    radius : float tensor (N,), optional
        ε of each image, at least 0, in place of the threat model's. The step stays as it is.
    step_size : float tensor (N,), optional
        The step of each image, in place of the threat model's.
    start : float tensor (N, C, H, W), optional
        The images from which the attack starts, in place of a random start.
    check : bool
        False where images and labels are known to be in range. Each check waits for the device.

    Returns
    -------
    float tensor (N, C, H, W), within the ball and, with ``clip``, in [0, 1].

    Raises
    ------
    ValueError, TypeError
        For images, labels or a model that an attack cannot use.
    FloatingPointError
        If the network gives an image no finite gradient (looked at only with ``check``).
    """
    iterates = pgd_iterates(
        model, x, y, threat, num_classes=num_classes, generator=generator, noise=noise,
        objective=objective, radius=radius, step_size=step_size, start=start, check=check,
    )  # fmt: skip
    return collections.deque(iterates, maxlen=1).pop()


def pgd_iterates(
    model, x, y, threat, *, num_classes=None, generator=None, noise=None, objective=None,
    radius=None, step_size=None, start=None, check=True,
) -> Iterator[torch.Tensor]:  # fmt: skip
    """The iterates (N, C, H, W) of `pgd_attack` one by one: the start, then one after each step.

    It takes the same arguments. Until it ends or is closed the model stays in the attack's mode,
    with its parameters frozen.
    """
    with attack_mode(model, threat.model_mode):
        y = torch.as_tensor(y, device=x.device)
        y = _attacked_label(model, x, y, threat, num_classes, check)
        eps, step = _radius(model, x, threat, radius, step_size)
        if noise is None and start is None:
            noise = start_noise(x.shape, threat, generator, x.device)
        x_adv = _project(x, x + eps * noise if start is None else start, eps, threat)
        yield x_adv
        for _ in range(threat.steps if threat.eps else 0):
            _, gradient = logits_and_gradient(model, x_adv, y, threat, num_classes, objective)
            x_adv = _step(x, x_adv, gradient, eps, step, threat)
            yield x_adv
        if check:  # once at the end, because each look waits for the device
            _check_finite(x_adv.flatten(1).isfinite().all(1), range(len(x)), "gradient")


@torch.no_grad()
def classify(model, x, num_classes, batch_size):
    """Predicted class (N,) and its probability (N,) over the K class logits, in float32."""
    classes, probabilities = [], []
    with attack_mode(model, "eval"), autocast(x.device, torch.float32):
        for batch in x.split(batch_size):
            logits = class_logits(model_logits(model, batch), num_classes).float()
            probability, predicted = logits.softmax(1).max(1)
            classes.append(predicted)
            probabilities.append(probability)
    return torch.cat(classes), torch.cat(probabilities)


def logits_and_gradient(model, x_adv, y, threat, num_classes, objective=None):
    """Logits (N, K+M) and the loss's gradient in the images; none of the parameters is computed."""
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
            # With a sum the gradient of an image does not depend on the size of its batch.
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
    """Refuse to judge images by NaN. `images` are their places in `names`; None: 0 to n - 1."""
    if len(odd := torch.nonzero(~finite).flatten()):
        odd = [repr(names[i]) for i in (odd if images is None else images[odd]).tolist()]
        raise FloatingPointError(
            f"the network gives no finite {what} for {len(odd)} of {len(finite)} images "
            f"({', '.join(odd[:3])}{', …' * (len(odd) > 3)}), so that they are neither robust nor "
            "broken: look for weights or pixels that are no numbers, in the network for a division "
            "by 0 or the root of 0, or leave these images out"
        )


def _attacked_label(model, x, y, threat, num_classes, check=True):
    """Check the batch, and return the label that the attack leaves."""
    if check:
        integer = not (y.is_floating_point() or y.is_complex() or y.dtype == torch.bool)
        if not (torch.is_tensor(x) and len(x) and y.shape == x.shape[:1] and integer):
            raise ValueError(
                "an attack takes a tensor of one image or more, (N, C, H, W), and as labels one "
                f"whole number for each, (N,); got {type(x).__name__} {tuple(x.shape)} and labels "
                f"{tuple(y.shape)} of {y.dtype}"
            )
        y = y.long()
        check_pixels(x)
    predicted = threat.label_source == "predicted"
    if predicted or (check and num_classes is None):
        with torch.no_grad(), autocast(x.device, torch.float32):
            seen = _seen_logits(model_logits(model, x if predicted else x[:1]), threat, num_classes)
    if check:
        check_range("label", y, 0, num_classes or seen.shape[1])
    return seen.argmax(1) if predicted else y


def _radius(model, x, threat, radius=None, step_size=None):
    """eps and step in pixels: numbers, or tensors (N or 1, C or 1, 1, 1)."""
    eps = threat.eps if radius is None else radius.to(x).view(-1, 1, 1, 1)
    step = threat.step if step_size is None else step_size.to(x).view(-1, 1, 1, 1)
    if threat.eps_space == "pixel":
        return eps, step
    std = pixel_std(model).to(x.device)
    return eps * std, step * std


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


def _step(x, x_adv, gradient, eps, step, threat):
    """Climb by one step and return to the ball: the sign for Linf, the direction for L2."""
    if threat.norm == "Linf":
        # The sign of NaN is 0: the image would stay where it is and look robust. The sum carries
        # the NaN into the iterate, as happens for L2, without waiting for the device.
        ascent = gradient.sign() + 0 * gradient
    else:
        # In normalised space the units differ between channels: take the steepest direction there.
        # Divide by the largest element first, because squares of small elements underflow to 0.
        tiny = torch.finfo(gradient.dtype).tiny
        ascent = gradient * step if isinstance(step, torch.Tensor) else gradient
        ascent = ascent / ascent.abs().amax((1, 2, 3), keepdim=True).clamp_min(tiny)
        ascent = ascent / _l2(ascent).clamp_min(tiny)
    return _project(x, x_adv + step * ascent, eps, threat)


def _project(x, x_adv, eps, threat):
    if threat.norm == "Linf":
        x_adv = torch.minimum(torch.maximum(x_adv, x - eps), x + eps)
    else:
        # In units of eps the ball is the unit ball, also where eps differs between channels.
        if isinstance(eps, torch.Tensor):
            scaled = torch.where(eps > 0, (x_adv - x) / eps, 0)
        else:
            scaled = (x_adv - x) / eps if eps else x_adv * 0
        x_adv = x + eps * scaled / _l2(scaled).clamp_min(1)
    return x_adv.clamp(0, 1) if threat.clip else x_adv


def _l2(x):
    return _each(x.flatten(1).norm(dim=1))


def _each(values):
    """One value per image, as it meets the pixels of a batch."""
    return values.view(-1, 1, 1, 1)


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
