"""Image files in class folders: listing, content, decoding, and the cache of small images."""

import contextlib
import hashlib
import io
import os
import re
import stat
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import PIL
import torch
from PIL import Image
from tqdm import tqdm

from advlib.data import fetch
from advlib.data.fetch import DataError
from advlib.files import replacing

ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
SMALL_SIDE = 96  # px; up to here images are decoded once and kept in memory …
SMALL_BYTES = 4 * 2**30  # … if all of them together take no more than this
CHUNK = 256  # images a thread reads or decodes at a time
READERS = 8  # threads that read files, which may lie on a network drive
REMEMBERED = 100_000  # files that are read before what they hold is written down
RULE = 1  # to be raised with any change of what `decode` gives

# What a file is: its place, size and times; what it holds; its width and height in px.
_CONTENT = np.dtype([("state", "V16"), ("content", "V16"), ("width", "<i4"), ("height", "<i4")])


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
        empty class; for what `advlib.data.fetch.walk` refuses; and for image files with another
        ending than those of `ENDINGS`, which torchvision's ``ImageFolder`` reads, too. Any other
        file is left out, with a warning that counts them.
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
    seen = {fetch.identity(place): str(place) for place in (real, *real.parents)}
    for label, class_name in enumerate(classes):
        before = len(paths)
        for path in fetch.walk(here / class_name, seen):
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
    with os.scandir(folder) as entries:  # files beside the class folders
        beside = sorted(e.path for e in entries if not e.is_dir() and fetch.counts(e))
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
        counts = Counter(os.path.splitext(path)[1].lower() or "no ending" for path in files)
        listing = ", ".join(f"{n:,} {ending}" for ending, n in counts.most_common(5))
        message = f"{len(files):,} files in {folder} are left out, as no images of a class: "
        warnings.warn(f"{message}{listing}; one is {files[0]}", stacklevel=3)


def decode(
    path: str,
    resize: int,
    image_size: int,
    transform: Callable | None = None,
    interpolation: str = "bilinear",
) -> torch.Tensor:
    """One image file as uint8 (3, image_size, image_size).

    This is the one rule by which an image is read, whoever reads it. It is that of torchvision's
    ``ImageFolder``, but for numbers of more than eight bits, which Pillow clips to white:

    * Of an image with more than eight bits a channel, the upper eight count. Whole numbers of 32
      bits and fractions have no known white, so they are refused.
    * Transparency is dropped: the colour below it counts, whatever a viewer shows.
    * The orientation and the colour profile that a camera noted are ignored: pixels count in the
      order in which they are stored.
    * Of a file with several pictures the first one counts.

    Grey, palettes and CMYK become RGB as Pillow converts them. The short side is resized to
    `resize` by `interpolation` ("bilinear" or "bicubic", antialiased), then the centre is cropped.
    `transform`, from PIL image to PIL image, takes the place of both. Raises `DataError` for a
    file that is no image, only a part of one, or one of numbers without a white.
    """
    from advlib.data.vision import torchvision

    with opened(path) as file:
        image = _rgb(file)
    if transform is not None:
        image = transform(image)
    elif image.size != (image_size, image_size) or resize != image_size:
        functional = torchvision.transforms.v2.functional
        mode = torchvision.transforms.InterpolationMode(interpolation)
        image = functional.resize(image, [resize], mode, antialias=True)
        image = functional.center_crop(image, [image_size])
    return torch.from_numpy(np.array(image).transpose(2, 0, 1))


@contextlib.contextmanager
def opened(path: str | Path, content: bytes | None = None) -> Iterator[Image.Image]:
    """An image file, open; whatever goes wrong with it becomes a `DataError` that names it."""
    try:
        with Image.open(path if content is None else io.BytesIO(content)) as file:
            yield file
    except DataError as error:
        raise DataError(f"{path} {error}") from None
    except Image.DecompressionBombError as error:
        raise DataError(f"{path} is too large ({error}): replace it by a smaller copy.") from error
    except Exception as error:  # on damaged files Pillow's readers raise errors of any kind
        unknown = isinstance(error, PIL.UnidentifiedImageError)
        raise DataError(
            f"{path} does not decode as an image ({'unknown format' if unknown else error}): "
            "replace the file by a whole copy."
        ) from error


def _rgb(file: Image.Image) -> Image.Image:
    _check_numbers(file)
    if not file.mode.startswith("I"):
        return file.convert("RGB")
    tags = file.tag_v2 if file.format == "TIFF" else {}
    bits = tags.get(258, (16,))[0]
    values = np.asarray(file)
    if tags.get(262) == 0:  # white is zero
        values = 2**bits - 1 - values
    return Image.fromarray((values >> (bits - 8)).astype(np.uint8)).convert("RGB")


def _check_numbers(file: Image.Image) -> None:
    # Pillow gives the 16 bits of PGM, and long gave those of PNG, as 32.
    if file.mode == "F" or (file.mode == "I" and file.format not in ("PNG", "PPM")):
        kind = "fractions" if file.mode == "F" else "whole numbers of 32 bits or with a sign"
        raise DataError(
            f"holds {kind}, whose white is not known: save it with 8 or 16 bits a channel."
        )


def contents(paths: Sequence[str]) -> np.ndarray:
    """What each image file is, by its bytes: a structured array (N,) with the fields of `_CONTENT`.

    Each file is read once, by threads, and so a damaged one is found before anything is trained.
    What was found is remembered in ``data/cache/``, one file for a folder; a file counts as known
    while its path, size and times are the same. Without that cache, reading takes time again.

    Raises
    ------
    DataError
        For files that cannot be read, are no image, or only a part of one; it names ten of them.
    """
    where = os.path.commonpath([min(paths), max(paths)])
    key = hashlib.sha256(os.fsencode(os.path.abspath(where))).hexdigest()[:16]
    cache = fetch.DATA / "cache" / f"contents-{key}.npz"
    stored = _stored(cache, lambda arrays: arrays["contents"])
    stored = np.empty(0, _CONTENT) if stored is None or stored.dtype != _CONTENT else stored
    known = {state: i for i, state in enumerate(stored["state"].tolist())}
    found, fresh, failed = np.empty(len(paths), _CONTENT), [], []

    def work(start: int) -> tuple[slice, np.ndarray, list, list]:
        chunk = paths[start : start + CHUNK]
        rows, new, errors = np.empty(len(chunk), _CONTENT), [], []
        for i, path in enumerate(chunk):
            try:
                state = _state(path, path[len(where) :])
                if state in known:
                    rows[i] = stored[known[state]]
                else:
                    rows[i] = (state, *_examined(path))
                    new.append(i)
            except DataError as error:
                errors.append(str(error))
        return slice(start, start + len(chunk)), rows, rows[new], errors

    def remember() -> None:
        try:
            _write(cache, contents=np.concatenate([stored, *fresh]))
        except OSError as error:
            warnings.warn(f"what the files hold is not cached: {error}", stacklevel=3)

    bar = tqdm(total=len(paths), unit=" files", desc="Reading", mininterval=1, delay=2)
    pool = ThreadPoolExecutor(READERS)
    unsaved = 0
    try:
        for place, rows, new, errors in pool.map(work, range(0, len(paths), CHUNK)):
            found[place] = rows
            fresh.append(new)
            failed += errors
            bar.update(len(rows))
            unsaved += len(new)
            if unsaved > REMEMBERED:
                remember()
                unsaved = 0
    finally:
        pool.shutdown(cancel_futures=True)
        bar.close()
        if unsaved:
            remember()
    if failed:
        more = [f"… and {len(failed) - 10:,} more"] if len(failed) > 10 else []
        raise DataError("\n".join(failed[:10] + more))
    return found


def _state(path: str, name: str) -> bytes:
    """All that tells without reading a file whether it is the one that was read.

    The time of its last change of any kind is among it, which copies and `touch` cannot set back.
    """
    try:
        status = os.stat(path)
    except OSError as error:
        link = f", a link to {os.readlink(path)}," if os.path.islink(path) else ""
        raise DataError(
            f"{path}{link} cannot be read ({error.strerror}): put the image there, or remove it."
        ) from error
    if not stat.S_ISREG(status.st_mode):
        raise DataError(f"{path} is no file: put the image there, or remove it.")
    facts = f"{RULE} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} {name}"
    return hashlib.blake2b(os.fsencode(facts), digest_size=16).digest()


def _examined(path: str) -> tuple[bytes, int, int]:
    """A hash of a file's bytes, and its width and height; refuses what will not decode.

    A JPEG or PNG that ends as it should is taken as whole; any other file is decoded.
    """
    try:
        with open(path, "rb") as file:
            content = file.read()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): allow it.") from error
    with opened(path, content) as image:
        _check_numbers(image)
        end = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}.get(image.format)
        if end is None or end not in content[-32:]:  # some cameras add a few bytes
            _rgb(image)
        return hashlib.blake2b(content, digest_size=16).digest(), *image.size


def common_side(folder: Path, split: str, tree: Tree) -> int | None:
    """Short side in px of all images of a folder, of every split; None: all exceed `SMALL_SIDE`.

    `tree` is the split that has been listed already.

    Raises
    ------
    DataError
        If they differ and some are small: which size is meant, a study has to say.
    """
    found = []
    for name in split_folders(folder):
        paths = (tree if name == split else list_tree(folder, name)).paths
        rows = contents(paths)
        sides = np.minimum(rows["width"], rows["height"])
        for i in (sides.argmin(), sides.argmax()):
            size = f"{rows['width'][i]} × {rows['height'][i]} px ({paths[i]})"
            found.append((int(sides[i]), size))
    smallest, largest = min(found), max(found)
    if smallest[0] > SMALL_SIDE:
        return None
    if smallest[0] < largest[0]:
        raise DataError(
            f"the images of {folder} differ in size, from {smallest[1]} to {largest[1]}: set "
            "image_size in the study file, the side in px that all of them get."
        )
    return smallest[0]


def check_crop(resize: int, image_size: int) -> None:
    """Raise `ValueError` unless the short side is at least as long as the crop."""
    if resize < image_size:
        raise ValueError(
            f"resize = {resize} px is smaller than the crop of image_size = {image_size} px: "
            "choose resize at least as large"
        )


def decode_all(
    tree: Tree,
    found: np.ndarray,
    name: str,
    resize: int,
    side: int,
    interpolation: str = "bilinear",
) -> np.ndarray:
    """Every image, uint8 (N, 3, side, side), from ``data/cache/`` where it holds them already.

    The cache is found by the content of the files, `found`, and by how they are decoded. It is
    used if the fingerprint kept with the pixels holds; else everything is decoded again.
    """
    how = f"{resize} {side} {interpolation} {RULE} Pillow {PIL.__version__}"
    key = hashlib.sha256(f"{how} {listing_fingerprint(tree.names, found, tree.labels)}".encode())
    cache = fetch.DATA / "cache" / f"{name}-{key.hexdigest()[:16]}.npz"
    labels = np.asarray(tree.labels, np.int64)

    def checked(arrays) -> np.ndarray:
        if content_fingerprint(arrays["pixels"], labels) != str(arrays["fingerprint"]):
            raise ValueError("its fingerprint does not hold")
        return arrays["pixels"]

    pixels = _stored(cache, checked)
    if pixels is not None:
        return pixels
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


def listing_fingerprint(names: Sequence[str], found: np.ndarray, labels: Sequence[int]) -> str:
    """SHA-256 in hex of name, content (as `contents` finds it) and label of each file, in order."""
    digest = hashlib.sha256()
    for name, content, label in zip(names, found["content"].tolist(), labels, strict=True):
        digest.update(f"{name}\t{content.hex()}\t{label}\n".encode())
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


def check_imagenet_labels(tree: Tree, folder: Path, labels: Sequence[int]) -> None:
    """Raise `DataError` for images of ImageNet that lie in another class's folder.

    A training image's name begins with its class. Those of the validation images are numbers; the
    list of their classes is the package imagenet-x's.
    """
    from advlib.data import annotations

    truth, wrong = None, []
    for name, label, path, own in zip(tree.names, labels, tree.paths, tree.labels, strict=True):
        stem = os.path.splitext(name)[0]
        if re.match(r"n\d{8}_", stem) and stem[:9] != tree.classes[own]:
            wrong.append((path, stem[:9]))
        elif stem.startswith("ILSVRC2012_val_") and find_spec("imagenet_x") is not None:
            if truth is None:
                truth = annotations.imagenet_labels().to_dict()
                folders = annotations.imagenet_classes().wnid
            true = truth.get(f"{stem}.JPEG")
            if true != label:
                wrong.append((path, "no class" if true is None else folders[true]))
    if wrong:
        raise DataError(
            f"{len(wrong):,} of {len(tree.names):,} images in {folder} lie in another class's "
            f"folder: {wrong[0][0]} belongs to {wrong[0][1]}. Sort them again."
        )


def _class_folders(folder: Path) -> tuple[str, ...]:
    with os.scandir(folder) as entries:
        found = sorted(e.name for e in entries if e.is_dir() and fetch.counts(e))
    if not found:
        raise DataError(f"{folder} holds no class folders: expected {folder}/<class>/<image>.")
    return tuple(found)


def _stored(cache: Path, read: Callable):
    """What `read` makes of the arrays of a file in the cache; None if it is missing or damaged."""
    try:
        with open(cache, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            return read({key: arrays[key] for key in arrays.files})
    except FileNotFoundError:
        pass
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        warnings.warn(f"{cache} is damaged ({error}); making it again", stacklevel=3)
    return None


def _write(path: Path, **arrays) -> None:
    """Save as .npz, whole or not at all."""
    with replacing(path) as partial, open(partial, "wb") as file:
        np.savez(file, **arrays)
