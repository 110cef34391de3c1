"""The battery: attacks of many kinds on one network, which show whether PGD can be trusted with it.

What is made here are predictions and plain facts; `advbook.audit.battery_tests` judges them without
torch.
"""

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from advbook.studies.parts import kept
from advlib.attacks.autoattack import COMPONENTS, autoattack, check_threat
from advlib.attacks.pgd import attack_mode, classify, logits_and_gradient, pgd_attack, start_noise
from advlib.attacks.worst_case import evaluate_attack
from advlib.data.batches import evaluation_batches, item_names, stream_seed
from advlib.labels import class_logits
from advlib.networks.device import autocast, default_device
from advlib.threat import ThreatModel

STEPS = (1, 2, 5, 10, 20, 40, 100)
LOSSES = ("cross_entropy", "margin", "dlr")
NOISE_DRAWS = 100
RESTARTS = 5
STRENGTHS = {
    "standard": {"steps": 100, "targets": 9, "queries": 5000},  # as AutoAttack's standard version
    "quick": {"steps": 20, "targets": 3, "queries": 500},  # for a first look, and for tests
}
"""Iterations of APGD and FAB, classes they aim at, and queries of Square."""
PASSES = 5  # over the same images, to see whether the answer changes


def battery_conditions(
    threat: ThreatModel, num_classes: int, largest: float = 1.0
) -> dict[str, ThreatModel]:
    """The PGD attacks of the battery by name.

    These are "clean" and "pgd40", the base of all; ``eps_<ε>`` up to `largest`, at which every
    image is within reach of every other; ``steps_<n>``, ``loss_<name>`` (the DLR needs three
    logits), ``restarts_5``, ``fgsm``; and "noise", 100 random starts without steps.
    """
    base = replace(threat, steps=40, n_restarts=1)
    radii = [threat.eps / 4, threat.eps / 2, 2 * threat.eps]
    while radii[-1] * 2 < largest:
        radii.append(radii[-1] * 2)
    radii = [eps for eps in radii if eps < largest] + [largest]
    losses = [loss for loss in LOSSES[1:] if loss != "dlr" or num_classes > 2]
    # The start counts as an iterate, and the step is too short to matter.
    noise = replace(base, steps=1, step_size=1e-6 * threat.eps, n_restarts=NOISE_DRAWS)
    fgsm = replace(base, steps=1, step_size=threat.eps, random_start=False)
    return {
        "clean": base.with_eps(0),
        "pgd40": base,
        **{f"eps_{eps:.4g}": base.with_eps(eps) for eps in radii},
        **{f"steps_{n}": replace(base, steps=n) for n in STEPS if n != base.steps},
        **{f"loss_{loss}": replace(base, loss=loss) for loss in losses},
        f"restarts_{RESTARTS}": replace(base, n_restarts=RESTARTS),
        "fgsm": fgsm,
        "noise": noise,
    }


def battery(
    model: nn.Module,
    images,
    threat: ThreatModel,
    *,
    num_classes: int,
    sources: Mapping[str, nn.Module] | None = None,
    batch_size: int = 128,
    strength: str = "standard",
    folder: Path | None = None,
    progress: Callable[[str], None] | None = None,
) -> tuple[pd.DataFrame, dict]:
    """Attack a network in every way of the battery, in float32.

    Model, images and num_classes are as in `advlib.evaluate_attack`; the threat is in pixels, on
    the true label and the class logits, in evaluation mode. What PGD makes on the ``sources``,
    other networks by name, is tried on this one. ``batch_size`` is fixed, so that numbers repeat to
    the last digit; ``strength`` is one of `STRENGTHS`. Each finished condition is kept in
    ``folder``, so that a killed run goes on: its name must hold what decides them all. ``progress``
    is called with the name of each.

    Returns a prediction table with ``attack`` and ``linf``: the conditions of `battery_conditions`,
    ``transfer_<source>``, and AutoAttack's components as far as they apply, each with the worst
    case so far. And facts: conditions (name to threat model), strength and autoattack (its
    settings), logits_change and predictions_change (over five passes), outputs ("logits" or
    "probabilities"), zero_gradients (by loss and place, the names of the images that are right
    there and have no finite gradient other than zero).

    Raises ValueError for a threat model that the battery is not made for, RuntimeError if an attack
    leaves the ball.
    """
    check_threat(threat)
    device = default_device()
    model = model.to(device, memory_format=torch.channels_last)
    x, _, _ = next(evaluation_batches(images, batch_size=2, device=device))
    model = _differentiable(model, x)
    largest = 1.0 if threat.norm == "Linf" else math.sqrt(x[0].numel())
    conditions = battery_conditions(threat, num_classes, largest)
    known = {"num_classes": num_classes, "device": device, "batch_size": batch_size}
    makes = {}
    for name, attack in conditions.items():
        # Noise is drawn apart: its first draw would be the start of PGD.
        draws = stream_seed(0, "noise") if name == "noise" else 0
        settings = {"seed": draws, "dtype": "float32", **known}
        makes[name] = functools.partial(evaluate_attack, model, images, attack, **settings)
    for source, network in (sources or {}).items():
        what = (model, network, images, conditions["pgd40"])
        makes[f"transfer_{source}"] = functools.partial(_transfer, *what, **known)
    tables, names = {}, getattr(images, "file_names", None)
    for name, make in makes.items():
        tables[name] = kept(folder / f"{name}.parquet", make, names) if folder else make()
        if progress:
            progress(name)
    components = [name for name in COMPONENTS if name != "apgd_t" or num_classes > 3]
    found = autoattack(
        model,
        images,
        threat,
        components=components,
        dtype="float32",
        state=folder and folder / "autoattack.parquet",
        **STRENGTHS[strength],
        **known,
    )
    if progress:
        progress("autoattack")
    tables |= _component_tables(found, tables["clean"], components)
    settings = STRENGTHS[strength] | {"components": components, "implementation": "advlib"}
    facts = {
        "conditions": {name: attack.to_dict() for name, attack in conditions.items()},
        "strength": strength,
        "autoattack": settings,
        **_facts(model, images, conditions["pgd40"], **known),
    }
    table = pd.concat([t.assign(attack=name) for name, t in tables.items()], ignore_index=True)
    return table.drop(columns="steps_used"), facts


def _component_tables(found, clean, components) -> dict[str, pd.DataFrame]:
    """From the table of `advlib.autoattack`, the worst case so far after each component.

    An image that stands is recorded as it is, unattacked.
    """
    columns, tables = [*clean.columns.drop("steps_used")], {}
    for i, name in enumerate(components):
        broken = found.broken_by.isin(["clean", *components[: i + 1]])
        tables[name] = found[columns].where(broken, clean[columns]).astype(clean[columns].dtypes)
    return tables


class _ZeroGradient(nn.Module):
    """A network that gives no gradient at all, with one of zeros: attacks run, and fail."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x) + 0 * x.flatten(1).sum(1, keepdim=True)


def _differentiable(model, x) -> nn.Module:
    """The network, or where its outputs do not depend on the image by a gradient, a wrapped one."""
    with attack_mode(model, "eval"), torch.enable_grad():
        return model if model(x.requires_grad_(True)).requires_grad else _ZeroGradient(model)


def _transfer(model, source, images, threat, *, num_classes, batch_size, device) -> pd.DataFrame:
    """What PGD's last iterates, made on another network, do to this one."""
    source = source.to(device, memory_format=torch.channels_last)
    generator = torch.Generator(device).manual_seed(stream_seed(0, "transfer"))
    outcomes = []
    for x, y, _ in evaluation_batches(images, batch_size=batch_size, device=device):
        with autocast(device, torch.float32):
            x_adv = pgd_attack(source, x, y, threat, num_classes=num_classes, generator=generator)
        predicted, probability = classify(model, x_adv, num_classes, batch_size)
        outcomes.append((y, predicted, probability, (x_adv - x).abs().flatten(1).amax(1)))
    values = [torch.cat(part).cpu().numpy() for part in zip(*outcomes, strict=True)]
    columns = ("label", "predicted_class", "predicted_probability", "linf")
    names = item_names(images, range(len(images)))
    return pd.DataFrame({"file_name": names} | dict(zip(columns, values, strict=True)))


def _facts(model, images, threat, *, num_classes, batch_size, device) -> dict:
    """What can be seen without an attack: gradients, chance, and the kind of output."""
    generator = torch.Generator(device).manual_seed(stream_seed(0, "gradients"))
    losses = [loss for loss in ("cross_entropy", "dlr") if loss != "dlr" or num_classes > 2]
    zero = {f"{loss}, {place}": [] for loss in losses for place in ("image", "start")}
    change, differ, probabilities = 0.0, 0, True
    for x, y, index in evaluation_batches(images, batch_size=batch_size, device=device):
        names = np.array(item_names(images, index.tolist()))
        noise = start_noise(x.shape, threat, generator, device)
        places = {"image": x, "start": (x + threat.eps * noise).clamp(0, 1)}
        with attack_mode(model, "eval"), autocast(device, torch.float32):
            for loss in losses:
                for place, start in places.items():
                    attack = replace(threat, loss=loss)
                    logits, gradient = logits_and_gradient(model, start, y, attack, num_classes)
                    size = gradient.flatten(1).abs().sum(1)
                    # What is wrong already need not be attacked; the DLR of an image whose label
                    # comes third is constant.
                    right = class_logits(logits, num_classes).argmax(1) == y
                    missing = (right & ((size == 0) | ~size.isfinite())).cpu().numpy()
                    zero[f"{loss}, {place}"] += names[missing].tolist()
            with torch.no_grad():
                passes = torch.stack([model(x).float() for _ in range(PASSES)])
        probabilities &= bool((passes.sum(-1) - 1).abs().max() < 1e-5 and passes.min() > -1e-5)
        seen = class_logits(passes.flatten(0, 1), num_classes).view(PASSES, len(x), num_classes)
        differ += int((seen.argmax(-1) != seen[0].argmax(-1)).any(0).sum())
        # As AutoAttack measures it: relative to the length of the logits.
        unit = seen / (seen.norm(dim=-1, keepdim=True) + 1e-10)
        change = max(change, float((unit[:, None] - unit[None]).norm(dim=-1).max()))
    return {
        "logits_change": change,
        "predictions_change": differ,
        "outputs": "probabilities" if probabilities else "logits",
        "zero_gradients": zero,
    }
