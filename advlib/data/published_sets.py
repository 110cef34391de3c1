"""Published sets of corrupted images, as they are distributed: found, checked and matched."""

import os
from pathlib import Path

import numpy as np
from tqdm import tqdm

from advlib.data import fetch
from advlib.data.fetch import DataError
from advlib.metrics import CORRUPTIONS

SEVERITIES = (1, 2, 3, 4, 5)
CONDITIONS = [(corruption, severity) for corruption in CORRUPTIONS for severity in SEVERITIES]
# The folders as they unpack.
PUBLISHED = {"cifar10": "CIFAR-10-C", "cifar100": "CIFAR-100-C", "imagenet": "ImageNet-C"}
CIFAR_TEST_IMAGES = 10000
LISTED_PROBLEMS = 20


def locate_published(dataset: str, folder: Path | None = None) -> Path:
    """The folder of a data set's published corruptions; DataError if it is not there.

    Unless `folder` says where it is, it is looked for under its name in `PUBLISHED`, in
    ``$ADVLIB_DATA`` and in `advlib.data.fetch.DATA`.
    """
    places = [] if folder is None else [folder]
    if folder is None and dataset in PUBLISHED:
        bases = filter(None, [os.environ.get("ADVLIB_DATA"), fetch.DATA])
        places = [Path(base).expanduser().absolute() / PUBLISHED[dataset] for base in bases]
    if found := next((place for place in places if place.is_dir()), None):
        return found
    raise DataError(
        f"no published set of corruptions of {dataset} was found"
        + "".join(f"; {place} is no folder" for place in places)
        + ": name its folder as corruptions_dir, or set corruptions: generated."
    )


def check_published(images, published: Path) -> None:
    """Raise DataError, with all that is wrong, unless the set has these images in 75 conditions."""
    problems = []
    for condition in tqdm(CONDITIONS, unit=" conditions", desc="Checking", mininterval=2, delay=2):
        try:
            published_condition(images, published, *condition)
        except DataError as error:
            problems.append(f"{' '.join(map(str, condition))}: {error}")
    if problems:
        more = len(problems) - LISTED_PROBLEMS
        lines = problems[:LISTED_PROBLEMS] + ([f"… and {more} more"] if more > 0 else [])
        raise DataError(
            f"the published set {published} does not fit these images:"
            + "".join(f"\n  - {line}" for line in lines)
            + "\nUnpack what is missing again (ImageNet-C: https://zenodo.org/records/2235448, "
            "Tiny-ImageNet-C: 2536630, CIFAR-10-C: 2535967), correct corruptions_dir, or set "
            "corruptions: generated."
        )


def published_condition(images, published: Path, corruption: str, severity: int) -> dict:
    """The images of one condition: their ``pixels``, or their ``paths`` and size.

    Raises DataError if an image is not there, or another one than it should be.
    """
    if (published / "labels.npy").is_file():
        return {"pixels": _from_arrays(images, published, corruption, severity)}
    side = images.shape[-1]
    paths = _from_tree(images, published, corruption, severity)
    return {"pixels": None, "paths": paths, "resize": side, "image_size": side}


def _from_arrays(images, published: Path, corruption: str, severity: int) -> np.ndarray:
    """The pixels in ``<corruption>.npy``, which has the order of CIFAR's test file."""
    if images.positions is None or images.shape[1:] != (3, 32, 32):
        raise DataError(
            f"the set has the order of CIFAR's original test file, which the images of "
            f"{images.title} do not tell: take cifar-10-batches-py or cifar-100-python"
        )
    try:
        array, labels = (
            np.load(published / f"{name}.npy", mmap_mode="r", allow_pickle=False)
            for name in (corruption, "labels")
        )
        rows = CIFAR_TEST_IMAGES * (severity - 1) + images.positions.numpy()
        if array.shape != (5 * CIFAR_TEST_IMAGES, 32, 32, 3) or array.dtype != np.uint8:
            raise ValueError(f"{corruption}.npy: {array.dtype} of shape {array.shape}")
        odd = np.flatnonzero(labels[rows] != images.labels.numpy())
    except (OSError, EOFError, ValueError, IndexError) as error:
        raise DataError(str(error)) from error
    if len(odd):
        raise DataError(
            f"labels.npy: {len(odd):,} of {len(rows):,} labels are not those of the images, the "
            f"first of them that of {images.file_names[odd[0]]}"
        )
    return np.ascontiguousarray(array[rows].transpose(0, 3, 1, 2))


def _from_tree(images, published: Path, corruption: str, severity: int) -> list[str]:
    """The paths below ``<corruption>/<severity>/<class>/``, matched by class and base name.

    A group of corruptions may lie above, as ImageNet-C's parts unpack. ImageNet's names hold no
    class.
    """
    places = [published / corruption, *sorted(published.glob(f"*/{corruption}"))]
    folder = next((p for p in places if p.is_dir()), published / corruption) / str(severity)
    if not folder.is_dir():
        raise DataError(
            f"missing; expected {folder}/<class>/<file>, or {corruption}.npy and labels.npy"
        )
    present = {}
    for class_folder in sorted(folder.iterdir()):
        for name in os.listdir(class_folder) if class_folder.is_dir() else ():
            path = os.path.join(class_folder, name)
            present[class_folder.name, name] = present[None, name] = path
    parts = [name.split("/") for name in images.file_names]
    paths = [present.get((p[0] if len(p) > 1 else None, p[-1])) for p in parts]
    if absent := [n for n, path in zip(images.file_names, paths, strict=True) if path is None]:
        theirs = next(iter(present.values()), "none at all")
        raise DataError(
            f"{len(absent):,} of {len(paths):,} images missing, such as {absent[0]}; there is "
            f"{theirs}"
        )
    return paths
