"""Labelled images: a data set's split, or a part of one."""

import functools
import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.utils.data import Dataset

from advlib.data import decoding
from advlib.data.batches import stream_seed
from advlib.data.fetch import DataError


@dataclass(kw_only=True, eq=False)
class Images(Dataset):
    """Labelled images, in memory or decoded when asked for.

    An item is (image, label, file_name): float32 tensor (C, H, W) in [0, 1], int, str. Raises
    DataError if file names are not unique, or (for `paths`, when read) an image does not decode.
    """

    title: str  #: name for the reader
    source: str  #: the origin of the data, in words
    labels: torch.Tensor  #: int64 (N,)
    #: Unique within the split: ``train-00012`` (position in the original file), the path below the
    #: split's folder, or for ImageNet the base name.
    file_names: Sequence[str]
    class_names: Sequence[str]
    pixels: torch.Tensor | None = None  #: uint8 (N, C, H, W); None: decoded from `paths`
    paths: Sequence[str] | None = None
    resize: int | None = None  #: px of the short side of an image from `paths`
    image_size: int | None = None  #: px of the centre crop after that
    interpolation: str = "bilinear"  #: of the resizing, or "bicubic"
    #: int64 (N,), each image's place in the file that the set is distributed as, where that is
    #: known. The published corruptions of CIFAR keep that order.
    positions: torch.Tensor | None = None
    contents: np.ndarray | None = None  #: of `decoding.contents`; for `paths` found on demand

    def __post_init__(self):
        self.labels = torch.as_tensor(self.labels, dtype=torch.int64)
        self.file_names, self.class_names = list(self.file_names), tuple(self.class_names)
        self.num_classes = len(self.class_names)
        self.pixels = None if self.pixels is None else torch.as_tensor(self.pixels)
        self.paths = None if self.paths is None else list(self.paths)
        self.positions = None if self.positions is None else torch.as_tensor(self.positions)
        if len(set(self.file_names)) < len(self.file_names):
            twice = Counter(self.file_names).most_common(1)[0][0]
            raise DataError(f"two images of {self.title} are called {twice}: rename one.")

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

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, C, H, W), as the images leave here."""
        if self.pixels is not None:
            return tuple(self.pixels.shape)
        return len(self), 3, self.image_size, self.image_size

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of shape, pixels and labels, or of each file's name, content and label."""
        if self.pixels is not None:
            digest = hashlib.sha256(str(self.shape).encode())
            digest.update(np.ascontiguousarray(self.pixels.numpy()))
            digest.update(np.ascontiguousarray(self.labels.numpy(), dtype="<i8"))
            return digest.hexdigest()
        if self.contents is None:
            self.contents = decoding.contents(self.paths)
        digest, contents = hashlib.sha256(), self.contents["content"].tolist()
        rows = zip(self.file_names, contents, self.labels.tolist(), strict=True)
        for name, content, label in rows:
            digest.update(f"{name}\t{content.hex()}\t{label}\n".encode())
        return digest.hexdigest()

    @property
    def prepared(self) -> str:
        """The fingerprint, and for files how they are resized: what decides the pixels."""
        if self.pixels is not None:
            return self.fingerprint
        return f"{self.fingerprint}, {self.resize}, {self.image_size} px, {self.interpolation}"

    def subset(self, indices) -> "Images":
        """The images at these positions, in this order."""
        indices = torch.as_tensor(indices, dtype=torch.int64)

        def taken(values):
            if isinstance(values, list):
                return [values[i] for i in indices.tolist()]
            return None if values is None else values[indices.numpy()]

        each = ("labels", "file_names", "pixels", "paths", "positions", "contents")
        return replace(self, **{name: taken(getattr(self, name)) for name in each})


def stratified_subset(images: Images, n_images: int) -> Images:
    """`n_images` of them, the same number of each class, always the same ones."""
    return images.subset(stratified(images, n_images, "subset", "n_images"))


def stratified(images: Images, count: int, stream: str, what: str) -> torch.Tensor:
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
            f"{sizes.min()} of class {smallest!r}: choose at most {sizes.min() * len(classes)}"
        )
    rank = [stream_seed(stream, file_name) for file_name in images.file_names]
    order = np.lexsort((rank, images.labels.numpy()))
    starts = np.searchsorted(images.labels.numpy()[order], classes.numpy())
    chosen = np.concatenate([order[start : start + each] for start in starts])
    return torch.from_numpy(np.sort(chosen))
