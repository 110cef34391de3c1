"""Data sets by name or folder. Images leave here in [0, 1]; normalisation lives in the model."""

import itertools
import warnings
from pathlib import Path

import numpy as np
import pandas as pd

from advlib.data import decoding, fetch, folders
from advlib.data.catalogue import DATASETS
from advlib.data.fetch import DataError
from advlib.data.images import Images, stratified, stratified_subset

__all__ = ["DATASETS", "DataError", "Images", "load_dataset", "stratified_subset", "warn_of_shared"]


def load_dataset(
    name: str,
    split: str,
    *,
    data_dir: str | Path | None = None,
    n_images: int | None = None,
    holdout_images: int = 0,
    image_size: int | None = None,
    resize: int | None = None,
    interpolation: str | None = None,
) -> Images:
    """A split of a data set, fetched first where that is possible.

    Parameters
    ----------
    name : str
        A key of `DATASETS`. ``folder`` is any ``train/<class>/*`` with ``test/<class>/*`` or
        ``val/<class>/*``.
    split : {"train", "holdout", "test"}
        ``test`` is ImageNet's validation set. ``holdout`` is a part of the training images, for
        choices that must not see the test images.
    data_dir : optional
        Folder of the data; None looks in the places of `advlib.data.fetch.locate`.
    n_images : int, optional
        Keep this many images, the same number of each class, always the same ones. A larger
        choice contains the smaller.
    holdout_images : int
        Size of the holdout, the same number of each class. ``train`` leaves these images out.
    image_size, resize : int, optional
        For image files: px of the centre crop, which ``folder`` needs, and of the short side before
        it. None: 32 px for CIFAR, 224 for ImageNet; the same as the crop up to 96 px, else 232/224
        of it.
    interpolation : {"bilinear", "bicubic"}, optional
        For image files, when resizing; None: bilinear. Always antialiased.

    Raises
    ------
    ValueError
        For an unknown name or split, or numbers of images that the set cannot give.
    DataError
        If data are missing, incomplete or damaged.

    Notes
    -----
    Images with sides up to 96 px are kept in memory (and cached in ``data/cache/``), larger ones
    are decoded on demand. scikit-learn's digits have 17 grey levels and no test set. A pixel v is
    stored as round(255 v / 16). The test set is 50 images of each class, always the same ones,
    whose writers also occur in the training set.
    """
    if name not in DATASETS:
        raise ValueError(f"there is no data set {name!r}: choose one of {', '.join(DATASETS)}")
    if split not in ("train", "holdout", "test"):
        raise ValueError(f"split is 'train', 'holdout' or 'test', got {split!r}")
    if split == "holdout" and not holdout_images:
        raise ValueError("split 'holdout' needs holdout_images, the number of images in it")
    stored = "test" if split == "test" else "train"
    images = _read(name, stored, data_dir, image_size, resize, interpolation)
    if holdout_images and stored == "train":
        held = stratified(images, holdout_images, "holdout", "holdout_images")
        if split == "train":
            held = np.setdiff1d(np.arange(len(images)), held)
        images = images.subset(held)
    if n_images is not None:
        images = stratified_subset(images, n_images)
    if images.pixels is None:  # each file is read once, so that a damaged one is found here
        _ = images.fingerprint
    if images.contents is not None:
        copies = pd.Series(images.contents["content"].tolist()).duplicated()
        if copies.any():
            said = (
                f"{copies.sum():,} of the {len(images):,} images of {images.title} are exact copies"
            )
            twice = images.file_names[copies.argmax()]
            warnings.warn(f"{said} of others, such as {twice}", stacklevel=2)
    return images


def warn_of_shared(parts: dict[str, Images]) -> None:
    """Warn of image files that two splits hold, such as test images that are trained on."""
    known = {s: p.contents["content"].tolist() for s, p in parts.items() if p.contents is not None}
    for (one, first), (other, second) in itertools.combinations(known.items(), 2):
        if both := set(first) & set(second):
            name = parts[one].file_names[first.index(min(both))]
            said = f"{len(both):,} images of {one} are also images of {other}, such as {name}"
            warnings.warn(said, stacklevel=2)


def _read(name, stored, data_dir, image_size, resize, interpolation) -> Images:
    """All images of a split, "train" or "test", as they are stored."""
    info = DATASETS[name]
    folder, source = (None, "scikit-learn") if name == "digits" else fetch.locate(name, data_dir)
    in_folders = name.startswith("cifar") and any((folder / s).is_dir() for s in ("train", "test"))
    if in_folders or name in ("imagenet", "folder"):
        return _read_tree(name, stored, folder, source, image_size, resize, interpolation)
    size = info.image_size
    if image_size not in (None, size) or resize not in (None, size) or interpolation:
        raise ValueError(
            f"the images of {name} are {size} px: leave image_size, resize and interpolation out"
        )
    facts = dict(title=info.title, source=source, class_names=info.class_names)
    if name == "digits":
        return _read_digits(stored, facts)
    if name == "fashion_mnist":
        pixels, labels = fetch.read_fashion_mnist(folder, stored)
        names = [f"{stored}-{position:05d}" for position in range(len(labels))]
        return Images(**facts, labels=labels, file_names=names, pixels=pixels)
    # CIFAR's files hold each image's original name, so names and order are those of a tree.
    pixels, labels, files = fetch.read_cifar(name, folder, stored)
    names = [f"{info.class_names[label]}/{file}" for label, file in zip(labels, files, strict=True)]
    facts |= {"labels": labels, "pixels": pixels, "positions": range(len(names))}
    images = Images(**facts, file_names=names)
    return images.subset(sorted(range(len(names)), key=names.__getitem__))


def _read_digits(stored: str, facts: dict) -> Images:
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)[:, None]
    names = [f"digit-{position:05d}" for position in range(len(pixels))]
    images = Images(**facts, labels=digits.target, file_names=names, pixels=pixels)
    chosen = stratified(images, 500, "digits test set", "test images").numpy()
    if stored == "train":
        chosen = np.setdiff1d(np.arange(len(images)), chosen)
    images = images.subset(chosen)
    images.file_names = [name.replace("digit", stored) for name in images.file_names]
    return images


def _read_tree(name, stored, folder, source, image_size, resize, interpolation) -> Images:
    info = DATASETS[name]
    tree = folders.list_tree(folder, stored, imagenet=name == "imagenet")
    title, class_names, labels = info.title, tree.classes, tree.labels
    if name == "imagenet":
        class_names, labels = folders.imagenet_labels(tree, folder)
    elif info.class_names not in (None, tree.classes):
        raise DataError(
            f"{folder} does not hold {title}: its classes are {', '.join(tree.classes)}; expected "
            f"{', '.join(info.class_names)}."
        )
    elif info.class_names and any(p.lower().endswith((".jpg", ".jpeg")) for p in tree.paths):
        title += " (JPEG copy)"
    facts = dict(title=title, source=source, file_names=tree.names, class_names=class_names)
    interpolation = interpolation or "bilinear"
    if not (side := image_size or info.image_size):
        raise ValueError("image_size is missing: set it, the side in px that all images get")
    small = side <= decoding.SMALL_SIDE
    resize = resize or (side if small else round(side * 232 / 224))
    if resize < side:
        raise ValueError(f"resize = {resize} px is smaller than the crop, image_size = {side} px")
    facts |= {"labels": labels}
    how = dict(resize=resize, image_size=side, interpolation=interpolation)
    images = Images(**facts, paths=tree.paths, **how)
    if not small or np.prod(images.shape) > decoding.SMALL_BYTES:
        return images
    pixels = decoding.decode_all(images, f"{name}-{stored}")
    return Images(**facts, pixels=pixels, contents=images.contents)
