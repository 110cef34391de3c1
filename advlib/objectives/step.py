"""One step of training as an objective sees it: its images, and what may be done with them."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from advlib import distributed
from advlib.attacks.pgd import attack_mode, pgd_attack
from advlib.labels import class_logits
from advlib.networks.device import autocast
from advlib.recipes import Training
from advlib.threat import ThreatModel


@dataclass(frozen=True)
class Networks:
    """The networks of a step, the same for all of its pieces."""

    model: nn.Module  #: the one that is trained
    training: Training
    num_classes: int  #: K
    dtype: torch.dtype = torch.float32  #: of the autocast
    #: Batches of images to the logits of each, all in one call; None: `model`.
    forward: Callable[..., list[torch.Tensor]] | None = None
    #: Gives the network to attack: `model`, or a faster one with its weights; None: `model`.
    attacked: Callable[[], nn.Module] | None = None
    #: A trained network that the method consults, in evaluation mode.
    helper: nn.Module | None = None
    #: Weights that `Step.perturb` has moved, with where they were; see `put_back`.
    displaced: list = field(default_factory=list)
    #: The mean ε of each attack of the step so far; None: the recipe says that it has none.
    radii: list | None = field(default_factory=list)

    @torch.no_grad()
    def put_back(self) -> None:
        """The weights as they were before `Step.perturb`."""
        while self.displaced:
            parameter, before = self.displaced.pop()
            parameter.copy_(before)


@dataclass(frozen=True)
class Step:
    """Images of one step (all of a process's, or a piece of them) and what to do with them."""

    x: torch.Tensor  #: float (N, C, H, W) in [0, 1]
    y: torch.Tensor  #: int (N,)
    index: torch.Tensor | None  #: int (N,), positions in the training images
    #: Float (N, C, H, W), the random start of the attack in units of ε
    #: (`advlib.attacks.pgd.start_noise`).
    noise: torch.Tensor | None
    networks: Networks
    #: The place of x[0] in the whole batch. With several threat models the image in place i is
    #: attacked by number i mod M.
    first: int = 0

    def logits(self, *images: torch.Tensor) -> list[torch.Tensor]:
        """Logits of each batch of images, to be trained on: a list. Call it once, with all."""
        # Each batch has a forward pass, and so batch-norm statistics, of its own.
        nets = self.networks
        with autocast(self.x.device, nets.dtype):
            return nets.forward(*images) if nets.forward else [nets.model(x) for x in images]

    def attack(
        self,
        objective: Callable | None = None,
        *,
        threat: ThreatModel | None = None,
        radius: torch.Tensor | None = None,
        step_size: torch.Tensor | None = None,
        start: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Attacked images (N, C, H, W), and the transformation of each (N,).

        ``objective(logits, labels, transform, own)`` is the scalar that the attack climbs, a sum
        over the images `own` (a slice of the N); None: the threat model's loss. A `threat` takes
        the place of the training's. `radius`, `step_size` and `start` are those of `pgd_attack`;
        without a start it is the step's random one.
        """
        nets, first = self.networks, self.first
        if nets.radii is None:
            raise ValueError("a method that attacks its images says `adversarial: true`")
        threats = (threat,) if threat else nets.training.threats
        # Images take turns, so that each transformation has as many of a batch.
        transform = (torch.arange(len(self.x), device=self.x.device) + first) % len(threats)
        reach = sum(one.eps for one in threats) / len(threats)
        nets.radii.append(
            radius.mean() if radius is not None else torch.full((), reach, device=self.x.device)
        )
        x_adv = torch.empty_like(self.x)
        for j, threat in enumerate(threats):
            own = slice((j - first) % len(threats), None, len(threats))
            given = dict(noise=self.noise if threat.random_start else None)
            given |= dict(radius=radius, step_size=step_size, start=start)
            climbed = None
            if objective:

                def climbed(logits, labels, transform=transform[own], own=own):
                    return objective(logits, labels, transform, own)

            with autocast(self.x.device, nets.dtype):
                x_adv[own] = pgd_attack(
                    # A folded network has no batch norm left, whose mode would matter.
                    nets.model if threat.model_mode == "train" else self._attacked(),
                    self.x[own],
                    self.y[own],
                    threat,
                    num_classes=nets.num_classes,
                    objective=climbed,
                    check=False,
                    **{k: v if v is None else v[own] for k, v in given.items()},
                )
        return x_adv, transform

    def scores(self, images: torch.Tensor) -> torch.Tensor:
        """Class logits (N, K) of the attacked network in evaluation mode, to look at.

        They have no graph: a part of the loss that is made of them trains nothing.
        """
        return self._scores(self._attacked(), images)

    def helper(self, images: torch.Tensor) -> torch.Tensor:
        """Class logits (N, K) of the helper, without a graph."""
        return self._scores(self.networks.helper, images)

    def wrong(self, *outputs: torch.Tensor) -> torch.Tensor:
        """Which of these logits (N, K+M) predict another class than the label.

        Returns a boolean tensor over all of them, one after the other.
        """
        classes = self.networks.num_classes
        return torch.cat([class_logits(out, classes).argmax(1) != self.y for out in outputs])

    def part(self, own: torch.Tensor | slice) -> "Step":
        """The step of the images `own`, a slice or positions in this one."""
        noise = None if self.noise is None else self.noise[own]
        index = None if self.index is None else self.index[own]
        return replace(self, x=self.x[own], y=self.y[own], index=index, noise=noise)

    def perturb(self, loss_of: Callable[["Step"], torch.Tensor], gamma: float) -> None:
        """Move the weights to where the loss is larger, until the step's gradient is computed.

        Each tensor w of two dimensions or more moves by `gamma` ‖w‖ along its gradient of
        ``loss_of(step)`` (Wu et al. 2020). Batch norm keeps its statistics.
        """
        nets = self.networks
        weights = [p for p in nets.model.parameters() if p.ndim > 1 and p.requires_grad]
        buffers = [b.clone() for b in nets.model.buffers()]
        alone = replace(self, networks=replace(nets, forward=None))
        gradients = torch.autograd.grad(loss_of(alone), weights)
        with torch.no_grad():
            for buffer, before in zip(nets.model.buffers(), buffers, strict=True):
                buffer.copy_(before)
            for weight, gradient in zip(weights, gradients, strict=True):
                gradient = distributed.mean(gradient)
                nets.displaced.append((weight, weight.clone()))
                length = gradient.norm().clamp_min(torch.finfo(gradient.dtype).tiny)
                weight.add_(gradient * (gamma * weight.norm() / length))

    def _attacked(self) -> nn.Module:
        return self.networks.attacked() if self.networks.attacked else self.networks.model

    def _scores(self, network, images):
        nets = self.networks
        with torch.no_grad(), attack_mode(network, "eval"), autocast(self.x.device, nets.dtype):
            return class_logits(network(images).float(), nets.num_classes)


Objective = Callable[[Step], tuple[torch.Tensor, torch.Tensor]]
"""A step to the loss, a scalar with a graph, and which predictions on the images were wrong."""
