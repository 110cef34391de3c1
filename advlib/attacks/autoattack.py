"""AutoAttack (Croce & Hein 2020): four attacks, each on the images that those before it left."""

import datetime
import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from advlib.attacks.components import Piece, attack_apgd, attack_fab, attack_square
from advlib.attacks.folding import folding, sharpen, shows_small_changes
from advlib.attacks.pgd import attack_mode
from advlib.attacks.worst_case import default_batch_size, evaluate_attack
from advlib.checkpoints import digest
from advlib.data.batches import evaluation_batches, item_names
from advlib.files import replacing
from advlib.networks.device import default_device, resolve_dtype
from advlib.parquet import read_table, write_parquet
from advlib.predictions import read_facts
from advlib.threat import ThreatModel

COMPONENTS = ("apgd_ce", "apgd_t", "fab_t", "square")
"""In the order of the standard version."""


def autoattack(
    model: nn.Module,
    dataset,
    threat: ThreatModel,
    *,
    num_classes: int,
    components: Sequence[str] = COMPONENTS,
    steps: int = 100,
    targets: int = 9,
    queries: int = 5000,
    batch_size: int | None = None,
    device: torch.device | str | None = None,
    seed: int = 0,
    dtype: str = "auto",
    workers: int = 0,
    indices: torch.Tensor | None = None,
    state: str | Path | None = None,
    progress: Callable[[str, int], None] | None = None,
) -> pd.DataFrame:
    """The standard AutoAttack: each image's worst case, and the component that broke it.

    Parameters
    ----------
    model, dataset, num_classes, device, dtype, workers, indices
        As in `advlib.attacks.worst_case.evaluate_attack`. What is drawn for an image depends on
        its name and the seed alone, so that several processes can each take some `indices`.
    threat : ThreatModel
        Its norm and ε, in pixels; its other settings are those that AutoAttack has.
    components : sequence of str
        Of `COMPONENTS`, in the order in which they run.
    steps, targets, queries : int
        Steps of APGD and FAB, the likeliest other classes that APGD-T and FAB-T aim at, at most
        all of them, and queries of Square. The defaults are the standard version's.
    batch_size : int, optional
        Images attacked at once; None: `default_batch_size`.
    seed : int
    state : path, optional
        A Parquet file in which each finished piece is kept, so that a run that was stopped goes on.
    progress : callable, optional
        Called with the component and the number of images that it has finished.

    Returns
    -------
    DataFrame
        A prediction table with ``linf`` and ``broken_by``: "clean" where the image is wrong without
        an attack, a component, or "" where it stands.

    Raises
    ------
    ValueError
        For a threat model that AutoAttack is not made for, an unknown component, or the state of
        another run.
    FloatingPointError, TypeError
        As `evaluate_attack`.
    RuntimeError
        If a component leaves the ball.

    Notes
    -----
    With fewer than four classes there is no targeted DLR: "apgd_t" is left out, with a warning.
    All search on the folded network in `dtype`, FAB and Square if its logits show small changes
    there, which they do better where the network's end computes in float32. Of Square, float32
    decides about all that may gain something. Every success is verified in float32 by `model`; so
    is the best that was found for each image that stands.
    """
    components = _checked(components, threat, num_classes)
    device = torch.device(device or default_device())
    model = model.to(device, memory_format=torch.channels_last)
    batch_size = batch_size or default_batch_size(dataset, device)
    search_dtype = resolve_dtype(dtype, device)
    positions = torch.arange(len(dataset)) if indices is None else torch.as_tensor(indices)
    targets = min(targets, num_classes - 1)
    run = {
        "apgd_ce": lambda piece: attack_apgd(piece, search_dtype, steps, 0),
        "apgd_t": lambda piece: attack_apgd(piece, search_dtype, steps, targets),
        "fab_t": lambda piece: attack_fab(piece, fine_dtype, steps, targets),
        "square": lambda piece: attack_square(piece, fine_dtype, queries),
    }
    how = {"num_classes": num_classes, "batch_size": batch_size, "seed": seed}
    facts = {"components": components, "threat": threat.to_dict(), "steps": steps, **how}
    facts |= {"targets": targets, "queries": queries, "dtype": dtype}
    facts |= _contents(model, dataset, positions) if state else {}
    table, done = _resumed(state, facts, item_names(dataset, positions.tolist()))
    if table is None:
        clean = {"device": device, "dtype": "float32", "workers": workers, "indices": positions}
        table = evaluate_attack(model, dataset, threat.with_eps(0), **how, **clean)
        table = table.drop(columns="steps_used")
        table["broken_by"] = np.where(table.label != table.predicted_class, "clean", "")
    x, _, _ = next(evaluation_batches(dataset, batch_size=8, device=device))
    search = folding(model, x[:2])()
    if search is not model:
        sharpen(search)
    with attack_mode(search, "eval"):
        shown = shows_small_changes(search, x, threat, search_dtype)
    fine_dtype = search_dtype if shown else torch.float32
    for number, component in list(enumerate(components))[done[0] :]:
        rows = np.flatnonzero(table.broken_by == "")
        rows = rows[rows >= done[1]] if number == done[0] else rows
        # Pieces of four batches are enough to keep a batch full.
        size = {"batch_size": 4 * batch_size, "workers": workers, "device": device}
        for x, y, index in evaluation_batches(dataset, indices=positions[rows], **size):
            now, rows = rows[: len(y)], rows[len(y) :]
            names = item_names(dataset, index.tolist())
            piece = Piece(component, model, search, x, y, names, threat, how)
            with attack_mode(search, "eval"):
                run[component](piece)
            broken = piece.broken.cpu().numpy()
            columns = {"predicted_class": piece.predicted, "linf": piece.linf}
            columns |= {"predicted_probability": piece.probability}
            for column, values in columns.items():
                table.loc[now[broken], column] = values.cpu().numpy()[broken]
            table.loc[now[broken], "broken_by"] = component
            _keep(state, table, facts, [number, int(rows[0])] if len(rows) else [number + 1, 0])
            if progress:
                progress(component, len(y))
    return table


def write_state(table: pd.DataFrame, path: str | Path, components=COMPONENTS) -> None:
    """Write the table of `autoattack` as a state file (JSON) of the published code.

    ``_robust_flags`` are True where an image stands, in the order of the table. The file is for
    reading (``EvaluationState.from_disk``): their ``run_standard_evaluation`` goes on from none,
    not even from its own, since JSON holds no set of attacks.
    """
    ran = [name.replace("_", "-") for name in components]
    state = {"_attacks_to_run": ran, "path": str(path), "_run_attacks": ran}
    state["_robust_flags"] = (table.broken_by == "").tolist()
    state |= {"_last_saved": str(datetime.datetime.now()), "_SAVE_TIMEOUT": 60}
    state["_clean_accuracy"] = float((table.broken_by != "clean").mean())
    with replacing(path) as partial:
        partial.write_text(json.dumps(state))


def check_threat(threat: ThreatModel) -> None:
    """Raise ValueError for a threat model that AutoAttack is not made for."""
    for name in ("eps_space", "clip", "label_source", "attack_logits", "model_mode", "success"):
        given, wanted = getattr(threat, name), getattr(ThreatModel, name)  # its default
        if given != wanted:
            raise ValueError(f"AutoAttack attacks with {name} = {wanted!r}, got {given!r}")
    if not threat.eps > 0:
        raise ValueError("AutoAttack needs eps above 0")


def _checked(components, threat, num_classes) -> list[str]:
    check_threat(threat)
    for name in components:
        if name not in COMPONENTS:
            raise ValueError(f"components are of {', '.join(COMPONENTS)}, got {name!r}")
    if num_classes < 4 and "apgd_t" in components:
        warnings.warn(f"no apgd_t: with {num_classes} classes there is no such loss", stacklevel=3)
        return [name for name in components if name != "apgd_t"]
    return list(components)


def _contents(model, dataset, positions) -> dict:
    """Digests: a state belongs to one network and its images."""
    weights = {name: values.detach().cpu() for name, values in model.state_dict().items()}
    if not (images := getattr(dataset, "prepared", None)):
        items = enumerate(evaluation_batches(dataset, batch_size=256, indices=positions))
        images = digest({}, {f"{i}.{j}": part for i, item in items for j, part in enumerate(item)})
    return {"weights": digest({}, weights)[:16], "images": images}


def _resumed(state, facts, names):
    """What an earlier run has kept, and the component and row it goes on with; else None."""
    if state is None or not Path(state).exists():
        return None, [0, 0]
    table, kept = read_table(state), read_facts(state)
    done = kept.pop("done", None)
    odd = [name for name in facts if kept.get(name) != facts[name]]
    if list(table.file_name) != names:
        odd.append("images")
    if odd:
        raise ValueError(
            f"{state} is the state of another run (other {', '.join(odd)}): remove it or name "
            "another file"
        )
    return table, done


def _keep(state, table, facts, done) -> None:
    if state is not None:
        write_parquet(table, state, facts | {"done": done})
