"""Threat models, their checks and their one-line description."""

import math
from dataclasses import MISSING, dataclass, fields, replace
from fractions import Fraction

_CHOICES = {
    "norm": ("Linf", "L2"),
    "loss": ("cross_entropy", "margin", "dlr"),
    "label_source": ("true", "predicted"),
    "attack_logits": ("class", "all"),
    "eps_space": ("pixel", "normalized"),
    "model_mode": ("eval", "train"),
    "success": ("any", "last"),
}


def parse_number(value, name: str = "eps") -> float:
    """Read a number that may be written as a fraction: ``0.03``, ``"0.03"`` or ``"8/255"``.

    Raises ValueError, with the `name`, if it is neither, or not finite.
    """
    text = str(value).replace(" ", "")
    try:
        number = float(Fraction(text) if "/" in text else text)
    except (ValueError, ZeroDivisionError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{name} is a finite number or a text such as '8/255', got {value!r}")
    return number


def check_choices(record, known: dict[str, tuple]) -> None:
    """Raise ValueError for a field that has none of its known values."""
    for name, choices in known.items():
        if (value := getattr(record, name)) not in choices:
            raise ValueError(f"{name} is one of {', '.join(choices)}, got {value!r}")


def identity(record, first: frozenset) -> dict:
    """The fields by which results are recognised, as plain values.

    Fields of `first` are always there, any field added later only while it differs from its
    default. So a new field leaves the name and the facts of every earlier result as they are.
    """
    new = {f.name: f for f in fields(record) if f.name not in first}
    default = {
        name: f.default if f.default_factory is MISSING else f.default_factory()
        for name, f in new.items()
    }
    values = {f.name: getattr(record, f.name) for f in fields(record)}
    return {k: v for k, v in values.items() if k not in new or v != default[k]}


THREAT_FIELDS = frozenset(
    "norm eps steps step_size random_start n_restarts loss label_source attack_logits eps_space "
    "clip model_mode success".split()
)
"""Fields of a threat model that are always stored; see `identity`. Nothing is added here."""


@dataclass(frozen=True)
class ThreatModel:
    """A threat model and the PGD attack that searches it (Madry et al. 2018; the paper's Eq. 1).

    Parameters
    ----------
    norm : {"Linf", "L2"}
    eps : float or str
        Radius of the ball, in [0, 1] pixel units for Linf; ``"8/255"`` is read too. 0 changes
        nothing.
    steps : int
        Gradient steps, at least 1.
    step_size : float, str or None
        None takes ``2.5 * eps / min(steps, 10)``.
    random_start : bool
        Start uniformly in the ball; else at the image.
    n_restarts : int
        Starts per image; an evaluation keeps the worst case of each image.
    loss : {"cross_entropy", "margin", "dlr"}
        What the attack climbs. "margin": the largest other logit less that of the label (Carlini &
        Wagner 2017). "dlr": the margin divided by the distance of the largest logit from the third
        largest, which takes away the logits' scale (Croce & Hein 2020).
    label_source : {"true", "predicted"}
        The label that the attack leaves: the true one, or the model's own prediction on the
        clean image over the logits that the attack sees.
    attack_logits : {"class", "all"}
        The K class logits, or all K+M of a model with label augmentation.
    eps_space : {"pixel", "normalized"}
        "normalized": eps and step are multiplied by the model's standard deviation per channel.
    clip : bool
        Keep attacked images in [0, 1].
    model_mode : {"eval", "train"}
        Mode of batch norm and dropout while attacking.
    success : {"any", "last"}
        Evaluation only: an image is broken if any iterate, the start included, is
        misclassified, or only if the last one is.

    Raises ValueError for a value that cannot be meant.
    """

    norm: str = "Linf"
    eps: float = 0.03
    steps: int = 10
    step_size: float | None = None
    random_start: bool = True
    n_restarts: int = 1
    loss: str = "cross_entropy"
    label_source: str = "true"
    attack_logits: str = "class"
    eps_space: str = "pixel"
    clip: bool = True
    model_mode: str = "eval"
    success: str = "any"

    def __post_init__(self):
        check_choices(self, _CHOICES)
        object.__setattr__(self, "eps", parse_number(self.eps))
        if self.step_size is not None:
            object.__setattr__(self, "step_size", parse_number(self.step_size, "step_size"))
            if self.step_size <= 0:
                raise ValueError(
                    f"step_size is positive, or None for 2.5·ε/min(steps, 10); got {self.step_size}"
                )
        if self.eps < 0:
            raise ValueError(f"eps is at least 0, got {self.eps}")
        if self.norm == "Linf" and self.eps_space == "pixel" and self.eps > 1:
            raise ValueError(f"ε is in [0, 1] pixel units; did you mean {self.eps:g}/255?")
        for name in ("steps", "n_restarts"):
            if type(value := getattr(self, name)) is not int or value < 1:
                raise ValueError(f"{name} is a whole number of at least 1, got {value!r}")
        for name in ("random_start", "clip"):
            if type(value := getattr(self, name)) is not bool:
                raise ValueError(f"{name} is true or false, got {value!r}")

    @property
    def step(self) -> float:
        """The step actually taken, in the units of ``eps``."""
        if self.step_size is not None:
            return self.step_size
        return 2.5 * self.eps / min(self.steps, 10)

    def __str__(self) -> str:
        size = f"ε = {self.eps:g} (normalised units)"
        if self.eps_space == "pixel":
            size = f"ε = {self.eps:g} = {self.eps * 255:.4g}/255 (pixels in [0, 1])"
        start = "start at the image"
        if self.random_start:
            start = f"{self.n_restarts} random start{'s' if self.n_restarts > 1 else ''}"
        parts = [f"PGD-{self.steps}", self.norm.replace("inf", "∞"), size, f"step {self.step:.4g}"]
        parts.append(start)
        if self.loss != "cross_entropy":
            parts.append(f"climbs the {self.loss} loss")
        parts += [f"leaves the {self.label_source} label", f"{self.attack_logits} logits"]
        parts += ["clipped" if self.clip else "not clipped", f"{self.model_mode} mode"]
        return ", ".join([*parts, f"{self.success} iterate"])

    def to_dict(self) -> dict:
        """Plain values, as stored with every number."""
        return identity(self, THREAT_FIELDS)

    def with_eps(self, eps: float) -> "ThreatModel":
        """The same protocol at another radius; an explicit step scales with it."""
        eps, step = parse_number(eps), self.step_size
        if step is not None and self.eps > 0:
            step = eps if step == self.eps else step * eps / self.eps
        return replace(self, eps=eps, step_size=step or None)  # at eps = 0 there is no step


PROTOCOLS: dict[str, ThreatModel] = {
    "pgd10_train": ThreatModel(steps=10, success="last"),
    "fgsm": ThreatModel(steps=1, step_size=0.03, random_start=False, success="last"),
    "pgd40": ThreatModel(steps=40),
    "pgd40_half": ThreatModel(eps=0.015, steps=40),
    "pgd40_double": ThreatModel(eps=0.06, steps=40),
    "pgd40_last": ThreatModel(steps=40, success="last"),
    "pgd40_normalized": ThreatModel(steps=40, eps_space="normalized"),
    "pgd40_predicted": ThreatModel(steps=40, label_source="predicted"),
    "pgd40_all_logits": ThreatModel(steps=40, attack_logits="all"),
    "pgd40_earlier_code": ThreatModel(
        steps=40,
        step_size=0.01,
        label_source="predicted",
        attack_logits="all",
        eps_space="normalized",
        clip=False,
        success="last",
    ),
}
"""Named protocols at the paper's ε = 0.03, or half of it or twice; a study has its own ε."""
