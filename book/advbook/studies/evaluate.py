"""Predictions of a study's trained networks: clean, corrupted or attacked images.

Of processes that work together each takes other images. What is finished is kept, so an evaluation
that was interrupted goes on.
"""

import functools
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch
from tqdm import tqdm

from advbook.studies import launch
from advbook.studies.identity import digest
from advbook.studies.inputs import corruption_set, images_of
from advbook.studies.parts import kept, kept_rows, parts_of
from advbook.studies.runs import load_run
from advbook.studies.schema import Study
from advlib import distributed
from advlib.attacks.strong import evaluate_strong
from advlib.attacks.worst_case import default_batch_size, evaluate_attack
from advlib.data.corruptions import CORRUPTIONS, SEVERITIES, corrupted, prepare
from advlib.importing import check_label_order, read_predictions
from advlib.networks.device import default_device, resolve_dtype
from advlib.parquet import read_table
from advlib.predictions import predict, read_facts, write_predictions

ATTACK_PART = 2048  # images of a part that is kept once attacked


def clean_predictions(study: Study, *, ablations: bool = False) -> dict[tuple[str, int], Path]:
    """Predictions of all trained networks for the evaluated images, in one pass and in float32.

    Where the study wants several ``devices`` and this process works alone, so many are started.
    With ``ablations``, of the networks of its ablations instead of its methods'. Returns the paths
    of the prediction tables by (method, seed).

    Raises FileNotFoundError if a network has not been trained yet, ValueError if one that was
    trained elsewhere numbers the classes in another order than the labels, RuntimeError with the
    message of the process that failed first, if it is one of several.
    """
    paths = _paths(study, "clean", study.ablation_runs if ablations else study.method_runs)
    if launch.to_launch(study):
        which = ["--ablations"] if ablations else []
        launch.launch(study, "evaluate", "--benchmark", "clean", *which)
        return paths
    images, models, runs = _images_and_networks(study, paths)
    batch_size = study.eval_batch_size or 128
    facts = image_facts(study, images, threat=None, dtype="float32", batch_size=batch_size)
    decided = facts | _hashes(runs) | {"benchmark": "clean"}

    def judge(progress, positions):
        part = {"indices": positions, "progress": progress}
        return _predicted(models, images, batch_size, study.workers, **part)

    rows = _in_parts(study, decided, images.file_names, 16 * batch_size, judge)
    if distributed.rank() == 0:
        for (method, seed), path in paths.items():
            table = rows[(rows.method == method) & (rows.seed == seed)]
            table = table.drop(columns=["method", "seed"]).reset_index(drop=True)
            if method in study.checkpoints or not study.pretrain_epochs:
                check_label_order(table)
            write_table(table, path, images, run_facts(runs[method, seed]) | facts)
    distributed.barrier()
    return paths


def corruption_predictions(study: Study) -> dict[tuple[str, int], Path]:
    """Predictions of all trained networks for the corrupted images; each is read or made once.

    Several processes take other conditions. Probabilities are rounded to four decimals, which is
    far below what they are used for and keeps the tables small. Returns and errors as in
    `clean_predictions`, and `advlib.data.sets.DataError` of `advlib.data.corruptions.prepare`.
    """
    paths = _paths(study, "corruptions", study.method_runs)
    if launch.to_launch(study):
        launch.launch(study, "evaluate", "--benchmark", "corruptions")
        return paths
    clean, models, runs = _images_and_networks(study, paths)
    images, published = corruption_set(study, clean)
    with distributed.in_turns():
        recipe = prepare(images, published=published)
    batch_size = study.eval_batch_size or 128
    facts = image_facts(study, clean, threat=None, dtype="float32", batch_size=batch_size)
    facts |= {"corruptions": study.corruptions, "recipe": recipe}
    decided = facts | _hashes(runs) | {"images": images.fingerprint}
    folder = study.runs / "parts" / digest(decided)

    def judge(corruption, severity):
        changed = corrupted(images, corruption, severity, published=published)
        table = _predicted(models, changed, batch_size, study.workers)
        return table.assign(corruption=corruption, severity=severity)

    parts = {(c, s): folder / f"{c}-{s}.parquet" for c in CORRUPTIONS for s in SEVERITIES}
    own = _own_missing(parts, lambda _: images.file_names)
    for key in tqdm(own, unit=" conditions", mininterval=2, disable=distributed.rank() > 0):
        kept(parts[key], functools.partial(judge, *key))
    distributed.barrier()
    if distributed.rank() == 0:
        for (method, seed), path in paths.items():
            tables = map(read_table, parts.values())
            table = pd.concat([t[(t.method == method) & (t.seed == seed)] for t in tables])
            table = table.drop(columns=["method", "seed"]).round({"predicted_probability": 4})
            table = table.astype({"corruption": "category", "file_name": "category"})
            write_table(table, path, images, run_facts(runs[method, seed]) | facts)
    distributed.barrier()
    return paths


def attack_predictions(study: Study, method: str, seed: int, attack: str) -> Path:
    """Predictions of one trained network under attack: each image's worst case.

    The attack is one of `advlib.threat.PROTOCOLS`, at the study's own ε. Starts are drawn from (0,
    file name, restart), so they do not depend on the process that takes the image. Returns the path
    of the prediction table, with ``attack``, ``linf`` and ``steps_used``. Errors as in
    `clean_predictions`.
    """
    (path,) = _paths(study, attack, [(method, seed)]).values()
    if launch.to_launch(study):
        arguments = ("--benchmark", attack, "--method", method, "--seed", str(seed))
        launch.launch(study, "evaluate", *arguments)
        return path
    images, models, runs = _images_and_networks(study, [(method, seed)])
    threat = study.threat(attack)
    facts = attack_facts(study, runs[method, seed], images)
    facts |= {"attack": attack, "threat": threat.to_dict()}

    def judge(progress, positions):
        return evaluate_attack(
            models[method, seed],
            images,
            threat,
            num_classes=images.num_classes,
            batch_size=facts["batch_size"],
            dtype=study.dtype,
            workers=study.workers,
            indices=torch.tensor(positions),
            progress=progress,
        )

    table = _in_parts(study, facts, images.file_names, ATTACK_PART, judge)
    if distributed.rank() == 0:
        write_table(table.assign(attack=attack), path, images, facts)
    distributed.barrier()
    return path


def strong_predictions(study: Study, method: str, seed: int, progress=None) -> Path:
    """AutoAttack on a draw of the images that PGD-40 leaves standing, of one trained network.

    So many are drawn that the draw adds at most the study's ``autoattack_width`` to the interval of
    the error. PGD-40's table is read where there is one of this network, a published one too.
    Returns the path of the prediction table, with ``broken_by`` and ``drawn``, for
    `advlib.metrics.two_phase`. ``progress`` is as that of `advlib.attacks.autoattack.autoattack`.
    """
    if distributed.world_size() > 1:
        raise ValueError("AutoAttack on a draw works in one process: start it without torchrun")
    if study.autoattack_width is None:
        raise ValueError(f"{study.study} asks for no AutoAttack: set autoattack_width, say to 0.01")
    path = study.runs / "audit" / "autoattack" / f"{method}-seed{seed}.parquet"
    images, models, runs = _images_and_networks(study, [(method, seed)])
    threat, width = study.threat("pgd40"), study.autoattack_width
    facts = attack_facts(study, runs[method, seed], images)
    facts |= {"threat": threat.to_dict(), "subset": None, "width": width}
    table = evaluate_strong(
        models[method, seed],
        images,
        threat,
        num_classes=images.num_classes,
        sample={"error": width},
        cheap=_under_pgd40(study, method, seed, facts).drop(columns="attack"),
        state=study.runs / "parts" / digest(facts),
        batch_size=facts["batch_size"],
        dtype=study.dtype,
        workers=study.workers,
        progress=progress,
    ).table
    return write_table(table, path, images, facts)


def _predicted(models, images, batch_size, workers, **part) -> pd.DataFrame:
    """Predictions of all networks, told apart by columns method and seed."""
    how = {"num_classes": images.num_classes, "batch_size": batch_size, "workers": workers}
    tables = predict(models, images, **how, **part)
    return pd.concat([t.assign(method=m, seed=s) for (m, s), t in tables.items()])


def _under_pgd40(study, method, seed, facts) -> pd.DataFrame:
    """The predictions of this network under PGD-40, from a table if there is one."""
    decided = {key: facts[key] for key in ("checkpoint_hash", "data", "split", "threat")}
    for folder in (study.runs, study.published):
        path = folder / "predictions" / "pgd40" / f"{method}-seed{seed}.parquet"
        if path.is_file():
            known = read_facts(path)
            if all(known.get(key) == value for key, value in decided.items()):
                return read_predictions(path)
    return read_predictions(attack_predictions(study, method, seed, "pgd40"))


def _in_parts(
    study, facts: dict, names: list[str], part: int, judge: Callable
) -> pd.DataFrame | None:
    """An evaluation that survives interruption: images in parts, each kept once it is finished.

    The parts are dealt to the processes; all rows are returned on the first. They are kept in a
    folder whose name holds the `facts` that decide them.
    """
    folder, rank = study.runs / "parts" / digest(facts), distributed.rank()
    parts = {
        positions: folder / f"{positions.start:08d}-{positions.stop:08d}.parquet"
        for positions in parts_of(len(names), part, distributed.world_size())
    }
    own = _own_missing(parts, lambda positions: names[positions.start : positions.stop])
    total = sum(map(len, own))
    with tqdm(total=total, unit=" images", mininterval=2, disable=rank > 0) as bar:
        for positions in own:
            kept(parts[positions], functools.partial(judge, bar.update, positions))
    distributed.barrier()
    return pd.concat(map(read_table, parts.values()), ignore_index=True) if rank == 0 else None


def _own_missing(parts: dict, names_of: Callable) -> list:
    """The parts, by key, whose rows no earlier run kept, as far as this process is to make them."""
    missing = distributed.from_first(
        lambda: [key for key, path in parts.items() if kept_rows(path, names_of(key)) is None]
    )
    return missing[distributed.rank() :: distributed.world_size()]


def _paths(study, benchmark: str, runs) -> dict[tuple[str, int], Path]:
    folder = study.runs / "predictions" / benchmark
    return {(m, s): folder / f"{m}-seed{s}.parquet" for m, s in runs}


def _images_and_networks(study, keys) -> tuple:
    """The evaluated images, and the networks and facts of runs under each (method, seed)."""
    with distributed.in_turns():
        images = images_of(study, study.evaluation_split)
    found = {(m, s): load_run(study, m, s) for m, s in keys}
    models = {key: model for key, (model, _) in found.items()}
    return images, models, {key: run for key, (_, run) in found.items()}


def image_facts(study, images, **more) -> dict:
    """What a table says of its images and of how it was computed."""
    facts = {"data": images.fingerprint, "data_title": images.title}
    return facts | {"split": study.evaluation_split, "device": str(default_device())} | more


def run_facts(run: dict) -> dict:
    """What a table says of its network."""
    return {k: run[k] for k in ("study", "method", "seed", "checkpoint_hash", "settings")}


def attack_facts(study, run: dict, images) -> dict:
    """What a table of attacked images says of its network, its images and the computation."""
    device = default_device()
    how = {"dtype": str(resolve_dtype(study.dtype, device)), "attack_seed": 0}
    how["batch_size"] = study.eval_batch_size or default_batch_size(images, device)
    return run_facts(run) | image_facts(study, images, **how)


def _hashes(runs: dict) -> dict:
    return {f"{m}-{s}": run["checkpoint_hash"] for (m, s), run in runs.items()}


def write_table(table: pd.DataFrame, path: Path, images, facts: dict) -> Path:
    """Write predictions, with their facts, once they are known to be of all these images."""
    sizes = {"num_classes": images.num_classes, "n_images": len(images)}
    return write_predictions(table, path, **sizes, **facts)
