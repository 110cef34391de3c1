"""Image files in class folders: which there are, and which class each belongs to.

Importing this loads neither torch nor Pillow: the pipeline lists folders without them.
"""

import os
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from advlib.data.fetch import DataError

ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


@dataclass(frozen=True)
class Tree:
    """One split of a tree of images, in the order of classes and then of paths."""

    classes: tuple[str, ...]
    paths: list[str]
    names: list[str]
    labels: list[int]  # position of the folder in `classes`


def list_tree(folder: Path, split: str, *, imagenet: bool = False) -> Tree:
    """The images below ``folder/train`` or, for "test", ``folder/test`` or ``folder/val``.

    Parameters
    ----------
    folder : Path
    split : {"train", "test"}
    imagenet : bool
        ``val`` is the only test folder, and an image is named by its base name.

    Raises
    ------
    DataError
        For a missing split, fewer than two class folders, a class that only one split has, an
        empty class; for what `walk` refuses; and for image files with another ending than
        those of `ENDINGS`, which torchvision's ``ImageFolder`` reads, too. Any other file is
        left out, with a warning that counts them.
    """
    present = split_folders(folder, imagenet=imagenet)
    if split not in present:
        tests = "val" if imagenet else "test or val"
        wanted = split if split == "train" else tests
        raise DataError(
            f"{folder} has no folder {wanted}: the {split} images belong in "
            f"{folder / wanted.split(' or ')[0]}/<class>/."
        )
    here = present[split]
    if here.name == "test" and (folder / "val").is_dir():
        warnings.warn(f"{folder} holds test and val: the images of test are taken", stacklevel=2)
    classes = _class_folders(here)
    if len(classes) < 2 and not imagenet:  # ImageNet has all its classes, whatever is there
        raise DataError(
            f"{here} holds one class, {classes[0]!r}: expected a folder for each of two classes or "
            "more."
        )
    for other in present.values():
        others = _class_folders(other)
        for name in sorted(set(classes) ^ set(others))[:1]:
            has, lacks = (here, other) if name in classes else (other, here)
            raise DataError(
                f"{lacks} has no class folder {name!r}, which {has} has: add it, or remove the "
                "other."
            )
    paths, names, labels, left_out = [], [], [], []
    real = here.resolve()
    seen = {identity(place): str(place) for place in (real, *real.parents)}
    for label, class_name in enumerate(classes):
        before = len(paths)
        for path in walk(here / class_name, seen):
            if not path.lower().endswith(ENDINGS):
                left_out.append(path)
                continue
            paths.append(path)
            relative = path[len(str(here)) + 1 :].replace(os.sep, "/")
            names.append(os.path.basename(path) if imagenet else relative)
            labels.append(label)
        if len(paths) == before:
            raise DataError(
                f"the class folder {here / class_name} holds no image ({' '.join(ENDINGS)}): fill "
                "it, or remove the class from every split."
            )
    _say_left_out(here, left_out)
    return Tree(classes, paths, names, labels)


def split_folders(folder: Path, *, imagenet: bool = False) -> dict[str, Path]:
    """The folders of "train" and "test" that are there; ``test`` goes before ``val``."""
    tests = ["val"] if imagenet else ["test", "val"]
    places = {"train": ["train"], "test": tests}
    found = {split: [folder / name for name in names] for split, names in places.items()}
    found = {split: [path for path in paths if path.is_dir()] for split, paths in found.items()}
    return {split: paths[0] for split, paths in found.items() if paths}


def _say_left_out(folder: Path, files: list[str]) -> None:
    """Raise DataError for images with another ending, and warn of anything else."""
    from PIL import Image

    with os.scandir(folder) as entries:  # files beside the class folders
        beside = sorted(e.path for e in entries if not e.is_dir() and counts(e))
    readable = {e for e, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    readable |= {".heic", ".heif"}
    images = [path for path in files if os.path.splitext(path)[1].lower() in readable]
    if images:
        raise DataError(
            f"{len(images):,} image files in {folder} have an ending that is not read, such as "
            f"{images[0]}: convert them to one of {' '.join(ENDINGS)} (a .jfif only needs the name "
            ".jpg), or move them away."
        )
    if files := [*files, *beside]:
        kinds = Counter(os.path.splitext(path)[1].lower() or "no ending" for path in files)
        listing = ", ".join(f"{n:,} {ending}" for ending, n in kinds.most_common(5))
        message = f"{len(files):,} files in {folder} are left out, as no images of a class: "
        warnings.warn(f"{message}{listing}; one is {files[0]}", stacklevel=3)


def _class_folders(folder: Path) -> tuple[str, ...]:
    with os.scandir(folder) as entries:
        found = sorted(e.name for e in entries if e.is_dir() and counts(e))
    if not found:
        raise DataError(f"{folder} holds no class folders: expected {folder}/<class>/<image>.")
    return tuple(found)


def counts(entry: os.DirEntry) -> bool:
    """True for a file or folder that is part of a data set: not hidden, no folder of previews.

    Raises `DataError` for a name that is not UTF-8.
    """
    try:
        entry.name.encode()
    except UnicodeEncodeError:
        shown = os.fsencode(entry.path).decode("utf-8", "backslashreplace")
        raise DataError(
            f"the name of {shown} is not UTF-8: rename it, as convmv does for whole folders."
        ) from None
    previews = ("__MACOSX", "@eaDir")  # of macOS, of Synology
    return not entry.name.startswith(".") and entry.name not in previews


def identity(folder: str | Path) -> tuple[int, int]:
    """Two paths with the same identity lead to one folder, whatever links they take."""
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def walk(folder: str | Path, seen: dict[tuple[int, int], str]) -> Iterator[str]:
    """The paths of all files below a folder that count, sorted; links are followed.

    `seen` maps the identity of each folder met so far to its path, and is extended.

    Raises
    ------
    DataError
        For a folder that is met twice (a link to one above itself, or a folder of two classes), one
        that cannot be read, and a name that is not UTF-8.
    """
    folder = str(folder)
    try:
        first = seen.setdefault(identity(folder), folder)
        if first is not folder:
            raise DataError(
                f"{folder} is the same folder as {first}, by a link: each image counts once, so "
                "remove the link."
            )
        with os.scandir(folder) as entries:
            found = sorted((e.name, e.is_dir()) for e in entries if counts(e))
    except OSError as error:
        raise DataError(
            f"{folder} cannot be read ({error.strerror}): allow it, or move the folder away."
        ) from error
    yield from (os.path.join(folder, name) for name, is_folder in found if not is_folder)
    for name in (name for name, is_folder in found if is_folder):
        yield from walk(os.path.join(folder, name), seen)


def imagenet_labels(tree: Tree, folder: Path) -> tuple[list[str], list[int]]:
    """The 1,000 class names, and each image's class among them.

    The classes are numbered in the order of their WordNet ids. A tree with only some of them is
    numbered by the list of all that the package imagenet-x holds.

    Raises
    ------
    DataError
        For folders that are not ImageNet's classes, and for an image in another class's folder. A
        training image's name begins with its class. Validation images are looked up in the package
        imagenet-x, where it is installed.
    """
    from advlib.data import annotations
    from advlib.data.vision import torchvision

    names = torchvision.models.ResNet50_Weights.DEFAULT.meta["categories"]
    odd = [name for name in tree.classes if not re.fullmatch(r"n\d{8}", name)]
    if odd or len(tree.classes) > len(names):
        raise DataError(
            f"{folder} does not hold ImageNet: expected up to 1,000 class folders named by WordNet "
            f"id, such as n01440764, found {len(tree.classes)}, among them "
            f"{(odd or tree.classes)[0]!r}. For other images use the data set 'folder'."
        )
    try:
        known = annotations.imagenet_classes().wnid.tolist()
    except ModuleNotFoundError as error:
        if len(tree.classes) < len(names):
            raise DataError(
                f"{folder} holds {len(tree.classes)} of ImageNet's 1,000 classes; to number them, "
                "install the list of all: pip install imagenet-x."
            ) from error
        known, truth = list(tree.classes), {}
    else:
        truth = annotations.imagenet_labels().map(dict(enumerate(known))).to_dict()
    number = {wnid: i for i, wnid in enumerate(known)}
    if unknown := [name for name in tree.classes if name not in number]:
        raise DataError(f"{unknown[0]} in {folder} is none of ImageNet's 1,000 classes: remove it.")
    wrong = []
    for name, path, own in zip(tree.names, tree.paths, tree.labels, strict=True):
        stem, true = os.path.splitext(name)[0], None
        if re.match(r"n\d{8}_", stem):
            true = stem[:9]
        elif truth and stem.startswith("ILSVRC2012_val_"):
            true = truth.get(f"{stem}.JPEG", "no class")
        if true not in (None, tree.classes[own]):
            wrong.append((path, true))
    if wrong:
        raise DataError(
            f"{len(wrong):,} of {len(tree.names):,} images in {folder} lie in another class's "
            f"folder: {wrong[0][0]} belongs to {wrong[0][1]}. Sort them again."
        )
    return names, [number[tree.classes[label]] for label in tree.labels]
