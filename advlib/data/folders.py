"""Image files in class folders: listing, decoding, and the cache of small decoded images."""

import hashlib
import os
import re
import warnings
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from advlib.data import fetch
from advlib.data.fetch import DataError

ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
SMALL_SIDE = 96  # px; up to here images are decoded once and kept in memory …
SMALL_BYTES = 4 * 2**30  # … if all of them together take no more than this
CHUNK = 256  # images a thread decodes at a time


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
        empty class.
    """
    tests = ["val"] if imagenet else ["test", "val"]
    present = {name: folder / name for name in ["train", *tests] if (folder / name).is_dir()}
    wanted = ["train"] if split == "train" else tests
    here = next((name for name in wanted if name in present), None)
    if here is None:
        raise DataError(
            f"{folder} has no folder {' or '.join(wanted)}: the {split} images belong in "
            f"{folder / wanted[0]}/<class>/."
        )
    classes = _class_folders(present[here])
    if len(classes) < 2 and not imagenet:  # ImageNet has all its classes, whatever is there
        raise DataError(
            f"{present[here]} holds one class, {classes[0]!r}: expected a folder for each of two "
            "classes or more."
        )
    other = next((n for n in present if (n == "train") != (here == "train")), None)
    if other is not None:
        others = _class_folders(present[other])
        for first, second, has, lacks in (
            (here, other, classes, others),
            (other, here, others, classes),
        ):
            for name in sorted(set(has) - set(lacks))[:1]:
                raise DataError(
                    f"{present[second]} has no class folder {name!r}, which {present[first]} has: "
                    "add it, or remove the other."
                )
    paths, names, labels = [], [], []
    for label, class_name in enumerate(classes):
        before = len(paths)
        for where, below, files in os.walk(present[here] / class_name, followlinks=True):
            below.sort()
            for file in sorted(files):
                if file.lower().endswith(ENDINGS) and not file.startswith("."):
                    path = os.path.join(where, file)
                    paths.append(path)
                    relative = Path(path).relative_to(present[here]).as_posix
                    names.append(file if imagenet else relative())
                    labels.append(label)
        if len(paths) == before:
            raise DataError(
                f"the class folder {present[here] / class_name} holds no image "
                f"({' '.join(ENDINGS)}): fill it, or remove the class from every split."
            )
    return Tree(classes, paths, names, labels)


def decode(
    path: str,
    resize: int,
    image_size: int,
    transform: Callable | None = None,
    interpolation: str = "bilinear",
) -> torch.Tensor:
    """One image file as uint8 (3, image_size, image_size).

    The short side is resized to `resize` by `interpolation` ("bilinear" or "bicubic",
    antialiased), then the centre is cropped. `transform`, from PIL image to PIL image, takes the
    place of both. Raises `DataError` for a file that is no image or only a part of one.
    """
    from advlib.data.vision import torchvision

    try:
        with Image.open(path) as file:
            image = file.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(
            f"{path} does not decode as an image ({error}): replace the file by a whole copy."
        ) from error
    if transform is not None:
        image = transform(image)
    elif image.size != (image_size, image_size) or resize != image_size:
        functional = torchvision.transforms.v2.functional
        mode = torchvision.transforms.InterpolationMode(interpolation)
        image = functional.resize(image, [resize], mode, antialias=True)
        image = functional.center_crop(image, [image_size])
    return torch.from_numpy(np.array(image).transpose(2, 0, 1))


def small_side(paths: Sequence[str], image_size: int | None) -> int | None:
    """Side in px at which all images are to be kept in memory; None if they are too large.

    Without an `image_size` it is the first image's short side.
    """
    side = image_size
    if side is None:
        try:
            with Image.open(paths[0]) as file:
                side = min(file.size)
        except OSError as error:
            raise DataError(
                f"{paths[0]} does not decode as an image ({error}): replace the file by a whole "
                "copy."
            ) from error
    small = side <= SMALL_SIDE and 3 * side**2 * len(paths) <= SMALL_BYTES
    return side if small else None


def check_crop(resize: int, image_size: int) -> None:
    """Raise `ValueError` unless the short side is at least as long as the crop."""
    if resize < image_size:
        raise ValueError(
            f"resize = {resize} px is smaller than the crop of image_size = {image_size} px: "
            "choose resize at least as large"
        )


def decode_all(
    tree: Tree, name: str, resize: int, side: int, interpolation: str = "bilinear"
) -> np.ndarray:
    """Every image, uint8 (N, 3, side, side), from ``data/cache/`` where it holds them already.

    The cache is found by the paths, sizes and times of the files, and used if the fingerprint
    kept with the pixels holds; else everything is decoded again.
    """
    how = f"{resize} {side}" + (f" {interpolation}" if interpolation != "bilinear" else "")
    key = hashlib.sha256(how.encode())
    for path, file_name in zip(tree.paths, tree.names, strict=True):
        status = os.stat(path)
        key.update(f"\n{file_name}\t{status.st_size}\t{status.st_mtime_ns}".encode())
    cache = fetch.DATA / "cache" / f"{name}-{key.hexdigest()[:16]}.npz"
    labels = np.asarray(tree.labels, np.int64)
    try:
        with open(cache, "rb") as file, np.load(file, allow_pickle=False) as stored:
            pixels, fingerprint = stored["pixels"], str(stored["fingerprint"])
        if content_fingerprint(pixels, labels) != fingerprint:
            raise ValueError("its fingerprint does not hold")
        return pixels
    except FileNotFoundError:
        pass
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        warnings.warn(f"{cache} is damaged ({error}); decoding again", stacklevel=2)
    pixels = np.empty((len(tree.paths), 3, side, side), np.uint8)

    def work(start: int) -> int:
        chunk = range(start, min(start + CHUNK, len(pixels)))
        for i in chunk:
            pixels[i] = decode(tree.paths[i], resize, side, None, interpolation).numpy()
        return len(chunk)

    bar = tqdm(total=len(pixels), unit=" images", desc=f"Decoding {name}", mininterval=1)
    pool = ThreadPoolExecutor(min(4, os.cpu_count() or 1))
    try:
        for done in pool.map(work, range(0, len(pixels), CHUNK)):
            bar.update(done)
    finally:
        pool.shutdown(cancel_futures=True)
        bar.close()
    try:
        _write(cache, pixels=pixels, fingerprint=content_fingerprint(pixels, labels))
    except OSError as error:
        warnings.warn(f"the decoded images are not cached: {error}", stacklevel=2)
    return pixels


def content_fingerprint(pixels: np.ndarray, labels: np.ndarray) -> str:
    """SHA-256 in hex of shape, pixels (uint8) and labels (int64)."""
    digest = hashlib.sha256(str(tuple(pixels.shape)).encode())
    digest.update(np.ascontiguousarray(pixels))
    digest.update(np.ascontiguousarray(labels, dtype="<i8"))
    return digest.hexdigest()


def listing_fingerprint(names: Sequence[str], paths: Sequence[str], labels: Sequence[int]) -> str:
    """SHA-256 in hex of name, size in bytes and label of each file, in order."""
    digest = hashlib.sha256()
    for name, path, label in zip(names, paths, labels, strict=True):
        digest.update(f"{name}\t{os.path.getsize(path)}\t{label}\n".encode())
    return digest.hexdigest()


def imagenet_labels(tree: Tree, folder: Path) -> tuple[list[str], list[int]]:
    """The 1,000 class names, and each image's class among them.

    The classes are numbered in the order of their WordNet ids. A tree with only some of them is
    numbered by the list of all that the package imagenet-x holds.
    """
    from advlib.data.vision import torchvision

    names = torchvision.models.ResNet50_Weights.DEFAULT.meta["categories"]
    odd = [name for name in tree.classes if not re.fullmatch(r"n\d{8}", name)]
    if odd or len(tree.classes) > len(names):
        raise DataError(
            f"{folder} does not hold ImageNet: expected up to 1,000 class folders named by WordNet "
            f"id, such as n01440764, found {len(tree.classes)}, among them "
            f"{(odd or tree.classes)[0]!r}. For other images use the data set 'folder'."
        )
    if len(tree.classes) == len(names):
        return names, tree.labels
    spec = find_spec("imagenet_x")
    if spec is None:
        raise DataError(
            f"{folder} holds {len(tree.classes)} of ImageNet's 1,000 classes; to number them, "
            "install the list of all: pip install imagenet-x."
        )
    table = Path(spec.submodule_search_locations[0]) / "annotations" / "imagenet_labels.txt"
    number = {line.split(",")[0]: i for i, line in enumerate(table.read_text().splitlines())}
    unknown = [name for name in tree.classes if name not in number]
    if unknown:
        raise DataError(f"{unknown[0]} in {folder} is none of ImageNet's 1,000 classes: remove it.")
    return names, [number[tree.classes[label]] for label in tree.labels]


def _class_folders(folder: Path) -> tuple[str, ...]:
    with os.scandir(folder) as entries:
        found = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
    if not found:
        raise DataError(f"{folder} holds no class folders: expected {folder}/<class>/<image>.")
    return tuple(found)


def _write(path: Path, **arrays) -> None:
    """Save as .npz under a temporary name, then rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(part, "wb") as file:
            np.savez(file, **arrays)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
