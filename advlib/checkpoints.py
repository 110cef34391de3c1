"""Checkpoints: weights and training state in one file, which one rename puts in place."""

import contextlib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import filelock
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from advlib import distributed
from advlib.files import replacing, set_aside
from advlib.networks.weights import load_weights, not_finite

CHECKPOINT, EPOCH = "checkpoint.safetensors", "epoch-{}.safetensors"


def save_checkpoint(
    path: Path,
    modules: dict[str, nn.Module],
    optimizer,
    done: int,
    log: list,
    settings: dict,
    how: dict | None = None,
    others: list[dict] | None = None,
) -> None:
    """Weights, momentum, position and log in one file, in place by one rename, with a digest.

    `modules` are the network ("model") and what else has a state: the method, averaged weights.
    `settings` decide the weights; `how` they were computed (number of processes and the like) is
    recorded beside them. `others` are the buffers of each process after the first, whose batch norm
    is its own. Raises FloatingPointError, and keeps the previous file, if a weight is not finite.
    """
    states = {name: module.state_dict() for name, module in modules.items()}
    states |= {f"rank{rank}": buffers for rank, buffers in enumerate(others or [], 1)}
    tensors = {f"{name}.{k}": v for name, state in states.items() for k, v in state.items()}
    if optimizer is not None:
        for i, parameter in enumerate(optimizer.param_groups[0]["params"]):
            momentum = optimizer.state[parameter].get("momentum_buffer")
            if momentum is not None:
                tensors[f"momentum.{i:04d}"] = momentum
    tensors = {k: v.detach().to("cpu").contiguous() for k, v in tensors.items()}
    if odd := not_finite(tensors):
        name = odd[0].removeprefix("model.")
        raise FloatingPointError(f"{name} holds values that are not finite after step {done}")
    facts = {"done": done, "log": log, "settings": settings, "how": how or {}}
    facts["digest"] = digest(facts, tensors)
    with replacing(path) as partial:
        save_file(tensors, partial, metadata={"advlib": json.dumps(facts)})


def digest(facts: dict, tensors: dict[str, torch.Tensor]) -> str:
    """The SHA-256 of facts and tensors, which lie on the CPU: of a checkpoint or a network."""
    found = hashlib.sha256(json.dumps(facts).encode())
    for name, values in sorted(tensors.items()):
        found.update(f"{name} {values.dtype} {tuple(values.shape)}".encode())
        found.update(values.contiguous().view(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def read_checkpoint(path: Path) -> tuple[dict, dict[str, torch.Tensor]]:
    """The facts and the tensors of a checkpoint; ValueError if the file is damaged.

    Those of older versions have no digest.
    """
    try:
        with safe_open(path, "pt") as file:
            facts = json.loads(file.metadata()["advlib"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        kept = facts.pop("digest", None)
        whole = {"done", "log", "settings", "how"} <= facts.keys()
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(str(error) or type(error).__name__) from error
    if not whole or kept not in (None, digest(facts, tensors)):
        raise ValueError("the digest of its tensors does not hold")
    return facts, tensors


def load_checkpoint(
    path: Path, modules: dict[str, nn.Module], optimizer, settings: dict
) -> tuple[int, list]:
    """Put a checkpoint's state in place; returns the steps done and the log so far.

    A damaged one is set aside, and training starts anew.
    """
    if not path.is_file():
        return 0, []
    try:
        facts, tensors = read_checkpoint(path)
    except ValueError as error:
        set_aside(path, error)
        return 0, []
    if facts["settings"] != json.loads(json.dumps(settings)):
        raise RuntimeError(
            f"{path.parent} holds a run with other settings: choose another folder or remove it"
        )

    def part(prefix):
        return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

    for name, module in modules.items():
        if name == "model":
            load_weights(module, path, part("model."))
        elif state := part(f"{name}."):  # a finished run holds the network alone
            module.load_state_dict(state)
    own = part(f"rank{distributed.rank()}.")
    if facts["how"].get("devices") == distributed.world_size():
        for name, module in modules.items():
            for key, buffer in module.named_buffers():
                buffer.copy_(own.get(f"{name}.{key}", buffer))
    momenta = part("momentum.")
    for i, parameter in enumerate(optimizer.param_groups[0]["params"]):
        if (momentum := momenta.get(f"{i:04d}")) is not None:
            like = torch.empty_like(parameter)
            optimizer.state[parameter]["momentum_buffer"] = like.copy_(momentum)
    return facts["done"], facts["log"]


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """The folder's lock, which the first process holds for all."""
    if distributed.rank():
        yield
        return
    try:
        with filelock.FileLock(folder / "lock", timeout=0):
            yield
    except filelock.Timeout as error:
        raise RuntimeError(
            f"another process is training in {folder}: wait for it, or end it first"
        ) from error
