"""One training loop for every method: the attack, the objective, checkpoints and resume."""

import contextlib
import functools
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import filelock
import pandas as pd
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from advlib import distributed
from advlib.attacks.folding import folding
from advlib.attacks.pgd import attack_mode
from advlib.checkpoints import CHECKPOINT, load_checkpoint, save_checkpoint
from advlib.data.batches import evaluation_batches, stream_seed, training_batches
from advlib.files import replacing
from advlib.networks.build import default_device, repeatable, resolve_dtype
from advlib.objectives import OBJECTIVES
from advlib.recipes import Recipe, Training
from advlib.steps import backward, batch_share, memory_advice, one_call, starts, training_loss

LOG_COLUMNS = ["epoch", "step", "lr", "loss", "error", "images_per_second"]


def fit(
    model: nn.Module,
    dataset,
    training: Training,
    recipe: Recipe,
    *,
    seed: int,
    folder: Path,
    settings: dict | None = None,
    device: torch.device | str | None = None,
    checkpoint_seconds: float = 60,
    on_step: Callable[[int], None] | None = None,
) -> pd.DataFrame:
    """Train `model` in place, resuming from `folder` where a run was interrupted.

    Parameters
    ----------
    model : nn.Module
        Images in [0, 1] to K logits, or K+M where the recipe needs them.
    dataset : advlib.data.sets.Images
        Training images.
    training : Training
        Epochs, schedule, threat models, delta; the batch, and the pieces it is computed in.
    recipe : Recipe
        The method, one of `advlib.recipes.RECIPES` or another.
    seed : int
        With the epoch and step it decides the order of the images, their augmentation and the
        start of each attack, so a position in training needs no other generator state.
    folder : Path
        Of the checkpoint, the lock and ``log.csv``; seen by all processes.
    settings : dict, optional
        What decides the weights; stored, and compared on resume.
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
        If the batch does not divide into the processes and pieces, the images do not fill one, a
        label is out of range, or the model has other logits than needed.
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
    norm is each process's own: it looks at its part of the batch alone, and the trained network has
    the running statistics of the first process.

    ``accumulate`` computes a process's part in so many equal pieces, one after the other, which
    needs less memory: the gradient is the mean of theirs. That is the gradient of the whole but for
    batch norm, which looks at one piece, and whose running statistics move once a piece.

    On the same number of processes, machine and versions, a run that was interrupted ends with the
    same weights as one that was not, bit for bit. It may go on with another number of processes or
    pieces: from the same position, to other bits. A damaged checkpoint is set aside, with a
    warning, and training starts anew.
    """
    device = torch.device(device or default_device())
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder), repeatable(device), memory_advice(training, device, folder):
        return _train(
            model, dataset, training, recipe, seed, folder, settings or {}, device,
            checkpoint_seconds, on_step,
        )  # fmt: skip


def _train(
    model, dataset, training, recipe, seed, folder, settings, device, checkpoint_seconds, on_step
):
    rank, world_size = distributed.rank(), distributed.world_size()
    share = batch_share(training, world_size)
    steps_per_epoch = len(dataset) // training.batch_size
    total = training.epochs * steps_per_epoch
    _check_images(dataset, training)
    model.to(device, memory_format=torch.channels_last).train()
    _check_outputs(model, dataset, training, recipe)
    objective = OBJECTIVES[recipe.objective](recipe, training, dataset.num_classes)
    state = {"model": model}
    if isinstance(objective, nn.Module):
        state["method"] = objective.to(device)
    if training.ema:
        decay = get_ema_multi_avg_fn(training.ema)
        state["average"] = AveragedModel(model, multi_avg_fn=decay, use_buffers=True)
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=training.lr,
        momentum=training.momentum,
        weight_decay=training.weight_decay,
        fused=device.type == "cuda",  # on a CPU it gains milliseconds, and rounds differently
    )
    with distributed.in_turns():  # the first one sets a damaged file aside
        done, log = load_checkpoint(folder / CHECKPOINT, state, optimizer, settings)
    if len(set(found := distributed.from_all(done))) > 1:
        raise RuntimeError(
            f"the processes found checkpoints of different steps in {folder} ({found}): put the "
            "runs (ADVLIB_RUNS) where all nodes see the same files"
        )
    forward = one_call(model, device)
    attacked = None  # the network as it is attacked, made with the first batch
    dtype = resolve_dtype(training.dtype, device)
    how = {"devices": world_size, "accumulate": training.accumulate}
    how |= {"device": device.type, "dtype": str(dtype)}
    if rank == 0:
        print(_summary(training, recipe, world_size, how), flush=True)
    log_every = max(1, min(50, steps_per_epoch // 10))
    saved = window = time.monotonic()
    window_from, outcomes = done, []
    bar = _bar(recipe, training, done, total, rank)
    for epoch in range(done // steps_per_epoch, training.epochs):
        batches = training_batches(
            dataset,
            batch_size=share,
            seed=seed,
            epoch=epoch,
            start_step=done - epoch * steps_per_epoch,
            augment=training.augment,
            workers=training.workers,
            device=device,
            rank=rank,
            world_size=world_size,
        )
        for x, y, _ in batches:
            lr = training.lr_at(done, total)
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.zero_grad(set_to_none=True)
            noise = None
            if recipe.adversarial:
                noise = starts(x, training, seed, epoch, done)
                attacked = attacked or folding(model, x[:2])
            torch.manual_seed(stream_seed(seed, "dropout", epoch, done, *([rank] if rank else [])))
            # Kept on the device until the next row of the log: nothing in a step waits for it.
            loss_of = functools.partial(
                training_loss,
                objective,
                model,
                training=training,
                num_classes=dataset.num_classes,
                dtype=dtype,
                forward=forward,
                attacked=attacked,
            )
            outcomes += backward(loss_of, x, y, noise, training.accumulate, forward)
            optimizer.step()
            done += 1
            if training.ema:
                state["average"].update_parameters(model)
            bar.update(training.batch_size)
            end_of_epoch = done % steps_per_epoch == 0
            if end_of_epoch and hasattr(objective, "end_epoch"):
                objective.end_epoch()
            if done % log_every == 0 or end_of_epoch:
                row = _log_row(outcomes, done, steps_per_epoch, lr, folder)
                seconds = time.monotonic() - window
                row["images_per_second"] = (done - window_from) * training.batch_size / seconds
                log.append(row)
                bar.set_postfix_str(
                    f"epoch {row['epoch']:.1f}/{training.epochs} loss {row['loss']:.3f} "
                    f"error {row['error']:.3f} lr {lr:.2g}",
                    refresh=False,
                )
                outcomes, window, window_from = [], time.monotonic(), done
                # Only at a log row, so that no part of an open window is lost with the process.
                due = end_of_epoch or time.monotonic() - saved > checkpoint_seconds
                if distributed.from_first(lambda due=due: due):
                    _save(folder, state, optimizer, done, total, log, settings, how)
                    saved = time.monotonic()
            if on_step:
                on_step(done)
    bar.close()
    model.eval()
    return pd.DataFrame(log, columns=LOG_COLUMNS)


def _save(folder, state, optimizer, done, total, log, settings, how) -> None:
    """The log and then the checkpoint: a run that has one to its end writes nothing more.

    A finished run's file holds the weights alone, the averaged ones if there are some, and so is
    small enough to be published.
    """
    others = None
    if done == total:
        if "average" in state:
            state["model"].load_state_dict(state["average"].module.state_dict())
        state, optimizer = {"model": state["model"]}, None
    else:
        buffers = {f"{n}.{k}": v.cpu() for n, m in state.items() for k, v in m.named_buffers()}
        others = distributed.from_all(buffers)[1:]
    if distributed.rank() == 0:
        with replacing(folder / "log.csv") as path:
            pd.DataFrame(log, columns=LOG_COLUMNS).to_csv(path, index=False)
        save_checkpoint(folder / CHECKPOINT, state, optimizer, done, log, settings, how, others)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """The folder's lock, which the first process holds for all."""
    if distributed.rank():
        yield
        return
    try:
        with filelock.FileLock(folder / "lock", timeout=0):
            yield
    except filelock.Timeout as error:
        raise RuntimeError(
            f"another process is training in {folder}: wait for it, or end it first"
        ) from error


def _bar(recipe, training, done, total, rank) -> tqdm:
    return tqdm(
        total=total * training.batch_size,
        initial=done * training.batch_size,
        unit=" images",
        desc=recipe.title,
        mininterval=2,
        unit_scale=True,
        disable=rank > 0,
    )


def _check_images(dataset, training: Training) -> None:
    """Once, instead of a look at the device in every step."""
    if len(dataset) < training.batch_size:
        raise ValueError(
            f"{len(dataset)} training images do not fill one batch: choose a batch_size of at most "
            f"{len(dataset)}, got {training.batch_size}"
        )
    low, high = int(dataset.labels.min()), int(dataset.labels.max())
    if low < 0 or high >= dataset.num_classes:
        raise ValueError(f"labels are in [0, {dataset.num_classes}), got {low} to {high}")


def _check_outputs(model: nn.Module, dataset, training: Training, recipe: Recipe) -> None:
    device = next(model.parameters()).device
    x, _, _ = next(evaluation_batches(dataset, batch_size=1, device=device, indices=[0]))
    with torch.no_grad(), attack_mode(model, "eval"):
        found = model(x).shape[1]
    extra = training.num_transforms if recipe.extra_logits else 0
    if found != dataset.num_classes + extra:
        raise ValueError(
            f"{recipe.title} trains a network of {dataset.num_classes} class logits and {extra} "
            f"for transformations, this one has {found} in all: change its last layer "
            "(advlib.labels.widen_head)"
        )


def _summary(training, recipe, world_size, how) -> str:
    share = batch_share(training, world_size)
    text = f"{recipe.title}: batches of {training.batch_size} images"
    if world_size > 1:
        text += f", {share} on each of {world_size} processes"
    if training.accumulate > 1:
        text += f", in {training.accumulate} pieces of {share // training.accumulate}"
    text += f"; learning rate {training.lr:g} to {training.lr * training.lr_final_factor:g}"
    return f"{text}; {how['device']}, {how['dtype'].removeprefix('torch.')}"


def _log_row(outcomes, done, steps_per_epoch, lr, folder) -> dict:
    """Means over all images since the last row, which all processes have the same number of."""
    loss, error = distributed.mean(torch.stack(outcomes).mean(0)).tolist()
    if not math.isfinite(loss):
        raise FloatingPointError(
            f"the loss is {loss} by step {done}: lower the learning rate, or set dtype to float32; "
            "if it is so at any rate, look for images at which the network has no finite gradient. "
            f"The last good checkpoint is kept in {folder}"
        )
    return {"epoch": done / steps_per_epoch, "step": done, "lr": lr, "loss": loss, "error": error}
