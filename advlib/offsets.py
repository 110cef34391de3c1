"""A remedy after training: offsets of the class logits, so that classes err alike."""

import torch
from torch import nn

from advlib import metrics
from advlib.attacks.worst_case import evaluate_attack
from advlib.labels import find_head
from advlib.threat import ThreatModel


def tune_offsets(
    model: nn.Module,
    validation,
    threat: ThreatModel,
    *,
    num_classes: int,
    rounds: int = 20,
    rate: float = 2.0,
    strength: float = 1.0,
    seed: int = 0,
    device: torch.device | str | None = None,
) -> torch.Tensor:
    """Add an offset to each class logit, in place, so that attacked classes err alike.

    In each round the network with its offsets is attacked on validation images, and the offset of
    class k grows by `rate` times its error less the mean error. The offsets of the round with the
    smallest error of the worst class (of equal ones the least spread) are kept, times `strength`.
    Nothing is trained. Returns the offsets that were added, a float tensor (K,) of mean 0. Raises
    ValueError if the last layer has no bias, or a class has no validation image.

    Parameters
    ----------
    model, threat, num_classes, device
        As in `evaluate_attack`; the model's last linear layer has a bias.
    validation : advlib.data.sets.Images
        Images that the network was not trained on, and that it is not tested on.
    rate : float
        In logits; it falls to 0 along the rounds.
    strength : float
        In [0, 1]; 0 leaves the network as it was.
    seed : int
        Of the attack's starts, the same in each round.
    """
    _, head = find_head(model)
    if head.bias is None:
        raise ValueError("the last layer has no bias, to which offsets could be added")
    before, offsets = head.bias.detach().clone(), torch.zeros(num_classes)
    best, smallest = offsets.clone(), (2.0, 0.0)
    for done in range(rounds):
        _set_bias(head, before, offsets)
        found = evaluate_attack(
            model, validation, threat, num_classes=num_classes, seed=seed, device=device
        )
        error = metrics.class_error(found).set_index("label").error.reindex(range(num_classes))
        error = torch.tensor(error.to_numpy(), dtype=torch.float32)
        if error.isnan().any():
            raise ValueError(f"no validation image is of class {int(error.isnan().nonzero()[0])}")
        if (now := (float(error.max()), float(error.std()))) < smallest:
            best, smallest = offsets.clone(), now
        offsets = offsets + rate * (1 - done / rounds) * (error - error.mean())
    _set_bias(head, before, strength * best)
    return strength * best


@torch.no_grad()
def _set_bias(head: nn.Linear, before: torch.Tensor, offsets: torch.Tensor) -> None:
    head.bias.copy_(before)
    head.bias[: len(offsets)] += offsets.to(head.bias)
