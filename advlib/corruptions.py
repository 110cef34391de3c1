"""The 15 corruptions at 5 severities of ImageNet-C, for any data set: published or generated.

Importing this module loads no torch: the processes that corrupt images import it.
"""

import copy
import functools
import hashlib
import importlib.metadata
import json
import multiprocessing
import os
import re
import shutil
import signal
import threading
import types
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from advlib import fetch
from advlib.fetch import DataError
from advlib.files import file_hash, replacing
from advlib.metrics import CORRUPTIONS

SEVERITIES = (1, 2, 3, 4, 5)
LIBRARY = "imagecorruptions-imaug"
LIBRARY_SIDE = 32  # px, the smallest image that the library takes
RECIPE = 1  # to be raised with any change of what is generated
PUBLISHED = {"cifar10": "CIFAR-10-C", "imagenet": "ImageNet-C"}  # as they unpack
CIFAR10_C_SHAPE = (50000, 32, 32, 3)
CIFAR10_TEST_IMAGES = 10000
CHUNK_PIXELS = 2**18  # of all the images that a process corrupts at a time
LISTED_PROBLEMS = 20

_Condition = tuple[str, int]
_CONDITIONS = [(corruption, severity) for corruption in CORRUPTIONS for severity in SEVERITIES]


def prepare(images, *, published: Path | None = None, processes: int | None = None) -> dict:
    """Make sure that all 75 conditions of these images can be read.

    A published set is compared with the images, file by file. Without one, what is not in
    ``data/cache/`` yet is generated there; each finished condition is kept if this is interrupted.

    Parameters
    ----------
    images : advlib.data.Images
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
        and version) or None, ``folder`` (the published set's name) or None, ``n_images``.

    Raises
    ------
    DataError
        If the published set lacks an image or does not fit, listing all that is wrong; if the
        library is not installed; or if the disk is too full.
    """
    facts = {"library": None, "folder": None, "n_images": len(images)}
    if published is not None:
        published = Path(published)
        recipe = _check_published(images, published)
        name = published.resolve().name
        return facts | {"source": "published", "recipe": recipe, "folder": name}
    _generate(images, processes or os.cpu_count() or 1)
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
    advlib.data.Images
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
        published = Path(published)
        source = f"the published set {published.resolve().name}"
        if _holds_arrays(published):
            array = _cifar10_c_array(published / f"{corruption}.npy")
            rows = _first_row(severity) + _cifar10_positions(images, published)
            found = {"pixels": np.ascontiguousarray(array[rows].transpose(0, 3, 1, 2))}
        else:
            paths, problem = _tree_paths(images, published, (corruption, severity))
            if problem is not None:
                _refuse(published, [problem])
            side = _side(images)
            found = {"pixels": None, "paths": paths, "resize": side, "image_size": side}
    return _like(images, source=f"{images.source}; {corruption} {severity} of {source}", **found)


def locate_published(dataset: str, folder: Path | None = None) -> Path:
    """The folder of a data set's published corruptions.

    Parameters
    ----------
    dataset : str
        A key of `advlib.data.DATASETS`.
    folder : Path, optional
        Where it is said to be; None: ``CIFAR-10-C`` or ``ImageNet-C`` in ``$ADVLIB_DATA`` or in
        the project's ``data/``.

    Raises
    ------
    DataError
        If it is not there.
    """
    if folder is not None:
        folder = Path(folder).expanduser()
        if not folder.is_dir():
            raise DataError(f"corruptions_dir {folder} is no folder: correct the path.")
        return folder
    name = PUBLISHED.get(dataset)
    if name is None:
        raise DataError(
            f"no place is known for a published set of corruptions of {dataset}: name its folder "
            "as corruptions_dir, or set corruptions: generated."
        )
    bases = [Path(os.environ["ADVLIB_DATA"])] if os.environ.get("ADVLIB_DATA") else []
    places = [base.expanduser().absolute() / name for base in (*bases, fetch.DATA)]
    for place in places:
        if place.is_dir():
            return place
    raise DataError(
        f"{name} was not found: {' and '.join(map(str, places))} is no folder. Put it there, name "
        "its folder as corruptions_dir, or set corruptions: generated."
    )


def _like(images, **changes):
    """A copy of `images` with other attributes."""
    import torch

    if changes.get("pixels") is not None:
        changes["pixels"] = torch.as_tensor(changes["pixels"])
    new = copy.copy(images)
    vars(new).pop("fingerprint", None)  # cached, and of the clean images
    vars(new).update(changes)
    return new


def _side(images) -> int:
    return images.image_size if images.pixels is None else images.pixels.shape[-1]


# --- published sets -----------------------------------------------------------------------------


def _holds_arrays(published: Path) -> bool:
    return any((published / f"{name}.npy").exists() for name in ("labels", *CORRUPTIONS))


def _check_published(images, published: Path) -> str:
    """Raise DataError with all that is wrong with the set, or say how it is read."""
    if not published.is_dir():
        raise DataError(f"the published set {published} is no folder: correct the path.")
    if _holds_arrays(published):
        problems = _array_problems(images, published)
    else:
        problems = _tree_problems(images, published)
    if problems:
        _refuse(published, problems)
    how = f"The published set {published.resolve().name}, read as it is distributed"
    if _holds_arrays(published):
        return f"{how}: images are matched by their position in CIFAR-10's test file."
    from PIL import Image

    path = _tree_paths(images, published, _CONDITIONS[0])[0][0]
    try:
        with Image.open(path) as file:
            size = file.size
    except OSError as error:
        raise DataError(
            f"{path} does not decode as an image ({error}): replace the file by a whole copy."
        ) from error
    side = _side(images)
    if size == (side, side):
        return f"{how}: its images have {side} px and are not resized again."
    return f"{how}: the short side is resized once, from {min(size)} px to {side} px."


def _refuse(published: Path, problems: list[str]) -> None:
    more = len(problems) - LISTED_PROBLEMS
    lines = problems[:LISTED_PROBLEMS] + ([f"… and {more} more"] if more > 0 else [])
    raise DataError(
        f"the published set {published} does not fit these images:"
        + "".join(f"\n  - {line}" for line in lines)
        + "\nUnpack what is missing again (ImageNet-C: https://zenodo.org/records/2235448, "
        "Tiny-ImageNet-C: 2536630, CIFAR-10-C: 2535967), correct corruptions_dir, or set "
        "corruptions: generated."
    )


def _array_problems(images, published: Path) -> list[str]:
    """What is wrong with ``<corruption>.npy`` and ``labels.npy``."""
    positions, problems = _cifar10_positions(images, published), []
    try:
        labels = np.load(published / "labels.npy", mmap_mode="r", allow_pickle=False)
        if labels.shape != CIFAR10_C_SHAPE[:1]:
            problems.append(f"labels.npy: shape {labels.shape}, expected {CIFAR10_C_SHAPE[:1]}")
        else:
            clean = images.labels.numpy()
            for severity in SEVERITIES:
                differ = np.flatnonzero(labels[_first_row(severity) + positions] != clean)
                if len(differ):
                    problems.append(
                        f"labels.npy: {len(differ):,} of {len(clean):,} labels of severity "
                        f"{severity} are not those of the images, the first of them that of "
                        f"{images.file_names[differ[0]]}"
                    )
    except (OSError, EOFError, ValueError) as error:
        problems.append(f"labels.npy: {_reason(error)}")
    for corruption in CORRUPTIONS:
        try:
            _cifar10_c_array(published / f"{corruption}.npy")
        except DataError as error:
            problems.append(str(error))
    return problems


def _cifar10_positions(images, published: Path) -> np.ndarray:
    """Each image's row among the first 10,000 of a CIFAR-10-C array."""
    found = [re.fullmatch(r"test-(\d+)", name) for name in images.file_names]
    if None in found:
        raise DataError(
            f"{published} is in the order of CIFAR-10's original test file, which the images of "
            f"{images.title} do not tell: one is called {images.file_names[found.index(None)]}, "
            "where test-00012 is wanted. Use the original cifar-10-batches-py, or set "
            "corruptions: generated."
        )
    shape = None if images.pixels is None else tuple(images.pixels.shape[1:])
    positions = np.array([int(match[1]) for match in found])
    if shape != (3, 32, 32) or positions.max() >= CIFAR10_TEST_IMAGES:
        raise DataError(
            f"{published} holds corruptions of CIFAR-10's {CIFAR10_TEST_IMAGES:,} test images; "
            f"those of {images.title} are others. Set corruptions: generated."
        )
    return positions


def _first_row(severity: int) -> int:
    return CIFAR10_TEST_IMAGES * (severity - 1)


def _cifar10_c_array(path: Path) -> np.ndarray:
    """A corruption's file, mapped. Raises DataError if it is not what it should be."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"{path.name}: {_reason(error)}") from error
    if array.shape != CIFAR10_C_SHAPE or array.dtype != np.uint8:
        raise DataError(
            f"{path.name}: {array.dtype} of shape {array.shape}, expected uint8 of "
            f"{CIFAR10_C_SHAPE}"
        )
    return array


def _reason(error: Exception) -> str:
    return "missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error})"


def _tree_problems(images, published: Path) -> list[str]:
    """What is wrong with a tree of corrupted image files."""
    problems, present = [], []
    for corruption in CORRUPTIONS:
        folder = _corruption_folder(published, corruption)
        if folder is None:
            problems.append(f"{corruption}: missing")
            continue
        absent = [str(s) for s in SEVERITIES if not (folder / str(s)).is_dir()]
        if absent:
            problems.append(f"{corruption}: severity {', '.join(absent)} missing")
        present += [(corruption, s) for s in SEVERITIES if str(s) not in absent]
    if not present:
        return [
            "it holds none of the 15 corruptions: expected <corruption>/<severity>/<class>/<file>, "
            "or <corruption>.npy with labels.npy"
        ]
    places = _places(images)
    if len(set(places)) < len(places):
        twice = Counter(places).most_common(1)[0][0]
        problems.append(f"two of the images to match are called {'/'.join(filter(None, twice))}")
    # Millions of names in folders that may lie on a network drive: waiting is shared by threads.
    bar = tqdm(total=len(present), unit=" conditions", desc="Checking", mininterval=2)
    with bar, ThreadPoolExecutor(8) as pool:
        for _, problem in pool.map(functools.partial(_tree_paths, images, published), present):
            if problem is not None:
                problems.append(problem)
            bar.update()
    return problems


def _corruption_folder(published: Path, corruption: str) -> Path | None:
    """``<corruption>/``, or ``<group>/<corruption>/`` as ImageNet-C's parts unpack."""
    folders = [published / corruption, *sorted(published.glob(f"*/{corruption}"))]
    return next((folder for folder in folders if folder.is_dir()), None)


def _places(images) -> list[tuple[str | None, str]]:
    """Each image's class folder and base name; None: a name of ImageNet has no folder."""
    parts = (name.split("/") for name in images.file_names)
    return [(folders[0] if folders else None, base) for *folders, base in parts]


def _tree_paths(images, published: Path, condition: _Condition) -> tuple[list[str], str | None]:
    """The paths of one condition in the images' order, and what is wrong with them or None."""
    corruption, severity = condition
    folder = _corruption_folder(published, corruption)
    what = f"{corruption} {severity}"
    if folder is None or not (folder / str(severity)).is_dir():
        return [], f"{what}: missing"
    folder = folder / str(severity)
    places = _places(images)
    wanted = {place[0] for place in places}
    with os.scandir(folder) as entries:
        classes = [e.name for e in entries if e.is_dir() and (None in wanted or e.name in wanted)]
    present = {(name, file) for name in classes for file in os.listdir(folder / name)}
    if None in wanted:
        owner = {file: name for name, file in present}
        places = [(owner.get(base), base) for _, base in places]
    absent = [i for i, place in enumerate(places) if place not in present]
    names = images.file_names
    if len(absent) == len(names):
        theirs = f"one there is called {'/'.join(min(present))}" if present else "it is empty"
        return [], f"{what}: none of the {len(names):,} images, such as {names[0]}; {theirs}"
    if absent:
        some = ", ".join(names[i] for i in absent[:3]) + (", …" if len(absent) > 3 else "")
        return [], f"{what}: {len(absent):,} of {len(names):,} images missing: {some}"
    if None in wanted:
        # ImageNet's class folders are unknown here, but each must hold one class, and all of it.
        seen: dict = {}
        for (name, base), label in zip(places, images.labels.tolist(), strict=True):
            for key in (name, label):
                first = seen.setdefault(key, (name, label, base))
                if first[:2] != (name, label):
                    return [], (
                        f"{what}: {first[2]} of class {images.class_names[first[1]]!r} lies in "
                        f"{first[0]}, but {base} of class {images.class_names[label]!r} in {name}"
                    )
    return [os.path.join(folder, *place) for place in places], None


# --- generated sets -----------------------------------------------------------------------------


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
        key += [images.resize, images.interpolation]
    digest = hashlib.sha256(json.dumps([*key, images.file_names]).encode()).hexdigest()
    return fetch.DATA / "cache" / f"corruptions-{digest[:16]}"


def _file(folder: Path, corruption: str, severity: int) -> Path:
    return folder / f"{corruption}-{severity}.npy"


def _read_generated(images, corruption: str, severity: int) -> np.ndarray:
    path = _file(_cache(images), corruption, severity)
    again = "call advlib.corruptions.prepare, which makes what is missing or damaged"
    try:
        # Copy on write: torch warns of arrays that it could not write to.
        pixels = np.load(path, mmap_mode="c", allow_pickle=False)
    except FileNotFoundError as error:
        raise DataError(
            f"{corruption} {severity} of {images.title} has not been generated: {again}."
        ) from error
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"{path} is damaged ({error}): {again}.") from error
    if pixels.shape != _shape(images) or pixels.dtype != np.uint8:
        raise DataError(f"{path} holds something else: {again}.")
    return pixels


def _generate(images, processes: int) -> None:
    import filelock

    folder = _cache(images)
    folder.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(folder / "lock"):  # another process at the same: wait, then find it done
        todo = [c for c in _CONDITIONS if not _intact(_file(folder, *c))]
        if not todo:
            return
        shape = _shape(images)
        chunk = max(1, CHUNK_PIXELS // max(shape[2] * shape[3], LIBRARY_SIDE**2))
        _check_space(folder, (len(todo) + (images.pixels is None)) * int(np.prod(shape)))
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


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
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
    from advlib.batches import stream_seed

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
        expected = _checksum(path).read_text()
        if file_hash(path) == expected:
            return True
    except FileNotFoundError:
        return False
    warnings.warn(f"{path} is damaged (its checksum does not hold); making it again", stacklevel=2)
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
