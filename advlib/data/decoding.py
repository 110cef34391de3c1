"""Image files: their content, their pixels, and the cache of both."""

import hashlib
import io
import os
import warnings
import zipfile
from collections.abc import Callable, Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
import PIL
import torch
from PIL import Image
from tqdm import tqdm

from advlib.data import fetch
from advlib.data.fetch import DataError
from advlib.files import replacing

SMALL_SIDE = 96  # px; up to here images are decoded once and kept in memory …
SMALL_BYTES = 4 * 2**30  # … if all of them together take no more than this
CHUNK = 256  # images a thread reads or decodes at a time
READERS = 8  # threads that read files, which may lie on a network drive
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

    All images are read by this rule, which is that of torchvision's ``ImageFolder``: transparency
    is dropped and the colour below it counts, a camera's notes of orientation and colour profile
    are ignored, and the first picture of a file with several counts. Grey, palettes and CMYK become
    RGB as Pillow converts them. Grey images of more than eight bits, which it would clip to white,
    are refused.

    The short side is resized to `resize` by `interpolation` ("bilinear" or "bicubic", antialiased),
    then the centre is cropped. `transform`, from PIL image to PIL image, takes the place of both.
    Raises `DataError` for a file that is no image, only a part of one, or of more than eight bits.
    """
    from advlib.data.vision import torchvision

    image = _opened(path)
    if transform is not None:
        image = transform(image)
    elif image.size != (image_size, image_size) or resize != image_size:
        functional = torchvision.transforms.v2.functional
        mode = torchvision.transforms.InterpolationMode(interpolation)
        image = functional.resize(image, [resize], mode, antialias=True)
        image = functional.center_crop(image, [image_size])
    return torch.from_numpy(np.array(image).transpose(2, 0, 1))


def _opened(path: str, content: bytes | None = None) -> Image.Image:
    """An image file as RGB. With its `content`, one that ends as it should is not decoded."""
    try:
        with Image.open(path if content is None else io.BytesIO(content)) as file:
            if file.mode[0] in "IF":
                raise ValueError(f"its pixels are of kind {file.mode}: save it with 8 bits")
            end = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}.get(file.format)
            # Some cameras add a few bytes.
            return file if content and end and end in content[-32:] else file.convert("RGB")
    except Exception as error:  # on damaged files Pillow's readers raise errors of any kind
        raise DataError(
            f"{path} does not decode as an image ({error}): replace it by a whole copy of 8 bits."
        ) from error


def contents(paths: Sequence[str]) -> np.ndarray:
    """Hash, width and height of each image file: a structured array (N,), fields of `_CONTENT`.

    Each file is read once, by threads, and so a damaged one is found before anything is trained.
    What was found is kept in ``data/cache/``, in one file for a folder. A file counts as known
    while its path, size and times are the same. DataError names ten of the files that cannot be
    read, are no image, or only a part of one.
    """
    where = os.path.commonpath([min(paths), max(paths)])
    key = hashlib.sha256(os.fsencode(os.path.abspath(where))).hexdigest()[:16]
    cache = fetch.DATA / "cache" / f"contents-{key}.npz"
    stored = _stored(cache, "contents")
    known = {} if stored is None else {row[0]: row for row in stored.tolist()}
    rows: list[tuple | str] = []

    def look(path: str) -> tuple | str:
        """The row of a file, or what is wrong with it."""
        try:
            # The last of these times, that of any change, can be set back by no `touch`.
            status = os.stat(path)
            facts = f"{RULE} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} "
            name = os.fsencode(facts + path[len(where) :])
            state = hashlib.blake2b(name, digest_size=16).digest()
            if state in known:
                return known[state]
            content = Path(path).read_bytes()
            size = _opened(path, content).size
            return state, hashlib.blake2b(content, digest_size=16).digest(), *size
        except (OSError, DataError) as error:
            return str(error)

    how = dict(total=len(paths), unit=" files", desc="Reading", mininterval=1, delay=2)
    try:
        with ThreadPool(READERS) as pool:
            for row in tqdm(pool.imap(look, paths, CHUNK), **how):
                rows.append(row)
    finally:  # what is read is remembered, also if the rest is not
        fresh = {row[0]: row for row in rows if not isinstance(row, str)}
        if fresh.keys() - known.keys():
            _write(cache, contents=np.array([*(known | fresh).values()], _CONTENT))
    if failed := [row for row in rows if isinstance(row, str)]:
        more = [f"… and {len(failed) - 10:,} more"] if len(failed) > 10 else []
        raise DataError("\n".join(failed[:10] + more))
    return np.array(rows, _CONTENT)


def decode_all(images, name: str) -> np.ndarray:
    """The pixels of images in files, from ``data/cache/`` where it holds them already.

    The cache is found by the content of the files and by how they are decoded.
    """
    how = f"{images.resize} {images.image_size} {images.interpolation} {RULE}"
    key = hashlib.sha256(f"{how} Pillow {PIL.__version__} {images.fingerprint}".encode())
    cache = fetch.DATA / "cache" / f"{name}-{key.hexdigest()[:16]}.npz"
    pixels = _stored(cache, "pixels")
    if pixels is None:
        pixels = np.empty(images.shape, np.uint8)
        decode_into(pixels, images.decode, f"Decoding {name}")
        _write(cache, pixels=pixels)
    return pixels


def decode_into(pixels: np.ndarray, decode: Callable[[int], torch.Tensor], what: str) -> None:
    """Fill ``pixels[i]`` with ``decode(i)``, in threads."""

    def work(i: int) -> None:
        pixels[i] = decode(i).numpy()

    how = dict(total=len(pixels), unit=" images", desc=what, mininterval=1)
    with ThreadPool(min(4, os.cpu_count() or 1)) as pool:
        for _ in tqdm(pool.imap_unordered(work, range(len(pixels)), 16), **how):
            pass


def _stored(cache: Path, name: str) -> np.ndarray | None:
    """An array in the cache; None if it is missing, or damaged by the file's own checksums."""
    try:
        with open(cache, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            return arrays[name]
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
