"""The trained networks of a study: trained, found again, loaded."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from advbook.studies import launch
from advbook.studies.identity import (
    changed_since,
    digest,
    recipe_for,
    recipe_of,
    training_of,
    training_settings,
)
from advbook.studies.inputs import images_of, study_preprocessing
from advbook.studies.places import named_file, tables_folder
from advbook.studies.schema import Study
from advbook.studies.views import to_make, to_train
from advlib import distributed
from advlib.checkpoints import CHECKPOINT, read_checkpoint, save_checkpoint
from advlib.data.batches import stream_seed
from advlib.data.sets import DATASETS
from advlib.files import file_hash, read_json, replacing, set_aside
from advlib.labels import widen_head
from advlib.networks.build import build_model, preprocessing, weights_name
from advlib.networks.weights import WEIGHT_FILES, head_outputs, load_weights, read_weights
from advlib.objectives import find_objective
from advlib.offsets import tune_offsets
from advlib.train import LOG_COLUMNS, batch_share, fit


def train_method(study: Study, method: str, seed: int, *, device=None) -> dict:
    """Train one method of a study, or find the finished run, and write its tables.

    Where the study wants several ``devices`` and this process works alone, it starts so many and
    waits for them. The method is one of the study's methods, checkpoints or ablations, or
    ``pretrained``; a checkpoint, and ``pretrained`` without epochs, is taken as it is.

    Returns the run's facts, as in ``train/<method>-seed<seed>.json``: settings, folder, checkpoint
    hash, data fingerprint, number of images, and how it was computed at last.

    Raises FileNotFoundError, ValueError or RuntimeError if the network that it starts from has not
    been trained yet, or a weights file is missing; if weights do not fit the network or the data,
    or a batch does not divide; with the message of the process that failed first, of several.
    """
    brought, start = method in study.checkpoints, None
    taken = brought or (method == "pretrained" and not study.pretrain_epochs)
    changed, base = recipe_of(study, method)
    if not taken:
        alone = launch.to_launch(study)
        batch_share(training_of(study, base), study.devices if alone else distributed.world_size())
        if alone:
            launch.launch(study, "train", "--method", method, "--seed", str(seed))
            return read_run(study, method, seed)
    with distributed.in_turns():
        train_set = images_of(study, study.evaluation_split if brought else "train")
    _check_own_methods(study, train_set)
    if not brought and method != "pretrained" and study.pretrain_epochs:
        start = read_run(study, "pretrained", seed)
        _check_current(study, "pretrained", start, study.runs, train_set.fingerprint)
    recipe = None if brought else _located(recipe_for(changed, base))
    helper, facts = None, {}
    if recipe and recipe.helper:
        helper, facts = load_run(study, recipe.helper, seed)
    origin, consulted = _origin(study, method, start), facts.get("checkpoint_hash")
    settings = training_settings(study, method, seed, train_set.fingerprint, origin, consulted)
    folder = study.runs / "models" / f"{method}-seed{seed}-{digest(settings)}"
    with distributed.in_turns():
        if brought:
            path = named_file(study.checkpoints[method])
            model = brought_model(study, path, train_set.num_classes)
        else:
            model = initial_model(changed, base, seed, train_set.num_classes, start)
    first = distributed.rank() == 0
    if first and (given := study.checkpoints.get(method, study.weights)):
        if given.endswith(WEIGHT_FILES):
            print(f"Weights: {named_file(given)}")
        print(_preparation(train_set, model))
    if recipe and recipe.post_hoc:
        taken, model = True, helper
        if first:
            _post_hoc(changed, recipe, model, seed, device)
    if taken:
        if first:
            folder.mkdir(parents=True, exist_ok=True)
            save_checkpoint(folder / CHECKPOINT, {"model": model}, None, 0, [], settings)
        log = pd.DataFrame(columns=LOG_COLUMNS)
    else:
        with distributed.in_turns():
            _set_aside_changed(study, method, seed, folder)
        log = fit(
            model,
            train_set,
            training_of(changed, base),
            recipe,
            seed=seed,
            folder=folder,
            validation=images_of(study, "holdout") if recipe.validation else None,
            helper=helper,
            settings=settings,
            device=device,
            late_epochs=study.late_epochs.get(method, 0),
        )
    if first:
        _write_run(study, method, seed, folder, train_set, settings, log)
    distributed.barrier()
    return read_run(study, method, seed)


def _located(recipe):
    """The recipe, its objective's file found from here if it is the reader's own."""
    path, _, member = recipe.objective.rpartition(":")
    return dataclasses.replace(recipe, objective=f"{named_file(path)}:{member}") if path else recipe


def _check_own_methods(study, train_set) -> None:
    """What a method of the reader's own lacks is said before anything is trained."""
    for name in study.own_methods:
        recipe = _located(recipe_for(study, name))
        try:
            find_objective(recipe.objective)(recipe, training_of(study, name), train_set)
        except KeyError as error:
            raise ValueError(
                f"own method {name}: its code asks for {error}, and the study file gives the "
                f"options {dict(recipe.options)}: add it to own_methods: {name}: options"
            ) from error


def _post_hoc(study, recipe, model, seed, device) -> None:
    """Change a trained network without training, by validation images."""
    validation, threat = images_of(study, "holdout"), study.train_threat
    classes, strength = validation.num_classes, recipe.options["strength"]
    how = {"num_classes": classes, "strength": strength, "seed": seed, "device": device}
    print(f"Offsets of the logits: {tune_offsets(model, validation, threat, **how).tolist()}")


def _set_aside_changed(study, method, seed, folder) -> None:
    """A finished checkpoint never changes: one with another hash than its facts say is damaged."""
    facts, path = study.runs / "train" / f"{method}-seed{seed}.json", folder / CHECKPOINT
    if facts.is_file() and path.is_file():
        run = read_run(study, method, seed)
        if run["folder"] == folder.name and run["checkpoint_hash"] != file_hash(path):
            set_aside(path, "it has changed since training ended")
            facts.unlink()  # they are about no file any more


def _write_run(study, method, seed, folder, train_set, settings, log) -> None:
    run = {"study": study.study, "method": method, "seed": seed, "folder": folder.name}
    run |= {"checkpoint_hash": file_hash(folder / CHECKPOINT), "data": train_set.fingerprint}
    run |= {"n_images": len(train_set), "num_classes": train_set.num_classes}
    run |= {"settings": settings, "how": read_checkpoint(folder / CHECKPOINT)[0]["how"]}
    table = log.assign(study=study.study, method=method, seed=seed)
    with replacing(study.runs / "train" / f"{method}-seed{seed}.csv") as path:
        table[["study", "method", "seed", *LOG_COLUMNS]].to_csv(path, index=False)
    with replacing(study.runs / "train" / f"{method}-seed{seed}.json") as path:
        path.write_text(json.dumps(run, indent=1, ensure_ascii=False), encoding="utf-8")


def _origin(study, method, start) -> str | dict | None:
    """What a run starts from, as its settings keep it.

    The hash of a checkpoint or a weights file, or the name of published weights; where those say
    how images are prepared, that too, since it may change with the library.
    """
    if start is not None:
        return start["checkpoint_hash"]
    weights = study.checkpoints.get(method, study.weights)
    if weights is None:
        return None
    prepared = preprocessing(study.model, weights)
    file = weights.endswith(WEIGHT_FILES)
    origin = file_hash(named_file(weights)) if file else weights_name(study.model, weights)
    return {"weights": origin} | prepared if prepared["mean"] else origin


def normalisation(study) -> dict:
    """Mean and std of a study's network."""
    info, prepared = DATASETS[study.dataset], study_preprocessing(study)
    values = {key: tuple(prepared[key] or getattr(info, key)) for key in ("mean", "std")}
    if len(values["mean"]) != info.channels:
        raise ValueError(
            f"{study.model} normalises {len(values['mean'])} channels, the images of {info.title} "
            f"have {info.channels}: give mean and std of so many, or take no published weights"
        )
    return values


def initial_model(study, method, seed, num_classes, start=None) -> nn.Module:
    """The network a method starts from: pretrained weights, with a wider head where needed."""
    weights = None if start else study.weights
    if weights and weights.endswith(WEIGHT_FILES):
        weights = str(named_file(weights))
    model = build_model(
        study.model,
        num_classes=num_classes,
        **normalisation(study),
        weights=weights,
        new_head=study.pretrain_epochs > 0,
        seed=stream_seed(seed, "weights"),
    )
    if start is not None:
        load_weights(model, _checkpoint(study, start))
    _check_normalisation(study, model)
    if recipe_for(study, method).extra_logits:
        generator = torch.Generator().manual_seed(stream_seed(seed, "head"))
        widen_head(model, study.num_transforms, replace=study.replace_head, generator=generator)
    return model


def brought_model(study, path: Path, num_classes: int) -> nn.Module:
    """A user's own trained network: K outputs, or K+M with the M of the study, classes first.

    Raises ValueError for another number, or weights that do not fit the study's network.
    """
    model = build_model(study.model, num_classes=num_classes, **normalisation(study))
    state = read_weights(path, model)
    outputs = head_outputs(model, state)
    extra = study.num_transforms
    if outputs == num_classes + extra:
        widen_head(model, extra)
        print(f"{outputs} outputs: {num_classes} classes, then {extra} transformation logits")
    elif outputs not in (None, num_classes):
        raise ValueError(
            f"the network in {path} has {outputs} outputs: expected {num_classes}, the classes of "
            f"the data, or {num_classes + extra} with num_transforms = {extra} after them"
        )
    load_weights(model, path, state)
    _check_normalisation(study, model)
    return model


def _check_normalisation(study, model) -> None:
    """A file of this project holds its own; a study may not say another."""
    for key in ("mean", "std"):
        own, held = getattr(study, key), getattr(model.normalize, key).flatten().tolist()
        if own is not None and not np.allclose(own, held):
            raise ValueError(
                f"{key} is {own} in the study, but {held} in the weights, which hold their own: "
                "leave mean and std out of the study file"
            )


def _preparation(images, model) -> str:
    """What happens to an image before the network's first layer, in a line."""
    size = f"{images.image_size if images.pixels is None else images.pixels.shape[-1]} px"
    if images.pixels is None:
        size = f"short side {images.resize} px ({images.interpolation}), centre {size}"
    mean, std = (
        ", ".join(f"{v:.4g}" for v in values.flatten().tolist())
        for values in (model.normalize.mean, model.normalize.std)
    )
    return f"Images: {size}; mean {mean} and SD {std} of the normalisation"


def load_run(study: Study, method: str, seed: int, source: str = "fresh") -> tuple[nn.Module, dict]:
    """The trained network of one method and the facts of its run.

    ``source`` is "fresh" for a network of this machine's run, "committed" for the published one.
    Raises FileNotFoundError, RuntimeError or ValueError if it has not been trained yet or is not
    published; if the checkpoint is not the one that the facts were written for; if it was trained
    with other settings than the study's.
    """
    run = read_run(study, method, seed, source)
    _check_current(study, method, run, tables_folder(study, source))
    path = _checkpoint(study, run, source)
    if method in study.checkpoints:
        return brought_model(study, path, run["num_classes"]), run
    changed, base = recipe_of(study, method)
    bare = dataclasses.replace(changed, weights=None, pretrain_epochs=1)
    model = initial_model(bare, base, seed, run["num_classes"])
    return load_weights(model, path), run


def _checkpoint(study, run: dict, source: str = "fresh") -> Path:
    """The path of a run's checkpoint, if it is the one that the run's facts were written for."""
    path = tables_folder(study, source) / "models" / run["folder"] / CHECKPOINT
    fresh, whose = source == "fresh", f"{run['method']} (seed {run['seed']}) of {study.study}"
    if not fresh and not path.is_file():
        raise FileNotFoundError(
            f"the weights of {whose} are not published: to train them, {to_make(study)}"
        )
    if not path.is_file() or file_hash(path) != run["checkpoint_hash"]:
        way = "restore it (`git checkout`)"
        if fresh:
            way = f"train again, which sets it aside: {to_train(study, run['method'], run['seed'])}"
        raise RuntimeError(
            f"the checkpoint {path} is missing or has changed since training ended: {way}"
        )
    return path


def read_run(study: Study, method: str, seed: int, source: str = "fresh") -> dict:
    """The facts of a finished run, from ``train/<method>-seed<seed>.json``."""
    folder = study.runs if source == "fresh" else tables_folder(study, source)
    path = folder / "train" / f"{method}-seed{seed}.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{method} (seed {seed}) of {study.study} is not trained yet: "
            f"{to_train(study, method, seed)}"
        )
    return read_json(path)


def _check_current(study, method: str, run: dict, folder: Path, data: str | None = None) -> None:
    """Refuse a network that was trained before the study, or a file that it names, was changed."""
    changed = changed_since(study, method, run.get("settings", {}), folder)
    if data not in (None, run.get("data")):
        changed.append("set of training images")
    if changed:
        raise ValueError(
            f"{method} (seed {run.get('seed')}) of {study.study} was trained with another "
            f"{', '.join(changed)} than the study now says: "
            f"{to_train(study, method, run.get('seed'))}"
        )
