"""What methods with a state share: sums by class, and weights that follow them."""

from collections.abc import Callable, Iterator

import torch
from torch import nn
from torch.nn import functional as F

from advlib import distributed
from advlib.networks.device import autocast
from advlib.objectives.step import Step
from advlib.recipes import Recipe, Training

Steps = Callable[[], Iterator[Step]]
"""Gives the validation images as steps, attacked as in training, by the network as it is now."""


class ClassMethod(nn.Module):
    """A method with a state. Its buffers are the same on all processes, and saved with the run.

    ``forward(step)`` is the objective; it finds the recipe's `options`, the training's `threat`,
    `num_classes`, what `set_up` made, and in `epochs`, an int tensor, how many have ended. A state
    that changes in ``forward`` does so after each piece of a batch that is computed in pieces.
    """

    def __init__(self, recipe: Recipe, training: Training, images):
        super().__init__()
        self.options = recipe.options
        self.threat = training.threat
        self.num_classes = images.num_classes
        self.register_buffer("epochs", torch.zeros((), dtype=torch.int64))
        self.set_up(recipe, images)

    def set_up(self, recipe: Recipe, images) -> None:
        """Make the state. To be overridden, as `look_back`: here both do nothing."""

    def end_epoch(self, validation: Steps) -> bool | None:
        """Count an epoch that has ended, then look back at it."""
        self.epochs += 1
        return self.look_back(validation)

    def look_back(self, validation: Steps) -> bool | None:
        """Change the state after an epoch.

        False: the epoch's weights do not enter the average of a recipe that averages by epochs.
        """

    def began(self) -> bool:
        """Whether as many epochs have ended as the option `begin` says, 1 without it."""
        return bool(self.epochs >= self.options.get("begin", 1))

    def per_class(self, name: str, value: float = 0.0) -> None:
        """A buffer of one number for each class."""
        # Float32, since MPS knows no float64.
        self.register_buffer(name, torch.full((self.num_classes,), value))


def mean_one(weights: torch.Tensor) -> torch.Tensor:
    """Weights of images (N,) over their mean on all processes."""
    return weights / distributed.mean(weights.mean())


def by_class(rows: torch.Tensor, y: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Sums (K, …) of rows (N, …) over the images of each class; with the same bits each time.

    ``index_add_`` has no fixed order on CUDA.
    """
    with autocast(rows.device, torch.float32):
        return F.one_hot(y, num_classes).to(rows.dtype).T @ rows


class Tally(nn.Module):
    """Sums of one or more numbers per image, by class, over all processes."""

    def __init__(self, num_classes: int, columns: int = 1):
        super().__init__()
        self.register_buffer("sums", torch.zeros(num_classes, columns + 1))

    def add(self, y: torch.Tensor, values: torch.Tensor) -> None:
        """Numbers (N,) or (N, columns) of images with the labels y."""
        rows = values.detach().to(self.sums.dtype).view(len(y), -1)
        rows = torch.cat([rows, torch.ones_like(rows[:, :1])], 1)
        # Added up at once: a run may go on with another number of processes.
        self.sums += distributed.total(by_class(rows, y, len(self.sums)))

    def means(self) -> torch.Tensor:
        """The mean of each class, (K,) or (K, columns); NaN without an image. Then it is empty."""
        means = (self.sums[:, :-1] / self.sums[:, -1:]).squeeze(1)
        self.sums.zero_()
        return means


def validation_means(
    validation: Steps, num_classes: int, values: Callable[[Step], torch.Tensor]
) -> torch.Tensor:
    """Means of `values(step)`, (N,) or (N, columns), over each class, (K,) or (K, columns).

    Raises ValueError if a class has no validation image.
    """
    labels, rows = zip(*((step.y, values(step)) for step in validation()), strict=True)
    rows = torch.cat(rows)
    tally = Tally(num_classes, rows[0].numel()).to(rows.device)
    tally.add(torch.cat(labels), rows)
    if len(none := torch.nonzero(tally.sums[:, -1] == 0)):
        raise ValueError(
            f"no validation image is of class {none[0].item()}: the method needs some of each class"
        )
    return tally.means()
