"""Data sets by name or folder. Images leave here in [0, 1]; normalisation lives in the model."""

import functools
import itertools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from advlib.data import decoding, fetch, folders
from advlib.data.batches import augment, evaluation_batches, stream_seed, training_batches
from advlib.data.fetch import DataError

__all__ = [
    "DATASETS",
    "DataError",
    "Images",
    "augment",
    "evaluation_batches",
    "load_dataset",
    "stratified_subset",
    "stream_seed",
    "training_batches",
    "warn_of_shared",
]


@dataclass(frozen=True)
class DatasetInfo:
    """What is known of a data set before it is read; None where the folder decides."""

    title: str
    num_classes: int | None
    channels: int
    image_size: int | None  # px, of the square images that leave `load_dataset`
    mean: tuple[float, ...]  # per channel, of the training pixels in [0, 1]
    std: tuple[float, ...]
    class_names: tuple[str, ...] | None
    licence: str


_CIFAR10_MEAN, _CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
_CIFAR100_MEAN, _CIFAR100_STD = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_FASHION = tuple(
    "T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot".split(",")
)
_CIFAR10 = tuple("airplane automobile bird cat deer dog frog horse ship truck".split())
_CIFAR100 = tuple(
    """apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus
    butterfly camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab
    crocodile cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard
    lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom
    oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
    possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake
    spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor
    train trout tulip turtle wardrobe whale willow_tree wolf woman worm""".split()
)
_LICENCES = {
    "digits": "CC BY 4.0; Alpaydin & Kaynak 1998, UCI Machine Learning Repository, "
    "the 1,797 images that scikit-learn ships",
    "fashion_mnist": "MIT; Xiao, Rasul & Vollgraf 2017, Zalando Research",
    "cifar10": "none stated; Krizhevsky 2009, technical report, University of Toronto",
    "cifar100": "none stated; Krizhevsky 2009, technical report, University of Toronto",
    "imagenet": "non-commercial research; Russakovsky et al. 2015, ILSVRC2012",
}
DATASETS = {
    "digits": DatasetInfo(
        "Digits", 10, 1, 8, (0.3053,), (0.3759,), tuple("0123456789"), _LICENCES["digits"]
    ),
    "fashion_mnist": DatasetInfo(
        "Fashion-MNIST", 10, 1, 28, (0.2860,), (0.3530,), _FASHION, _LICENCES["fashion_mnist"]
    ),
    "cifar10": DatasetInfo(
        "CIFAR-10", 10, 3, 32, _CIFAR10_MEAN, _CIFAR10_STD, _CIFAR10, _LICENCES["cifar10"]
    ),
    "cifar100": DatasetInfo(
        "CIFAR-100", 100, 3, 32, _CIFAR100_MEAN, _CIFAR100_STD, _CIFAR100, _LICENCES["cifar100"]
    ),
    "imagenet": DatasetInfo(
        "ImageNet", 1000, 3, 224, _IMAGENET_MEAN, _IMAGENET_STD, None, _LICENCES["imagenet"]
    ),
    "folder": DatasetInfo(
        "Image folder", None, 3, None, _IMAGENET_MEAN, _IMAGENET_STD, None, "the user's own"
    ),
}


class Images(Dataset):
    """Labelled images, in memory or decoded when asked for.

    An item is (image, label, file_name): float32 tensor (C, H, W) in [0, 1], int, str.

    Attributes
    ----------
    title, source : str
        Name for the reader; where the data came from, in words.
    labels : int64 tensor (N,)
    file_names : list of str
        Unique within the split: ``train-00012`` (position in the original file), the path below
        the split's folder, or for ImageNet the base name.
    class_names : tuple of str
    num_classes : int
    pixels : uint8 tensor (N, C, H, W), or None
        None where images are decoded from `paths`.
    paths : list of str, or None
    resize, image_size : int, or None
        For `paths`: px of the short side, then of the centre crop.
    interpolation : {"bilinear", "bicubic"}
        For `paths`, when resizing.
    positions : int64 tensor (N,), or None
        Each image's place in the file that the set is distributed as, where that is known: the
        published corruptions of CIFAR keep that order.
    contents : structured array (N,), or None
        Of images from files what `decoding.contents` finds in each; for `paths` it is found when it
        is first asked for.
    fingerprint : str
        SHA-256 in hex. In memory: of the shape, the pixels and the labels. Else: of the name,
        content and label of each file, in order.

    Raises
    ------
    DataError
        If file names are not unique, or (for `paths`, when read) an image does not decode.
    """

    def __init__(
        self,
        *,
        title: str,
        source: str,
        labels,
        file_names: Sequence[str],
        class_names: Sequence[str],
        pixels=None,
        paths: Sequence[str] | None = None,
        resize: int | None = None,
        image_size: int | None = None,
        interpolation: str = "bilinear",
        positions=None,
        contents: np.ndarray | None = None,
    ):
        self.title, self.source = title, source
        self.labels = torch.as_tensor(labels, dtype=torch.int64)
        self.file_names, self.class_names = list(file_names), tuple(class_names)
        self.num_classes = len(self.class_names)
        self.pixels = None if pixels is None else torch.as_tensor(pixels)
        self.paths = None if paths is None else list(paths)
        self.resize, self.image_size, self.interpolation = resize, image_size, interpolation
        self.positions = None if positions is None else torch.as_tensor(positions)
        self.contents = contents
        if len(set(self.file_names)) < len(self.file_names):
            seen: set[str] = set()
            twice = next(n for n in self.file_names if n in seen or seen.add(n))
            raise DataError(
                f"two images of {title} are called {twice}: file names must be unique within a "
                "split; rename one."
            )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int, str]:
        image = self.decode(index) if self.pixels is None else self.pixels[index]
        return image.float() / 255, int(self.labels[index]), self.file_names[index]

    def decode(self, index: int, transform=None) -> torch.Tensor:
        """Image `index` from its file: uint8 (C, H, W), resized and centre-cropped.

        `transform`, from PIL image to PIL image, takes the place of resizing and cropping.
        """
        sizes = self.resize, self.image_size
        return decoding.decode(self.paths[index], *sizes, transform, self.interpolation)

    @functools.cached_property
    def fingerprint(self) -> str:
        if self.pixels is not None:
            return decoding.content_fingerprint(self.pixels.numpy(), self.labels.numpy())
        if self.contents is None:
            self.contents = decoding.contents(self.paths)
        return decoding.listing_fingerprint(self.file_names, self.contents, self.labels.tolist())

    def subset(self, indices) -> "Images":
        """The images at these positions, in this order."""
        indices = torch.as_tensor(indices, dtype=torch.int64)
        chosen = indices.tolist()
        return Images(
            title=self.title,
            source=self.source,
            labels=self.labels[indices],
            file_names=[self.file_names[i] for i in chosen],
            class_names=self.class_names,
            pixels=None if self.pixels is None else self.pixels[indices],
            paths=None if self.paths is None else [self.paths[i] for i in chosen],
            resize=self.resize,
            image_size=self.image_size,
            interpolation=self.interpolation,
            positions=None if self.positions is None else self.positions[indices],
            contents=None if self.contents is None else self.contents[indices.numpy()],
        )


def load_dataset(
    name: str,
    split: str,
    *,
    data_dir: str | Path | None = None,
    n_images: int | None = None,
    holdout_images: int = 0,
    image_size: int | None = None,
    resize: int | None = None,
    interpolation: str | None = None,
) -> Images:
    """A split of a data set, fetched first where that is possible.

    Parameters
    ----------
    name : str
        A key of `DATASETS`. ``folder`` is any ``train/<class>/*`` with ``test/<class>/*`` or
        ``val/<class>/*``.
    split : {"train", "holdout", "test"}
        ``test`` is ImageNet's validation set. ``holdout`` is a part of the training images, for
        choices that must not see the test images.
    data_dir : optional
        Folder of the data; None looks in the places of `advlib.data.fetch.locate`.
    n_images : int, optional
        Keep this many images, the same number of each class, always the same ones; a larger
        choice contains the smaller.
    holdout_images : int
        Size of the holdout, the same number of each class; ``train`` leaves these images out.
    image_size, resize : int, optional
        For image files: px of the centre crop, and of the short side before it. None: the size
        that all images of both splits have, up to 96 px; 224 and 232 if all are larger (resize :
        image_size = 232 : 224).
    interpolation : {"bilinear", "bicubic"}, optional
        For image files, when resizing; None: bilinear. Always antialiased.

    Returns
    -------
    Images
        In memory for sides up to 96 px (decoded once in parallel and cached in ``data/cache/``),
        else decoded when asked for.

    Raises
    ------
    ValueError
        For an unknown name or split, or numbers of images that the set cannot give.
    DataError
        If data are missing, incomplete or damaged; for images of different sizes, some of them
        small, without `image_size`.

    Notes
    -----
    scikit-learn's digits have 17 grey levels and no test set. A pixel v is stored as
    round(255 v / 16), so an item differs from v / 16 by at most 0.002; 50 images of each class,
    chosen once and for all, are the test set. Their writers also occur in the training set.
    """
    if name not in DATASETS:
        raise ValueError(f"there is no data set {name!r}: choose one of {', '.join(DATASETS)}")
    if split not in ("train", "holdout", "test"):
        raise ValueError(f"split is 'train', 'holdout' or 'test', got {split!r}")
    if interpolation not in (None, "bilinear", "bicubic"):
        raise ValueError(f"interpolation is 'bilinear' or 'bicubic', got {interpolation!r}")
    if split == "holdout" and not holdout_images:
        raise ValueError("split 'holdout' needs holdout_images, the number of images in it")
    stored = "test" if split == "test" else "train"
    images = _READERS[name](stored, data_dir, image_size, resize, interpolation)
    if holdout_images and split != "test":
        held = _stratified(images, holdout_images, "holdout", "holdout_images")
        if split == "train":
            keep = torch.ones(len(images), dtype=torch.bool)
            keep[held] = False
            held = keep.nonzero().flatten()
        images = images.subset(held)
    if n_images is not None:
        images = stratified_subset(images, n_images)
    if images.pixels is None:  # each file is read once, so that a damaged one is found here
        _ = images.fingerprint
    if images.contents is not None:
        _warn_of_copies_and_sizes(images)
    return images


def _warn_of_copies_and_sizes(images: Images) -> None:
    """Say what may be meant, and rarely is: the same file twice, and images far too small."""
    contents, labels = images.contents["content"].tolist(), images.labels.tolist()
    first: dict[bytes, int] = {}
    copies = [i for i, content in enumerate(contents) if first.setdefault(content, i) != i]
    if copies:
        i, original = copies[0], first[contents[copies[0]]]
        other = sum(labels[i] != labels[first[contents[i]]] for i in copies)
        warnings.warn(
            f"exact copies among the {len(images):,} images of {images.title}: {len(copies):,}, "
            f"{other:,} of them in another class; {images.file_names[i]} is a copy of "
            f"{images.file_names[original]}",
            stacklevel=3,
        )
    side = images.image_size if images.pixels is None else images.pixels.shape[-1]
    sides = np.minimum(images.contents["width"], images.contents["height"])
    small = int((2 * sides < side).sum())
    if small:
        warnings.warn(
            f"enlarged more than twice, to {side} px, among the {len(images):,} images of "
            f"{images.title}: {small:,}; the short side of {images.file_names[sides.argmin()]} is "
            f"{sides.min()} px",
            stacklevel=3,
        )


def warn_of_shared(parts: dict[str, Images]) -> None:
    """Warn of image files that two splits hold, such as test images that are trained on."""
    known = {s: p.contents["content"].tolist() for s, p in parts.items() if p.contents is not None}
    for (one, first), (other, second) in itertools.combinations(known.items(), 2):
        both = set(first) & set(second)
        if both:
            a, b = first.index(min(both)), second.index(min(both))
            warnings.warn(
                f"{len(both):,} images of {one} are also images of {other}: "
                f"{parts[one].file_names[a]} of {one} is {parts[other].file_names[b]} of {other}",
                stacklevel=2,
            )


def stratified_subset(images: Images, n_images: int) -> Images:
    """`n_images` of them, the same number of each class, always the same ones."""
    return images.subset(_stratified(images, n_images, "subset", "n_images"))


def _stratified(images: Images, count: int, stream: str, what: str) -> torch.Tensor:
    """Sorted positions of `count` images, the same number of each class that has any.

    Ranked by a hash of the file name, so the choice depends on no library's generator.
    """
    classes, sizes = images.labels.unique(return_counts=True)
    each, rest = divmod(count, len(classes))
    if count <= 0 or rest:
        raise ValueError(
            f"{what} = {count} is not the same number for each of the {len(classes)} classes of "
            f"{images.title}: choose a positive multiple of {len(classes)}"
        )
    if each > sizes.min():
        smallest = images.class_names[classes[sizes.argmin()]]
        raise ValueError(
            f"{what} = {count} needs {each} images of each class, but {images.title} has only "
            f"{int(sizes.min())} of class {smallest!r}: choose at most "
            f"{int(sizes.min()) * len(classes)}"
        )
    rank = [stream_seed(stream, file_name) for file_name in images.file_names]
    order = np.lexsort((rank, images.labels.numpy()))
    starts = np.searchsorted(images.labels.numpy()[order], classes.numpy())
    chosen = np.concatenate([order[start : start + each] for start in starts])
    return torch.from_numpy(np.sort(chosen))


def _fixed_size(name: str, image_size, resize, interpolation) -> None:
    size = DATASETS[name].image_size
    if image_size not in (None, size) or resize not in (None, size) or interpolation:
        raise ValueError(
            f"the images of {name} are {size} px: leave image_size, resize and interpolation out"
        )


def _in_memory(name: str, stored: str, source: str, pixels, labels, positions=None) -> Images:
    info = DATASETS[name]
    positions = range(len(labels)) if positions is None else positions
    return Images(
        title=info.title,
        source=source,
        labels=labels,
        file_names=[f"{stored}-{position:05d}" for position in positions],
        class_names=info.class_names,
        pixels=np.ascontiguousarray(pixels),
    )


def _read_digits(stored, data_dir, image_size, resize, interpolation) -> Images:
    from sklearn.datasets import load_digits

    _fixed_size("digits", image_size, resize, interpolation)
    digits = load_digits()
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)[:, None]
    images = _in_memory("digits", "digit", "scikit-learn", pixels, digits.target)
    test = _stratified(images, 500, "digits test set", "test images").numpy()
    chosen = test if stored == "test" else np.setdiff1d(np.arange(len(images)), test)
    return _in_memory(
        "digits", stored, images.source, pixels[chosen], digits.target[chosen], chosen
    )


def _read_fashion_mnist(stored, data_dir, image_size, resize, interpolation) -> Images:
    _fixed_size("fashion_mnist", image_size, resize, interpolation)
    folder, source = fetch.locate("fashion_mnist", data_dir)
    return _in_memory("fashion_mnist", stored, source, *fetch.read_fashion_mnist(folder, stored))


def _read_cifar(name, stored, data_dir, image_size, resize, interpolation) -> Images:
    """From class folders or from the files that torchvision fetches: the same images, order, names.

    Those files hold each image's original name, so that it is called as in a tree of images.
    """
    folder, source = fetch.locate(name, data_dir)
    if (folder / "train").is_dir() or (folder / "test").is_dir():
        return _read_tree(name, stored, folder, source, image_size, resize, interpolation)
    _fixed_size(name, image_size, resize, interpolation)
    info = DATASETS[name]
    pixels, labels, files = fetch.read_cifar(name, folder, stored)
    names = [f"{info.class_names[label]}/{file}" for label, file in zip(labels, files, strict=True)]
    order = sorted(range(len(names)), key=names.__getitem__)
    return Images(
        title=info.title,
        source=source,
        labels=labels[order],
        file_names=[names[i] for i in order],
        class_names=info.class_names,
        pixels=pixels[order],
        positions=order,
    )


def _read_located_tree(name, stored, data_dir, image_size, resize, interpolation) -> Images:
    folder, source = fetch.locate(name, data_dir)
    return _read_tree(name, stored, folder, source, image_size, resize, interpolation)


def _read_tree(name, stored, folder, source, image_size, resize, interpolation) -> Images:
    info = DATASETS[name]
    tree = folders.list_tree(folder, stored, imagenet=name == "imagenet")
    title, class_names, labels = info.title, tree.classes, tree.labels
    if info.class_names is not None:
        if tree.classes != info.class_names:
            raise DataError(
                f"{folder} does not hold {info.title}: its classes are "
                f"{', '.join(tree.classes)}; expected {', '.join(info.class_names)}."
            )
        if any(path.lower().endswith((".jpg", ".jpeg")) for path in tree.paths):
            title += " (JPEG copy)"
    if name == "imagenet":
        class_names, labels = folders.imagenet_labels(tree, folder)
    facts = dict(title=title, source=source, file_names=tree.names, class_names=class_names)
    interpolation = interpolation or "bilinear"
    # One size for every split; how many images a split has decides only where they are kept.
    side = image_size or info.image_size or decoding.common_side(folder, stored, tree) or 224
    small = side <= decoding.SMALL_SIDE
    resize = resize or (side if small else round(side * 232 / 224))
    if resize < side:
        raise ValueError(
            f"resize = {resize} px is smaller than the crop of image_size = {side} px: choose "
            "resize at least as large"
        )
    if small and 3 * side**2 * len(tree.paths) <= decoding.SMALL_BYTES:
        found = decoding.contents(tree.paths)
        pixels = decoding.decode_all(tree, found, f"{name}-{stored}", resize, side, interpolation)
        return Images(**facts, labels=labels, pixels=pixels, contents=found)
    how = dict(resize=resize, image_size=side, interpolation=interpolation)
    return Images(**facts, labels=labels, paths=tree.paths, **how)


_READERS = {
    "digits": _read_digits,
    "fashion_mnist": _read_fashion_mnist,
    "cifar10": functools.partial(_read_cifar, "cifar10"),
    "cifar100": functools.partial(_read_cifar, "cifar100"),
    "imagenet": functools.partial(_read_located_tree, "imagenet"),
    "folder": functools.partial(_read_located_tree, "folder"),
}
