"""One step of training: the attack, the objective, the gradients of a process's images."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from advlib import distributed
from advlib.attacks.folding import folding
from advlib.attacks.pgd import attack_mode, pgd_attack, start_noise
from advlib.data.batches import evaluation_batches, stream_seed
from advlib.data.sets import Images
from advlib.labels import check_range, class_logits
from advlib.networks.device import autocast
from advlib.objectives import Objective, Step
from advlib.recipes import Recipe, Training


@dataclass
class Run:
    """A training under way: its parts and its progress."""

    dataset: Images
    training: Training
    recipe: Recipe
    seed: int
    device: torch.device
    dtype: torch.dtype
    objective: Objective
    state: dict[str, nn.Module]  # what a checkpoint holds: "model", and "method" and "average"
    optimizer: torch.optim.Optimizer
    forward: nn.Module  # images to logits, all passes of a step in one call
    done: int  # steps
    log: list[dict]
    attacked: Callable[[], nn.Module] | None = None  # made with the first batch; `folding`


def take_step(
    run: Run, x: torch.Tensor, y: torch.Tensor, epoch: int, lr: float
) -> list[torch.Tensor]:
    """One step of the optimizer on this process's images; returns loss and error of each piece.

    They stay on the device, because reading them would stall every step.
    """
    model, rank = run.state["model"], distributed.rank()
    for group in run.optimizer.param_groups:
        group["lr"] = lr
    run.optimizer.zero_grad(set_to_none=True)
    noise = None
    if run.recipe.adversarial:
        noise = starts(x, run.training, run.seed, epoch, run.done)
        run.attacked = run.attacked or folding(model, x[:2])
    own = [rank] if rank else []
    torch.manual_seed(stream_seed(run.seed, "dropout", epoch, run.done, *own))
    loss_of = functools.partial(
        training_loss,
        run.objective,
        model,
        training=run.training,
        num_classes=run.dataset.num_classes,
        dtype=run.dtype,
        forward=run.forward,
        attacked=run.attacked,
    )
    outcomes = backward(loss_of, x, y, noise, run.training.accumulate, run.forward)
    run.optimizer.step()
    if run.training.ema:
        run.state["average"].update_parameters(model)
    return outcomes


def training_loss(
    objective: Objective,
    model: nn.Module,
    x: torch.Tensor,
    y: torch.Tensor,
    training: Training,
    *,
    num_classes: int,
    noise: torch.Tensor | None = None,
    first: int = 0,
    dtype: torch.dtype = torch.float32,
    forward: Callable[..., list[torch.Tensor]] | None = None,
    attacked: Callable[[], nn.Module] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss and error of one batch.

    Parameters
    ----------
    objective : callable
        Of `advlib.objectives`, made for this training.
    model : nn.Module
        In training mode.
    x : float tensor (N, C, H, W) in [0, 1]
    y : int tensor (N,)
        In [0, K). Neither is checked here: a check would wait for the device in every step.
    training : Training
    num_classes : int
        K.
    noise : float tensor (N, C, H, W), optional
        The start of the attack (`advlib.attacks.pgd.start_noise`); None: from torch's generator.
    first : int
        The place of x[0] in the whole batch of the step. With several threat models the image in
        place i is attacked by number i mod M.
    dtype : torch.dtype
        Of the autocast.
    forward : callable, optional
        Batches of images to the logits of each, for the pass that is trained on; None: `model`.
    attacked : callable, optional
        Returns the network to attack, faster than `model` and with its weights
        (`advlib.attacks.folding.folding`); None: `model`.

    Returns
    -------
    (scalar tensor with a graph, scalar tensor)
        The loss and the share of wrong predictions, both over the images trained on: clean ones
        for Std, adversarial ones for Adv, and the mean of both halves for mixed batches.
    """
    network = functools.cache(attacked or (lambda: model))  # folded once per step

    def attack(climbed=None, *, radius=None):
        threats = training.threats
        # Images take turns, so that each transformation has as many of a batch.
        transform = (torch.arange(len(x), device=x.device) + first) % len(threats)
        x_adv = torch.empty_like(x)
        for j, threat in enumerate(threats):
            own = slice((j - first) % len(threats), None, len(threats))
            with autocast(x.device, dtype):
                x_adv[own] = pgd_attack(
                    network(),
                    x[own],
                    y[own],
                    threat,
                    num_classes=num_classes,
                    noise=noise[own] if noise is not None and threat.random_start else None,
                    objective=climbed
                    and functools.partial(climbed, transform=transform[own], own=own),
                    radius=None if radius is None else radius[own],
                    check=False,
                )
        return x_adv, transform

    def predict(images):
        with torch.no_grad(), attack_mode(network(), "eval"), autocast(x.device, dtype):
            return class_logits(network()(images).float(), num_classes).softmax(1)

    def logits(*images):
        # Each half has a forward pass, and so batch-norm statistics, of its own.
        with autocast(x.device, dtype):
            return forward(*images) if forward else [model(half) for half in images]

    loss, outputs = objective(Step(x, y, logits, attack, predict))
    wrong = [class_logits(out, num_classes).argmax(1) != y for out in outputs]
    return loss, torch.cat(wrong).float().mean().detach()


class _Halves(nn.Module):
    """All forward passes of a step in one call, as DDP wants them."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, *halves: torch.Tensor) -> list[torch.Tensor]:
        return [self.network(x) for x in halves]


def starts(x, training: Training, seed: int, epoch: int, done: int) -> torch.Tensor:
    """This process's part of the random starts of a step's attack.

    Each process draws those of the whole batch, so that an image has the same start for any number
    of processes and pieces. They are drawn on the device, which would wait for a CPU's draws.
    """
    generator = torch.Generator(x.device).manual_seed(stream_seed(seed, "attack", epoch, done))
    shape = (len(x) * distributed.world_size(), *x.shape[1:])
    noise = start_noise(shape, training.threats[0], generator, x.device)
    return noise[len(x) * distributed.rank() :][: len(x)]


def backward(loss_of: Callable, x, y, noise, pieces: int, forward: nn.Module) -> list[torch.Tensor]:
    """Add the gradients of a process's images; returns loss and error of each piece, stacked."""
    x = x.contiguous(memory_format=torch.channels_last)
    size, outcomes = len(x) // pieces, []
    first = len(x) * distributed.rank()
    starts = noise.split(size) if noise is not None else [None] * pieces
    for i, (part, labels, start) in enumerate(
        zip(x.split(size), y.split(size), starts, strict=True)
    ):
        # Processes exchange gradients once per step, with the last piece.
        waits = isinstance(forward, DistributedDataParallel) and i < pieces - 1
        with forward.no_sync() if waits else contextlib.nullcontext():
            loss, error = loss_of(part, labels, noise=start, first=first + i * size)
            (loss / pieces).backward()
        outcomes.append(torch.stack([loss.detach(), error]))
    return outcomes


def one_call(model: nn.Module, device: torch.device) -> nn.Module:
    """A module that computes all logits of a step in one call, as DDP wants them."""
    forward = _Halves(model)
    if distributed.world_size() == 1:
        return forward
    # The attack runs on `model`, without DDP. Buffers are not copied between processes.
    where = [device] if device.type == "cuda" else None
    return DistributedDataParallel(forward, device_ids=where, forward_sync_buffers=False)


def batch_share(training: Training, processes: int) -> int:
    """The images of a training batch that fall to each process.

    Raises
    ------
    ValueError
        If they do not divide evenly, or not into the training's ``accumulate`` pieces.
    """
    share, rest = divmod(training.batch_size, processes)
    if rest:
        nearest = max(processes, training.batch_size - rest)
        raise ValueError(
            f"a batch of {training.batch_size} images does not divide among {processes} processes: "
            f"choose a batch_size that does, such as {nearest}, or another number of devices"
        )
    if share % training.accumulate:
        raise ValueError(
            f"{share} images, a process's part of a batch, do not divide into "
            f"{training.accumulate} equal pieces: choose accumulate from "
            f"{', '.join(map(str, _divisors(share)))}"
        )
    return share


def check_images(dataset: Images, training: Training) -> None:
    """Raise ValueError for too few images or labels out of range.

    Once, because a check in every step would wait for the device.
    """
    if len(dataset) < training.batch_size:
        raise ValueError(
            f"{len(dataset)} training images do not fill one batch: choose a batch_size of at most "
            f"{len(dataset)}, got {training.batch_size}"
        )
    check_range("label", dataset.labels, 0, dataset.num_classes)


def check_outputs(model: nn.Module, dataset: Images, training: Training, recipe: Recipe) -> None:
    """Raise ValueError if the model has other logits than the recipe trains."""
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


def _divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]


@contextlib.contextmanager
def memory_advice(training: Training, device: torch.device, folder: Path) -> Iterator[None]:
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
        share = batch_share(training, distributed.world_size())
        more = [d for d in _divisors(share) if d > training.accumulate]
        size = share // training.accumulate
        hint = "choose a smaller network or smaller images"
        if more:
            pieces = f"pieces of {share // more[0]}"
            hint = f"set accumulate to {more[0]} ({pieces}), or choose a smaller batch_size"
        raise MemoryError(
            f"{size} images at once, of a batch of {training.batch_size}, do not fit in the memory "
            f"of {device}: {hint}. Training then resumes from the last checkpoint in {folder}"
        ) from error
