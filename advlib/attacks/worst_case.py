"""PGD on a data set: the worst case of each image, over iterates and restarts."""

import contextlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pandas as pd
import torch
from torch import nn

from advlib.attacks.folding import folding
from advlib.attacks.pgd import (
    _attacked_label,
    _check_finite,
    _project,
    _radius,
    _step,
    attack_mode,
    classify,
    logits_and_gradient,
    start_noise,
)
from advlib.data.batches import evaluation_batches, item_names, stream_seed
from advlib.labels import class_logits
from advlib.networks.device import autocast, default_device, resolve_dtype
from advlib.threat import ThreatModel


def evaluate_attack(
    model: nn.Module,
    dataset,
    threat: ThreatModel,
    *,
    num_classes: int,
    batch_size: int | None = None,
    device: torch.device | str | None = None,
    seed: int = 0,
    dtype: str = "auto",
    workers: int = 0,
    indices: torch.Tensor | None = None,
    progress: Callable[[int], None] | None = None,
) -> pd.DataFrame:
    """Attack every image of a data set and keep each image's worst case.

    Parameters
    ----------
    model : nn.Module
        Images in [0, 1] to K or K+M logits.
    dataset, device, workers, indices
        As in `advlib.predictions.predict`.
    threat : ThreatModel
    num_classes : int
        K: errors are counted over the first K logits.
    batch_size : int, optional
        Images attacked at once; None: `default_batch_size`.
    seed : int
        The start of an image is drawn from (seed, file name, restart), on the device.
    dtype : {"auto", "float32", "bfloat16"}
        Of the search. The recorded figures are always computed in float32.
    progress : callable, optional
        Called with the number of images finished.

    Returns
    -------
    DataFrame
        A prediction table with ``linf`` (largest change of a pixel) and ``steps_used``.

    Raises
    ------
    ValueError, TypeError
        For images, labels or a model that an attack cannot use; also where there are no images.
    FloatingPointError
        With their names, for images without a finite logit or gradient: neither robust nor broken.

    Notes
    -----
    With ``success="any"``, ``label_source="true"`` and ``model_mode="eval"`` the worst case is
    known as soon as an image is misclassified. Images wrong from the start are not attacked, and
    broken ones leave the batch and are replaced. In all other cases every image takes all steps.

    With ``model_mode="train"`` the outcome of an image depends on its batch. Batches mix the
    classes, since one class alone has other statistics. They and dropout are drawn from the seed.
    With "eval" the search runs on the network with its batch norm folded
    (`advlib.attacks.folding`); the recorded figures are those of `model` itself.
    """
    device = torch.device(device or default_device())
    model = model.to(device, memory_format=torch.channels_last)
    search_dtype = resolve_dtype(dtype, device)
    batch_size = batch_size or default_batch_size(dataset, device)
    evaluation = threat.model_mode == "eval"
    attack = _refilled if evaluation else _fixed
    search, tables, order = None, [], None
    # Sixteen batches at a time fit in memory, and are enough to keep a batch full.
    size = 16 * batch_size
    if not evaluation:
        positions = torch.arange(len(dataset)) if indices is None else torch.as_tensor(indices)
        generator = torch.Generator().manual_seed(stream_seed(seed, "batches"))
        order = torch.randperm(len(positions), generator=generator)
        indices = positions[order]
        size = batch_size = _without_single(len(positions), batch_size)
    for x, y, index in evaluation_batches(
        dataset, batch_size=size, workers=workers, device=device, indices=indices
    ):
        if search is None:
            search = folding(model, x[:2])() if evaluation else model
        names = item_names(dataset, index.tolist())
        # Evaluation mode is set once for all passes, because visiting every layer is slow.
        with attack_mode(search, "eval") if evaluation else _seeded(seed, names[0], device):
            chunk = _Chunk(
                model, search, x, y, names, threat, num_classes, batch_size, seed, search_dtype
            )
            attack(chunk, progress or (lambda finished: None))
        tables.append(chunk.table())
    table = pd.concat(tables, ignore_index=True)
    return table if order is None else table.iloc[order.argsort()].reset_index(drop=True)


def default_batch_size(dataset, device: torch.device | str) -> int:
    """Images attacked at once where nobody says.

    128; on a GPU 512 for images of up to 64 px. Free memory plays no part, because another batch
    size rounds differently.
    """
    if torch.device(device).type != "cuda":
        return 128
    x, _, _ = next(evaluation_batches(dataset, batch_size=1, device="cpu", indices=[0]))
    return 512 if x.shape[-1] <= 64 else 128


def _without_single(n: int, batch_size: int) -> int:
    """The nearest batch size that leaves no batch of one image, which batch norm refuses."""
    sizes = [*range(batch_size, 1, -1), *range(batch_size + 1, n + 1)]
    return next((size for size in sizes if n % size != 1), batch_size)


class _Pool(NamedTuple):
    """Images under attack."""

    image: torch.Tensor  # (n,) int64, places in the chunk
    x_adv: torch.Tensor  # (n, C, H, W), their iterates
    taken: torch.Tensor  # (n,) int32, steps taken

    def take(self, which: torch.Tensor | slice) -> "_Pool":
        """Some of them, by a mask or a slice."""
        if isinstance(which, torch.Tensor):
            which = torch.nonzero(which).flatten()
        return _Pool(*(part[which] for part in self))

    def join(self, other: "_Pool") -> "_Pool":
        if not len(other.image):
            return self
        return _Pool(*(torch.cat(pair) for pair in zip(self, other, strict=True)))


class _Chunk:
    """Images that fit in memory, how they are attacked, and the worst case of each so far."""

    def __init__(
        self, model, search, x, y, names, threat, num_classes, batch_size, seed, search_dtype
    ):
        self.model, self.search, self.search_dtype = model, search, search_dtype
        self.x, self.y, self.names, self.seed = x, y, names, seed
        self.threat, self.num_classes, self.batch_size = threat, num_classes, batch_size
        self.last_step = threat.steps if threat.eps else 0
        self.predicted, self.probability = classify(model, x, num_classes, batch_size)
        _check_finite(self.probability.isfinite(), names, "logits")
        self.linf = torch.zeros(len(x), device=x.device)
        self.steps_used = torch.zeros(len(x), dtype=torch.int32, device=x.device)
        # A broken image needs no more steps where the attack aims at the error that is counted, and
        # where no other image of its batch depends on it.
        aimed = threat.success == "any" and threat.label_source == "true"
        self.stops = aimed and threat.model_mode == "eval"
        self.broken = (self.predicted != y) & self.stops
        with attack_mode(model, threat.model_mode):
            batches = zip(x.split(batch_size), y.split(batch_size), strict=True)
            labels = [_attacked_label(model, *batch, threat, num_classes) for batch in batches]
        self.attacked_label = torch.cat(labels)
        self.eps, self.step_size = _radius(model, x, threat)

    def start(self, image: torch.Tensor, restart: int) -> _Pool:
        """These images at the start of a restart, drawn for each from its name."""
        noise = image_noise(self.x, image, self.names, self.threat, self.seed, restart)
        x = self.x[image]
        x_adv = _project(x, x + self.eps * noise, self.eps, self.threat)
        return _Pool(image, x_adv, torch.zeros_like(image, dtype=torch.int32))

    def step(self, pool: _Pool) -> tuple[torch.Tensor, _Pool]:
        """A mask of the iterates that the search sees misclassified, and the next iterates."""
        image, x_adv, taken = pool
        # Training mode is set for the pass alone, so that verdicts see the buffers as they were.
        training = self.threat.model_mode == "train"
        mode = attack_mode(self.search, "train") if training else contextlib.nullcontext()
        with mode, autocast(x_adv.device, self.search_dtype):
            logits, gradient = logits_and_gradient(
                self.search, x_adv, self.attacked_label[image], self.threat, self.num_classes
            )
        wrong = class_logits(logits, self.num_classes).argmax(1) != self.y[image]
        x_next = _step(self.x[image], x_adv, gradient, self.eps, self.step_size, self.threat)
        return wrong, _Pool(image, x_next, taken + 1)

    def judge(self, pool: _Pool, final: bool) -> torch.Tensor:
        """Classify iterates in float32; returns which images take more steps.

        The first misclassified iterate of an image is recorded, or else the last iterate of the
        last (`final`) restart.
        """
        image, x_adv, taken = pool
        if not len(image):
            return image.bool()
        predicted, probability = classify(self.model, x_adv, self.num_classes, self.batch_size)
        finite = x_adv.flatten(1).isfinite().all(1) & probability.isfinite()
        broken, last = self.broken[image], taken == self.last_step
        _check_finite(finite | broken, self.names, "gradient", image)
        found = (predicted != self.y[image]) & ~broken
        write = found | (last & ~broken & final)
        written = image[write]
        self.predicted[written] = predicted[write]
        self.probability[written] = probability[write]
        self.linf[written] = (x_adv[write] - self.x[written]).abs().flatten(1).amax(1)
        self.steps_used[written] = taken[write]
        self.broken[image[found]] = True
        return ~last & ~(found & self.stops)

    def table(self) -> pd.DataFrame:
        columns = {"label": self.y, "predicted_class": self.predicted}
        columns |= {"predicted_probability": self.probability}
        columns |= {"linf": self.linf, "steps_used": self.steps_used}
        columns = {name: values.cpu().numpy() for name, values in columns.items()}
        return pd.DataFrame({"file_name": self.names, **columns})


def _refilled(chunk: _Chunk, progress: Callable[[int], None]) -> None:
    """Attack in a batch that stays full: where images leave it, the next ones join it."""
    size, looks = chunk.batch_size, chunk.threat.success == "any"
    progress(int(chunk.broken.sum()))
    for restart in range(chunk.threat.n_restarts):
        final = restart == chunk.threat.n_restarts - 1
        queue = torch.nonzero(~chunk.broken).flatten()
        # Iterates that the search sees misclassified, and last ones, wait for the verdict until
        # they fill a batch. `resumed` holds the same images one step further, should they survive.
        pool = waiting = resumed = none = chunk.start(queue[:0], restart)
        while len(queue) or len(pool.image) or len(waiting.image):
            room = max(0, size - len(pool.image))
            pool, queue = pool.join(chunk.start(queue[:room], restart)), queue[room:]
            if len(pool.image):
                now, later = pool.take(slice(size)), pool.take(slice(size, None))
                wrong, after = chunk.step(now)
                suspect = (wrong & looks & ~chunk.broken[now.image]) | (
                    now.taken == chunk.last_step
                )
                ended = ~suspect & (after.taken == chunk.last_step)
                waiting = waiting.join(now.take(suspect)).join(after.take(ended))
                resumed = resumed.join(after.take(suspect)).join(after.take(ended))
                pool = after.take(~suspect & ~ended).join(later)
            if len(waiting.image) >= size or not (len(queue) or len(pool.image)):
                on = chunk.judge(waiting, final)
                progress(int((~on & (chunk.broken[waiting.image] | final)).sum()))
                pool, waiting, resumed = pool.join(resumed.take(on)), none, none


def _fixed(chunk: _Chunk, progress: Callable[[int], None]) -> None:
    """Attack in training mode: the same images share a batch from the first step to the last.

    Broken ones stay, because they are part of the statistics of their batch.
    """
    for restart in range(chunk.threat.n_restarts):
        final = restart == chunk.threat.n_restarts - 1
        standing = ~chunk.broken
        for batch in torch.arange(len(chunk.x), device=chunk.x.device).split(chunk.batch_size):
            pool = chunk.start(batch, restart)
            for _ in range(chunk.last_step):
                _, after = chunk.step(pool)
                if chunk.threat.success == "any":  # the search sees other logits than the verdict
                    chunk.judge(pool.take(~chunk.broken[batch]), final)
                pool = after
            chunk.judge(pool.take(~chunk.broken[batch]), final)
            progress(int((standing & (chunk.broken | final))[batch].sum()))


def image_noise(x, images, names, threat, seed, restart):
    """Random starts (n, C, H, W), each by the image's name.

    They are drawn on the device: drawing on the CPU is slower than a step.
    """
    draws = []
    for i in images.tolist():
        generator = torch.Generator(x.device).manual_seed(stream_seed(seed, names[i], restart))
        draws.append(start_noise((1, *x.shape[1:]), threat, generator, x.device))
    return torch.cat([x[:0], *draws])


@contextlib.contextmanager
def _seeded(seed: int, name: str, device: torch.device) -> Iterator[None]:
    """Seed torch's global generators, which dropout draws from, and restore them afterwards."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(stream_seed(seed, "dropout", name))
        yield
