"""Networks by name, with the normalisation inside, so that ε always lives in pixel units."""

import difflib
import importlib.util
import math
import re
from collections import OrderedDict
from pathlib import Path

import torch
from torch import nn

from advlib.data.vision import torchvision
from advlib.labels import find_head
from advlib.networks.weights import WEIGHT_FILES, head_outputs, load_weights, read_weights

CIFAR_RESNET = re.compile(r"cifar_resnet(\d+)(?:_w(\d+))?(_s2)?")


class Normalize(nn.Module):
    """(x - mean) / std per channel, for images (N, C, H, W) in [0, 1]."""

    def __init__(self, mean, std):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, x):
        return (x - self.mean) / self.std


def build_model(
    name: str,
    *,
    num_classes: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    weights: str | None = None,
    new_head: bool = False,
    seed: int = 0,
) -> nn.Module:
    """A network that takes images in [0, 1] and gives logits.

    Parameters
    ----------
    name : str
        ``cifar_resnet8``, ``cifar_resnet20_w32_s2``, … (He et al. 2016, for 8 to 64 px: depth 6n+2,
        first width 16 unless ``_w`` says another, ``_s2``: the first layer halves the image, which
        costs a quarter), a torchvision classifier by its name, or a timm one: ``timm/resnet50``.
        ``timm/`` may be left out for a name that torchvision does not know.
    num_classes : int
        K.
    mean, std : tuple of float
        Normalisation per channel; their number is the number of channels.
    weights : str, optional
        A file (`read_weights`), or the name of published weights: ``DEFAULT``, torchvision's such
        as ``IMAGENET1K_V1``, or the tag of timm's such as ``a1_in1k``. None starts from random
        weights.
    new_head : bool
        Accept weights for another number of classes and draw their head afresh.
    seed : int
        Of the random weights.

    Raises
    ------
    ValueError, OSError
        For an unknown name or weights that do not fit; if published ones cannot be downloaded.
    """
    source, known = _find(name)
    if source != "cifar_resnet" and len(mean) != 3:
        raise ValueError(
            f"{name} takes images of 3 channels, the data have {len(mean)}: choose a cifar_resnet"
        )
    file = weights if weights and weights.endswith(WEIGHT_FILES) else None
    published = _published(source, known, weights) if weights and not file else None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if source == "cifar_resnet":
            net = cifar_resnet(known, num_classes, len(mean))
        elif published is not None:
            net = _pretrained(source, known, published, num_classes, new_head)
        elif source == "torchvision":
            net = torchvision.models.get_model(known, num_classes=num_classes)
        else:
            import timm

            net = timm.create_model(known, num_classes=num_classes)
    model = nn.Sequential(OrderedDict(normalize=Normalize(mean, std), net=net))
    if file is not None:
        state = read_weights(Path(file), model)
        outputs = head_outputs(model, state)
        if outputs not in (None, num_classes):
            _check_classes(f"in {file}", outputs, num_classes, new_head)
            fresh = {f"{find_head(model)[0]}.{leaf}" for leaf in ("weight", "bias")}
            state |= {k: v for k, v in model.state_dict().items() if k in fresh}
        load_weights(model, Path(file), state)
    return model.eval()


def cifar_resnet(name: str, num_classes: int, channels: int) -> nn.Module:
    """A residual network for 32 px of He et al. 2016 (Sec. 4.2), with projections as shortcuts.

    By its name, ``cifar_resnet<depth>[_w<width>][_s2]``, with random weights.
    """
    match = CIFAR_RESNET.fullmatch(name)
    depth, width, stem = int(match[1]), int(match[2] or 16), 2 if match[3] else 1
    if depth < 8 or (depth - 2) % 6:
        raise ValueError(f"a cifar_resnet has depth 6n+2 (8, 14, 20, …), got {depth}")
    first = nn.Conv2d(channels, width, 3, stride=stem, padding=1, bias=False)
    layers = [first, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
    inputs = width
    for stage in range(3):
        for block in range((depth - 2) // 6):
            stride = 2 if stage and not block else 1
            outputs = width * 2**stage
            shortcut = None
            if stride == 2:
                convolution = nn.Conv2d(inputs, outputs, 1, stride=2, bias=False)
                shortcut = nn.Sequential(convolution, nn.BatchNorm2d(outputs))
            layers.append(torchvision.models.resnet.BasicBlock(inputs, outputs, stride, shortcut))
            inputs = outputs
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, num_classes)]
    net = nn.Sequential(*layers)
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return net


def _find(name: str) -> tuple[str, str]:
    """The source of a network, and its name there."""
    if CIFAR_RESNET.fullmatch(name):
        return "cifar_resnet", name
    known = torchvision.models.list_models(module=torchvision.models)
    if name in known:
        return "torchvision", name
    wanted, hint = name.removeprefix("timm/"), ""
    if importlib.util.find_spec("timm") is None:
        hint = " (timm's networks need timm: pip install timm)"
    else:
        import timm

        if timm.is_model(wanted):
            return "timm", wanted
        known = timm.list_models() if name != wanted else [*known, *timm.list_models()]
    close = ", ".join(difflib.get_close_matches(wanted, known, n=3)) or "none"
    raise ValueError(
        f"unknown model {name!r}: expected cifar_resnet<depth>[_w<width>][_s2], a torchvision "
        f"classifier such as resnet50, or timm/<name>{hint}; the nearest are {close}"
    )


def _published(source: str, name: str, weights: str):
    """Published weights by name: torchvision's entry, or timm's configuration of them."""
    if source == "cifar_resnet":
        known = {}
    elif source == "torchvision":
        members = torchvision.models.get_model_weights(name)
        known, weights = members.__members__, weights.removeprefix(f"{members.__name__}.")
    else:
        import timm

        tagged = timm.list_pretrained(f"{name.split('.')[0]}.*")
        names = {"DEFAULT": name} if tagged else {}
        names |= {each.partition(".")[2]: each for each in tagged}
        known = {tag: timm.get_pretrained_cfg(each) for tag, each in names.items()}
    if weights not in known:
        raise ValueError(
            f"there are no weights {weights!r} of {name}: expected one of {', '.join(known)} or a "
            f"file ending in {', '.join(WEIGHT_FILES)}"
        )
    return known[weights]


def weights_name(name: str, weights: str) -> str:
    """The published weights that a name means today: ``DEFAULT`` may be others tomorrow."""
    source, known = _find(name)
    found = _published(source, known, weights)
    return found.name if source == "torchvision" else f"{found.architecture}.{found.tag}"


def _pretrained(source: str, name: str, weights, num_classes: int, new_head: bool) -> nn.Module:
    """A network with weights of `_published`, and a fresh head for other classes."""
    ours = source == "torchvision"
    title = f"{weights.name if ours else weights.tag} of {name}"
    outputs = len(weights.meta["categories"]) if ours else weights.num_classes
    _check_classes(title, outputs, num_classes, new_head)
    try:
        if not ours:
            import timm

            tagged = f"{weights.architecture}.{weights.tag}"
            return timm.create_model(tagged, pretrained=True, num_classes=num_classes)
        net = torchvision.models.get_model(name, weights=weights)
    except OSError as error:
        raise OSError(
            f"the weights {title} could not be downloaded ({error}): fetch them on a machine with "
            "internet into the cache of torch or Hugging Face, or name a local file ending in "
            f"{', '.join(WEIGHT_FILES)}"
        ) from error
    if outputs != num_classes:
        path, head = find_head(net)
        net.set_submodule(path, nn.Linear(head.in_features, num_classes))
    return net


def _check_classes(weights: str, outputs: int, num_classes: int, new_head: bool) -> None:
    if outputs != num_classes and not new_head:
        raise ValueError(
            f"the weights {weights} are for {outputs} classes, the data have {num_classes}: set "
            "pretrain_epochs, so that a fresh head is trained first"
        )


def preprocessing(name: str, weights: str | None) -> dict:
    """The preparation of images that a network with these weights, as in `build_model`, needs.

    These are ``mean`` and ``std`` (lists of float, per channel of pixels in [0, 1]), ``resize`` (px
    of the short side), ``image_size`` (px of the centre crop) and ``interpolation`` ("bilinear" or
    "bicubic"): torchvision's or timm's own for published weights, and those of a timm
    architecture's default weights for a file. None where unknown: no weights, or a file for another
    architecture. ``resize`` alone is None where timm does not crop the centre.
    """
    keys = ("mean", "std", "resize", "image_size", "interpolation")
    source, known = _find(name)
    local = weights is None or weights.endswith(WEIGHT_FILES)
    if weights is None or (local and source != "timm"):
        return dict.fromkeys(keys)
    found = None if local else _published(source, known, weights)
    if source == "torchvision":
        wanted = found.transforms()
        sizes = wanted.resize_size[0], wanted.crop_size[0], wanted.interpolation.value
        return dict(zip(keys, (list(wanted.mean), list(wanted.std), *sizes), strict=True))
    import timm

    config = found or timm.get_pretrained_cfg(known)
    if config is None:
        return dict.fromkeys(keys)
    side = config.input_size[1]
    resize = math.floor(side / config.crop_pct) if config.crop_mode == "center" else None
    values = (list(config.mean), list(config.std), resize, side, config.interpolation)
    return dict(zip(keys, values, strict=True))


def pixel_std(model: nn.Module) -> torch.Tensor:
    """The standard deviations (1, C, 1, 1) that the model's `Normalize` layer divides by."""
    if found := next((m for m in model.modules() if isinstance(m, Normalize)), None):
        return found.std
    raise ValueError(
        "eps_space='normalized' needs a model with an advlib.networks.build.Normalize layer; "
        "wrap yours: nn.Sequential(Normalize(mean, std), model)"
    )
