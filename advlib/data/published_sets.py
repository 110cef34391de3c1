"""Published sets of corrupted images, as they are distributed: found, checked and matched."""

import os
from collections import Counter
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
from tqdm import tqdm

from advlib.data import fetch
from advlib.data.fetch import DataError
from advlib.metrics import CORRUPTIONS

SEVERITIES = (1, 2, 3, 4, 5)
# The folders as they unpack.
PUBLISHED = {"cifar10": "CIFAR-10-C", "cifar100": "CIFAR-100-C", "imagenet": "ImageNet-C"}
CIFAR_C_SHAPE = (50000, 32, 32, 3)
CIFAR_TEST_IMAGES = 10000
LISTED_PROBLEMS = 20


def locate_published(dataset: str, folder: Path | None = None) -> Path:
    """The folder of a data set's published corruptions.

    Parameters
    ----------
    dataset : str
        A key of `advlib.data.sets.DATASETS`.
    folder : Path, optional
        Where it is said to be; None: the folder of its published name (``CIFAR-10-C``,
        ``CIFAR-100-C``, ``ImageNet-C``) in ``$ADVLIB_DATA`` or in the project's ``data/``.

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


def check_published(images, published: Path) -> str:
    """Raise DataError with all that is wrong with the set, or say how it is read."""
    if not published.is_dir():
        raise DataError(f"the published set {published} is no folder: correct the path.")
    arrays = _holds_arrays(published)
    if problems := (_array_problems if arrays else _tree_problems)(images, published):
        _refuse(published, problems)
    how = f"The published set {published.resolve().name}, read as it is distributed"
    if arrays:
        return f"{how}: images are matched by their position in CIFAR's test file."
    from advlib.data.decoding import opened

    path = _tree_paths(images, published, CORRUPTIONS[0], SEVERITIES[0])[0]
    with opened(path) as file:
        size = file.size
    side = images.shape[-1]
    if size == (side, side):
        return f"{how}: its images have {side} px and are not resized again."
    return f"{how}: the short side is resized once, from {min(size)} px to {side} px."


def published_condition(images, published: Path, corruption: str, severity: int) -> dict:
    """The images of one condition: their ``pixels``, or their ``paths`` and size.

    Parameters
    ----------
    images, published, corruption, severity
        As in `advlib.data.corruptions.corrupted`.

    Raises
    ------
    DataError
        If an image is not there.
    """
    if _holds_arrays(published):
        array = _mapped(published / f"{corruption}.npy", CIFAR_C_SHAPE)
        rows = _rows(severity, _cifar_positions(images, published))
        return {"pixels": np.ascontiguousarray(array[rows].transpose(0, 3, 1, 2))}
    try:
        paths = _tree_paths(images, published, corruption, severity)
    except DataError as error:
        _refuse(published, [str(error)])
    side = images.shape[-1]
    return {"pixels": None, "paths": paths, "resize": side, "image_size": side}


def _holds_arrays(published: Path) -> bool:
    return any((published / f"{name}.npy").exists() for name in ("labels", *CORRUPTIONS))


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
    """Everything wrong with ``<corruption>.npy`` and ``labels.npy``."""
    positions, problems = _cifar_positions(images, published), []
    for corruption in CORRUPTIONS:
        try:
            _mapped(published / f"{corruption}.npy", CIFAR_C_SHAPE)
        except DataError as error:
            problems.append(str(error))
    try:
        labels = _mapped(published / "labels.npy", CIFAR_C_SHAPE[:1])
    except DataError as error:
        return [str(error), *problems]
    clean = images.labels.numpy()
    for severity in SEVERITIES:
        differ = np.flatnonzero(labels[_rows(severity, positions)] != clean)
        if len(differ):
            problems.append(
                f"labels.npy: {len(differ):,} of {len(clean):,} labels of severity {severity} are "
                f"not those of the images, the first of them that of {images.file_names[differ[0]]}"
            )
    return problems


def _cifar_positions(images, published: Path) -> np.ndarray:
    """Each image's row among the first 10,000 of a CIFAR-10-C or CIFAR-100-C array."""
    if images.positions is None:
        raise DataError(
            f"{published} is in the order of CIFAR's original test file, which the images of "
            f"{images.title} do not tell. Use the original cifar-10-batches-py or "
            "cifar-100-python, or set corruptions: generated."
        )
    shape = None if images.pixels is None else tuple(images.pixels.shape[1:])
    positions = images.positions.numpy()
    if shape != (3, 32, 32) or positions.max() >= CIFAR_TEST_IMAGES:
        raise DataError(
            f"{published} holds corruptions of CIFAR's {CIFAR_TEST_IMAGES:,} test images; "
            f"those of {images.title} are others. Set corruptions: generated."
        )
    return positions


def _rows(severity: int, positions: np.ndarray) -> np.ndarray:
    return CIFAR_TEST_IMAGES * (severity - 1) + positions


def _mapped(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """An array of a file, mapped. Raises DataError if it is missing, damaged or another one."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise DataError(f"{path.name}: missing") from error
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"{path.name}: cannot be read ({error})") from error
    if array.shape != shape or (array.ndim > 1 and array.dtype != np.uint8):
        raise DataError(
            f"{path.name}: {array.dtype} of shape {array.shape}, expected uint8 of {shape}"
        )
    return array


def _tree_problems(images, published: Path) -> list[str]:
    """Everything wrong with a tree of corrupted image files."""
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
    how = dict(unit=" conditions", desc="Checking", mininterval=2)

    def problem(condition: tuple[str, int]) -> str | None:
        try:
            _tree_paths(images, published, *condition)
        except DataError as error:
            return str(error)

    with ThreadPool(8) as pool:
        found = tqdm(pool.imap(problem, present), total=len(present), **how)
        return problems + [each for each in found if each is not None]


def _corruption_folder(published: Path, corruption: str) -> Path | None:
    """``<corruption>/``, or ``<group>/<corruption>/`` as ImageNet-C's parts unpack."""
    folders = [published / corruption, *sorted(published.glob(f"*/{corruption}"))]
    return next((folder for folder in folders if folder.is_dir()), None)


def _places(images) -> list[tuple[str | None, str]]:
    """Each image's class folder and base name; None: a name of ImageNet has no folder."""
    parts = (name.split("/") for name in images.file_names)
    return [(folders[0] if folders else None, base) for *folders, base in parts]


def _tree_paths(images, published: Path, corruption: str, severity: int) -> list[str]:
    """The paths of one condition, in the images' order. Raises DataError if it does not fit."""
    folder = _corruption_folder(published, corruption)
    what = f"{corruption} {severity}"
    if folder is None or not (folder / str(severity)).is_dir():
        raise DataError(f"{what}: missing")
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
        raise DataError(f"{what}: none of the {len(names):,} images, such as {names[0]}; {theirs}")
    if absent:
        some = ", ".join(names[i] for i in absent[:3]) + (", …" if len(absent) > 3 else "")
        raise DataError(f"{what}: {len(absent):,} of {len(names):,} images missing: {some}")
    if None in wanted:
        # ImageNet's class folders are unknown here, but each must hold one class, and all of it.
        seen: dict = {}
        for (name, base), label in zip(places, images.labels.tolist(), strict=True):
            for key in (name, label):
                first = seen.setdefault(key, (name, label, base))
                if first[:2] != (name, label):
                    raise DataError(
                        f"{what}: {first[2]} of class {images.class_names[first[1]]!r} lies in "
                        f"{first[0]}, but {base} of class {images.class_names[label]!r} in {name}"
                    )
    return [os.path.join(folder, *place) for place in places]
