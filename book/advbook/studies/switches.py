"""Each switch of the threat model that the paper leaves open, as data: a reading of its attack."""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

from advbook.studies.schema import Study
from advlib.threat import PROTOCOLS, ThreatModel


class Switch(NamedTuple):
    """One reading of the evaluation's attack: its title, and what it changes of PGD-40.

    Explicit step sizes are stated at the protocols' ε = 0.03 and scale with the study's.
    """

    title: str
    changes: dict


# Of LA.ipynb in github.com/f-amerehi/LA at f3f4297, the authors' public notebook of their earlier
# paper on label augmentation: it attacks normalised tensors and sets no bounds.
_EARLIER = {
    "step_size": 0.01,
    "label_source": "predicted",
    "attack_logits": "all",
    "clip": False,
    "success": "last",
}
_NORMALIZED, _UNCLIPPED = {"eps_space": "normalized"}, {"clip": False}
_PREDICTED = {"label_source": "predicted"}  # what a common library does that is given no label
_ALL = {"attack_logits": "all"}  # what a library does that is given the whole network
_LAST = {"success": "last"}  # libraries return the last iterate, not the worst
_TRAIN = {"model_mode": "train"}  # code that never leaves training mode attacks in it

LEDGER: dict[str, Switch] = {
    "default": Switch("Default", {}),
    "normalized": Switch("ε in normalised units", _NORMALIZED),
    "unclipped": Switch("Not clipped", _UNCLIPPED),
    "step_third": Switch("Step ε/3", {"step_size": 0.01}),
    "step_madry": Switch("Step 2.5 ε/40", {"step_size": 2.5 * 0.03 / 40}),
    # The smallest with which 40 steps lead from the image to the border of the ball.
    "step_small": Switch("Step ε/40", {"step_size": 0.03 / 40}),
    "at_image": Switch("Start at the image", {"random_start": False}),
    "restarts": Switch("5 random starts", {"n_restarts": 5}),
    "predicted": Switch("Predicted label", _PREDICTED),
    "all_logits": Switch("All logits", _ALL),
    "train_mode": Switch("Batch norm in training mode", _TRAIN),
    "last": Switch("Last iterate", _LAST),
    "last_predicted": Switch("Last iterate, predicted label", _LAST | _PREDICTED),
    "last_all_logits": Switch("Last iterate, all logits", _LAST | _ALL),
    "last_train_mode": Switch("Last iterate, training mode", _LAST | _TRAIN),
    "predicted_all_logits": Switch("Predicted label, all logits", _PREDICTED | _ALL),
    "normalized_unclipped": Switch("Normalised, not clipped", _NORMALIZED | _UNCLIPPED),
    "normalized_unclipped_predicted": Switch(
        "Normalised, not clipped, predicted label", _NORMALIZED | _UNCLIPPED | _PREDICTED
    ),
    "earlier_code": Switch("The earlier code", _NORMALIZED | _EARLIER),
    "earlier_code_pixels": Switch("The earlier code, in pixels", _EARLIER),
}
"""Name to switch, first one at a time from the default, then the combinations."""

ABLATION_SWITCHES = (
    *("default", "normalized", "predicted", "all_logits", "last_predicted", "earlier_code"),
)
"""The switches that a study's ablations go through."""


def ledger_threats(study: Study, method: str | None = None) -> dict[str, ThreatModel]:
    """The threat model of each switch at the study's norm and ε; of an ablation, of the few."""
    names = ABLATION_SWITCHES if method in study.ablations else LEDGER
    threats = {}
    for name in names:
        changed = dataclasses.replace(PROTOCOLS["pgd40"], norm=study.norm, **LEDGER[name].changes)
        threats[name] = changed.with_eps(study.eps)
    return threats


def same_attacks(threats: Mapping[str, ThreatModel]) -> dict[str, str]:
    """For a network without transformation logits: the switch that each one only repeats.

    All logits are then the class logits. A switch that repeats none is left out.
    """
    first, same = {}, {}
    for name, threat in threats.items():
        threat = dataclasses.replace(threat, attack_logits="class")
        if threat in first:
            same[name] = first[threat]
        first.setdefault(threat, name)
    return same
