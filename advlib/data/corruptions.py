"""The 15 corruptions at 5 severities of ImageNet-C, for any data set: published or generated.

Importing this module loads no torch: the processes that corrupt images import it.
"""

import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import multiprocessing
import os
import shutil
import signal
import threading
import types
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from advlib.data import fetch
from advlib.data.fetch import DataError
from advlib.data.published_sets import (
    SEVERITIES,
    check_published,
    published_condition,
)
from advlib.files import file_hash, replacing, usable_cores
from advlib.metrics import CORRUPTIONS

LIBRARY = "imagecorruptions-imaug"
LIBRARY_SIDE = 32  # px, the smallest image that the library takes
RECIPE = 1  # to be raised with any change of what is generated
CHUNK_PIXELS = 2**18  # of all the images that a process corrupts at a time

__all__ = ["CORRUPTIONS", "SEVERITIES", "check_generated", "corrupted", "prepare"]

_Condition = tuple[str, int]
_CONDITIONS = [(corruption, severity) for corruption in CORRUPTIONS for severity in SEVERITIES]


def prepare(images, *, published: Path | None = None, processes: int | None = None) -> dict:
    """Make sure that all 75 conditions of these images can be read.

    A published set is compared with the images, file by file. Without one, what is not in
    ``data/cache/`` yet is generated there; each finished condition is kept if this is interrupted.

    Parameters
    ----------
    images : advlib.data.sets.Images
        The clean images, or some of them.
    published : Path, optional
        ImageNet-C or Tiny-ImageNet-C as they unpack, ``<corruption>/<severity>/<class>/<file>``,
        with or without a folder for each group of corruptions above it; or CIFAR-10-C,
        ``<corruption>.npy`` and ``labels.npy``. Any other data set in one of these forms will do.
    processes : int, optional
        That generate; None: one for each core.

    Returns
    -------
    dict
        ``source`` ("published" or "generated"), ``recipe`` (how, in sentences), ``library`` (name
        and version) or None, ``folder`` (the published set's name) or None, ``n_images``; and of
        a published set ``content``, SHA-256 in hex of what it holds for these images.

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
        facts |= {"folder": published.resolve().name}
        return facts | {"content": _published_content(images, published)}
    _generate(images, processes or usable_cores())
    return facts | {"source": "generated", "recipe": _recipe(images), "library": _library_name()}


def corrupted(images, corruption: str, severity: int, *, published: Path | None = None):
    """The images under one condition, after `prepare`.

    Parameters
    ----------
    images, published
        As in `prepare`.
    corruption : str
        One of `CORRUPTIONS`.
    severity : int
        1 to 5.

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


def _shape(images) -> tuple[int, ...]:
    if images.pixels is not None:
        return tuple(images.pixels.shape)
    return len(images), 3, images.image_size, images.image_size


def _recipe(images) -> str:
    _, channels, height, width = _shape(images)
    text = (
        f"Generated by {_library_name()}, each image with random numbers seeded by its file name, "
        "the corruption and the severity."
    )
    if (height, width) != (224, 224):
        text += f" The severities were made for images of 224 px; these have {width} px."
    if min(height, width) < LIBRARY_SIDE // 2:
        factor = _enlargement(height, width)
        text += (
            f" They are enlarged {factor} times by repeating pixels, corrupted, and one pixel of "
            f"each {factor} × {factor} is kept; pixelate then leaves them unchanged at most "
            "severities."
        )
    elif min(height, width) < LIBRARY_SIDE:
        text += f" They are extended to {LIBRARY_SIDE} px by reflection and cut back afterwards."
    if channels == 1:
        text += (
            " A grey image enters as three equal channels and the green one is kept; an average "
            "would weaken the noise, which is drawn for each channel."
        )
    return text


def _cache(images) -> Path:
    """The folder of everything generated for these images; their names are the seeds."""
    key = [RECIPE, _library_name(), images.fingerprint, _shape(images)]
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
        if pixels.shape != _shape(images) or pixels.dtype != np.uint8:
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
    with filelock.FileLock(folder / "lock"):  # another process at the same: wait, then find it done
        todo = [c for c in _CONDITIONS if not _intact(_file(folder, *c))]
        if not todo:
            return
        check_generated(images)
        shape = _shape(images)
        chunk = max(1, CHUNK_PIXELS // max(shape[2] * shape[3], LIBRARY_SIDE**2))
        clean = _clean_pixels(images, folder, chunk)
        pool = ProcessPoolExecutor(
            min(processes, len(todo) * -(-len(images) // chunk)),
            # Not "fork": torch and tqdm have threads, which a forked process lacks.
            multiprocessing.get_context("spawn"),
            initializer=_start_worker,
        )
        done = _in_order(pool, _corrupt, _pieces(images, clean, todo, chunk), 4 * processes)
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
    missing = sum(not _checksum(_file(folder, *c)).is_file() for c in _CONDITIONS)
    if not missing:
        return
    try:
        _library()  # here, where an error can be read, before the processes start
    except ImportError as error:
        raise DataError(
            f"{LIBRARY} cannot be loaded ({error}). Does OpenCV lack libGL? Then `apt-get install "
            "libgl1 libglib2.0-0`, or `pip install --force-reinstall opencv-python-headless`."
        ) from error
    needed = (missing + (images.pixels is None)) * int(np.prod(_shape(images)))
    if needed > (free := shutil.disk_usage(folder).free):
        raise DataError(
            f"the corrupted images take {needed / 1e9:.1f} GB, and {folder.parent} has "
            f"{free / 1e9:.1f} GB free: make room, make that folder a link to one on a larger "
            "disk, choose fewer corruption_images, or name a published set."
        )


def _clean_pixels(images, folder: Path, chunk: int) -> np.ndarray:
    """The images as an array; files are decoded once, into ``clean.npy``, not once a condition."""
    if images.pixels is not None:
        return images.pixels.numpy()
    path = folder / "clean.npy"
    if not _intact(path):

        def decode(start: int) -> np.ndarray:
            here = range(start, min(start + chunk, len(images)))
            return np.stack([images.decode(i).numpy() for i in here])

        bar = tqdm(total=len(images), unit=" images", desc="Decoding", mininterval=2)
        pool = ThreadPoolExecutor(min(4, os.cpu_count() or 1))
        try:
            starts = ((start,) for start in range(0, len(images), chunk))
            _write(path, _shape(images), _in_order(pool, decode, starts, 16), bar)
        finally:
            pool.shutdown(cancel_futures=True)
            bar.close()
    return np.load(path, mmap_mode="r", allow_pickle=False)


def _pieces(images, clean: np.ndarray, todo: list[_Condition], chunk: int) -> Iterator[tuple]:
    """The arguments of `_corrupt`, condition by condition."""
    from advlib.data.batches import stream_seed

    for condition in todo:
        for start in range(0, len(images), chunk):
            names = images.file_names[start : start + chunk]
            seeds = [stream_seed(name, *condition) % 2**32 for name in names]
            yield np.ascontiguousarray(clean[start : start + chunk]), *condition, seeds


def _in_order(
    pool: Executor, function: Callable, tasks: Iterable[tuple], ahead: int
) -> Iterator[np.ndarray]:
    """Results in the order of the tasks, few of which wait in memory at a time."""
    waiting: deque = deque()
    for task in tasks:
        waiting.append(pool.submit(function, *task))
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
    with replacing(_checksum(path)) as partial:
        partial.write_text(file_hash(path))


def _checksum(path: Path) -> Path:
    return path.with_suffix(".sha256")


def _intact(path: Path) -> bool:
    """Whether a file of the cache is finished; warns of one that has changed since."""
    try:
        if file_hash(path) == _checksum(path).read_text():
            return True
    except FileNotFoundError:
        return False
    warnings.warn(f"{path} is damaged (its checksum does not hold); making it again", stacklevel=2)
    _checksum(path).unlink()
    return False


# --- in the processes that corrupt --------------------------------------------------------------


def _start_worker() -> None:
    import cv2

    cv2.setNumThreads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is for the parent to handle

    def end_with_parent():
        # A killed parent closes no queue: its processes would wait for work for ever.
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


@functools.cache
def _library():
    """The module of the corruption functions."""
    import cv2
    from imagecorruptions import corruptions

    # `frost` reads one of six pictures from disk for every image, half of all the time at 32 px.
    corruptions.cv2 = types.SimpleNamespace(**vars(cv2) | {"imread": functools.cache(cv2.imread)})
    return corruptions


def _corrupt(pixels: np.ndarray, corruption: str, severity: int, seeds: list[int]) -> np.ndarray:
    """Corrupt images uint8 (N, C, H, W), each by random numbers of its own."""
    from PIL import Image

    function = getattr(_library(), corruption)
    result = np.empty_like(pixels)
    for i, seed in enumerate(seeds):
        # Most functions draw from NumPy's global generator; two have one of their own.
        np.random.seed(seed)
        own = {"seed": seed} if corruption in ("impulse_noise", "glass_blur") else {}
        image, back = _fit(pixels[i].transpose(1, 2, 0))
        changed = np.uint8(function(Image.fromarray(image), severity, **own))
        result[i] = back(changed).transpose(2, 0, 1)
    return result


def _enlargement(height: int, width: int) -> int:
    return -(-LIBRARY_SIDE // min(height, width))


def _fit(image: np.ndarray) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
    """An image (H, W, C) as the library takes it, RGB of 32 px or more, and the way back."""
    height, width, channels = image.shape
    kept = slice(1, 2) if channels == 1 else slice(None)  # of three equal ones, the green
    rgb = np.repeat(image, 3 // channels, axis=2)
    if min(height, width) < LIBRARY_SIDE // 2:
        factor = _enlargement(height, width)
        inside = slice(factor // 2, None, factor)
        return (
            rgb.repeat(factor, 0).repeat(factor, 1),
            lambda changed: changed[inside, inside, kept],
        )
    before = [max(0, LIBRARY_SIDE - side) // 2 for side in (height, width)]
    after = [max(0, LIBRARY_SIDE - side + 1) // 2 for side in (height, width)]
    if any(after):
        rgb = np.pad(rgb, (*zip(before, after, strict=True), (0, 0)), mode="reflect")
    top, left = before
    return (
        np.ascontiguousarray(rgb),
        lambda changed: changed[top : top + height, left : left + width, kept],
    )
