"""Training objectives, one for each family of methods.

An objective is built once per run, ``OBJECTIVES[recipe.objective](recipe, training, images)``, and
called once per step with a `Step`. It returns the loss and which predictions were wrong. One with
a state is a `ClassMethod`: its buffers are saved with the checkpoint, and it looks back after each
epoch.
"""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

from advlib.objectives.base import awp, hat, mart, n_fgsm, standard, trades
from advlib.objectives.class_budgets import Cfa, Dafa, FairTat, Frl
from advlib.objectives.class_weights import Cfol, Csr, GroupDRO, InverseAccuracy, Wat, faal
from advlib.objectives.images import Gairat, SelfAdaptive, bat, ham
from advlib.objectives.step import Networks, Objective, Step
from advlib.objectives.teachers import Absld, FairArd

OBJECTIVES: dict[str, Callable[..., Objective]] = {
    one.__name__: one for one in (standard, trades, mart, awp, hat, n_fgsm, ham, bat, faal)
}
"""Objectives by the name that a recipe gives."""
OBJECTIVES |= {"sat": SelfAdaptive, "gairat": Gairat, "inverse_accuracy": InverseAccuracy}
OBJECTIVES |= {"group_dro": GroupDRO, "cfol": Cfol, "wat": Wat, "csr": Csr, "frl": Frl, "cfa": Cfa}
OBJECTIVES |= {"dafa": Dafa, "fair_tat": FairTat, "fair_ard": FairArd, "absld": Absld}


def find_objective(name: str) -> Callable[..., Objective]:
    """An objective of `OBJECTIVES`, or of a file of one's own, named as ``my_method.py:MyMethod``.

    Raises FileNotFoundError or ValueError if there is no such file, or nothing of that name in it.
    """
    if name in OBJECTIVES:
        return OBJECTIVES[name]
    path, _, member = name.rpartition(":")
    if not path.endswith(".py"):
        known = ", ".join(OBJECTIVES)
        raise ValueError(f"no objective {name!r}: choose one of {known}, or file.py:Name")
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {path}, of the objective {name}")
    spec = importlib.util.spec_from_file_location(f"objective_{Path(path).stem}", path)
    sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, member):
        raise ValueError(f"{path} has no {member!r}, the objective")
    return getattr(module, member)


__all__ = ["OBJECTIVES", "Networks", "Objective", "Step", "find_objective"]
