"""Batches of a data set for training and evaluation, the same ones wherever a run resumes."""

import hashlib
import json
from collections.abc import Iterator, Sequence

import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

AUGMENTATIONS = ("none", "crop", "crop_flip", "random_resized_crop")
Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def stream_seed(*parts: int | str) -> int:
    """A stable seed in [0, 2**63) from integers and strings: one random stream for each purpose.

    The same on every machine and version, and different for 1 and "1".
    """
    digest = hashlib.sha256(json.dumps(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def augment(
    x: torch.Tensor, kind: str, generator: torch.Generator, *, rank: int = 0, world_size: int = 1
) -> torch.Tensor:
    """Augment a batch (N, C, H, W), each image by draws of its own.

    Crop: a random window of the original size out of the image padded with zeros, by 4 px on each
    side (He et al. 2016; a seventh of the side where that is less: 1 px for digits). ``crop_flip``:
    then left to right with probability 1/2. The generator is one of the CPU, which makes the same
    draws for every device. Where several processes share a batch, x is the part of one `rank`;
    draws are made for the whole, so that an image meets the same ones for any `world_size`.
    """
    n, channels, height, width = x.shape
    pad = max(1, min(4, min(height, width) // 7))
    whole, own = n * world_size, slice(n * rank, n * (rank + 1))
    shift = torch.randint(0, 2 * pad + 1, (2, whole, 1), generator=generator)
    rows, columns = shift[:, own].to(x.device)
    rows = rows + torch.arange(height, device=x.device)
    columns = columns + torch.arange(width, device=x.device)
    x = F.pad(x, (pad, pad, pad, pad))[
        torch.arange(n, device=x.device).view(n, 1, 1, 1),
        torch.arange(channels, device=x.device).view(1, channels, 1, 1),
        rows[:, None, :, None],
        columns[:, None, None, :],
    ]
    if kind == "crop_flip":
        flip = torch.rand(whole, generator=generator)[own] < 0.5
        x = torch.where(flip.to(x.device).view(n, 1, 1, 1), x.flip(3), x)
    return x


def training_batches(
    dataset,
    *,
    batch_size: int,
    seed: int,
    epoch: int,
    start_step: int = 0,
    augment: str = "none",
    workers: int = 0,
    device: torch.device | str = "cpu",
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[Batch]:
    """One epoch in random order; the last images that do not fill a batch are left out.

    Yields images, float32 (N, C, H, W) in [0, 1], labels, int64 (N,), and their positions in the
    data set, int64 (N,) on the CPU. Order and augmentation depend on (seed, epoch, step) only, so
    an epoch that is resumed at `start_step` gives exactly the batches that an uninterrupted one
    gives from there. Each of several processes takes its share of a step's ``batch_size *
    world_size`` images: which images these are, and how they are augmented, depends on that product
    alone. `workers` processes decode image files; 0: this one does.

    The kinds of `AUGMENTATIONS` are those of `augment`, none, and ``random_resized_crop`` (area 8
    to 100 %, aspect 3:4 to 4:3, then a flip; Szegedy et al. 2015), which is for images decoded from
    files and happens in the workers.
    """
    if augment not in AUGMENTATIONS:
        raise ValueError(f"augment is one of {', '.join(AUGMENTATIONS)}, got {augment!r}")
    if augment == "random_resized_crop" and dataset.pixels is not None:
        raise ValueError(
            "random_resized_crop is for images decoded from files; for small images kept in "
            "memory choose crop or crop_flip"
        )
    share = batch_size * world_size
    steps = len(dataset) // share
    generator = torch.Generator().manual_seed(stream_seed(seed, "order", epoch))
    order = torch.randperm(len(dataset), generator=generator)[: steps * share]
    chosen = order.view(steps, world_size, batch_size)[start_step:, rank]
    if augment == "random_resized_crop":
        return _batches(_Decoded(dataset, (seed, epoch)), chosen, workers, device)
    batches = _batches(dataset, chosen, workers, device)
    if augment == "none":
        return batches
    part = {"rank": rank, "world_size": world_size}
    return _augmented(batches, augment, seed, epoch, start_step, part)


def _augmented(batches: Iterator[Batch], kind, seed, epoch, start_step, part) -> Iterator[Batch]:
    for step, (x, y, index) in enumerate(batches, start_step):
        generator = torch.Generator().manual_seed(stream_seed(seed, "augment", epoch, step, 0))
        yield augment(x, kind, generator, **part), y, index


def evaluation_batches(
    dataset,
    *,
    batch_size: int,
    workers: int = 0,
    device: torch.device | str = "cpu",
    indices: Sequence[int] | torch.Tensor | None = None,
) -> Iterator[Batch]:
    """Batches as `training_batches` yields, of every image once; the last may be smaller.

    `dataset` is `advlib.data.sets.Images` or a sequence of (x, y, …), x a float tensor (C, H, W) in
    [0, 1]. With `indices`, only the images at these positions, in this order. TypeError or
    ValueError if it is no such data set, or holds no images.
    """
    if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
        raise TypeError(
            "expected a data set, whose images have positions, or a list of (image, label), got "
            f"{type(dataset).__name__}: of a DataLoader pass loader.dataset"
        )
    if not len(dataset):
        raise ValueError("there are no images in the data set")
    positions = torch.arange(len(dataset)) if indices is None else torch.as_tensor(indices)
    chosen = positions.long().split(batch_size) if len(positions) else ()
    return _batches(dataset, chosen, workers, device)


def item_names(dataset, positions: Sequence[int]) -> list[str]:
    """File names of a data set's items; where it has none, their positions."""
    if (names := getattr(dataset, "file_names", None)) is not None:
        return [names[i] for i in positions]
    items, width = ((i, dataset[i]) for i in positions), len(str(len(dataset) - 1))
    return [item[2] if len(item) > 2 else f"{i:0{width}d}" for i, item in items]


def _batches(dataset, chosen: Sequence[torch.Tensor], workers: int, device) -> Iterator[Batch]:
    """Batches at these positions. Pixels travel as uint8 and become floats on the device."""
    cuda = torch.device(device).type == "cuda"
    if getattr(dataset, "pixels", None) is not None:
        found = ((dataset.pixels[index], dataset.labels[index], index) for index in chosen)
    else:
        found = DataLoader(
            dataset if isinstance(dataset, _Decoded) else _Decoded(dataset),
            batch_sampler=[index.tolist() for index in chosen],
            num_workers=workers,
            pin_memory=cuda,
            # Its own generator, since the loader would draw a number from the global one.
            generator=torch.Generator(),
        )
    for x, y, index in found:
        if cuda:  # which then copies in the background
            x, y = x.pin_memory(), y.pin_memory()
        x, y = x.to(device, non_blocking=True), y.to(device, non_blocking=True)
        yield (x.float() / 255 if x.dtype == torch.uint8 else x.float()), y, index


class _Decoded(Dataset):
    """Items (image, label, position); images from files as uint8, random crops if `stream`."""

    def __init__(self, dataset, stream: tuple[int, int] | None = None):
        self.dataset, self.stream = dataset, stream

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index: int):
        if not hasattr(self.dataset, "decode"):
            return *_pair(self.dataset[index]), index
        label = int(self.dataset.labels[index])
        if self.stream is None:
            return self.dataset.decode(index), label, index
        from advlib.data.vision import torchvision

        transforms, size = torchvision.transforms.v2, self.dataset.image_size
        mode = transforms.InterpolationMode(self.dataset.interpolation)
        crop = transforms.RandomResizedCrop(size, interpolation=mode)
        change = transforms.Compose([crop, transforms.RandomHorizontalFlip()])
        seed, epoch = self.stream
        # torchvision draws from torch's global generator: lend it a stream of the image's own.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(stream_seed(seed, "augment", epoch, index))
            x = self.dataset.decode(index, change)
        return x, label, index


def _pair(item) -> tuple[torch.Tensor, int]:
    """Image and label of an item of somebody's data set."""
    try:
        x, label = torch.as_tensor(item[0]), int(item[1])
        if x.ndim != 3 or label != item[1]:
            raise ValueError(f"an image {tuple(x.shape)} and the label {item[1]!r}")
        return x, label
    except (TypeError, ValueError, KeyError, IndexError, RuntimeError) as error:
        raise TypeError(
            f"an item of the data set is {type(item).__name__} ({error}); expected (image, label): "
            "a tensor (C, H, W) in [0, 1], as ToTensor gives it, and a whole number"
        ) from error
