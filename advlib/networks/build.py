"""Networks by name, with the normalisation inside, so that ε always lives in pixel units."""

import contextlib
import difflib
import functools
import importlib.util
import math
from collections import OrderedDict
from pathlib import Path

import torch
from torch import nn

from advlib.data.vision import torchvision
from advlib.labels import find_head
from advlib.networks.cifar_resnet import CIFAR_RESNET, cifar_resnet
from advlib.networks.weights import WEIGHT_FILES, head_outputs, load_weights, read_weights

INCEPTIONS = ("googlenet", "inception_v3")


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
        A name that torchvision does not know needs no ``timm/``; one that both know is
        torchvision's.
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
    ValueError
        For an unknown name or weights that do not fit.
    OSError
        If published weights cannot be downloaded.
    """
    source, known = _find(name)
    if source != "cifar_resnet" and len(mean) != 3:
        raise ValueError(
            f"{name} takes images of 3 channels, the data have {len(mean)}: choose a cifar_resnet"
        )
    named = None if weights is None or weights.endswith(WEIGHT_FILES) else weights
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if source == "cifar_resnet":
            if named:
                raise _unknown_weights(known, named, [])
            net = cifar_resnet(known, num_classes, len(mean))
        elif source == "torchvision":
            net = _torchvision_network(known, num_classes, named, new_head)
        else:
            net = _timm_network(known, num_classes, named, new_head)
    model = nn.Sequential(OrderedDict(normalize=Normalize(mean, std), net=net))
    if weights is not None and named is None:
        state = read_weights(Path(weights), model)
        outputs = head_outputs(model, state)
        if outputs not in (None, num_classes):
            _check_classes(f"in {weights}", outputs, num_classes, new_head)
            fresh = {f"{find_head(model)[0]}.{leaf}" for leaf in ("weight", "bias")}
            state |= {k: v for k, v in model.state_dict().items() if k in fresh}
        load_weights(model, Path(weights), state)
    return model.eval()


def _find(name: str) -> tuple[str, str]:
    """The source of a network, and its name there."""
    if CIFAR_RESNET.fullmatch(name):
        return "cifar_resnet", name
    known = torchvision.models.list_models(module=torchvision.models)
    if name in known:
        return "torchvision", name
    wanted = name.removeprefix("timm/")
    if importlib.util.find_spec("timm") is None:
        hint = "; timm's networks need timm: pip install timm"
    else:
        timm = _timm()
        if timm.is_model(wanted):
            return "timm", wanted
        known = known if name == wanted else []
        known, hint = [*known, *timm.list_models()], ""
    close = difflib.get_close_matches(wanted, known, n=3)
    raise ValueError(
        f"unknown model {name!r}: expected cifar_resnet<depth>[_w<width>][_s2], a torchvision "
        f"classifier such as resnet50, or timm/<name>"
        + (f"; the nearest are {', '.join(close)}" if close else "")
        + hint
    )


@functools.cache
def _timm():
    """timm, imported when first needed: it takes a second, and torchvision before it."""
    import timm

    return timm


def _torchvision_network(name, num_classes, weights, new_head) -> nn.Module:
    models = torchvision.models
    if weights is None:
        # As torchvision makes them with weights by name, so that a checkpoint of such a network
        # fits; and without their second heads, so that training gives nothing but logits.
        options = dict(aux_logits=False, transform_input=True, init_weights=True)
        options = options if name in INCEPTIONS else {}
        return models.get_model(name, weights=None, num_classes=num_classes, **options)
    entry = _torchvision_weights(name, weights)
    outputs = len(entry.meta["categories"])
    _check_classes(f"{weights} of {name}", outputs, num_classes, new_head)
    with _download(f"{weights} of {name}"):
        net = models.get_model(name, weights=entry)
    if name == "inception_v3":
        net.aux_logits, net.AuxLogits = False, None
    if outputs != num_classes:
        path, head = find_head(net)
        parent, _, leaf = path.rpartition(".")
        setattr(net.get_submodule(parent), leaf, nn.Linear(head.in_features, num_classes))
    return net


def _torchvision_weights(name: str, weights: str):
    members = torchvision.models.get_model_weights(name)
    key = weights.removeprefix(f"{members.__name__}.")
    if key not in members.__members__:
        raise _unknown_weights(name, weights, members.__members__)
    return members[key]


def weights_name(name: str, weights: str) -> str:
    """The published weights that a name means today: ``DEFAULT`` may be others tomorrow."""
    source, known = _find(name)
    if source == "torchvision":
        return _torchvision_weights(known, weights).name
    if source == "cifar_resnet":
        raise _unknown_weights(name, weights, [])
    config = _timm().get_pretrained_cfg(_timm_tagged(known, weights))
    return f"{config.architecture}.{config.tag}"


def _timm_network(name, num_classes, weights, new_head) -> nn.Module:
    timm = _timm()
    if weights is None:
        return timm.create_model(name, num_classes=num_classes)
    tagged = _timm_tagged(name, weights)
    outputs = timm.get_pretrained_cfg(tagged).num_classes
    _check_classes(f"{weights} of {name}", outputs, num_classes, new_head)
    with _download(f"{weights} of {name}"):
        return timm.create_model(tagged, pretrained=True, num_classes=num_classes)


def _timm_tagged(name: str, weights: str) -> str:
    """timm's name of an architecture with its weights."""
    architecture = name.split(".")[0]
    tagged = name if weights == "DEFAULT" else f"{architecture}.{weights}"
    known = _timm().list_pretrained(f"{architecture}.*")
    known += [architecture] if known else []
    if tagged not in known:
        tags = [k.partition(".")[2] or "DEFAULT" for k in known]
        raise _unknown_weights(name, weights, tags)
    return tagged


def _unknown_weights(name, weights, known) -> ValueError:
    return ValueError(
        f"there are no weights {weights!r} of {name}: expected "
        + ", ".join(sorted(known))
        + (" or " if known else "")
        + f"a file ending in {', '.join(WEIGHT_FILES)}"
    )


def _check_classes(weights: str, outputs: int, num_classes: int, new_head: bool) -> None:
    if outputs != num_classes and not new_head:
        raise ValueError(
            f"the weights {weights} are for {outputs} classes, the data have {num_classes}: set "
            "pretrain_epochs, so that a fresh head is trained first"
        )


@contextlib.contextmanager
def _download(weights: str):
    try:
        yield
    except OSError as error:
        raise OSError(
            f"the weights {weights} could not be downloaded ({error}); fetch them on a machine "
            "with internet into the cache of torch or Hugging Face, or name a local file ending "
            f"in {', '.join(WEIGHT_FILES)}"
        ) from error


def preprocessing(name: str, weights: str | None) -> dict:
    """The preparation of images that a network with these weights needs.

    Parameters
    ----------
    name, weights
        As in `build_model`.

    Returns
    -------
    dict
        ``mean`` and ``std`` (lists of float, per channel of pixels in [0, 1]), ``resize`` (px of
        the short side), ``image_size`` (px of the centre crop) and ``interpolation`` ("bilinear"
        or "bicubic"): torchvision's or timm's own for published weights, and those of a timm
        architecture's default weights for a file. None where unknown: no weights, or a file for
        another architecture. Only ``resize`` is None where timm does not crop the centre.

    Raises
    ------
    ValueError
        For an unknown network or name of weights.
    """
    unknown = dict.fromkeys(("mean", "std", "resize", "image_size", "interpolation"))
    source, known = _find(name)
    local = weights is None or weights.endswith(WEIGHT_FILES)
    if weights is None or source == "cifar_resnet" or (local and source == "torchvision"):
        return unknown
    if source == "torchvision":
        wanted = _torchvision_weights(known, weights).transforms()
        return {
            "mean": list(wanted.mean),
            "std": list(wanted.std),
            "resize": wanted.resize_size[0],
            "image_size": wanted.crop_size[0],
            "interpolation": wanted.interpolation.value,
        }
    config = _timm().get_pretrained_cfg(known if local else _timm_tagged(known, weights))
    if config is None:
        return unknown
    side = config.input_size[1]
    cropped = config.crop_mode == "center"
    return {
        "mean": list(config.mean),
        "std": list(config.std),
        "resize": math.floor(side / config.crop_pct) if cropped else None,
        "image_size": side,
        "interpolation": config.interpolation,
    }


def pixel_std(model: nn.Module) -> torch.Tensor:
    """The standard deviations (1, C, 1, 1) that the model divides by.

    Raises
    ------
    ValueError
        If the model has no `Normalize` layer, so that normalised units mean nothing.
    """
    for module in model.modules():
        if isinstance(module, Normalize):
            return module.std
    raise ValueError(
        "eps_space='normalized' needs a model with an advlib.networks.build.Normalize layer; "
        "wrap yours: nn.Sequential(Normalize(mean, std), model)"
    )
