"""Label augmentation (the paper's Eq. 3 and 4): targets, loss, class logits, a wider head."""

import torch
from torch import nn
from torch.nn import functional as F


def label_augmentation_targets(
    y: torch.Tensor,
    transform: torch.Tensor,
    *,
    num_classes: int,
    num_transforms: int,
    delta: float,
    check: bool = True,
) -> torch.Tensor:
    """Soft targets of Eq. 3: concat[(1 - delta) * onehot(y), delta * onehot(transform)].

    Parameters
    ----------
    y : int tensor (N,), the labels in [0, K)
    transform : int tensor (N,)
        The transformation of each image, in [0, M); -1 for none, which gives onehot(y) and zeros.
    num_classes, num_transforms : int
        K >= 1 and M >= 1.
    delta : float
        Weight of the transformation, in [0, 1).
    check : bool
        False where labels are known to be in range: each check waits for the device.

    Returns
    -------
    float tensor (N, K+M); each row sums to 1.

    Raises
    ------
    ValueError
        For a delta, label or transformation out of range, or of no whole numbers.
    """
    if not 0 <= delta < 1:
        raise ValueError(f"delta is in [0, 1), got {delta}")
    if num_transforms < 1:
        raise ValueError(f"num_transforms is at least 1, got {num_transforms}")
    if check:
        check_range("label", y, 0, num_classes)
        check_range("transform", transform, -1, num_transforms)
    transformed = (transform >= 0).float()
    targets = torch.zeros(len(y), num_classes + num_transforms, device=y.device)
    targets.scatter_(1, y[:, None], 1 - delta * transformed[:, None])
    column = num_classes + transform.clamp(min=0)
    targets.scatter_add_(1, column[:, None], delta * transformed[:, None])
    return targets


def label_augmentation_loss(
    logits: torch.Tensor,
    y: torch.Tensor,
    transform: torch.Tensor,
    *,
    num_classes: int,
    delta: float,
    reduction: str = "mean",
    check: bool = True,
) -> torch.Tensor:
    """Cross-entropy of Eq. 4 over all logits (N, K+M): a scalar, or (N,) with reduction "none".

    The other arguments are those of `label_augmentation_targets`; M is the number of logits beyond
    K. A delta of 0 gives the plain cross-entropy over K+M logits.
    """
    targets = label_augmentation_targets(
        y, transform, num_classes=num_classes, num_transforms=logits.shape[1] - num_classes,
        delta=delta, check=check,
    )  # fmt: skip
    return F.cross_entropy(logits.float(), targets, reduction=reduction)


def model_logits(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The logits (N, K) of a model for images; TypeError for other outputs, such as a tuple."""
    logits = model(x)
    if torch.is_tensor(logits) and logits.is_floating_point() and logits.ndim == 2:
        return logits
    found = type(logits).__name__
    if torch.is_tensor(logits):
        found = f"{str(logits.dtype).removeprefix('torch.')} of shape {tuple(logits.shape)}"
    raise TypeError(
        f"the model gives {found}; expected its logits, a float tensor (N, K): wrap it in a module "
        "whose forward returns them"
    )


def class_logits(logits: torch.Tensor, num_classes: int) -> torch.Tensor:
    """The first K of K+M logits, (N, K): every prediction and every error uses these alone."""
    if logits.shape[1] < num_classes:
        raise ValueError(f"the model gives {logits.shape[1]} logits for {num_classes} classes")
    return logits[:, :num_classes]


def widen_head(
    model: nn.Module,
    num_transforms: int,
    *,
    replace: bool = False,
    generator: torch.Generator | None = None,
) -> nn.Module:
    """Give the last linear layer M = `num_transforms` >= 0 more outputs, in place.

    Its K trained rows are kept unless `replace`. Fresh rows are drawn as torch draws a linear
    layer, U(±1/sqrt(inputs)), by `generator`, one of the CPU. Returns the same model. Raises
    ValueError if the model has no such layer (`find_head`), or is one.
    """
    name, head = find_head(model)
    if not name:
        raise ValueError("a bare linear layer has no place for another: wrap it in nn.Sequential")
    wide = nn.Linear(head.in_features, head.out_features + num_transforms, head.bias is not None)
    wide.to(head.weight.device, head.weight.dtype)
    bound = head.in_features**-0.5
    with torch.no_grad():
        for fresh, kept in zip(wide.parameters(), head.parameters(), strict=True):
            drawn = torch.empty(fresh.shape).uniform_(-bound, bound, generator=generator)
            fresh.copy_(drawn)
            if not replace:
                fresh[: head.out_features] = kept
    model.set_submodule(name, wide)
    return model


def find_head(model: nn.Module) -> tuple[str, nn.Linear]:
    """Path and layer of the classifier: the last ``nn.Linear`` of the model.

    Raises ValueError if there is none, or if timm calls another layer, or several, the classifier.
    """
    linear = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    net = next((m for m in model.modules() if hasattr(m, "get_classifier")), None)
    if linear and net is not None:
        classifier = net.get_classifier()
        inside = list(classifier.modules()) if isinstance(classifier, nn.Module) else []
        outputs = linear[-1][1].out_features
        heads = [m for m in inside if isinstance(m, nn.Linear) and m.out_features == outputs]
        linear = linear if heads == [linear[-1][1]] else []
    if not linear:
        raise ValueError(
            "the network does not end in one linear layer, which label augmentation and a head "
            "for other classes need: choose another network, or methods without label augmentation"
        )
    return linear[-1]


def check_range(name: str, values: torch.Tensor, low: int, high: int) -> None:
    """Raise ValueError unless all are whole numbers in [low, high); waits for the device once."""
    if values.dtype == torch.bool or values.is_floating_point():
        raise ValueError(f"{name} holds whole numbers, got {values.dtype}")
    if len(values) and (int(values.min()) < low or int(values.max()) >= high):
        raise ValueError(
            f"{name} is in [{low}, {high}), got {int(values.min())} to {int(values.max())}"
        )


def check_pixels(x: torch.Tensor) -> None:
    """Raise ValueError unless the images are in [0, 1]; waits for the device once."""
    low, high = torch.stack(x.aminmax()).tolist()
    if not (low >= 0 and high <= 1):
        raise ValueError(
            f"images are in [0, 1], got [{low:.3g}, {high:.3g}]: pass pixels as they are and put "
            "the normalisation inside the model (advlib.networks.build.Normalize)"
        )
