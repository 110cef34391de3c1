"""Networks by name, with the normalisation inside, so that ε always lives in pixel units."""

import contextlib
import re
from collections import OrderedDict
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from advlib.vision import torchvision

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
        costs a quarter), or any torchvision classifier by its name.
    num_classes : int
        K.
    mean, std : tuple of float
        Normalisation per channel; their number is the number of channels.
    weights : str, optional
        A torchvision weights name such as ``DEFAULT``, or a local ``.safetensors`` file of this
        project or of the bare network. None starts from random weights.
    new_head : bool
        Accept torchvision weights for another number of classes and draw their head afresh.
    seed : int
        Of the random weights.

    Raises
    ------
    ValueError
        For an unknown name or weights that do not fit.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = _network(name, num_classes, len(mean), weights, new_head)
    model = nn.Sequential(OrderedDict(normalize=Normalize(mean, std), net=net))
    if weights and weights.endswith(".safetensors"):
        load_weights(model, Path(weights))
    return model.eval()


def _network(name, num_classes, channels, weights, new_head) -> nn.Module:
    if match := CIFAR_RESNET.fullmatch(name):
        stem = 2 if match[3] else 1
        return _cifar_resnet(int(match[1]), int(match[2] or 16), stem, num_classes, channels)
    if name not in torchvision.models.list_models(module=torchvision.models):
        raise ValueError(
            f"unknown model {name!r}: expected cifar_resnet<depth>[_w<width>][_s2] or a "
            "torchvision classifier such as resnet50"
        )
    local = weights is None or weights.endswith(".safetensors")
    if local:
        return torchvision.models.get_model(name, weights=None, num_classes=num_classes)
    try:
        net = torchvision.models.get_model(name, weights=weights)
    except OSError as error:
        raise OSError(
            f"the weights {weights!r} of {name} could not be downloaded ({error}); fetch them on a "
            "machine with internet into torch's cache, or name a local .safetensors file"
        ) from error
    leaf_name, head = [(n, m) for n, m in net.named_modules() if isinstance(m, nn.Linear)][-1]
    if head.out_features != num_classes and not new_head:
        raise ValueError(
            f"the weights {weights} of {name} are for {head.out_features} classes, the data "
            f"have {num_classes}: set pretrain_epochs, so that a fresh head is trained first"
        )
    if head.out_features != num_classes:
        parent, _, leaf = leaf_name.rpartition(".")
        setattr(net.get_submodule(parent), leaf, nn.Linear(head.in_features, num_classes))
    return net


def _cifar_resnet(depth: int, width: int, stem: int, num_classes: int, channels: int) -> nn.Module:
    """The residual networks for 32 px of He et al. 2016 (Sec. 4.2), projections as shortcuts."""
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


def load_weights(model: nn.Module, path: Path) -> nn.Module:
    """Load a safetensors file into `model`; tensors of a checkpoint's training state are ignored.

    Raises
    ------
    ValueError
        If a tensor is missing, superfluous or of another shape.
    """
    tensors = load_file(path)
    state = {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
    if not state:
        state = {f"net.{k}": v for k, v in tensors.items()}
        state |= {f"normalize.{k}": v for k, v in model.normalize.state_dict().items()}
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"the weights in {path} do not fit this model: {error}") from error
    return model


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
        "eps_space='normalized' needs a model with an advlib.models.Normalize layer; "
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
    if dtype != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[dtype]
    kind = torch.device(device).type
    if kind == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = kind == "cpu" and bool(torch.cpu.get_capabilities().get("avx512_bf16"))
    return torch.bfloat16 if native else torch.float32


def autocast(device: torch.device | str, dtype: torch.dtype):
    """Autocast to `dtype`, or nothing at all for float32."""
    if dtype == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(torch.device(device).type, dtype)
