"""PGD, and what it does to a data set: worst case per image, restarts, a batch that stays full."""

import contextlib
from collections.abc import Callable

import pandas as pd
import torch
from torch import nn
from torch.nn import functional as F

from advlib.data import evaluation_batches, stream_seed
from advlib.labels import class_logits
from advlib.models import autocast, default_device, pixel_std, resolve_dtype
from advlib.threat import ThreatModel


def pgd_attack(
    model: nn.Module,
    x: torch.Tensor,
    y: torch.Tensor,
    threat: ThreatModel,
    *,
    num_classes: int | None = None,
    generator: torch.Generator | None = None,
    objective: Callable[[torch.Tensor], torch.Tensor] | None = None,
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
        A CPU generator for the random start.
    objective : callable, optional
        Logits (N, K+M) in float32 to the scalar that the attack climbs, in place of the
        cross-entropy of the threat model (Adv⁺ climbs Eq. 4).

    Returns
    -------
    float tensor (N, C, H, W), every iterate within the ball and, with ``clip``, in [0, 1].

    Raises
    ------
    ValueError
        For images outside [0, 1] or labels out of range.
    """
    with _attack_mode(model, threat.model_mode):
        y = _attacked_label(model, x, y, threat, num_classes)
        noise = _noise(x.shape, threat, generator).to(x.device)
        eps, step = _radius(model, x, threat)
        x_adv = _start(x, noise, eps, threat)
        for _ in range(threat.steps if threat.eps else 0):
            _, gradient = _logits_and_gradient(model, x_adv, y, threat, num_classes, objective)
            x_adv = _step(x, x_adv, gradient, eps, step, threat)
    return x_adv


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
    dataset : advlib.data.Images, or a sequence of (x, y) or (x, y, file_name)
    threat : ThreatModel
    num_classes : int
        K: errors are counted over the first K logits.
    batch_size : int, optional
        Images attacked at once; None: 128.
    device : optional
        None: CUDA, MPS or the CPU, by availability.
    seed : int
        The start of an image is drawn from (seed, file name, restart).
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

    Notes
    -----
    Where an iterate counts as soon as it is misclassified and the attack leaves the true label
    (``success="any"``, ``label_source="true"``), images wrong from the start are not attacked,
    and broken ones leave the batch and are replaced. Otherwise every image is attacked to the end.
    """
    device = torch.device(device or default_device())
    batch_size = batch_size or 128
    model = model.to(device, memory_format=torch.channels_last)
    names = getattr(dataset, "file_names", None)
    search_dtype = resolve_dtype(dtype, device)
    tables = []
    # Sixteen batches at a time: few enough to hold in memory, enough to keep a batch full.
    chunks = evaluation_batches(
        dataset, batch_size=16 * batch_size, workers=workers, device=device, indices=indices
    )
    for x, y, index in chunks:
        chunk_names = [
            names[i] if names is not None else _item_name(dataset, i) for i in index.tolist()
        ]
        outcome = _attack_chunk(
            model, x, y, chunk_names, threat, num_classes, batch_size, seed, search_dtype, progress
        )
        table = pd.DataFrame({name: values.cpu().numpy() for name, values in outcome.items()})
        table.insert(0, "file_name", chunk_names)
        table.insert(1, "label", y.cpu().numpy())
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def _attack_chunk(
    model, x, y, names, threat, num_classes, batch_size, seed, search_dtype, progress
):
    """Attack images that fit in memory; returns a column of outcomes each, in their order."""
    # Stopping early is exact only if the error and the attack are about the same label.
    stop_early = threat.success == "any" and threat.label_source == "true"
    clean = _classify(model, x, num_classes, batch_size)
    outcome = {
        "predicted_class": clean[0],
        "predicted_probability": clean[1],
        "linf": torch.zeros(len(x), device=x.device),
        "steps_used": torch.zeros(len(x), dtype=torch.int32, device=x.device),
    }
    broken = (clean[0] != y) if stop_early else torch.zeros(len(x), dtype=torch.bool)
    broken = broken.to(x.device)
    if progress and stop_early:
        progress(int(broken.sum()))
    with _attack_mode(model, threat.model_mode):
        attacked_label = torch.cat(
            [
                _attacked_label(model, xb, yb, threat, num_classes)
                for xb, yb in zip(x.split(batch_size), y.split(batch_size), strict=True)
            ]
        )
    eps, step = _radius(model, x, threat)
    for restart in range(threat.n_restarts):
        final = restart == threat.n_restarts - 1
        queue = torch.nonzero(~broken).flatten()
        slots = queue[:0]  # images in the batch
        x_adv = x[:0]
        taken = torch.zeros(0, dtype=torch.int32, device=x.device)  # steps taken by each
        while len(queue) or len(slots):
            new = queue[: batch_size - len(slots)]
            if len(new):
                queue = queue[len(new) :]
                noise = _image_noise(x, new, names, threat, seed, restart)
                slots = torch.cat([slots, new])
                x_adv = torch.cat([x_adv, _start(x[new], noise, eps, threat)])
                taken = torch.cat([taken, taken.new_zeros(len(new))])
            with _attack_mode(model, threat.model_mode), autocast(x.device, search_dtype):
                logits, gradient = _logits_and_gradient(
                    model, x_adv, attacked_label[slots], threat, num_classes
                )
            last = (taken == threat.steps) | (threat.eps == 0)
            suspect = last.clone()
            if threat.success == "any":
                wrong = class_logits(logits, num_classes).argmax(1) != y[slots]
                # In train mode the search sees other logits than the error does: look at all.
                suspect |= (wrong if threat.model_mode == "eval" else True) & ~broken[slots]
            index = torch.nonzero(suspect).flatten()
            if len(index):
                image = slots[index]
                verdict = _classify(model, x_adv[index], num_classes, batch_size)
                found = (verdict[0] != y[image]) & ~broken[image]
                # A survivor's record is its last iterate of the last restart.
                write = found | (last[index] & ~broken[image] & final)
                image, source = image[write], index[write]
                outcome["predicted_class"][image] = verdict[0][write]
                outcome["predicted_probability"][image] = verdict[1][write]
                outcome["linf"][image] = (x_adv[source] - x[image]).abs().flatten(1).amax(1)
                outcome["steps_used"][image] = taken[source]
                broken[slots[index[found]]] = True
            done = last | broken[slots] if stop_early else last
            if progress and (final or stop_early):
                progress(int((done if final else broken[slots]).sum()))
            keep = torch.nonzero(~done).flatten()
            x_adv = _step(x[slots], x_adv, gradient, eps, step, threat)[keep]
            slots, taken = slots[keep], taken[keep] + 1
    return outcome


@torch.no_grad()
def _classify(model, x, num_classes, batch_size):
    """Predicted class and its probability over the K class logits, in float32."""
    classes, probabilities = [], []
    with _attack_mode(model, "eval"):
        for batch in x.split(batch_size):
            logits = class_logits(model(batch), num_classes).float()
            probability, predicted = logits.softmax(1).max(1)
            classes.append(predicted)
            probabilities.append(probability)
    return torch.cat(classes), torch.cat(probabilities)


def _logits_and_gradient(model, x_adv, y, threat, num_classes, objective=None):
    """One forward and one input-gradient pass; no parameter gradient is computed."""
    x_adv = x_adv.detach().requires_grad_(True)
    with torch.enable_grad():
        logits = model(x_adv)
        if objective is None:
            seen = _seen_logits(logits, threat, num_classes)
            # The sum keeps gradients of an image independent of the batch it sits in.
            loss = F.cross_entropy(seen.float(), y, reduction="sum")
        else:
            loss = objective(logits.float())
    return logits.detach(), torch.autograd.grad(loss, x_adv)[0]


def _seen_logits(logits, threat, num_classes):
    if threat.attack_logits == "all" or num_classes is None:
        return logits
    return class_logits(logits, num_classes)


def _attacked_label(model, x, y, threat, num_classes):
    """Check the batch, and return the label that the attack leaves."""
    low, high = float(x.min()), float(x.max())
    if not (low >= 0 and high <= 1):
        raise ValueError(
            f"images are in [0, 1], got [{low:.3g}, {high:.3g}]: pass pixels as they are and put "
            "the normalisation inside the model (advlib.models.Normalize)"
        )
    predicted = threat.label_source == "predicted"
    if predicted or num_classes is None:
        with torch.no_grad():
            seen = _seen_logits(model(x if predicted else x[:1]), threat, num_classes)
    classes = num_classes or seen.shape[1]
    if int(y.min()) < 0 or int(y.max()) >= classes:
        raise ValueError(
            f"labels are in [0, {classes}), got {int(y.min())} to {int(y.max())}: check the order "
            "and the number of classes"
        )
    return seen.argmax(1) if predicted else y


def _radius(model, x, threat):
    """eps and step in pixels: numbers, or (1, C, 1, 1) where they live in normalised space."""
    if threat.eps_space == "pixel":
        return threat.eps, threat.step
    std = pixel_std(model).to(x.device)
    return threat.eps * std, threat.step * std


def _noise(shape, threat, generator):
    """Uniform in [-1, 1] for Linf; for L2 uniform in the unit ball."""
    if not threat.random_start:
        return torch.zeros(shape)
    if threat.norm == "Linf":
        return torch.rand(shape, generator=generator) * 2 - 1
    direction = torch.randn(shape, generator=generator)
    direction /= _l2(direction)
    radius = torch.rand(shape[0], 1, 1, 1, generator=generator)
    return direction * radius ** (1 / direction[0].numel())


def _image_noise(x, images, names, threat, seed, restart):
    draws = []
    for i in images.tolist():
        generator = torch.Generator().manual_seed(stream_seed(seed, names[i], restart))
        draws.append(_noise((1, *x.shape[1:]), threat, generator))
    return torch.cat(draws).to(x.device)


def _start(x, noise, eps, threat):
    return _project(x, x + eps * noise, eps, threat)


def _step(x, x_adv, gradient, eps, step, threat):
    """Climb by one step and return to the ball: the sign for Linf, the direction for L2."""
    if threat.norm == "Linf":
        ascent = gradient.sign()
    else:
        ascent = gradient / _l2(gradient).clamp_min(torch.finfo(gradient.dtype).tiny)
    return _project(x, x_adv + step * ascent, eps, threat)


def _project(x, x_adv, eps, threat):
    if threat.norm == "Linf":
        x_adv = torch.minimum(torch.maximum(x_adv, x - eps), x + eps)
    else:
        # In normalised space eps is per channel and the ball an ellipsoid: measured in its units.
        scaled = (x_adv - x) / eps if isinstance(eps, torch.Tensor) or eps else x_adv * 0
        x_adv = x + eps * scaled / _l2(scaled).clamp_min(1)
    return x_adv.clamp(0, 1) if threat.clip else x_adv


def _l2(x):
    return x.flatten(1).norm(dim=1).view(-1, 1, 1, 1)


@contextlib.contextmanager
def _attack_mode(model, mode):
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


def _item_name(dataset, index: int) -> str:
    item = dataset[index]
    return item[2] if len(item) > 2 else f"{index:0{len(str(len(dataset) - 1))}d}"
