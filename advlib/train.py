"""One training loop for every method: Std, Adv, Adv⁺ and the controls; checkpoints and resume.

``python -m advlib.train --study cifar10 --method adv`` trains in one process, and
``torchrun --nproc-per-node 8 -m advlib.train --study cifar10 --method adv`` in eight, one a GPU; on
several nodes as torchrun's ``--nnodes`` and ``--rdzv-endpoint`` say. The notebook of training does
the same for a study with ``devices: 8``.
"""

import argparse
import contextlib
import functools
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import filelock
import pandas as pd
import torch
from advbook.studies.schema import METHODS, Study, check_choice, load_study
from torch import nn
from torch.distributed.elastic.multiprocessing.errors import record
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from advlib import distributed
from advlib.attacks.folding import folding
from advlib.attacks.pgd import attack_mode, pgd_attack, start_noise
from advlib.checkpoints import CHECKPOINT, load_checkpoint, save_checkpoint
from advlib.data.sets import evaluation_batches, stream_seed, training_batches
from advlib.files import replacing
from advlib.labels import class_logits, label_augmentation_targets
from advlib.networks.build import autocast, default_device, resolve_dtype

UNTRANSFORMED = -1  # the transformation of a clean image, as in `advlib.labels`
LOG_COLUMNS = ["epoch", "step", "lr", "loss", "error", "images_per_second"]


def fit(
    model: nn.Module,
    dataset,
    study: Study,
    method: str,
    *,
    seed: int,
    folder: Path,
    settings: dict | None = None,
    device: torch.device | str | None = None,
    checkpoint_seconds: float = 60,
    on_step: Callable[[int], None] | None = None,
) -> pd.DataFrame:
    """Train `model` in place by one method, resuming from `folder` where a run was interrupted.

    Parameters
    ----------
    model : nn.Module
        Images in [0, 1] to K logits, or K+M where the method needs them.
    dataset : advlib.data.sets.Images
        Training images.
    study : Study
        Epochs, schedule, threat model, δ; the batch, and the pieces it is computed in.
    method : str
        A key of `advbook.studies.schema.METHODS`.
    seed : int
        With the epoch and step it decides the order of the images, their augmentation and the
        start of each attack, so a position in training needs no other generator state.
    folder : Path
        Of the checkpoint, the lock and ``log.csv``; seen by all processes.
    settings : dict, optional
        What decides the weights (`Study.training_settings`); stored, and compared on resume.
    device : optional
        None: CUDA, MPS or the CPU, by availability.
    checkpoint_seconds : float
        Time between checkpoints; one is written after every epoch as well.
    on_step : callable, optional
        Called after each step with the number of steps done.

    Returns
    -------
    DataFrame
        The log: epoch, step, lr, loss, error (of the batches trained on), images_per_second.

    Raises
    ------
    ValueError
        For an unknown method, and if the batch does not divide into the processes and pieces, the
        images do not fill one, a label is out of range, or the model has other logits than needed.
    RuntimeError
        If another process trains in `folder`, or `folder` holds a run with other settings.
    FloatingPointError
        If the loss is no longer finite; the last good checkpoint is kept.
    MemoryError
        If a batch does not fit, with the number of pieces to try; the last checkpoint is kept.

    Notes
    -----
    Several processes (`advlib.distributed`) work on one batch. The images of a step, their
    augmentation and the starts of their attacks are those of one process; each process takes its
    part, and gradients are averaged. Loss and error in the log are means over all images. Batch
    norm is each process's own: it looks at its part of the batch alone, and the running statistics
    that are saved are the first process's.

    ``accumulate`` computes a process's part in so many equal pieces, one after the other, which
    needs less memory: the gradient is the mean of theirs. That is the gradient of the whole but for
    batch norm, which looks at one piece, and whose running statistics move once a piece.

    On one process, the same machine and versions, a run that was interrupted ends with the same
    weights as one that was not, bit for bit. It may go on with another number of processes or
    pieces: from the same position, to other bits.
    """
    check_choice("method", method, tuple(METHODS))
    device = torch.device(device or default_device())
    folder.mkdir(parents=True, exist_ok=True)
    lock = contextlib.nullcontext()
    if distributed.rank() == 0:
        lock = filelock.FileLock(folder / "lock", timeout=0)
    try:
        # Deterministic kernels, so that a resumed run ends with the same bits on a GPU as well.
        # No TF32 either, which gradients of float32 training would otherwise be computed in.
        flags = torch.backends.cudnn.flags(
            enabled=True, benchmark=False, deterministic=True, allow_tf32=False
        )
        # Dropout and stochastic depth draw from torch's global generators: lent to the run.
        devices = [device] if device.type == "cuda" else []
        lent = torch.random.fork_rng(devices=devices)
        with lock, flags, lent, _memory_advice(study, device, folder):
            return _train(
                model,
                dataset,
                study,
                method,
                seed,
                folder,
                settings or {},
                device,
                checkpoint_seconds,
                on_step,
            )
    except filelock.Timeout as error:
        raise RuntimeError(
            f"another process is training in {folder}: wait for it, or end it first"
        ) from error


def _train(
    model, dataset, study, method, seed, folder, settings, device, checkpoint_seconds, on_step
):
    clean = method == "pretrained"
    epochs = study.pretrain_epochs if clean else study.epochs
    base_lr = study.pretrain_lr if clean else study.lr
    schedule = one_cycle_lr if clean and study.pretrain_schedule == "one_cycle" else cosine_lr
    batch_size = study.batch_size
    rank, world_size = distributed.rank(), distributed.world_size()
    share = batch_share(study, world_size)
    steps_per_epoch = len(dataset) // batch_size
    if not steps_per_epoch:
        raise ValueError(
            f"{len(dataset)} training images do not fill one batch: choose a batch_size of at most "
            f"{len(dataset)}, got {batch_size}"
        )
    _check_labels(dataset)
    _check_outputs(model.to(device), dataset, study, method)
    total = epochs * steps_per_epoch
    dtype = resolve_dtype(study.dtype, device)
    model.to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=base_lr,
        momentum=study.momentum,
        weight_decay=study.weight_decay,
        fused=device.type == "cuda",  # on a CPU it gains milliseconds, and rounds differently
    )
    done, log = load_checkpoint(folder / CHECKPOINT, model, optimizer, settings)
    if len(set(found := distributed.from_all(done))) > 1:
        raise RuntimeError(
            f"the processes found checkpoints of different steps in {folder} ({found}): put the "
            "runs (ADVLIB_RUNS) where all nodes see the same files"
        )
    network = _compiled(model, device) if study.compile else model
    forward = _Halves(network)
    if world_size > 1:
        # The attack runs on `network`, without DDP. Buffers are not copied between processes.
        where = [device] if device.type == "cuda" else None
        forward = DistributedDataParallel(forward, device_ids=where, forward_sync_buffers=False)
    how = {"devices": world_size, "accumulate": study.accumulate, "compile": study.compile}
    how |= {"device": device.type, "dtype": str(dtype)}
    if rank == 0:
        print(_summary(study, method, world_size, base_lr, how), flush=True)
    log_every = max(1, min(50, steps_per_epoch // 10))
    saved = window = time.monotonic()
    window_from = done
    outcomes, attacked = [], None
    bar = tqdm(
        total=total * batch_size,
        initial=done * batch_size,
        unit=" images",
        desc=method,
        mininterval=2,
        unit_scale=True,
        disable=rank > 0,
    )
    for epoch in range(done // steps_per_epoch, epochs):
        batches = training_batches(
            dataset,
            batch_size=share,
            seed=seed,
            epoch=epoch,
            start_step=done - epoch * steps_per_epoch,
            augment=study.augment,
            workers=study.workers,
            device=device,
            rank=rank,
            world_size=world_size,
        )
        for x, y, _ in batches:
            lr = schedule(base_lr, study.lr_final_factor, done, total)
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.zero_grad(set_to_none=True)
            noise = None
            if METHODS[method].adversarial:
                noise = _starts(x, study, seed, epoch, done)
                attacked = attacked or _attacked_network(model, x[:2], study.compile)
            torch.manual_seed(stream_seed(seed, "dropout", epoch, done, *([rank] if rank else [])))
            loss_of = functools.partial(
                training_loss,
                network,
                study=study,
                method=method,
                num_classes=dataset.num_classes,
                dtype=dtype,
                forward=forward,
                attacked=attacked,
            )
            # On the device until the next row of the log: nothing in a step waits for it.
            outcomes += _backward(loss_of, x, y, noise, study.accumulate, forward)
            optimizer.step()
            done += 1
            bar.update(batch_size)
            end_of_epoch = done % steps_per_epoch == 0
            if done % log_every == 0 or end_of_epoch:
                row = _log_row(outcomes, done, steps_per_epoch, lr, folder)
                seconds = time.monotonic() - window
                row["images_per_second"] = (done - window_from) * batch_size / seconds
                log.append(row)
                bar.set_postfix_str(
                    f"epoch {row['epoch']:.1f}/{epochs} loss {row['loss']:.3f} "
                    f"error {row['error']:.3f} lr {lr:.2g}",
                    refresh=False,
                )
                outcomes, window, window_from = [], time.monotonic(), done
                # Only at a log row, so that no part of an open window is lost with the process.
                due = end_of_epoch or time.monotonic() - saved > checkpoint_seconds
                if due and rank == 0:
                    # A finished run needs no momentum: its file is small, as it is published.
                    momentum = optimizer if done < total else None
                    # Before the checkpoint: a run that has one to its end writes nothing more.
                    with replacing(folder / "log.csv") as path:
                        pd.DataFrame(log, columns=LOG_COLUMNS).to_csv(path, index=False)
                    save_checkpoint(folder / CHECKPOINT, model, momentum, done, log, settings, how)
                    saved = time.monotonic()
            if on_step:
                on_step(done)
    bar.close()
    model.eval()
    return pd.DataFrame(log, columns=LOG_COLUMNS)


def batch_share(study: Study, processes: int) -> int:
    """The images of a training batch that fall to each process.

    Raises
    ------
    ValueError
        If they do not divide evenly, or not into the study's ``accumulate`` pieces.
    """
    share, rest = divmod(study.batch_size, processes)
    if rest:
        nearest = max(processes, study.batch_size - rest)
        raise ValueError(
            f"a batch of {study.batch_size} images does not divide among {processes} processes: "
            f"choose a batch_size that does, such as {nearest}, or another number of devices"
        )
    if share % study.accumulate:
        raise ValueError(
            f"{share} images, a process's part of a batch, do not divide into {study.accumulate} "
            f"equal pieces: choose accumulate from {', '.join(map(str, _divisors(share)))}"
        )
    return share


def _divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]


def _check_labels(dataset) -> None:
    """Once, instead of a look at the device in every step."""
    low, high = int(dataset.labels.min()), int(dataset.labels.max())
    if low < 0 or high >= dataset.num_classes:
        raise ValueError(f"labels are in [0, {dataset.num_classes}), got {low} to {high}")


def _check_outputs(model: nn.Module, dataset, study: Study, method: str) -> None:
    device = next(model.parameters()).device
    x, _, _ = next(evaluation_batches(dataset, batch_size=1, device=device, indices=[0]))
    with torch.no_grad(), attack_mode(model, "eval"):
        found = model(x).shape[1]
    extra = study.num_transforms if METHODS[method].extra_logits else 0
    if found != dataset.num_classes + extra:
        raise ValueError(
            f"{method} trains a network of {dataset.num_classes} class logits and {extra} for "
            f"transformations, this one has {found} in all: change its last layer "
            "(advlib.labels.widen_head)"
        )


def _summary(study, method, world_size, lr, how) -> str:
    share = batch_share(study, world_size)
    text = f"{method}: batches of {study.batch_size} images"
    if world_size > 1:
        text += f", {share} on each of {world_size} processes"
    if study.accumulate > 1:
        text += f", in {study.accumulate} pieces of {share // study.accumulate}"
    text += f"; learning rate {lr:g} to {lr * study.lr_final_factor:g}; {how['device']}"
    return f"{text}, {how['dtype'].removeprefix('torch.')}{', compiled' * study.compile}"


class _Halves(nn.Module):
    """All forward passes of a step in one call, as DDP wants them."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, *halves: torch.Tensor) -> list[torch.Tensor]:
        return [self.network(x) for x in halves]


def _compiled(model: nn.Module, device: torch.device) -> nn.Module:
    """The same weights behind torch.compile, tried first on something small."""
    try:
        torch.compile(lambda x: (x + 1).relu())(torch.zeros(8, device=device))
    except Exception as error:  # of any kind: a compiler, its headers or Triton are missing
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise RuntimeError(
            f"torch.compile does not work on this machine: leave compile out. It said: {reason[0]}"
        ) from error
    return torch.compile(model, dynamic=False)


def _attacked_network(model, x, compile: bool) -> Callable[[], nn.Module]:
    """What gives the network that a step attacks, with the weights of the moment."""
    current = folding(model, x)
    if not compile:
        return current
    compiled = torch.compile(current(), dynamic=False)

    def current_compiled():
        current()
        return compiled

    return current_compiled


def _starts(x, study: Study, seed: int, epoch: int, done: int) -> torch.Tensor:
    """This process's part of the random starts of a step's attack.

    Those of the whole batch are drawn everywhere, so that an image has the same start for any
    number of processes and pieces. On the device: a GPU would wait for a CPU's draws.
    """
    generator = torch.Generator(x.device).manual_seed(stream_seed(seed, "attack", epoch, done))
    shape = (len(x) * distributed.world_size(), *x.shape[1:])
    noise = start_noise(shape, study.train_threat, generator, x.device)
    return noise[len(x) * distributed.rank() :][: len(x)]


def _backward(
    loss_of: Callable, x, y, noise, pieces: int, forward: nn.Module
) -> list[torch.Tensor]:
    """Add the gradients of a process's images; returns loss and error of each piece, stacked."""
    x = x.contiguous(memory_format=torch.channels_last)
    size, outcomes = len(x) // pieces, []
    first = len(x) * distributed.rank()
    starts = noise.split(size) if noise is not None else [None] * pieces
    for i, (part, labels, start) in enumerate(
        zip(x.split(size), y.split(size), starts, strict=True)
    ):
        # Processes exchange gradients once a step, with the last piece.
        waits = isinstance(forward, DistributedDataParallel) and i < pieces - 1
        with forward.no_sync() if waits else contextlib.nullcontext():
            loss, error = loss_of(part, labels, noise=start, first=first + i * size)
            (loss / pieces).backward()
        outcomes.append(torch.stack([loss.detach(), error]))
    return outcomes


@contextlib.contextmanager
def _memory_advice(study: Study, device: torch.device, folder: Path) -> Iterator[None]:
    """Turn torch's errors about memory into one that says what to change."""
    try:
        yield
    except RuntimeError as error:
        said = str(error).lower()
        if not (
            isinstance(error, torch.OutOfMemoryError)
            or "can't allocate memory" in said
            or "out of memory" in said
        ):
            raise
        share = batch_share(study, distributed.world_size())
        more = [d for d in _divisors(share) if d > study.accumulate]
        size = share // study.accumulate
        hint = "choose a smaller network or smaller images"
        if more:
            pieces = f"pieces of {share // more[0]}"
            hint = f"set accumulate to {more[0]} ({pieces}), or choose a smaller batch_size"
        raise MemoryError(
            f"{size} images at once, of a batch of {study.batch_size}, do not fit in the memory of "
            f"{device}: {hint}. Training then goes on from the last checkpoint in {folder}"
        ) from error


def training_loss(
    model: nn.Module,
    x: torch.Tensor,
    y: torch.Tensor,
    study: Study,
    method: str,
    *,
    num_classes: int,
    noise: torch.Tensor | None = None,
    first: int = 0,
    dtype: torch.dtype = torch.float32,
    forward: Callable[..., list[torch.Tensor]] | None = None,
    attacked: Callable[[], nn.Module] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss and error of one batch by one method.

    Parameters
    ----------
    model : nn.Module
        In training mode.
    x : float tensor (N, C, H, W) in [0, 1]
    y : int tensor (N,)
        In [0, K). Neither is checked here, which would wait for the device in every step.
    study, method
        As in `fit`.
    num_classes : int
        K.
    noise : float tensor (N, C, H, W), optional
        The start of the attack (`advlib.attacks.pgd.start_noise`); None: from torch's generator.
    first : int
        The place of x[0] in the whole batch of the step. With several transformations
        (``study.transforms``) the image in place i is attacked by number i mod M.
    dtype : torch.dtype
        Of the autocast.
    forward : callable, optional
        Batches of images to the logits of each, for the pass that is trained on; None: `model`.
    attacked : callable, optional
        Returns the network to attack, faster than `model` and with its weights
        (`advlib.folding.folding`); None: `model`.

    Returns
    -------
    (scalar tensor with a graph, scalar tensor)
        The loss and the share of wrong predictions, both over the images trained on: clean ones
        for Std, adversarial ones for Adv, and the mean of both halves for mixed batches.
    """
    recipe = METHODS[method]
    delta = study.delta if recipe.label_augmentation else 0.0
    # Of Eq. 4, by transformation and class: made once, since checking labels waits for the device.
    targets = _targets(num_classes, study.num_transforms, delta, y.device)

    def loss_of(logits, transform):
        if recipe.extra_logits:
            return F.cross_entropy(logits.float(), targets[transform, y])
        smoothing = study.delta if recipe.label_smoothing else 0.0
        return F.cross_entropy(logits.float(), y, label_smoothing=smoothing)

    def climbed(logits, y, transform):
        # The sum, since a mean over the batch would shrink an image's gradient towards underflow.
        return F.cross_entropy(logits, targets[transform, y], reduction="sum")

    augmented = recipe.extra_logits and study.train_objective == "label_augmentation"
    with autocast(x.device, dtype):
        halves = [(x, UNTRANSFORMED)] if recipe.mix or not recipe.adversarial else []
        if recipe.adversarial:
            threats = study.train_threats
            # Images take turns, so that each transformation has as many of a batch.
            transform = (torch.arange(len(x), device=x.device) + first) % len(threats)
            x_adv = torch.empty_like(x)
            for j, threat in enumerate(threats):
                own = slice((j - first) % len(threats), None, len(threats))
                x_adv[own] = pgd_attack(
                    attacked() if attacked else model,
                    x[own],
                    y[own],
                    threat,
                    num_classes=num_classes,
                    noise=noise[own] if noise is not None and threat.random_start else None,
                    objective=functools.partial(climbed, transform=j) if augmented else None,
                    check=False,
                )
            halves.append((x_adv, transform))
        # Each half has a forward pass, and so batch-norm statistics, of its own.
        images, transforms = zip(*halves, strict=True)
        logits = forward(*images) if forward else [model(half) for half in images]
        outputs = list(zip(logits, transforms, strict=True))
    loss = sum(loss_of(logits, transform) for logits, transform in outputs) / len(outputs)
    wrong = [class_logits(logits, num_classes).argmax(1) != y for logits, _ in outputs]
    return loss, torch.cat(wrong).float().mean().detach()


@functools.cache
def _targets(num_classes, num_transforms, delta, device) -> torch.Tensor:
    """(M+1, K, K+M): of each transformation and class, the last for no transformation."""
    y = torch.arange(num_classes).repeat(num_transforms + 1)
    transform = torch.arange(num_transforms + 1).repeat_interleave(num_classes)
    transform[transform == num_transforms] = UNTRANSFORMED
    sizes = {"num_classes": num_classes, "num_transforms": num_transforms}
    rows = label_augmentation_targets(y, transform, delta=delta, **sizes)
    return rows.view(num_transforms + 1, num_classes, -1).to(device)


def cosine_lr(base: float, final_factor: float, step: int, total: int) -> float:
    """Cosine annealing per step, from `base` at step 0 down to `base * final_factor`."""
    final = base * final_factor
    return final + (base - final) * (1 + math.cos(math.pi * step / total)) / 2


def one_cycle_lr(peak: float, final_factor: float, step: int, total: int) -> float:
    """Up from `peak` / 25 over the first 30 % of the steps, then down to `peak * final_factor`.

    Both ways along a cosine (Smith & Topin 2019), as `torch.optim.lr_scheduler.OneCycleLR` counts.
    """
    top, last = 0.3 * total - 1, total - 1
    if step <= top:
        return cosine_lr(peak, 1 / 25, top - step, top)
    return cosine_lr(peak, final_factor, step - top, last - top)


def _log_row(outcomes, done, steps_per_epoch, lr, folder) -> dict:
    """Means over all images since the last row, which all processes have the same number of."""
    loss, error = distributed.mean(torch.stack(outcomes).mean(0)).tolist()
    if not math.isfinite(loss):
        raise FloatingPointError(
            f"the loss is {loss} by step {done}: lower the learning rate, or set dtype to float32. "
            f"The last good checkpoint is kept in {folder}"
        )
    return {"epoch": done / steps_per_epoch, "step": done, "lr": lr, "loss": loss, "error": error}


def main(arguments: Sequence[str] | None = None) -> None:
    """Train one method of a study, on the processes that torchrun started or on one."""
    parser = argparse.ArgumentParser(
        prog="python -m advlib.train", description="Train one method of a study."
    )
    parser.add_argument("--study", required=True, help="an id or the path of a study file")
    parser.add_argument("--method", required=True, help="one of the study's, or pretrained")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    from advbook.studies.runs import train_method

    with distributed.process_group() as device:
        study = load_study(options.study)
        check_choice("method", options.method, (*METHODS, *study.checkpoints, *study.ablations))
        run = train_method(study, options.method, options.seed, device=device)
        if distributed.rank() == 0:
            print(f"{run['n_images']:,} training images, checkpoint {run['checkpoint_hash']}")


if __name__ == "__main__":
    sys.exit(record(main)())
