"""Weight files: reading them, also in the layouts of other projects, and loading a model."""

import argparse
import re
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
NO_WEIGHTS = ("n_averaged", "total_ops", "total_params")
"""Counters that torch's AveragedModel and thop keep beside the weights."""
# torchvision's own files of DenseNet have the names of an early version: norm.1 for norm1.
_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12])(?=\.)")
# Heads of torchvision's GoogLeNet and Inception that serve training alone.
AUXILIARY = ("net.aux1.", "net.aux2.", "net.AuxLogits.")


def read_weights(path: Path, model: nn.Module) -> dict[str, torch.Tensor]:
    """The weights in a file, under the names that they have in a model of `build_model`.

    Parameters
    ----------
    path : Path
        ``.safetensors``, or what ``torch.save`` wrote as ``.pt``, ``.pth`` or ``.pth.tar``: a state
        dict of the bare network or of this project, or a dict that holds one network, under a name
        of `WRAPPERS`. What stands before all names of the network (``module.``, ``model.``) is
        taken off. Code is never unpickled.
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
    # A prefix is taken off if most names of the network follow it; the error then names the others.
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
    # The normalisation lies beside the network, under a name of this project or of another.
    channels = model.normalize.mean.numel()
    normalize = {}
    names = {"mean": "mean", "new_mean": "mean", "mu": "mean"}
    names |= {"std": "std", "new_std": "std", "sigma": "std"}
    for k in list(rest):
        ours = names.get(k.rpartition(".")[2])
        if ours and rest[k].numel() == channels:
            normalize[f"normalize.{ours}"] = rest.pop(k).view(1, channels, 1, 1)
    state = {f"net.{k}": v for k, v in state.items()} | normalize
    training = ("momentum.", "rank")  # of this project's checkpoints
    state |= {f"net.{k}": v for k, v in rest.items() if not k.startswith(training)}
    counted = [k for k in state if k.rpartition(".")[2] in NO_WEIGHTS]
    said = [f"the names begin with {first!r}, which is taken off"]
    said = said if first not in ("", "net.", "model.net.") else []
    if counted:
        said.append(f"{_some(counted)} left out, which are no weights")
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
        states = {key: value for key, value in content.items() if is_state(value)}
        most = max(map(len, states.values()), default=0)
        if len(networks := [key for key, value in states.items() if 2 * len(value) > most]) > 1:
            raise ValueError(
                f"{path} holds several networks, {', '.join(networks)}: save the one that is "
                f"meant, as in torch.save(torch.load(file)[{networks[-1]!r}], another_file)"
            )
        for value in (content, *map(states.get, WRAPPERS)):
            if is_state(value):
                return dict(value)
    found = type(content).__name__
    if isinstance(content, dict):
        found = "a dict of " + (", ".join(map(str, list(content)[:6])) or "nothing")
    raise ValueError(
        f"{path} holds {found}; expected a state dict (names and tensors), alone or under one of "
        f"{', '.join(WRAPPERS)}"
    )


def _some(names: list[str]) -> str:
    """The first three names, as they are called in the bare network."""
    return ", ".join(n.removeprefix("net.") for n in names[:3]) + ", …" * (len(names) > 3)


def head_outputs(model: nn.Module, state: dict[str, torch.Tensor]) -> int | None:
    """The number of outputs of the head in weights of `read_weights`; None if it is not found."""
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
        holds a value that is not finite or a negative variance.
    """
    state = read_weights(path, model) if state is None else dict(state)
    target = model.state_dict()
    state = {k: v for k, v in target.items() if k.startswith("normalize.")} | state
    state = {k: v for k, v in state.items() if k in target or not k.startswith(AUXILIARY)}
    # Old files lack the counters of batches; those of the model then stay.
    needed = [k for k in target if not k.endswith("num_batches_tracked")]
    both = {k: (v, target[k]) for k, v in state.items() if k in target}
    problems = {
        "missing": [k for k in needed if k not in state],
        "superfluous": [k for k in state if k not in target],
        "of another shape": [
            f"{k} {tuple(v.shape)} instead of {tuple(own.shape)}"
            for k, (v, own) in both.items()
            if v.shape != own.shape
        ],
        "of another kind of number": [
            f"{k} {str(v.dtype).removeprefix('torch.')}"
            for k, (v, own) in both.items()
            if v.is_floating_point() != own.is_floating_point()
        ],
    }
    if said := [
        f"{len(names)} {kind} ({_some(names)})" for kind, names in problems.items() if names
    ]:
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

    def odd(name: str, values: torch.Tensor) -> bool:
        negative = name.endswith("running_var") and bool((values < 0).any())
        return values.is_floating_point() and (negative or not values.isfinite().all())

    return [name for name, values in tensors.items() if odd(name, values)]
