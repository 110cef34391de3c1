"""The trained networks of a study: trained, found again, loaded."""

import dataclasses
import json

import pandas as pd
import torch
from torch import nn

from advlib.checkpoints import CHECKPOINT, save_checkpoint
from advlib.data import DATASETS, stream_seed
from advlib.files import file_hash, replacing
from advlib.labels import widen_head
from advlib.models import build_model, load_weights
from advlib.study import METHODS, ROOT, Study, digest
from advlib.train import LOG_COLUMNS, fit


def train_method(study: Study, method: str, seed: int, *, device=None) -> dict:
    """Train one method of a study, or find the finished run, and write its tables.

    Parameters
    ----------
    study : Study
    method : str
        One of the study's methods, or ``pretrained``.
    seed : int
    device : optional
        As in `fit`.

    Returns
    -------
    dict
        The run's facts, as in ``train/<method>-seed<seed>.json``: settings, folder, checkpoint
        and its hash, data fingerprint, number of images.

    Raises
    ------
    FileNotFoundError
        If the pretrained network that the method starts from has not been trained yet.
    """
    info = DATASETS.get(study.dataset)
    train_set = study.images("train")
    start = None
    if method != "pretrained" and study.pretrain_epochs:
        start = read_run(study, "pretrained", seed)
    origin = start and start["checkpoint_hash"]
    if start is None and study.weights and study.weights.endswith(".safetensors"):
        origin = file_hash(ROOT / study.weights)
    settings = study.training_settings(method, seed, train_set.fingerprint, origin)
    folder = study.runs / "models" / f"{method}-seed{seed}-{digest(settings)}"
    model = initial_model(study, method, seed, train_set.num_classes, info, start)
    if method == "pretrained" and not study.pretrain_epochs:
        folder.mkdir(parents=True, exist_ok=True)
        save_checkpoint(folder / CHECKPOINT, model, None, 0, [], settings)
        log = pd.DataFrame(columns=LOG_COLUMNS)
    else:
        log = fit(
            model,
            train_set,
            study,
            method,
            seed=seed,
            folder=folder,
            settings=settings,
            device=device,
        )
    run = {
        "study": study.study,
        "method": method,
        "seed": seed,
        "folder": folder.name,
        "checkpoint_hash": file_hash(folder / CHECKPOINT),
        "data": train_set.fingerprint,
        "n_images": len(train_set),
        "num_classes": train_set.num_classes,
        "settings": settings,
    }
    table = log.assign(study=study.study, method=method, seed=seed)
    with replacing(study.runs / "train" / f"{method}-seed{seed}.csv") as path:
        table[["study", "method", "seed", *LOG_COLUMNS]].to_csv(path, index=False)
    text = json.dumps(run, indent=1, ensure_ascii=False)
    with replacing(study.runs / "train" / f"{method}-seed{seed}.json") as path:
        path.write_text(text, encoding="utf-8")
    return run


def initial_model(study, method, seed, num_classes, info, start=None) -> nn.Module:
    """The network a method starts from: pretrained weights, with a wider head where needed."""
    weights = None if start else study.weights
    if weights and weights.endswith(".safetensors"):
        weights = str(ROOT / weights)
    model = build_model(
        study.model,
        num_classes=num_classes,
        mean=info.mean,
        std=info.std,
        weights=weights,
        new_head=study.pretrain_epochs > 0,
        seed=stream_seed(seed, "weights"),
    )
    if start is not None:
        load_weights(model, study.runs / "models" / start["folder"] / CHECKPOINT)
    if METHODS[method].extra_logits:
        generator = torch.Generator().manual_seed(stream_seed(seed, "head"))
        widen_head(model, study.num_transforms, replace=study.replace_head, generator=generator)
    return model


def load_run(study: Study, method: str, seed: int) -> tuple[nn.Module, dict]:
    """The trained network of one method and the facts of its run.

    Raises
    ------
    FileNotFoundError
        If it has not been trained yet; the message gives the command.
    RuntimeError
        If the checkpoint is not the one the facts were written for.
    """
    run = read_run(study, method, seed)
    path = study.runs / "models" / run["folder"] / CHECKPOINT
    if not path.is_file() or file_hash(path) != run["checkpoint_hash"]:
        raise RuntimeError(
            f"the checkpoint {path} is missing or has changed since training ended: train again"
        )
    info = DATASETS[study.dataset]
    bare = dataclasses.replace(study, weights=None, pretrain_epochs=1)
    model = initial_model(bare, method, seed, run["num_classes"], info)
    return load_weights(model, path), run


def read_run(study: Study, method: str, seed: int) -> dict:
    """The facts of a finished run, from ``train/<method>-seed<seed>.json``."""
    path = study.runs / "train" / f"{method}-seed{seed}.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{method} (seed {seed}) of {study.study} is not trained yet: papermill "
            f"notebooks/train.ipynb out.ipynb -p study {study.study} -p method {method} "
            f"-p seed {seed}"
        )
    return json.loads(path.read_text(encoding="utf-8"))
