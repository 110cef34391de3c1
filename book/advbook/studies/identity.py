"""What decides a run: the settings by which results are recognised, and how a method is trained."""

import contextlib
import dataclasses
import hashlib
import json
from pathlib import Path

from advbook.studies.places import named_file
from advlib.files import file_hash, read_json
from advlib.recipes import Recipe, Training, with_options
from advlib.threat import identity

RECIPE_FIELDS = frozenset({"adversarial", "mix", "extra_logits", "label_augmentation"})
RECIPE_FIELDS |= {"title", "label_smoothing"}
DATA_FIELDS = ("dataset", "data_dir", "train_images", "test_images", "holdout_images")
DATA_FIELDS += ("image_size", "resize", "interpolation", "evaluation_split")
NETWORK_FIELDS = ("dataset", "model", "weights", "image_size", "resize", "interpolation")
NETWORK_FIELDS += ("mean", "std")
TRAINING_FIELDS = ("augment", "dtype", "batch_size", "momentum", "weight_decay", "lr_final_factor")
STUDY_FIELDS = frozenset({*DATA_FIELDS, *NETWORK_FIELDS, *TRAINING_FIELDS})
TRAINING_FIELDS += ("ema",)
"""Fields by which results are always recognised; see `advlib.threat.identity`.

A new field of `Recipe` needs nothing. A new one of `Study` that decides images or weights is added
to `DATA_FIELDS` or `TRAINING_FIELDS` after this line. Nothing is added here.
"""

ABLATED = (
    *("delta", "replace_head", "train_objective", "train_label_source", "transforms"),
    *("train_steps", "train_step_size", "epochs", "lr", "lr_final_factor"),
    *("weight_decay", "ema", "options"),
)
"""Keys that an ablation may change; all others stay, so that it can be compared with its study."""

HOW = ("devices", "accumulate")
"""Keys about how a study is computed. They decide neither its name nor which run goes on."""


def recipe_of(study, name: str) -> tuple:
    """How a method or an ablation is trained: the study with its changes, and the method."""
    if name not in study.ablations:
        return study, name
    changes = {k: v for k, v in study.ablations[name].items() if k in ABLATED}
    base = study.ablations[name]["method"]
    if "options" in changes:  # an ablation says them of its own method
        own = study.options.get(base, {}) | changes["options"]
        changes["options"] = study.options | {base: own}
    if "transforms" in changes:
        changes["num_transforms"] = max(1, len(changes["transforms"]))
    changed = dataclasses.replace(study, ablations={}, late_epochs={}, **changes)
    return changed, base


def recipe_for(study, method: str) -> Recipe:
    """The recipe of a method with the study's options; that of the start is `pretrain_method`'s."""
    named = study.pretrain_method if method == "pretrained" else method
    recipe = with_options(study.recipes[named], **study.options.get(named, {}))
    return dataclasses.replace(recipe, title=study.recipes[method].title)


def networks_before(study, method: str) -> list[str]:
    """The methods whose networks a run needs: the one it starts from, the one it consults."""
    if method in study.checkpoints:
        return []
    helper = recipe_for(*recipe_of(study, method)).helper
    first = ["pretrained"] if method != "pretrained" and study.pretrain_epochs else []
    return first + ([helper] if helper else [])


def training_of(study, method: str) -> Training:
    """How this study trains one of `advlib.recipes.RECIPES`; equal names mean the same."""
    names = {one.name for one in dataclasses.fields(Training)}
    values = {name: getattr(study, name) for name in names if hasattr(study, name)}
    if method == "pretrained":
        values |= {"epochs": study.pretrain_epochs, "lr": study.pretrain_lr}
        values |= {"schedule": study.pretrain_schedule}
    return Training(**values, threats=tuple(study.train_threats))


def data_settings(study) -> dict:
    """What decides the images of the study."""
    return _said(study, DATA_FIELDS)


def _said(study, keys) -> dict:
    """These fields, as far as they belong to a result's identity."""
    said = identity(study, STUDY_FIELDS)
    return {key: said[key] for key in keys if key in said}


def training_settings(study, method: str, seed: int, data: str, start, consulted=None) -> dict:
    """All that decides the weights of one run; its hash names the run's folder.

    ``data`` is the fingerprint of the training images, ``start`` the hash of the checkpoint or of
    the weights file that the run starts from, or is; with what those weights want of the images,
    where that is known. ``consulted`` is the hash of the network that the method consults.
    """
    if method in study.ablations:
        changed, base = recipe_of(study, method)
        return training_settings(changed, base, seed, data, start, consulted)
    settings = {"method": method, "seed": seed, "data": data, "start": start}
    network = _said(study, NETWORK_FIELDS)
    if method in study.checkpoints:
        del network["weights"]
        return network | settings
    settings |= network | _said(study, TRAINING_FIELDS)
    settings |= {"consulted": consulted} if consulted else {}
    recipe = recipe_for(study, method)
    clean = method == "pretrained"
    settings["epochs"] = study.pretrain_epochs if clean else study.epochs
    settings["lr"] = study.pretrain_lr if clean else study.lr
    settings |= _said(study, ("pretrain_schedule",)) if clean else {}
    said = identity(recipe, RECIPE_FIELDS)
    settings |= {k: v for k, v in said.items() if k not in ("title", "forwards", "steps", "base")}
    if ".py:" in recipe.objective:  # another text of the file is another method
        settings["objective_file"] = file_hash(named_file(recipe.objective.rpartition(":")[0]))
    if recipe.adversarial:
        threats = [threat.to_dict() for threat in study.train_threats]
        settings["threat"] = threats if len(threats) > 1 else threats[0]
    if recipe.label_augmentation or recipe.label_smoothing:
        settings["delta"] = study.delta
    if recipe.extra_logits:
        settings["num_transforms"] = study.num_transforms
        settings["replace_head"] = study.replace_head
        settings["train_objective"] = study.train_objective
        if study.train_objective == "label_augmentation" and any(
            "loss" in changes for changes in study.transforms
        ):
            raise ValueError(
                f"the training attack of {method} climbs Eq. 4, and no loss of a "
                "transformation: leave loss out of transforms, or set train_objective to "
                "cross_entropy"
            )
    return settings


def changed_since(study, method: str, settings: dict, folder: Path) -> list[str]:
    """The training settings in which a run of the method is not what the study now says.

    What it starts from is one of them: a file of weights as it is now, or the pretrained network
    whose facts lie in `folder`, that of the run.
    """
    start = {key: settings.get(key) for key in ("seed", "data", "start", "consulted")}
    now = json.loads(json.dumps(training_settings(study, method, **start)))
    changed = [k for k in now.keys() | settings.keys() if now.get(k) != settings.get(k)]
    start = settings.get("start")  # by `advbook.studies.runs`
    start = start.get("weights") if isinstance(start, dict) else start
    if study.pretrain_epochs and method not in ("pretrained", *study.checkpoints):
        first = folder / "train" / f"pretrained-seed{settings.get('seed')}.json"
        if first.is_file() and read_json(first).get("checkpoint_hash") != start:
            changed.append("pretrained network")
    elif given := study.checkpoints.get(method, study.weights):
        with contextlib.suppress(FileNotFoundError):  # the run has a copy; or it is no file
            changed += [given] if file_hash(named_file(given)) != start else []
    helper = "" if method in study.checkpoints else recipe_for(*recipe_of(study, method)).helper
    its = folder / "train" / f"{helper}-seed{settings.get('seed')}.json"
    if helper and its.is_file():
        now = read_json(its).get("checkpoint_hash")
        changed += [f"network of {helper}"] if now != settings.get("consulted") else []
    return sorted(changed)


def digest(settings: dict) -> str:
    """Ten hex digits of the SHA-256 of the settings as JSON: the same settings, the same name."""
    text = json.dumps(settings, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:10]
