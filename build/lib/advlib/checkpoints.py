"""Checkpoints: weights and training state in one file, which one rename puts in place."""

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from advlib.files import replacing
from advlib.networks.build import load_weights

CHECKPOINT = "checkpoint.safetensors"


def save_checkpoint(
    path: Path,
    modules: dict[str, nn.Module],
    optimizer,
    done: int,
    log: list,
    settings: dict,
    how: dict | None = None,
) -> None:
    """Weights, momentum, position and log in one file, in place by one rename.

    `modules` are the network ("model") and what else has a state: the method, averaged weights.
    `settings` decide the weights; `how` they were computed (number of processes and the like) is
    recorded beside them.

    Raises
    ------
    FloatingPointError
        If a weight is not finite; the file of before is kept.
    """
    tensors = {
        f"{name}.{k}": v for name, module in modules.items() for k, v in module.state_dict().items()
    }
    if optimizer is not None:
        for i, parameter in enumerate(optimizer.param_groups[0]["params"]):
            momentum = optimizer.state[parameter].get("momentum_buffer")
            if momentum is not None:
                tensors[f"momentum.{i:04d}"] = momentum
    tensors = {k: v.detach().to("cpu").contiguous() for k, v in tensors.items()}
    if not all(torch.isfinite(v).all() for v in tensors.values() if v.is_floating_point()):
        raise FloatingPointError(f"a weight is no longer finite after step {done}; kept {path}")
    facts = {"done": done, "log": log, "settings": settings, "how": how or {}}
    with replacing(path) as partial:
        save_file(tensors, partial, metadata={"advlib": json.dumps(facts)})


def checkpoint_facts(path: Path) -> dict:
    """What a checkpoint says beside its weights: ``done``, ``log``, ``settings`` and ``how``."""
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["advlib"])


def load_checkpoint(
    path: Path, modules: dict[str, nn.Module], optimizer, settings: dict
) -> tuple[int, list]:
    """Put a checkpoint's state in place; returns the steps done and the log so far."""
    if not path.is_file():
        return 0, []
    with safe_open(path, "pt") as file:
        facts = json.loads(file.metadata()["advlib"])
        if facts["settings"] != json.loads(json.dumps(settings)):
            raise RuntimeError(
                f"{path.parent} holds a run with other settings: choose another folder or remove it"
            )
        for name, module in modules.items():
            found = [k for k in file.keys() if k.startswith(f"{name}.")]
            if found:  # a finished run holds the network alone
                state = {k.removeprefix(f"{name}."): file.get_tensor(k) for k in found}
                if name == "model":
                    load_weights(module, path, state)
                else:
                    module.load_state_dict(state)
        momenta = {k: file.get_tensor(k) for k in file.keys() if k.startswith("momentum.")}
    for i, parameter in enumerate(optimizer.param_groups[0]["params"]):
        if (momentum := momenta.get(f"momentum.{i:04d}")) is not None:
            like = torch.empty_like(parameter)
            optimizer.state[parameter]["momentum_buffer"] = like.copy_(momentum)
    return facts["done"], facts["log"]
