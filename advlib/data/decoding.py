"""Image files: their content, their pixels, and the cache of both."""

import contextlib
import hashlib
import io
import os
import stat
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
import PIL
import torch
from PIL import Image
from tqdm import tqdm

from advlib.data import fetch
from advlib.data.fetch import DataError
from advlib.data.folders import Tree, list_tree, split_folders
from advlib.files import replacing

SMALL_SIDE = 96  # px; up to here images are decoded once and kept in memory …
SMALL_BYTES = 4 * 2**30  # … if all of them together take no more than this
CHUNK = 256  # images a thread reads or decodes at a time
READERS = 8  # threads that read files, which may lie on a network drive
REMEMBERED = 100_000  # files that are read between two writes of the cache
RULE = 1  # to be raised with any change of what `decode` gives

# A hash of a file's place, size and times; a hash of its bytes; its width and height in px.
_CONTENT = np.dtype([("state", "V16"), ("content", "V16"), ("width", "<i4"), ("height", "<i4")])


def decode(
    path: str,
    resize: int,
    image_size: int,
    transform: Callable | None = None,
    interpolation: str = "bilinear",
) -> torch.Tensor:
    """One image file as uint8 (3, image_size, image_size).

    All images are read by this rule. It is that of torchvision's ``ImageFolder``, except for more
    than eight bits a channel, which Pillow clips to white: here the upper eight bits count. Numbers
    of 32 bits and fractions have no known white, so they are refused. As in torchvision,
    transparency is dropped and the colour below it counts, a camera's notes of orientation and
    colour profile are ignored, and the first picture of a file with several counts. Grey, palettes
    and CMYK become RGB as Pillow converts them.

    The short side is resized to `resize` by `interpolation` ("bilinear" or "bicubic", antialiased),
    then the centre is cropped. `transform`, from PIL image to PIL image, takes the place of both.
    Raises `DataError` for a file that is no image, only a part of one, or one of numbers without a
    white.
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
    """Hash, width and height of each image file: a structured array (N,), fields of `_CONTENT`.

    Each file is read once, by threads, and so a damaged one is found before anything is trained.
    What was found is kept in ``data/cache/``, in one file for a folder. A file counts as known
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

    def look(path: str) -> int | tuple | str:
        """Its place among the stored rows, a new row, or what is wrong with it."""
        try:
            state = _state(path, path[len(where) :])
            return known[state] if state in known else (state, *_examined(path))
        except DataError as error:
            return str(error)

    def remember() -> None:
        _write(cache, contents=np.concatenate([stored, found[fresh]]))

    how = dict(total=len(paths), unit=" files", desc="Reading", mininterval=1, delay=2)
    try:
        with ThreadPool(READERS) as pool:
            for i, row in enumerate(tqdm(pool.imap(look, paths, CHUNK), **how)):
                if isinstance(row, str):
                    failed.append(row)
                elif isinstance(row, int):
                    found[i] = stored[row]
                else:
                    found[i] = row
                    fresh.append(i)
                    if not len(fresh) % REMEMBERED:
                        remember()
    finally:
        if fresh:
            remember()
    if failed:
        more = [f"… and {len(failed) - 10:,} more"] if len(failed) > 10 else []
        raise DataError("\n".join(failed[:10] + more))
    return found


def _state(path: str, name: str) -> bytes:
    """A hash of a file's name, size and times: while it is the same, the file is not read again.

    One of the times is that of the last change of any kind, which no `touch` can set back.
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


def decode_all(
    tree: Tree, found: np.ndarray, name: str, resize: int, side: int, interpolation: str
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

    def work(i: int) -> None:
        pixels[i] = decode(tree.paths[i], resize, side, None, interpolation).numpy()

    how = dict(total=len(pixels), unit=" images", desc=f"Decoding {name}", mininterval=1)
    with ThreadPool(min(4, os.cpu_count() or 1)) as pool:
        for _ in tqdm(pool.imap_unordered(work, range(len(pixels)), CHUNK), **how):
            pass
    _write(cache, pixels=pixels, fingerprint=content_fingerprint(pixels, labels))
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


def _stored(cache: Path, read: Callable):
    """``read(arrays)`` of a file in the cache; None if it is missing or damaged."""
    try:
        with open(cache, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            return read({key: arrays[key] for key in arrays.files})
    except FileNotFoundError:
        pass
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        warnings.warn(f"{cache} is damaged ({error}); making it again", stacklevel=3)
    return None


def _write(cache: Path, **arrays) -> None:
    """Save arrays in the cache, whole or not at all. If that fails, they are made again."""
    try:
        with replacing(cache) as partial, open(partial, "wb") as file:
            np.savez(file, **arrays)
    except OSError as error:
        warnings.warn(f"{cache.name} is not cached: {error}", stacklevel=3)
