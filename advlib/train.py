"""One training loop for every method: the attack, the objective, checkpoints and resume."""

import dataclasses
import functools
import math
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from advlib import distributed
from advlib.checkpoints import CHECKPOINT, EPOCH, alone, load_checkpoint, save_checkpoint
from advlib.data.batches import training_batches
from advlib.files import replacing
from advlib.networks.device import default_device, repeatable, resolve_dtype
from advlib.objectives import find_objective
from advlib.recipes import Recipe, Training
from advlib.steps import (
    Run,
    batch_share,
    check_given,
    check_images,
    check_outputs,
    memory_advice,
    one_call,
    take_step,
    validation_steps,
)

HOW = {"accumulate": 1, "dtype": "auto", "workers": 0}  # of Training: they may change on resume
LOG_COLUMNS = ["epoch", "step", "lr", "loss", "error", "eps", "images_per_second"]


def fit(
    model: nn.Module,
    dataset,
    training: Training,
    recipe: Recipe,
    *,
    seed: int,
    folder: Path,
    validation=None,
    helper: nn.Module | None = None,
    settings: dict | None = None,
    device: torch.device | str | None = None,
    checkpoint_seconds: float = 60,
    late_epochs: int = 0,
    on_step: Callable[[int], None] | None = None,
) -> pd.DataFrame:
    """Train `model` in place; a run that was interrupted resumes from `folder`.

    Parameters
    ----------
    model : nn.Module
        Images in [0, 1] to K logits, or K+M where the recipe needs them.
    dataset : advlib.data.sets.Images
        Training images.
    training : Training
    recipe : Recipe
        The method, one of `advlib.recipes.RECIPES` or another.
    seed : int
        With the epoch and step it decides the order of the images, their augmentation and the
        start of each attack, so that a position in training needs no other generator state.
    folder : Path
        Of the checkpoint, the lock and ``log.csv``; seen by all processes.
    validation : advlib.data.sets.Images, optional
        Images for methods that adapt to class errors; not of the training or test images.
    helper : nn.Module, optional
        A trained network that the method consults, such as a robust teacher.
    settings : dict, optional
        The facts that decide the weights; None: recipe, training, seed and images. They are
        stored, and compared on resume.
    device : optional
        None: CUDA, MPS or the CPU, by availability.
    checkpoint_seconds : float
        Time between checkpoints within an epoch. Each epoch ends with one.
    late_epochs : int
        After each of so many last epochs, the network that would be handed over is kept as
        ``epoch-<n>.safetensors``.
    on_step : callable, optional
        Called after each step with the number of steps done.

    Returns
    -------
    DataFrame
        The log: epoch, step, lr, loss, error (of the batches trained on), eps (the mean radius of
        the training attack, of N-FGSM the 3 ε that it may reach; 0 without one),
        images_per_second.

    Raises
    ------
    ValueError
        If batch, images, labels or the model's logits do not fit, or the method needs validation
        images or a helper that are not given.
    RuntimeError
        If another process trains in `folder`, or `folder` holds a run with other settings.
    FloatingPointError
        If the loss is no longer finite; the last good checkpoint is kept.
    MemoryError
        If a batch does not fit, with the number of pieces to try; the last checkpoint is kept.

    Notes
    -----
    Several processes (`advlib.distributed`) share one batch, with the images, augmentation and
    starts of attacks that one process would have. Gradients are averaged, and so are loss and error
    in the log. Batch norm sees a process's own part of the batch; the trained network has the
    running statistics of the first process.

    ``accumulate`` computes a process's part in that many equal pieces, one after the other, which
    needs less memory. Their mean gradient is that of the whole, except that batch norm sees one
    piece at a time, and its running statistics move once per piece.

    On the same number of processes, machine and versions, an interrupted run ends with the same
    weights as an uninterrupted one, bit for bit. With another number of processes or pieces the
    last bits differ. A damaged checkpoint is set aside, with a warning, and training starts anew.
    """
    device, folder = torch.device(device or default_device()), Path(folder)
    if settings is None:
        settings = {"recipe": dataclasses.asdict(recipe), "seed": seed}
        settings |= {"training": dataclasses.asdict(dataclasses.replace(training, **HOW))}
        settings |= {"images": dataset.prepared}
    folder.mkdir(parents=True, exist_ok=True)
    with alone(folder), repeatable(device), memory_advice(training, device, folder):
        batch_share(training, distributed.world_size())
        check_images(dataset, training)
        check_given(recipe, training, validation, helper)
        model.to(device, memory_format=torch.channels_last).train()
        check_outputs(model, dataset, training, recipe)
        if helper is not None:
            helper.to(device, memory_format=torch.channels_last).eval()
        objective = find_objective(recipe.objective)(recipe, training, dataset)
        state = {"model": model}
        if isinstance(objective, nn.Module):
            state["method"] = objective.to(device)
        decay = recipe.options["decay"] if recipe.epoch_average else training.ema
        if recipe.epoch_average or decay:
            decay = get_ema_multi_avg_fn(decay)
            state["average"] = AveragedModel(model, multi_avg_fn=decay, use_buffers=True)
        optimizer = torch.optim.SGD(
            model.parameters(),
            lr=training.lr,
            momentum=training.momentum,
            weight_decay=training.weight_decay,
            fused=device.type == "cuda",  # on a CPU it gains milliseconds, and rounds differently
        )
        # Before the checkpoint is read: DDP gives all processes the first one's running statistics.
        dtype, forward = resolve_dtype(training.dtype, device), one_call(model, device)
        with distributed.in_turns():  # the first process sets a damaged file aside
            done, log = load_checkpoint(folder / CHECKPOINT, state, optimizer, settings)
        if len(set(found := distributed.from_all(done))) > 1:
            raise RuntimeError(
                f"the processes found checkpoints of different steps in {folder} ({found}): put "
                "the runs (ADVLIB_RUNS) where all nodes see the same files"
            )
        run = Run(
            dataset, training, recipe, seed, device, dtype, objective, state, optimizer, forward,
            done, log, validation, helper,
        )  # fmt: skip
        return _train(run, folder, settings, checkpoint_seconds, late_epochs, on_step)


def _train(run: Run, folder, settings, checkpoint_seconds, late_epochs, on_step) -> pd.DataFrame:
    training, batch_size = run.training, run.training.batch_size
    steps_per_epoch = len(run.dataset) // batch_size
    total = training.epochs * steps_per_epoch
    if distributed.rank() == 0:
        print(_summary(run), flush=True)
    log_every = max(1, min(50, steps_per_epoch // 10))
    saved = window = time.monotonic()
    window_from, outcomes = run.done, []
    how = dict(unit=" images", unit_scale=True, mininterval=2, disable=distributed.rank() > 0)
    how |= dict(total=total * batch_size, initial=run.done * batch_size, desc=run.recipe.title)
    bar = tqdm(**how)
    for epoch in range(run.done // steps_per_epoch, training.epochs):
        for x, y, index in _batches(run, epoch, run.done - epoch * steps_per_epoch):
            lr = training.lr_at(run.done, total)
            outcomes += take_step(run, x, y, index, epoch, lr)
            run.done += 1
            bar.update(batch_size)
            end_of_epoch = run.done % steps_per_epoch == 0
            if end_of_epoch:
                _end_epoch(run, epoch)
                if epoch >= training.epochs - late_epochs and distributed.rank() == 0:
                    path, model = folder / EPOCH.format(epoch + 1), {"model": _handed_over(run)}
                    save_checkpoint(path, model, None, run.done, [], settings)
            if run.done % log_every == 0 or end_of_epoch:
                row = _log_row(run, folder, steps_per_epoch, outcomes, lr)
                seconds = time.monotonic() - window
                row["images_per_second"] = (run.done - window_from) * batch_size / seconds
                run.log.append(row)
                bar.set_postfix_str(
                    f"epoch {row['epoch']:.1f}/{training.epochs} loss {row['loss']:.3f} "
                    f"error {row['error']:.3f} lr {lr:.2g}",
                    refresh=False,
                )
                outcomes, window, window_from = [], time.monotonic(), run.done
                # Only after a row: otherwise a resumed run would lack part of the next row's steps.
                due = end_of_epoch or time.monotonic() - saved > checkpoint_seconds
                if distributed.from_first(lambda due=due: due):
                    _save(run, folder, settings, finished=run.done == total)
                    saved = time.monotonic()
            if on_step:
                on_step(run.done)
    bar.close()
    run.state["model"].eval()
    return pd.DataFrame(run.log, columns=LOG_COLUMNS)


def _end_epoch(run: Run, epoch: int) -> None:
    """Let the method look back at the epoch, and average the weights where it does so by epochs."""
    look_back = getattr(run.objective, "end_epoch", lambda validation: None)
    kept = look_back(functools.partial(validation_steps, run, epoch))
    if run.recipe.epoch_average and kept is not False:
        run.state["average"].update_parameters(run.state["model"])


def _handed_over(run: Run) -> nn.Module:
    """The network as training would hand it over now: the average if there is one."""
    average = run.state.get("average")
    return average.module if average is not None and average.n_averaged else run.state["model"]


def _batches(run: Run, epoch: int, start_step: int):
    """This process's part of the batches of an epoch, from a step on."""
    training, world_size = run.training, distributed.world_size()
    how = dict(batch_size=batch_share(training, world_size), rank=distributed.rank())
    how |= dict(seed=run.seed, epoch=epoch, start_step=start_step, augment=training.augment)
    how |= dict(workers=training.workers, device=run.device, world_size=world_size)
    return training_batches(run.dataset, **how)


def _save(run: Run, folder: Path, settings: dict, finished: bool) -> None:
    """Write the log, then the checkpoint, which is the last file that a run writes.

    A finished run's file holds the weights alone, averaged if they are: it can be published.
    """
    state, optimizer, others = run.state, run.optimizer, None
    if finished:
        state["model"].load_state_dict(_handed_over(run).state_dict())
        state, optimizer = {"model": state["model"]}, None
    else:
        buffers = {f"{n}.{k}": v.cpu() for n, m in state.items() for k, v in m.named_buffers()}
        others = distributed.from_all(buffers)[1:]
    if distributed.rank() == 0:
        with replacing(folder / "log.csv") as path:
            pd.DataFrame(run.log, columns=LOG_COLUMNS).to_csv(path, index=False)
        # What may change the last bits of the weights.
        how = {"devices": distributed.world_size(), "accumulate": run.training.accumulate}
        how |= {"device": run.device.type, "dtype": str(run.dtype)}
        save_checkpoint(
            folder / CHECKPOINT, state, optimizer, run.done, run.log, settings, how, others
        )


def _summary(run: Run) -> str:
    training, world_size = run.training, distributed.world_size()
    share = batch_share(training, world_size)
    text = f"{run.recipe.title}: batches of {training.batch_size} images"
    if world_size > 1:
        text += f", {share} on each of {world_size} processes"
    if training.accumulate > 1:
        text += f", in {training.accumulate} pieces of {share // training.accumulate}"
    text += f"; learning rate {training.lr:g} to {training.lr * training.lr_final_factor:g}"
    return f"{text}; {run.device.type}, {str(run.dtype).removeprefix('torch.')}"


def _log_row(run: Run, folder, steps_per_epoch, outcomes, lr) -> dict:
    """Means over all images since the last row. Every process has the same number of them."""
    loss, error, eps = distributed.mean(torch.stack(outcomes).mean(0)).tolist()
    if not math.isfinite(loss):
        raise FloatingPointError(
            f"the loss is {loss} by step {run.done}: lower the learning rate, or set dtype to "
            "float32; if it is so at any rate, look for images at which the network has no finite "
            f"gradient. The last good checkpoint is kept in {folder}"
        )
    epoch = run.done / steps_per_epoch
    return {"epoch": epoch, "step": run.done, "lr": lr, "loss": loss, "error": error, "eps": eps}
