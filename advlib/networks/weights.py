"""Weight files: reading them, also in the layouts of other projects, and loading a model."""

import argparse
import textwrap
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

from advlib.labels import find_head

WEIGHT_FILES = (".safetensors", ".pt", ".pth", ".pth.tar")
"""Endings of weights files; other weights are names."""
WRAPPERS = ("state_dict", "model", "model_state_dict", "net")  # where a .pt file may keep one
# What a normalisation layer beside the network is called, here and in other projects.
_NORMALISATION = {"mean": "mean", "new_mean": "mean", "mu": "mean"}
_NORMALISATION |= {"std": "std", "new_std": "std", "sigma": "std"}


def read_weights(path: Path, model: nn.Module) -> dict[str, torch.Tensor]:
    """The weights in a file, under the names that they have in a `model` of `build_model`.

    The file is ``.safetensors``, or what ``torch.save`` wrote as ``.pt``, ``.pth`` or ``.pth.tar``:
    a state dict of the bare network or of this project, alone or under the first name of `WRAPPERS`
    that holds one. What stands before all names of the network (``module.``, ``model.``) is taken
    off. Code is never unpickled.

    Returns ``net.<name>``, and ``normalize.mean`` and ``normalize.std`` for a file that holds them;
    what lies beside the network, such as training state, is left out. FileNotFoundError or
    ValueError if the file is missing, holds something else, or holds two networks.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no weights file {path}: correct the path")
    tensors = _state_dict(_load_tensors(path), path)
    wanted = {k.removeprefix("net.") for k in model.state_dict() if k.startswith("net.")}
    parts = ((k, k.split(".")) for k in tensors)
    endings = ((k, ".".join(p[i:])) for k, p in parts for i in range(len(p)))
    found = Counter(k.removesuffix(ending) for k, ending in endings if ending in wanted)
    # A prefix is taken off if most names of the network follow it; the error then names the others.
    prefixes = [p for p, n in found.items() if n > len(wanted) / 2 and n == max(found.values())]
    if not prefixes:
        return {f"net.{k}": v for k, v in tensors.items()}
    state, *others = (
        {f"net.{k.removeprefix(p)}": v for k, v in tensors.items() if k.startswith(p)}
        for p in prefixes
    )
    if any(not torch.equal(v, state.get(k, v)) for twice in others for k, v in twice.items()):
        raise ValueError(
            f"{path} holds several networks, under {', '.join(map(repr, prefixes))}: save the "
            "state dict of the one that is meant"
        )
    channels = model.normalize.mean.numel()
    for name, values in tensors.items():
        ours = _NORMALISATION.get(name.rpartition(".")[2])
        if ours and values.numel() == channels and not name.startswith(prefixes[0]):
            state[f"normalize.{ours}"] = values.view(1, channels, 1, 1)
    return state


def _load_tensors(path: Path):
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
        reason = textwrap.shorten(str(error) or type(error).__name__, 300)
        raise ValueError(
            f"{path} is no whole file of tensors alone ({reason}). Code is never unpickled here: "
            "where you trust the file, save torch.save(model.state_dict(), file)"
        ) from error


def _state_dict(content, path: Path) -> dict[str, torch.Tensor]:
    """The state dict in what a file holds."""
    held = content if isinstance(content, dict) else {}
    for state in (content, *(held.get(name) for name in WRAPPERS)):
        if isinstance(state, dict) and state:
            if all(isinstance(k, str) and torch.is_tensor(v) for k, v in state.items()):
                return state
    raise ValueError(
        f"{path} holds {type(content).__name__} {', '.join(map(str, list(held)[:6]))}; expected a "
        f"state dict (names and tensors), alone or under one of {', '.join(WRAPPERS)}"
    )


def head_outputs(model: nn.Module, state: dict[str, torch.Tensor]) -> int | None:
    """The number of outputs of the head in weights of `read_weights`; None if it is not found."""
    try:
        name, _ = find_head(model)
    except ValueError:
        return None
    weight = state.get(f"{name}.weight")
    return None if weight is None else len(weight)


def load_weights(model: nn.Module, path: Path, state: dict | None = None) -> nn.Module:
    """Load a weights file, or the `state` that `read_weights` read from it, into such a model.

    Raises as `read_weights`, and ValueError if a tensor is missing, superfluous or of another
    shape, or holds a value that is not finite or a negative variance.
    """
    state = read_weights(path, model) if state is None else state
    # Files may lack the normalisation, and old ones the counters of batches: the model's stay.
    spared = ("normalize.mean", "normalize.std")
    target = model.state_dict()  # with version numbers, without which torchvision's MNASNet fails
    for name in set(target) - set(state):
        if name not in spared and not name.endswith("num_batches_tracked"):
            del target[name]
    target.update(state)
    if odd := not_finite(state):
        raise ValueError(
            f"the weights in {path} cannot be used: {odd[0].removeprefix('net.')} holds values "
            "that are not finite or, as a variance, negative. Train or save them again"
        )
    try:
        model.load_state_dict(target)
    except RuntimeError as error:
        raise ValueError(
            f"the weights in {path} do not fit this model: {textwrap.shorten(str(error), 400)}"
        ) from error
    return model


def not_finite(tensors: dict[str, torch.Tensor]) -> list[str]:
    """Names of weights with values that are not finite, and of variances with negative ones."""

    def odd(name: str, values: torch.Tensor) -> bool:
        negative = name.endswith("running_var") and bool((values < 0).any())
        return values.is_floating_point() and (negative or not values.isfinite().all())

    return [name for name, values in tensors.items() if odd(name, values)]
