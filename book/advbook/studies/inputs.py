"""The images that a study names: its splits, its subsets, and how its network wants them.

Reading images needs torch, which this module imports only when it is asked for them.
"""

from pathlib import Path

from advbook.studies.places import ROOT, data_root


def images_of(study, split: str):
    """The study's images of "train", "holdout" or "test", an `advlib.data.sets.Images`."""
    from advlib.data.sets import load_dataset

    prepared = study_preprocessing(study)
    return load_dataset(
        study.dataset,
        split,
        data_dir=data_root(study),
        n_images={"train": study.train_images, "test": study.test_images}.get(split),
        holdout_images=study.holdout_images,
        **{key: prepared[key] for key in ("image_size", "resize", "interpolation")},
    )


def audit_set(images, n_images: int | None):
    """Up to `n_images` of the images, as many of each class as the smallest has; None: all."""
    from advlib.data.sets import stratified_subset

    if n_images is None or n_images >= len(images):
        return images
    _, sizes = images.labels.unique(return_counts=True)
    each = min(max(1, n_images // len(sizes)), int(sizes.min()))
    return stratified_subset(images, each * len(sizes))


def corruption_set(study, images) -> tuple:
    """The images that are corrupted, and the folder of the published set or None."""
    from advlib.data.published_sets import locate_published
    from advlib.data.sets import stratified_subset

    if study.corruption_images is not None:
        images = stratified_subset(images, study.corruption_images)
    if study.corruptions == "generated":
        return images, None
    folder = study.corruptions_dir
    folder = None if folder is None else ROOT / Path(folder).expanduser()
    return images, locate_published(study.dataset, folder)


def study_preprocessing(study) -> dict:
    """How images are prepared: the values of the study, else those that its weights want.

    As `advlib.networks.build.preprocessing` returns them; None is left to the data set. Small data
    sets keep their size, whatever the weights. With an ``image_size`` of its own the study's
    ``resize`` keeps the weights' ratio of the two. Raises ValueError for weights that want their
    images squashed or padded.
    """
    from advlib.networks.build import preprocessing

    found = preprocessing(
        study.model, study.weights or next(iter(study.checkpoints.values()), None)
    )
    own = {key: getattr(study, key) for key in found}
    if study.dataset not in ("imagenet", "folder"):
        found |= dict.fromkeys(("resize", "image_size", "interpolation"))
    elif found["image_size"] and own["resize"] is None:
        if found["resize"] is None:
            raise ValueError(
                f"timm squashes or pads the images for {study.model} to {found['image_size']} px, "
                "which is not offered here: set resize, the px of the short side before cropping"
            )
        side = own["image_size"] or found["image_size"]
        found["resize"] = round(side * found["resize"] / found["image_size"])
    return {key: found[key] if own[key] is None else own[key] for key in found}
