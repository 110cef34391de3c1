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

    Files with other endings than `ENDINGS` are left out, with a warning that counts them. Of
    ImageNet, ``val`` is the only test folder, and an image is named by its base name. Raises
    DataError for a missing split, fewer than two class folders, a class that only one split has, an
    empty class, or a link to a folder above itself; OSError for a folder that cannot be read.
    """
    places = {"val": "test", "test": "test", "train": "train"}  # test goes before val
    if imagenet:
        del places["test"]
    present = {split: folder / name for name, split in places.items() if (folder / name).is_dir()}
    if split not in present:
        wanted = split if split == "train" else "val" if imagenet else "test or val"
        raise DataError(
            f"{folder} has no folder {wanted}: the {split} images belong in "
            f"{folder / wanted.split(' or ')[0]}/<class>/."
        )
    here = present[split]
    if here.name == "test" and (folder / "val").is_dir():
        warnings.warn(f"{folder} holds test and val: the images of test are taken", stacklevel=2)
    classes = _class_folders(here)
    if len(classes) < 2 and not imagenet:  # ImageNet has all its classes, whatever is there
        raise DataError(f"{here} holds {len(classes)} class folders: expected two or more.")
    for other in present.values():
        if odd := sorted(set(classes) ^ set(_class_folders(other))):
            raise DataError(
                f"{here} and {other} hold different class folders, such as {odd[0]!r}: add it to "
                "one, or remove it from the other."
            )
    paths, labels, left_out = [], [], Counter()
    for label, class_name in enumerate(classes):
        files = list(walk(here / class_name))
        found = [path for path in files if path.lower().endswith(ENDINGS)]
        left_out.update(Path(p).suffix for p in files if not p.lower().endswith(ENDINGS))
        if not found:
            raise DataError(
                f"the class folder {here / class_name} holds no image ({' '.join(ENDINGS)}): fill "
                "it, or remove the class from every split."
            )
        paths += found
        labels += [label] * len(found)
    if left_out:
        listing = ", ".join(
            f"{n:,} {ending or 'no ending'}" for ending, n in left_out.most_common()
        )
        said = f"files in {here} are left out, since only {' '.join(ENDINGS)} are read: {listing}"
        warnings.warn(said, stacklevel=2)
    relative = [path[len(str(here)) + 1 :].replace(os.sep, "/") for path in paths]
    names = [os.path.basename(path) for path in paths] if imagenet else relative
    return Tree(classes, paths, names, labels)


def _class_folders(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(p.name for p in folder.iterdir() if p.is_dir() and _counts(p.name)))


def _counts(name: str) -> bool:
    """False for what is hidden, and for folders of previews of macOS and Synology."""
    return not name.startswith(".") and name not in ("__MACOSX", "@eaDir")


def walk(folder: str | Path) -> Iterator[str]:
    """The paths of all files below a folder, sorted, without those that are hidden."""

    def stop(error: OSError):
        raise error

    for place, folders, files in os.walk(folder, onerror=stop, followlinks=True):
        here = Path(place)
        if here.is_symlink() and here.parent.resolve().is_relative_to(here.resolve()):
            raise DataError(f"{place} is a link to a folder above itself: remove it.")
        folders[:] = sorted(filter(_counts, folders))
        yield from (os.path.join(place, name) for name in sorted(filter(_counts, files)))


def imagenet_labels(tree: Tree, folder: Path) -> tuple[list[str], list[int]]:
    """The 1,000 class names, and each image's class among them.

    The classes are numbered in the order of their WordNet ids. A tree with only some of them is
    numbered by the list of all that the package imagenet-x holds, or ModuleNotFoundError is raised.
    DataError for folders that are not ImageNet's classes, and for validation images in another
    class's folder, if that package is there to tell.
    """
    from advlib.data import annotations
    from advlib.data.vision import torchvision

    names = torchvision.models.ResNet50_Weights.DEFAULT.meta["categories"]
    odd = [name for name in tree.classes if not re.fullmatch(r"n\d{8}", name)]
    try:
        known, truth = annotations.imagenet_classes().wnid.tolist(), annotations.imagenet_labels()
    except ModuleNotFoundError:
        if not odd and len(tree.classes) != len(names):
            raise
        known, truth = list(tree.classes), None
    if odd := [*odd, *sorted(set(tree.classes) - set(known))]:
        raise DataError(
            f"{folder} does not hold ImageNet: expected class folders named by WordNet id, such "
            f"as n01440764, found {odd[0]!r}. For other images use the data set 'folder'."
        )
    number = {wnid: i for i, wnid in enumerate(known)}
    labels = [number[tree.classes[label]] for label in tree.labels]
    if truth is not None:
        true = truth.reindex(tree.names)
        wrong = (true.notna() & (true != labels)).to_numpy()
        if wrong.any():
            i = int(wrong.argmax())
            raise DataError(
                f"{wrong.sum():,} of {len(labels):,} images in {folder} lie in another class's "
                f"folder: {tree.paths[i]} belongs to {known[int(true.iloc[i])]}. Sort them again."
            )
    return names, labels
