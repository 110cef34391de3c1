"""The recipe card of a study: what decides its numbers, as a table for a page."""

from pathlib import Path

from advbook.studies.places import shown_path
from advbook.studies.views import condition_of
from advbook.text import as_code, as_typed


def recipe_card(study) -> dict[str, str]:
    """What was trained on which data and how it was evaluated: setting -> value, both Markdown."""
    rows = {"Data": f"`{study.dataset}`, {_images(study)}"}
    if study.predictions:
        rows["Predictions"] = ", ".join(as_code(Path(p).name) for p in study.predictions.values())
    else:
        rows["{term}`Network <network name>`"] = as_code(study.model) + _start(study)
    rows["Methods"] = ", ".join(map(as_typed, study.names.values()))
    if study.checkpoints:
        files = [as_typed(shown_path(path)) for path in study.checkpoints.values()]
        rows["Weights"] = ", ".join(files)
    if study.trained:
        rows |= _training(study)
    for attack in study.attacks:
        rows[f"Evaluated under `{attack}`"] = as_typed(condition_of(study, attack))
    if study.corruptions != "none":
        many = f"{study.corruption_images:,} of these" if study.corruption_images else "all"
        rows["Corruptions"] = f"15 at 5 severities, `{study.corruptions}`, {many} images"
    return rows


def _images(study) -> str:
    """How many images of which split."""
    sizes = {"train": study.train_images, "holdout": study.holdout_images}
    sizes |= {"test": study.test_images}
    known = {name: f"{n:,}" if n else "all" for name, n in sizes.items()}
    held_out = study.evaluation_split == "holdout"
    evaluated = f"{known['holdout' if held_out else 'test']} "
    evaluated += "training images held out" if held_out else "test images"
    trained = f"{known['train']} training images" if study.trained else ""
    if study.holdout_images and not held_out:
        trained += f" besides {known['holdout']} that are held out"
    return ", ".join(filter(None, [trained, evaluated]))


def _start(study) -> str:
    """What the methods start from."""
    if study.weights:
        path = Path(study.weights)
        return f", weights {as_code(shown_path(path) if path.suffix else path)}"
    if study.pretrain_epochs:
        kind = study.recipes[study.pretrain_method]
        epochs = f"epochs of {as_typed(kind.title)}" if kind.adversarial else "clean epochs"
        return f", {study.pretrain_epochs} {epochs} first, learning rate {study.pretrain_lr:g}"
    return ""


def _training(study) -> dict[str, str]:
    return {
        "Fine-tuning": f"{study.epochs} epochs, batches of {study.batch_size}, SGD with momentum "
        f"{study.momentum:g}, learning rate {study.lr:g} along a cosine, weight decay "
        f"{study.weight_decay:g}",
        "Augmentation": study.augment.replace("_", " "),
        "Attack in training": as_typed(study.train_threat),
        "Label augmentation": f"δ = {study.delta:g}, M = {study.num_transforms}",
        "Seeds": ", ".join(map(str, study.seeds)),
    }
