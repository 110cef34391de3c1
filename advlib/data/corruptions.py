"""The 15 corruptions at 5 severities of ImageNet-C, for any data set: published or generated."""

import dataclasses
import hashlib
import importlib.metadata
import json
import multiprocessing
import os
import shutil
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
from tqdm import tqdm

from advlib.data import corrupting, fetch
from advlib.data.fetch import DataError
from advlib.data.published_sets import SEVERITIES, check_published, published_condition
from advlib.files import file_hash, replacing, usable_cores
from advlib.metrics import CORRUPTIONS

LIBRARY = "imagecorruptions-imaug"
RECIPE = 1  # to be raised with any change of what is generated
DECODED_AT_ONCE = 256  # images that are decoded before they are written
CHUNK_PIXELS = 2**18  # of all the images that a process corrupts at a time

_Condition = tuple[str, int]
_CONDITIONS = [(corruption, severity) for corruption in CORRUPTIONS for severity in SEVERITIES]


def prepare(images, *, published: Path | None = None, processes: int | None = None) -> dict:
    """Make sure that all 75 conditions of these images can be read.

    A published set is compared with the images, file by file. Without one, what is missing from
    ``data/cache/`` is generated there; an interruption keeps each finished condition.

    Parameters
    ----------
    images : advlib.data.sets.Images
        The clean images, or some of them.
    published : Path, optional
        ImageNet-C or Tiny-ImageNet-C as they unpack, ``<corruption>/<severity>/<class>/<file>``,
        with or without a folder for each group of corruptions above it; or CIFAR-10-C,
        ``<corruption>.npy`` and ``labels.npy``. Any other data set in one of these forms will do.
    processes : int, optional
        How many processes generate; None: one for each core.

    Returns
    -------
    dict
        ``source`` ("published" or "generated"), ``recipe`` (how, in sentences), ``library`` (name
        and version) or None, ``folder`` (the published set's name) or None, ``n_images``; for a
        published set also ``content``, SHA-256 in hex of what it holds for these images.

    Raises
    ------
    DataError
        If the published set lacks an image or does not fit, listing all that is wrong; or as
        `check_generated`.
    """
    facts = {"library": None, "folder": None, "n_images": len(images)}
    if published is not None:
        published = Path(published)
        facts |= {"source": "published", "recipe": check_published(images, published)}
        content = _published_content(images, published)
        return facts | {"folder": published.resolve().name, "content": content}
    _generate(images, processes or usable_cores())
    return facts | {"source": "generated", "recipe": _recipe(images), "library": _library_name()}


def corrupted(images, corruption: str, severity: int, *, published: Path | None = None):
    """The images under one condition, after `prepare`.

    Parameters
    ----------
    images, published
        As in `prepare`.
    corruption, severity : str, int
        One of `CORRUPTIONS`, and 1 to 5.

    Returns
    -------
    advlib.data.sets.Images
        In the same order, with the same names, labels and title. Files of a published set are
        decoded when asked for, without a resize where they have the images' size.

    Raises
    ------
    ValueError
        For an unknown corruption or severity.
    DataError
        If the condition has not been generated, or the published set lacks an image.
    """
    if corruption not in CORRUPTIONS or severity not in SEVERITIES:
        raise ValueError(
            f"there is no corruption {corruption!r} of severity {severity!r}: choose one of "
            f"{', '.join(CORRUPTIONS)}, and a severity from 1 to 5"
        )
    if published is None:
        source, found = _library_name(), {"pixels": _read_generated(images, corruption, severity)}
    else:
        source = f"the published set {Path(published).resolve().name}"
        found = published_condition(images, Path(published), corruption, severity)
    source = f"{images.source}; {corruption} {severity} of {source}"
    return dataclasses.replace(images, source=source, contents=None, **found)


def _published_content(images, published: Path) -> str:
    """SHA-256 in hex of all 75 conditions; reading them also finds files that are damaged."""
    digest = hashlib.sha256()
    for condition in tqdm(_CONDITIONS, unit=" conditions", desc="Reading", mininterval=2, delay=2):
        found = corrupted(images, *condition, published=published)
        digest.update(found.fingerprint.encode())
    return digest.hexdigest()


def _library_name() -> str:
    try:
        return f"{LIBRARY} {importlib.metadata.version(LIBRARY)}"
    except importlib.metadata.PackageNotFoundError as error:
        raise DataError(
            f"{LIBRARY}, which generates corrupted images, is not installed: run `make setup` in "
            "the project folder, or name a published set."
        ) from error


def _recipe(images) -> str:
    _, channels, height, width = images.shape
    text = (
        f"Generated by {_library_name()}, each image with random numbers seeded by its file name, "
        "the corruption and the severity."
    )
    if (height, width) != (224, 224):
        text += f" The severities were made for images of 224 px; these have {width} px."
    if min(height, width) < corrupting.SIDE // 2:
        factor = corrupting.enlargement(height, width)
        text += (
            f" They are enlarged {factor} times by repeating pixels, corrupted, and one pixel of "
            f"each {factor} × {factor} is kept; pixelate then leaves them unchanged at most "
            "severities."
        )
    elif min(height, width) < corrupting.SIDE:
        text += f" They are extended to {corrupting.SIDE} px by reflection and cut back afterwards."
    if channels == 1:
        text += (
            " A grey image enters as three equal channels and the green one is kept; an average "
            "would weaken the noise, which is drawn for each channel."
        )
    return text


def _cache(images) -> Path:
    """The folder of everything generated for these images; their names are the seeds."""
    key = [RECIPE, _library_name(), images.fingerprint, images.shape]
    if images.pixels is None:
        key += [images.resize, images.interpolation, importlib.metadata.version("pillow")]
    digest = hashlib.sha256(json.dumps([*key, images.file_names]).encode()).hexdigest()
    return fetch.DATA / "cache" / f"corruptions-{digest[:16]}"


def _file(folder: Path, corruption: str, severity: int) -> Path:
    return folder / f"{corruption}-{severity}.npy"


def _read_generated(images, corruption: str, severity: int) -> np.ndarray:
    path = _file(_cache(images), corruption, severity)
    try:
        # Copy on write: torch warns of arrays that it could not write to.
        pixels = np.load(path, mmap_mode="c", allow_pickle=False)
        if pixels.shape != images.shape or pixels.dtype != np.uint8:
            raise ValueError("it holds something else")
        return pixels
    except (OSError, EOFError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read as {corruption} {severity} of {images.title} ({error}): call "
            "advlib.data.corruptions.prepare, which makes what is missing or damaged."
        ) from error


def _generate(images, processes: int) -> None:
    import filelock

    folder = _cache(images)
    folder.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(folder / "lock"):  # wait for another process, then find its work
        todo = [c for c in _CONDITIONS if not _intact(_file(folder, *c))]
        if not todo:
            return
        check_generated(images)
        shape = images.shape
        chunk = max(1, CHUNK_PIXELS // max(shape[2] * shape[3], corrupting.SIDE**2))
        clean = _clean_pixels(images, folder)
        pool = ProcessPoolExecutor(
            min(processes, len(todo) * -(-len(images) // chunk)),
            # Not "fork": torch and tqdm have threads, which a forked process lacks.
            multiprocessing.get_context("spawn"),
            initializer=corrupting.start_worker,
        )
        done = _corrupted_blocks(pool, images, clean, todo, chunk, 4 * processes)
        starts = range(0, len(images), chunk)
        bar = tqdm(total=len(todo) * len(images), unit=" images", desc="Corrupting", mininterval=2)
        try:
            for condition in todo:
                _write(_file(folder, *condition), shape, (next(done) for _ in starts), bar)
        finally:
            pool.shutdown(cancel_futures=True)
            bar.close()
        for path in folder.glob("clean.*"):
            path.unlink()


def check_generated(images) -> None:
    """Raise `DataError` if images are to be generated without the library, or the room for them."""
    folder = _cache(images)
    folder.mkdir(parents=True, exist_ok=True)
    missing = sum(not _file(folder, *c).with_suffix(".sha256").is_file() for c in _CONDITIONS)
    if not missing:
        return
    try:
        corrupting.library()  # here, where an error can be read, before the processes start
    except ImportError as error:
        raise DataError(
            f"{LIBRARY} cannot be loaded ({error}). Does OpenCV lack libGL? Then `apt-get install "
            "libgl1 libglib2.0-0`, or `pip install --force-reinstall opencv-python-headless`."
        ) from error
    needed = (missing + (images.pixels is None)) * int(np.prod(images.shape))
    if needed > (free := shutil.disk_usage(folder).free):
        raise DataError(
            f"the corrupted images take {needed / 1e9:.1f} GB, and {folder.parent} has "
            f"{free / 1e9:.1f} GB free: make room, make that folder a link to one on a larger "
            "disk, choose fewer corruption_images, or name a published set."
        )


def _clean_pixels(images, folder: Path) -> np.ndarray:
    """The images as an array. Files are decoded once for all conditions, into ``clean.npy``."""
    if images.pixels is not None:
        return images.pixels.numpy()
    path = folder / "clean.npy"
    if not _intact(path):

        def blocks(pool) -> Iterator[np.ndarray]:
            for start in range(0, len(images), DECODED_AT_ONCE):
                here = range(start, min(start + DECODED_AT_ONCE, len(images)))
                yield np.stack(pool.map(lambda i: images.decode(i).numpy(), here))

        bar = tqdm(total=len(images), unit=" images", desc="Decoding", mininterval=2)
        with bar, ThreadPool(min(4, os.cpu_count() or 1)) as pool:
            _write(path, images.shape, blocks(pool), bar)
    return np.load(path, mmap_mode="r", allow_pickle=False)


def _corrupted_blocks(
    pool: Executor, images, clean: np.ndarray, todo: list[_Condition], chunk: int, ahead: int
) -> Iterator[np.ndarray]:
    """Corrupted images, condition by condition. At most `ahead` blocks wait in memory."""
    from advlib.data.batches import stream_seed

    waiting: deque = deque()
    for condition in todo:
        for start in range(0, len(images), chunk):
            names = images.file_names[start : start + chunk]
            seeds = [stream_seed(name, *condition) % 2**32 for name in names]
            pixels = np.ascontiguousarray(clean[start : start + chunk])
            waiting.append(pool.submit(corrupting.corrupt, pixels, *condition, seeds))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _write(path: Path, shape: tuple[int, ...], blocks: Iterable[np.ndarray], bar: tqdm) -> None:
    """Write blocks of images as one array, then its checksum, which says that it is finished."""
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    with replacing(path) as partial:
        with open(partial, "wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            for block in blocks:
                file.write(np.ascontiguousarray(block))
                bar.update(len(block))
    with replacing(path.with_suffix(".sha256")) as partial:
        partial.write_text(file_hash(path))


def _intact(path: Path) -> bool:
    """True if a file of the cache is finished; warns of one that has changed since."""
    try:
        if file_hash(path) == path.with_suffix(".sha256").read_text():
            return True
    except FileNotFoundError:
        return False
    warnings.warn(f"{path} is damaged (its checksum does not hold); making it again", stacklevel=2)
    path.with_suffix(".sha256").unlink()
    return False
