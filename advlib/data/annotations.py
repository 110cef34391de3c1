"""Facts about an image beside its label: annotated factors, label sets, measured factors.

ImageNet's annotations are read from the installed package imagenet-x (Idrissi et al., 2022; data
under CC BY-NC 4.0, ReaL labels by Beyer et al., 2020). They are never copied into this project.
Data sets without annotations have factors that are measured from the pixels.
"""

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.json

IMAGENET_X_FACTORS = tuple(
    """pose background pattern color smaller shape partial_view subcategory texture larger darker
    object_blocking person_blocking style brighter multiple_objects""".split()
)
# The groups of classes that imagenet-x tells apart. All others are "other".
METACLASSES = tuple(
    """device dog commodity bird structure covering wheeled_vehicle food equipment insect vehicle
    furniture primate vessel snake natural_object""".split()
)
MEASURES = tuple(
    "brightness contrast texture red_green yellow_blue area off_centre border_contact".split()
)
SHARE = 0.1  # of each class's images, that have a measured factor
BACKGROUND_TOLERANCE = 16  # grey levels of 255 by which a pixel may differ from the background


def imagenet_x(which: str = "top", filter_prototypes: bool = True) -> pd.DataFrame:
    """ImageNet-X: the factors of variation that people saw in ImageNet's validation images.

    ``"top"``: the one factor that stands out most; ``"multi"``: all that were named. Each class's
    three typical images, which the annotators compared with, are left out by `filter_prototypes`.

    Returns ``file_name`` and ``factor``, one row per image and factor; one row with a missing
    factor for an annotated image with none (it counts in `advlib.metrics.error_ratio`). Raises
    ModuleNotFoundError without the package imagenet-x.
    """
    factors = list(IMAGENET_X_FACTORS)
    path = _annotation_file(f"imagenet_x_val_{which}_factor.jsonl")
    table = pyarrow.json.read_json(path).to_pandas()
    if filter_prototypes:
        prototypes = pd.read_csv(_annotation_file("prototypical_paths.csv")).file_name
        table = table[~table.file_name.isin(prototypes)]
    return _long(table.file_name, table[factors].to_numpy(bool), factors)


def real_label_sets() -> dict[str, list[int]]:
    """ReaL: the labels that people accept for each validation image, by file name; [] for none."""
    sets = json.loads(_annotation_file("imagenet_real_labels.jsonl").read_text())
    return {f"ILSVRC2012_val_{i:08d}.JPEG": labels for i, labels in enumerate(sets, start=1)}


def imagenet_labels() -> pd.Series:
    """The label (int64, 0 to 999) of each of the 50,000 validation images, by file name."""
    return pd.read_csv(_annotation_file("filename_label.csv"), index_col="file_name").label


def imagenet_classes() -> pd.DataFrame:
    """``label``, ``wnid`` (WordNet id) and ``class_name`` of the 1,000 classes.

    A name that two classes share is followed by the WordNet id: "crane (n02012849)".
    """
    table = pd.read_csv(_annotation_file("imagenet_labels.txt"), names=["wnid", "class_name"])
    shared = table.class_name.duplicated(keep=False)
    named = table.class_name + " (" + table.wnid + ")"
    table.insert(0, "label", np.arange(len(table)))
    return table.assign(class_name=table.class_name.where(~shared, named))


def imagenet_metaclasses() -> pd.Series:
    """The metaclass of each label: one of `METACLASSES` or "other"."""
    path = _annotation_file("imagenet_1k_classes_to_100_metaclasses.csv")
    names = pd.read_csv(path).name
    return names.where(names.isin(METACLASSES), "other").rename("metaclass").rename_axis("label")


def measure(pixels: np.ndarray) -> pd.DataFrame:
    """Plain measurements of each image by itself, so that sets can be measured in parts.

    Luma is the grey value, or 0.299 R + 0.587 G + 0.114 B (Rec. 601). The background is the median
    of the image's outermost pixels in each channel. The object is all pixels that differ from it by
    more than `BACKGROUND_TOLERANCE` in some channel; only where `plain_background` holds is there
    such an object.

    Parameters
    ----------
    pixels : uint8 array (N, C, H, W)
        C is 1 or 3; H and W are at least 3.

    Returns
    -------
    DataFrame
        N rows, float32, values of pixels taken in [0, 1]:

        * ``brightness``: mean luma; ``contrast``: its standard deviation.
        * ``texture``: mean absolute value of ``4 p - left - right - above - below``, for luma p,
          over the inner pixels, divided by the contrast; 0 where that is 0.
        * ``red_green``, ``yellow_blue``: means of R - G and of (R + G)/2 - B, the opponent
          colours of Hasler & Suesstrunk (2003); missing for C = 1.
        * ``area``: the object's share of the pixels.
        * ``off_centre``: distance of its pixels' mean position from the image's centre, as a
          share of the distance from there to a corner; missing without an object.
        * ``border_contact``: the object's share of the outermost pixels.
    """
    n, channels, height, width = pixels.shape
    # Whole thousandths of a grey level: float32 holds them exactly, and their Laplacian.
    luma = pixels[:, 0].astype(np.float32) * (1000 if channels == 1 else 299)
    if channels == 3:
        luma += pixels[:, 1] * np.float32(587)
        luma += pixels[:, 2] * np.float32(114)
    mean = luma.mean(axis=(1, 2), dtype=np.float64)
    contrast = np.sqrt(np.square(luma - mean[:, None, None].astype(np.float32)).mean(axis=(1, 2)))
    beside = (luma[:, 1:-1, :-2], luma[:, 1:-1, 2:], luma[:, :-2, 1:-1], luma[:, 2:, 1:-1])
    detail = np.abs(4 * luma[:, 1:-1, 1:-1] - sum(beside)).mean(axis=(1, 2))
    texture = np.divide(detail, contrast, out=np.zeros_like(detail), where=contrast > 0)
    colours = np.full((2, n), np.nan)
    if channels == 3:
        red, green, blue = pixels.mean(axis=(2, 3)).T / 255
        colours = red - green, (red + green) / 2 - blue

    border = np.concatenate([_border(pixels[:, c]) for c in range(channels)], axis=1)
    border = border.reshape(n, channels, -1)
    middle = (border.shape[2] - 1) // 2
    background = np.partition(border, middle, axis=2)[:, :, middle, None, None].astype(np.int16)
    low = np.clip(background - BACKGROUND_TOLERANCE, 0, 255).astype(np.uint8)
    high = np.clip(background + BACKGROUND_TOLERANCE, 0, 255).astype(np.uint8)
    thing = ((pixels < low) | (pixels > high)).any(axis=1)
    rows, columns = thing.sum(axis=2), thing.sum(axis=1)
    count = rows.sum(axis=1)
    some = np.where(count > 0, count, np.nan)
    y = rows @ np.arange(height) / some - (height - 1) / 2
    x = columns @ np.arange(width) / some - (width - 1) / 2
    off_centre = np.hypot(x, y) / np.hypot((width - 1) / 2, (height - 1) / 2)
    values = {
        "brightness": mean / 255_000,
        "contrast": contrast / 255_000,
        "texture": texture,
        "red_green": colours[0],
        "yellow_blue": colours[1],
        "area": count / (height * width),
        "off_centre": off_centre,
        "border_contact": _border(thing).mean(axis=1),
    }
    return pd.DataFrame(values, columns=list(MEASURES), dtype=np.float32)


def plain_background(measures: pd.DataFrame) -> bool:
    """True if in at least 90 % of the images half of the outermost pixels or more are background.

    Pixels that differ from it are then the object. (So are 99.9 % of Fashion-MNIST's images and all
    digits, 17 % of CIFAR-10's.)
    """
    return bool((measures.border_contact <= 0.5).mean() >= 0.9)


def measured_factors(measures: pd.DataFrame) -> pd.DataFrame:
    """Factors for a data set without annotations: each class's most unusual images.

    Of each class, and for each factor, the 10 % of its images (rounded down, at
    least one) that are furthest out, ties in the order of their file names. An image counts only
    beyond its class's median, so a constant measurement gives no factor. The four factors of an
    object are left out unless the set has a `plain_background`, ``color`` for grey images.

    ``measures`` are of all images of the set: ``file_name``, ``label`` and the columns of
    `measure`. Returns a table as `imagenet_x`, in the order of the images.
    """
    table = measures.reset_index(drop=True)
    colour = table[["red_green", "yellow_blue"]]
    distance = colour - colour.groupby(table.label).transform("mean")
    values = {
        "brighter": table.brightness,
        "darker": -table.brightness,
        "low_contrast": -table.contrast,
        "texture": table.texture,
        "color": np.hypot(distance.red_green, distance.yellow_blue),
    }
    if plain_background(table):
        values |= {"larger": table.area, "smaller": -table.area}
        values |= {"off_centre": table.off_centre, "partial_view": table.border_contact}
    chosen = [_furthest(table, value) for value in values.values()]
    return _long(table.file_name, np.stack(chosen, axis=1), values)


def _border(images: np.ndarray) -> np.ndarray:
    """The outermost pixels of images (N, H, W): (N, 2 W + 2 H - 4)."""
    top_and_bottom, sides = images[:, [0, -1]], images[:, 1:-1, [0, -1]]
    return np.concatenate([part.reshape(len(images), -1) for part in (top_and_bottom, sides)], 1)


def _furthest(table: pd.DataFrame, values: pd.Series) -> np.ndarray:
    """Booleans (N,): the images with the largest values of their class, above its median."""
    order = table[["label", "file_name"]].assign(value=values)
    order = order.sort_values(["value", "file_name"], ascending=[False, True])  # missing ones last
    rank = order.groupby("label").cumcount().sort_index()
    classes = values.groupby(table.label)
    quota = np.maximum(1, np.floor(SHARE * classes.transform("size") + 1e-9))
    return ((rank < quota) & (values > classes.transform("median"))).to_numpy()


def _long(names: pd.Series, has: np.ndarray, factors) -> pd.DataFrame:
    """One row per image and factor that it ``has`` (N, factors), or one with a missing factor."""
    factors = np.array([*factors, None], dtype=object)
    image, factor = np.nonzero(np.column_stack([has, ~has.any(axis=1)]))
    columns = {"file_name": names.array[image], "factor": factors[factor]}
    return pd.DataFrame(columns).astype({"factor": "str"})


def _annotation_file(name: str) -> Path:
    """A data file of the package imagenet-x, whose import (of plotting libraries) takes seconds."""
    if (spec := find_spec("imagenet_x")) is None:
        raise ModuleNotFoundError(
            "ImageNet's annotations need the package imagenet-x: pip install imagenet-x==0.0.7"
        )
    return Path(spec.submodule_search_locations[0]) / "annotations" / name
