"""One training loop for every method: Std, Adv, Adv⁺ and the controls; checkpoints and resume."""

import functools
import math
import time
from collections.abc import Callable
from pathlib import Path

import filelock
import pandas as pd
import torch
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

from advlib.attacks import pgd_attack
from advlib.checkpoints import CHECKPOINT, load_checkpoint, save_checkpoint
from advlib.data import stream_seed, training_batches
from advlib.files import replacing
from advlib.labels import (
    class_logits,
    label_augmentation_loss,
    label_augmentation_targets,
)
from advlib.models import autocast, default_device, resolve_dtype
from advlib.study import METHODS, Study

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
    dataset : advlib.data.Images
        Training images.
    study : Study
        Epochs, schedule, threat model, δ.
    method : str
        A key of `advlib.study.METHODS`.
    seed : int
        With the epoch and step it decides the order of the images, their augmentation and the
        start of each attack, so a position in training needs no other generator state.
    folder : Path
        Of the checkpoint, the lock and ``log.csv``.
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
    RuntimeError
        If another process trains in `folder`, or `folder` holds a run with other settings.
    FloatingPointError
        If the loss is no longer finite; the last good checkpoint is kept.
    """
    device = torch.device(device or default_device())
    folder.mkdir(parents=True, exist_ok=True)
    try:
        # Deterministic kernels, so that a resumed run ends with the same bits on a GPU as well.
        flags = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True)
        # Dropout and stochastic depth draw from torch's global generators: lent to the run.
        devices = [device] if device.type == "cuda" else []
        lent = torch.random.fork_rng(devices=devices)
        with filelock.FileLock(folder / "lock", timeout=0), flags, lent:
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
    batch_size = study.batch_size
    steps_per_epoch = len(dataset) // batch_size
    if not steps_per_epoch:
        raise ValueError(
            f"{len(dataset)} training images do not fill one batch: choose a batch_size of at most "
            f"{len(dataset)}, got {batch_size}"
        )
    total = epochs * steps_per_epoch
    dtype = resolve_dtype(study.dtype, device)
    model.to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(
        model.parameters(), lr=base_lr, momentum=study.momentum, weight_decay=study.weight_decay
    )
    done, log = load_checkpoint(folder / CHECKPOINT, model, optimizer, settings)
    log_every = max(1, min(50, steps_per_epoch // 10))
    saved = window = time.monotonic()
    window_from = done
    losses, errors = [], []
    bar = tqdm(
        total=total * batch_size,
        initial=done * batch_size,
        unit=" images",
        desc=method,
        mininterval=2,
        unit_scale=True,
    )
    for epoch in range(done // steps_per_epoch, epochs):
        batches = training_batches(
            dataset,
            batch_size=batch_size,
            seed=seed,
            epoch=epoch,
            start_step=done - epoch * steps_per_epoch,
            augment=study.augment,
            workers=study.workers,
            device=device,
        )
        for x, y, _ in batches:
            lr = cosine_lr(base_lr, study.lr_final_factor, done, total)
            for group in optimizer.param_groups:
                group["lr"] = lr
            generator = torch.Generator().manual_seed(stream_seed(seed, "attack", epoch, done))
            torch.manual_seed(stream_seed(seed, "dropout", epoch, done))
            loss, error = training_loss(
                model,
                x,
                y,
                study,
                method,
                num_classes=dataset.num_classes,
                generator=generator,
                dtype=dtype,
            )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            done += 1
            losses.append(loss.detach())
            errors.append(error)
            bar.update(batch_size)
            end_of_epoch = done % steps_per_epoch == 0
            if done % log_every == 0 or end_of_epoch:
                row = _log_row(losses, errors, done, steps_per_epoch, lr, folder)
                seconds = time.monotonic() - window
                row["images_per_second"] = (done - window_from) * batch_size / seconds
                log.append(row)
                bar.set_postfix_str(
                    f"epoch {row['epoch']:.1f}/{epochs} loss {row['loss']:.3f} "
                    f"error {row['error']:.3f} lr {lr:.2g}",
                    refresh=False,
                )
                losses, errors, window, window_from = [], [], time.monotonic(), done
                # Only at a log row, so that no part of an open window is lost with the process.
                if end_of_epoch or time.monotonic() - saved > checkpoint_seconds:
                    save_checkpoint(folder / CHECKPOINT, model, optimizer, done, log, settings)
                    with replacing(folder / "log.csv") as path:
                        pd.DataFrame(log, columns=LOG_COLUMNS).to_csv(path, index=False)
                    saved = time.monotonic()
            if on_step:
                on_step(done)
    bar.close()
    model.eval()
    return pd.DataFrame(log, columns=LOG_COLUMNS)


def training_loss(
    model: nn.Module,
    x: torch.Tensor,
    y: torch.Tensor,
    study: Study,
    method: str,
    *,
    num_classes: int,
    generator: torch.Generator,
    dtype: torch.dtype = torch.float32,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss and error of one batch by one method.

    Parameters
    ----------
    model : nn.Module
        In training mode.
    x : float tensor (N, C, H, W) in [0, 1]
    y : int tensor (N,)
    study, method
        As in `fit`.
    num_classes : int
        K.
    generator : torch.Generator
        A CPU generator for the start of the attack.
    dtype : torch.dtype
        Of the autocast.

    Returns
    -------
    (scalar tensor with a graph, scalar tensor)
        The loss and the share of wrong predictions, both over the images trained on: clean ones
        for Std, adversarial ones for Adv, and the mean of both halves for mixed batches.
    """
    recipe = METHODS[method]
    delta = study.delta if recipe.label_augmentation else 0.0
    attacked = torch.zeros_like(y)  # the transformation is PGD, with index 0
    clean = attacked - 1  # none

    def loss_of(logits, transform):
        if recipe.extra_logits:
            return label_augmentation_loss(
                logits, y, transform, num_classes=num_classes, delta=delta
            )
        smoothing = study.delta if recipe.label_smoothing else 0.0
        return F.cross_entropy(logits.float(), y, label_smoothing=smoothing)

    objective = None
    if recipe.extra_logits and study.train_objective == "label_augmentation":
        # The targets of Eq. 4 once a batch, since checking labels waits for the device; and the
        # sum, since a mean over the batch would shrink an image's gradient towards underflow.
        sizes = {"num_classes": num_classes, "num_transforms": study.num_transforms}
        targets = label_augmentation_targets(y, attacked, delta=delta, **sizes)
        objective = functools.partial(F.cross_entropy, target=targets, reduction="sum")

    with autocast(x.device, dtype):
        halves = [(x, clean)] if recipe.mix or not recipe.adversarial else []
        if recipe.adversarial:
            x_adv = pgd_attack(
                model,
                x,
                y,
                study.train_threat,
                num_classes=num_classes,
                generator=generator,
                objective=objective,
            )
            halves.append((x_adv, attacked))
        # Each half has a forward pass, and so batch-norm statistics, of its own.
        outputs = [(model(images), transform) for images, transform in halves]
    loss = sum(loss_of(logits, transform) for logits, transform in outputs) / len(outputs)
    wrong = [class_logits(logits, num_classes).argmax(1) != y for logits, _ in outputs]
    return loss, torch.cat(wrong).float().mean().detach()


def cosine_lr(base: float, final_factor: float, step: int, total: int) -> float:
    """Cosine annealing per step, from `base` at step 0 down to `base * final_factor`."""
    final = base * final_factor
    return final + (base - final) * (1 + math.cos(math.pi * step / total)) / 2


def _log_row(losses, errors, done, steps_per_epoch, lr, folder) -> dict:
    loss = torch.stack(losses).mean().item()
    if not math.isfinite(loss):
        raise FloatingPointError(
            f"the loss is {loss} by step {done}: lower the learning rate, or set dtype to float32. "
            f"The last good checkpoint is kept in {folder}"
        )
    error = torch.stack(errors).mean().item()
    return {"epoch": done / steps_per_epoch, "step": done, "lr": lr, "loss": loss, "error": error}
