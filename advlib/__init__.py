"""Class-wise adversarial robustness: threat models, attacks, training, tables and metrics.

The public names are loaded when they are first asked for, so that reading tables needs no torch.
"""

from importlib import import_module

__version__ = "0.1.0"

_HOMES = {
    "advlib.threat": ("ThreatModel", "PROTOCOLS"),
    "advlib.attacks.pgd": ("pgd_attack",),
    "advlib.attacks.apgd": ("apgd_attack",),
    "advlib.attacks.autoattack": ("autoattack",),
    "advlib.attacks.strong": ("evaluate_strong",),
    "advlib.attacks.worst_case": ("evaluate_attack",),
    "advlib.labels": ("label_augmentation_targets", "label_augmentation_loss", "class_logits"),
    "advlib.recipes": ("RECIPES", "Training"),
    "advlib.train": ("fit",),
    "advlib.predictions": ("predict",),
    "advlib.importing": ("read_predictions",),
}
_WHERE = {name: home for home, names in _HOMES.items() for name in names}
__all__ = [*_WHERE, "metrics"]


def __getattr__(name: str):
    if name == "metrics":
        return import_module("advlib.metrics")
    if name in _WHERE:
        return getattr(import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'advlib' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
