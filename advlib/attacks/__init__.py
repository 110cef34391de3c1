"""Attacks on a network, and on all images of a data set."""

from importlib import import_module

_HOMES = {"apgd_attack": "apgd", "pgd_attack": "pgd", "pgd_iterates": "pgd"}
_HOMES |= {"square_attack": "square", "evaluate_attack": "worst_case"}


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'advlib.attacks' has no attribute {name!r}")
    return getattr(import_module(f"advlib.attacks.{_HOMES[name]}"), name)
