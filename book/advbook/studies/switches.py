"""Each switch of the threat model that the paper leaves open, as data: a reading of its attack."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from advbook.studies.schema import Study
from advlib.threat import PROTOCOLS, ThreatModel


@dataclass(frozen=True)
class Switch:
    """One reading of the evaluation's attack: what it changes of PGD-40, and why it is asked.

    Explicit step sizes are stated at the protocols' ε = 0.03 and scale with the study's.
    """

    title: str
    changes: dict
    reason: str


# Of LA.ipynb in github.com/f-amerehi/LA at f3f4297, the authors' public notebook of their earlier
# paper on label augmentation.
_EARLIER = {
    "step_size": 0.01,
    "label_source": "predicted",
    "attack_logits": "all",
    "clip": False,
    "success": "last",
}
_UNSTATED = "The paper does not state it."

LEDGER: dict[str, Switch] = {
    "default": Switch(
        "Default",
        {},
        "PGD-40 in pixels, clipped, step ε/4, one random start, away from the true label by the "
        "class logits; an image counts as broken if any iterate is misclassified.",
    ),
    "normalized": Switch(
        "ε in normalised units",
        {"eps_space": "normalized"},
        "The paper gives ε = 0.03 no unit; the authors' earlier code attacks normalised tensors.",
    ),
    "unclipped": Switch(
        "Not clipped", {"clip": False}, "The authors' earlier code sets no bounds."
    ),
    "step_third": Switch(
        "Step ε/3", {"step_size": 0.01}, "0.01 at ε = 0.03 in the authors' earlier code."
    ),
    "step_madry": Switch(
        "Step 2.5 ε/40", {"step_size": 2.5 * 0.03 / 40}, "Madry et al.'s rule, for all 40 steps."
    ),
    "step_small": Switch(
        "Step ε/40",
        {"step_size": 0.03 / 40},
        "The smallest with which 40 steps lead from the image to the border of the ball.",
    ),
    "at_image": Switch("Start at the image", {"random_start": False}, _UNSTATED),
    "restarts": Switch("5 random starts", {"n_restarts": 5}, _UNSTATED),
    "predicted": Switch(
        "Predicted label",
        {"label_source": "predicted"},
        "A common library takes the model's own prediction if it is given no label: a wrong image "
        "may then be pushed onto its true class.",
    ),
    "all_logits": Switch(
        "All logits",
        {"attack_logits": "all"},
        "With K+M logits the attack may spend its budget on a transformation logit, which no error "
        "counts.",
    ),
    "train_mode": Switch(
        "Batch norm in training mode",
        {"model_mode": "train"},
        "The paper does not state it. Code that never leaves training mode attacks in it, and what "
        "it finds depends on which images share a batch: here they are drawn by chance.",
    ),
    "last": Switch(
        "Last iterate", {"success": "last"}, "Libraries return the last iterate, not the worst."
    ),
    "last_predicted": Switch(
        "Last iterate, predicted label",
        {"success": "last", "label_source": "predicted"},
        "What a library does that is given no label.",
    ),
    "last_all_logits": Switch(
        "Last iterate, all logits",
        {"success": "last", "attack_logits": "all"},
        "What a library does that is given the whole network.",
    ),
    "last_train_mode": Switch(
        "Last iterate, training mode",
        {"success": "last", "model_mode": "train"},
        "The same, judged by the last iterate.",
    ),
    "predicted_all_logits": Switch(
        "Predicted label, all logits",
        {"label_source": "predicted", "attack_logits": "all"},
        "Both weaknesses at once.",
    ),
    "normalized_unclipped": Switch(
        "Normalised, not clipped",
        {"eps_space": "normalized", "clip": False},
        "An attack that is handed normalised tensors knows no bounds.",
    ),
    "normalized_unclipped_predicted": Switch(
        "Normalised, not clipped, predicted label",
        {"eps_space": "normalized", "clip": False, "label_source": "predicted"},
        "The same, given no label.",
    ),
    "earlier_code": Switch(
        "The earlier code",
        {"eps_space": "normalized", **_EARLIER},
        "All settings of the authors' earlier code: normalised, not clipped, step ε/3, predicted "
        "label, all logits, last iterate.",
    ),
    "earlier_code_pixels": Switch(
        "The earlier code, in pixels", dict(_EARLIER), "The same with ε in pixels."
    ),
}
"""Name to switch: first one at a time from the default, then the combinations."""

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
