"""Networks by name, with the normalisation inside, so that ε always lives in pixel units."""

import argparse
import contextlib
import difflib
import functools
import importlib.util
import math
import re
from collections import Counter, OrderedDict
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

from advlib.data.vision import torchvision
from advlib.labels import find_head

CIFAR_RESNET = re.compile(r"cifar_resnet(\d+)(?:_w(\d+))?(_s2)?")
WEIGHT_FILES = (".safetensors", ".pt", ".pth", ".pth.tar")
"""Endings of weights files; other weights are names."""
WRAPPERS = ("state_dict", "model", "model_state_dict", "net")  # where a .pt file may keep one
NO_WEIGHTS = ("n_averaged", "total_ops", "total_params")
"""What torch's AveragedModel and thop count beside the weights."""
# torchvision's own files of DenseNet have the names of an early version: norm.1 for norm1.
_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12])(?=\.)")
INCEPTIONS = ("googlenet", "inception_v3")
AUXILIARY = ("net.aux1.", "net.aux2.", "net.AuxLogits.")  # their heads for training alone


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
            net = _cifar_resnet(known, num_classes, len(mean), named)
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
    """Where a network comes from, and its name there."""
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
    """How the images are to be prepared that a network with these weights takes.

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


def _cifar_resnet(name: str, num_classes: int, channels: int, weights: str | None) -> nn.Module:
    """The residual networks for 32 px of He et al. 2016 (Sec. 4.2), projections as shortcuts."""
    if weights is not None:
        raise _unknown_weights(name, weights, [])
    match = CIFAR_RESNET.fullmatch(name)
    depth, width, stem = int(match[1]), int(match[2] or 16), 2 if match[3] else 1
    if depth < 8 or (depth - 2) % 6:
        raise ValueError(f"a cifar_resnet has depth 6n+2 (8, 14, 20, …), got {depth}")
    from torchvision.models.resnet import BasicBlock

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
            layers.append(BasicBlock(inputs, outputs, stride, shortcut))
            inputs = outputs
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, num_classes)]
    net = nn.Sequential(*layers)
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return net


def read_weights(path: Path, model: nn.Module) -> dict[str, torch.Tensor]:
    """The weights in a file, under the names that they have in a model of `build_model`.

    Parameters
    ----------
    path : Path
        ``.safetensors``, or what ``torch.save`` wrote as ``.pt``, ``.pth`` or ``.pth.tar``: a state
        dict of the bare network or of this project, or a dict that holds one under a name of
        `WRAPPERS`. What stands before all names of the network (``module.``, ``model.``) is taken
        off. Code is never unpickled.
    model : nn.Module
        Of `build_model`, for the names.

    Returns
    -------
    dict
        ``net.<name>``, and ``normalize.mean`` and ``normalize.std`` for a file that holds them.
        Training state is left out.

    Raises
    ------
    FileNotFoundError, ValueError
        If the file is missing, or holds something else.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no weights file {path}: correct the path")
    tensors = {
        _DENSENET.sub(r"\1\2", k): v for k, v in _state_dict(_load_tensors(path), path).items()
    }
    wanted = {k.removeprefix("net.") for k in model.state_dict() if k.startswith("net.")}
    found = Counter(k.removesuffix(leaf) for k in tensors for leaf in _endings(k) if leaf in wanted)
    # All but a few: what is missing behind the prefix is then said by name.
    prefixes = [p for p, n in found.items() if n > len(wanted) / 2 and n == max(found.values())]
    if not prefixes:
        return {f"net.{k}": v for k, v in tensors.items()}
    first, *others = prefixes

    def under(prefix):
        return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

    state, rest = under(first), {k: v for k, v in tensors.items() if not k.startswith(first)}
    for prefix in others:
        twice = under(prefix)
        if any(not torch.equal(v, twice[k]) for k, v in state.items() if k in twice):
            raise ValueError(
                f"{path} holds the network twice, under {first!r} and {prefix!r}, with other "
                "weights: save the state dict of the one that is meant"
            )
        rest = {k: v for k, v in rest.items() if not k.startswith(prefix)}
    # Its normalisation lies beside it, under the names of this project or of others.
    channels = model.normalize.mean.numel()
    normalize = {}
    for ours, theirs in (
        ("mean", ("mean", "new_mean", "mu")),
        ("std", ("std", "new_std", "sigma")),
    ):
        for k in [
            k for k in rest if k.rpartition(".")[2] in theirs and rest[k].numel() == channels
        ]:
            normalize[f"normalize.{ours}"] = rest.pop(k).view(1, channels, 1, 1)
    state = {f"net.{k}": v for k, v in state.items()} | normalize
    training = ("momentum.", "rank")  # of this project's checkpoints
    state |= {f"net.{k}": v for k, v in rest.items() if not k.startswith(training)}
    counted = [k for k in state if k.rpartition(".")[2] in NO_WEIGHTS]
    said = [f"the names begin with {first!r}, which is taken off"]
    said = said if first not in ("", "net.", "model.net.") else []
    if counted:
        names = [k.removeprefix("net.") for k in counted]
        said += [f"{', '.join(names[:3])}{', …' * (len(names) > 3)} left out, which are no weights"]
    if said:
        print(f"{path.name}: {'; '.join(said)}")
    return {k: v for k, v in state.items() if k not in counted}


def _endings(name: str) -> list[str]:
    """a.b.c, b.c and c of a.b.c."""
    parts = name.split(".")
    return [".".join(parts[i:]) for i in range(len(parts))]


def _load_tensors(path: Path):
    save = "Where you trust it, save its state dict alone: torch.save(model.state_dict(), file)"
    # Plain values: arguments that torchvision's and timm's training scripts keep, and numbers.
    scalar = np.float64().__reduce__()[0]
    plain = [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    plain += [type(np.dtype(kind)) for kind in ("float64", "float32", "int64")]
    plain += [np.dtype, argparse.Namespace]
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals(plain):
            return torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # of any kind, as a file that is no pickle happens to be read
        if found := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise ValueError(
                f"{path} holds more than tensors, {found[1]} for one, and code is never unpickled "
                f"here. {save}"
            ) from error
        reason = str(error).split(". ")[0] or type(error).__name__
        raise ValueError(
            f"{path} is no whole file of weights that safetensors or torch.save wrote ({reason}). "
            f"{save}"
        ) from error


def _state_dict(content, path: Path) -> dict[str, torch.Tensor]:
    """The state dict in what a file holds."""

    def is_state(value):
        return (
            isinstance(value, dict)
            and value
            and all(isinstance(k, str) and torch.is_tensor(v) for k, v in value.items())
        )

    if isinstance(content, dict):
        wrapped = next((content[key] for key in WRAPPERS if key in content), None)
        for value in (content, wrapped):
            if is_state(value):
                return dict(value)
    found = type(content).__name__
    if isinstance(content, dict):
        found = "a dict of " + (", ".join(map(str, list(content)[:6])) or "nothing")
    raise ValueError(
        f"{path} holds {found}; expected a state dict (names and tensors), alone or under one of "
        f"{', '.join(WRAPPERS)}"
    )


def head_outputs(model: nn.Module, state: dict[str, torch.Tensor]) -> int | None:
    """How many outputs the head has in weights of `read_weights`; None where it is not found."""
    try:
        name, _ = find_head(model)
    except ValueError:
        return None
    weight = state.get(f"{name}.weight")
    return None if weight is None else len(weight)


def load_weights(model: nn.Module, path: Path, state: dict | None = None) -> nn.Module:
    """Load a weights file into a model of `build_model`.

    Parameters
    ----------
    model : nn.Module
    path : Path
    state : dict, optional
        What `read_weights` read from it.

    Raises
    ------
    FileNotFoundError, ValueError
        As `read_weights`, and if a tensor is missing, superfluous, of another shape or kind, or
        holds what is no weight: a value that is not finite, a negative variance.
    """
    state = read_weights(path, model) if state is None else dict(state)
    target = model.state_dict()
    state = {k: v for k, v in target.items() if k.startswith("normalize.")} | state
    state = {k: v for k, v in state.items() if k in target or not k.startswith(AUXILIARY)}
    other_shape = [
        f"{k.removeprefix('net.')} {tuple(v.shape)} instead of {tuple(target[k].shape)}"
        for k, v in state.items()
        if k in target and v.shape != target[k].shape
    ]
    other_kind = [
        f"{k.removeprefix('net.')} {str(v.dtype).removeprefix('torch.')}"
        for k, v in state.items()
        if k in target and target[k].is_floating_point() != v.is_floating_point()
    ]
    # Files from before there were counters of batches lack them; they then stay as they are.
    needed = [k for k in target if not k.endswith("num_batches_tracked")]
    problems = {
        "missing": [k.removeprefix("net.") for k in needed if k not in state],
        "superfluous": [k.removeprefix("net.") for k in state if k not in target],
        "of another shape": other_shape,
        "of another kind of number": other_kind,
    }
    if any(problems.values()):
        said = [
            f"{len(names)} {kind} ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"
            for kind, names in problems.items()
            if names
        ]
        raise ValueError(
            f"the weights in {path} do not fit this model of {len(target)} tensors: "
            + "; ".join(said)
        )
    if odd := not_finite(state):
        raise ValueError(
            f"the weights in {path} cannot be used: {odd[0].removeprefix('net.')} holds values "
            "that are not finite or, as a variance, negative. Train or save them again"
        )
    target.update(state)  # keeps its version numbers, without which torchvision's MNASNet fails
    model.load_state_dict(target)
    return model


def not_finite(tensors: dict[str, torch.Tensor]) -> list[str]:
    """Names of weights with values that are not finite, and of variances with negative ones."""
    return [
        name
        for name, values in tensors.items()
        if values.is_floating_point()
        and not (
            values.isfinite().all() and not (name.endswith("running_var") and (values < 0).any())
        )
    ]


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


def default_device() -> torch.device:
    """CUDA, MPS or the CPU, by availability."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def resolve_dtype(dtype: str, device: torch.device | str) -> torch.dtype:
    """ "auto" is bfloat16 where the device computes in it natively, else float32."""
    if dtype not in ("auto", "float32", "bfloat16"):
        raise ValueError(f"dtype is one of auto, float32, bfloat16, got {dtype!r}")
    if dtype != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[dtype]
    kind = torch.device(device).type
    if kind == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = kind == "cpu" and bool(torch.cpu.get_capabilities().get("avx512_bf16"))
    return torch.bfloat16 if native else torch.float32


def autocast(device: torch.device | str, dtype: torch.dtype):
    """Autocast to `dtype`; for float32 none, and none of TF32's 10 bits in convolutions either."""
    if dtype == torch.float32:
        cudnn = torch.backends.cudnn
        return cudnn.flags(
            enabled=cudnn.enabled,
            benchmark=cudnn.benchmark,
            deterministic=cudnn.deterministic,
            allow_tf32=False,
        )
    return torch.autocast(torch.device(device).type, dtype)


@contextlib.contextmanager
def repeatable(device: torch.device):
    """Kernels that end a resumed run with the same bits, and torch's generators lent to the run."""
    # No TF32 either, which gradients of float32 training would otherwise be computed in.
    flags = torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=True, allow_tf32=False
    )
    # Dropout and stochastic depth draw from torch's global generators.
    with flags, torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield
