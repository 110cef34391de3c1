"""One step of training: the attack, the objective, the gradients of a process's images."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from advlib import distributed
from advlib.attacks.folding import folding
from advlib.attacks.pgd import attack_mode, start_noise
from advlib.data.batches import evaluation_batches, stream_seed
from advlib.data.sets import Images
from advlib.labels import check_range
from advlib.objectives.step import Networks, Objective, Step
from advlib.recipes import Recipe, Training
from advlib.threat import ThreatModel


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
    validation: Images | None = None
    helper: nn.Module | None = None
    attacked: Callable[[], nn.Module] | None = None  # made with the first batch; `folding`

    def networks(self, **more) -> Networks:
        """Those of a step; `more` are the fields in which training and validation differ."""
        model, classes = self.state["model"], self.dataset.num_classes
        return Networks(model, self.training, classes, self.dtype, helper=self.helper, **more)


def take_step(run: Run, x, y, index, epoch: int, lr: float) -> list[torch.Tensor]:
    """One step of the optimizer on this process's images; loss, error and mean ε of each piece.

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
    radii = [] if run.recipe.adversarial else None
    networks = run.networks(forward=run.forward, attacked=run.attacked, radii=radii)
    step = Step(x, y, index.to(x.device), noise, networks, len(x) * rank)
    outcomes = backward(run.objective, step, run.training.accumulate)
    run.optimizer.step()
    if run.training.ema and not run.recipe.epoch_average:
        run.state["average"].update_parameters(model)
    return outcomes


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
    noise = start_noise(shape, _drawing(training), generator, x.device)
    return noise[len(x) * distributed.rank() :][: len(x)]


def _drawing(training: Training) -> ThreatModel:
    """The threat model that starts are drawn by."""
    return next((t for t in training.threats if t.random_start), training.threats[0])


def backward(objective: Objective, step: Step, pieces: int) -> list[torch.Tensor]:
    """Add the gradients of a process's images; loss, error and mean ε of each piece, stacked."""
    x = step.x.contiguous(memory_format=torch.channels_last)
    size, outcomes = len(x) // pieces, []
    for i in range(pieces):
        networks = step.networks
        if networks.attacked:  # folded once per piece
            networks = replace(networks, attacked=functools.cache(networks.attacked))
        piece = replace(step, x=x, networks=networks)
        if pieces > 1:
            own = slice(i * size, (i + 1) * size)
            piece = replace(piece.part(own), first=step.first + i * size)
        # Processes exchange gradients once per step, with the last piece.
        waits = isinstance(networks.forward, DistributedDataParallel) and i < pieces - 1
        with networks.forward.no_sync() if waits else contextlib.nullcontext():
            found = objective(piece)
            check_loss(found)
            loss, wrong = found
            (loss / pieces).backward()
        networks.put_back()
        radii = networks.radii or [torch.zeros(())]
        eps = sum(radius.to(x.device) for radius in radii) / len(radii)
        said = (loss.detach(), wrong.float().mean(), eps)
        outcomes.append(torch.stack(said))
        radii.clear()
    return outcomes


def check_loss(found) -> None:
    """Raise TypeError for what no training can go on with: here, torch's words would not help."""
    loss = found[0] if isinstance(found, tuple) and len(found) == 2 else None
    if not isinstance(loss, torch.Tensor) or loss.ndim:
        raise TypeError("an objective returns a pair: the loss, a scalar, and which were wrong")
    if not loss.requires_grad:
        raise TypeError(
            "the objective's loss has no gradient: what is trained on comes from step.logits(…), "
            "step.scores(…) only looks at the network"
        )


def validation_steps(run: Run, epoch: int) -> Iterator[Step]:
    """This process's batches of the validation images, whose starts depend on the epoch alone."""
    training = run.training
    networks = run.networks(attacked=functools.cache(run.attacked) if run.attacked else None)
    batches = torch.arange(len(run.validation)).split(training.batch_size)
    for number in range(distributed.rank(), len(batches), distributed.world_size()):
        how = {"batch_size": training.batch_size, "device": run.device}
        ((x, y, index),) = evaluation_batches(run.validation, indices=batches[number], **how)
        seed = stream_seed(run.seed, "validation", epoch, number)
        generator = torch.Generator(x.device).manual_seed(seed)
        noise = start_noise(x.shape, _drawing(training), generator, x.device)
        x = x.contiguous(memory_format=torch.channels_last)
        yield Step(x, y, index.to(x.device), noise, networks)


def one_call(model: nn.Module, device: torch.device) -> nn.Module:
    """A module that computes all logits of a step in one call, as DDP wants them."""
    forward = _Halves(model)
    if distributed.world_size() == 1:
        return forward
    # The attack runs on `model`, without DDP. Buffers are not copied between processes.
    where = [device] if device.type == "cuda" else None
    return DistributedDataParallel(forward, device_ids=where, forward_sync_buffers=False)


def batch_share(training: Training, processes: int) -> int:
    """A process's part of a training batch; ValueError unless it and its pieces divide evenly."""
    share, rest = divmod(training.batch_size, processes)
    if rest:
        nearest = max(processes, training.batch_size - rest)
        raise ValueError(
            f"a batch of {training.batch_size} images does not divide among {processes} processes: "
            f"choose a batch_size that does, such as {nearest}, or another number of devices"
        )
    if training.accumulate < 1 or share % training.accumulate:
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


def check_given(recipe: Recipe, training: Training, validation, helper) -> None:
    """Raise ValueError without the validation images, helper or logits that a method needs."""
    for name, needed, given in (
        ("validation images", recipe.validation, validation),
        ("a helper", recipe.helper, helper),
    ):
        if needed and given is None:
            raise ValueError(f"{recipe.title} needs {name}: see `fit`")
    if recipe.extra_logits and (n := len(training.threats)) > training.num_transforms:
        raise ValueError(f"{n} threats need as many num_transforms, got {training.num_transforms}")
    processes = distributed.world_size()
    if recipe.validation and len(validation) <= training.batch_size * (processes - 1):
        raise ValueError(
            f"{len(validation)} validation images do not fill a batch of {training.batch_size} for "
            f"each of {processes} processes: keep more apart, or choose fewer devices"
        )


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
        if "can't allocate memory" not in said and "out of memory" not in said:
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
