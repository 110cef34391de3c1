"""A study: one file that says what is trained, attacked and compared, and where its runs lie."""

import dataclasses
import functools
import inspect
import json
import os
import re
from dataclasses import field
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from advbook.studies.checks import in_words, refuse_unknown
from advbook.studies.identity import training_settings
from advbook.studies.places import ROOT, STUDIES, find_study
from advbook.studies.rules import check_study
from advbook.studies.views import FILES, Views
from advbook.text import one_line
from advlib.data.catalogue import DATASETS
from advlib.threat import PROTOCOLS, ThreatModel, parse_number

TRANSFORMED = ("eps", "steps", "step_size", "random_start", "loss")
"""Keys of the threat model that may differ between the transformations of a study.

The attack of a method with extra logits climbs Eq. 4, unless train_objective is cross_entropy: a
loss of its own is then refused.
"""


def _whole(least: int, most: int | None = None):
    return Annotated[int, Field(ge=least, le=most)]


def _number(**limits):
    plain, text = Annotated[float, Field(**limits)], Annotated[str, Field(pattern=r"^[-+./\deE]+$")]
    return Annotated[plain, BeforeValidator(_read, json_schema_input_type=plain | text)]


def _read(value, info):
    return parse_number(value, info.field_name)


# The largest are far beyond what anybody means: a digit too many is found before it takes hours or
# all memory. A number may also be a text such as "8/255".
Count, Many, Few, Pixels = _whole(1), _whole(1, 1_000_000), _whole(1, 1_000), _whole(1, 10_000)
Number, Positive, Share = _number(), _number(gt=0), _number(ge=0, lt=1)
Mean, Std = _number(ge=0, le=1), _number(ge=1e-3, le=1)


def _plainly(model):
    """A pydantic dataclass whose errors are one plain sentence: see `in_words`."""
    check = model.__init__

    @functools.wraps(check)
    def init(self, *args, **values):
        try:
            check(self, *args, **values)
        except ValidationError as error:
            raise ValueError(in_words(error)) from error

    model.__init__ = init
    return model


@_plainly
@dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid"))
class Study(Views):
    """Every setting of a study; the paper's values where it gives one.

    A study file states only what differs. ε and steps may be written ``8/255``. It cannot be
    changed; `dataclasses.replace` makes another one, which is checked too. Raises ValueError,
    naming the key, for a value of the wrong type or out of range.
    """

    study: str  # id: the name of its file and of its folders
    dataset: Literal[*DATASETS, "none"]  # folder: an ImageFolder; none: of predictions
    model: str = ""  # cifar_resnet8, cifar_resnet8_w32, … or a torchvision or timm classifier
    title: str = ""  # as pages show it; the id if empty
    note: str = ""  # what the study's index page says of its settings, where they deviate
    data_dir: str | None = None  # folder with the data; None looks in the usual places
    image_size: Pixels | None = None  # px after cropping; None: the data set's own
    resize: Pixels | None = None  # px of the short side before cropping
    interpolation: Literal["bilinear", "bicubic"] | None = None  # None: the weights' own
    mean: list[Mean] | None = None  # what is subtracted, per channel of pixels in [0, 1]
    std: list[Std] | None = None  # what divides; None: as the weights or the data set want
    train_images: Count | None = None  # a stratified subset; None: all
    test_images: Count | None = None
    holdout_images: _whole(0) = 0  # training images kept apart for choices such as ε
    evaluation_split: Literal["test", "holdout"] = "test"  # holdout: for choices such as ε
    augment: Literal["none", "crop", "crop_flip", "random_resized_crop"] = "none"
    workers: _whole(0, 1_000) = 0  # processes that decode images, for each of `devices`
    weights: str | None = None  # pretrained: a name such as DEFAULT, or a .safetensors or .pt file
    pretrain_epochs: _whole(0, 1_000_000) = 0  # clean, first: without weights, or for other classes
    pretrain_lr: Positive = 0.1
    pretrain_schedule: Literal["cosine", "one_cycle"] = "cosine"
    # How the start that all methods share is trained: clean, or by a method such as n_fgsm.
    pretrain_method: str = "pretrained"
    epochs: Many = 10
    lr: Positive = 0.01
    lr_final_factor: _number(ge=0, le=1) = 1e-4  # cosine annealing ends at lr times this
    momentum: Share = 0.9
    weight_decay: _number(ge=0, le=1) = 1e-4  # not stated in the paper
    ema: Share = 0.0  # decay of averaged weights, the same for all methods; 0: none
    options: dict[str, dict[str, Number]] = field(default_factory=dict)  # method -> its options
    # Method -> of how many last epochs the network is kept and attacked, by `make audit`.
    late_epochs: dict[str, Count] = field(default_factory=dict)
    # Methods of your own: name -> {objective: "file.py:Name", title: …, what else a recipe has}.
    own_methods: dict[str, dict] = field(default_factory=dict)
    batch_size: Many = 64  # images a step, those of all processes together
    norm: Literal["Linf", "L2"] = "Linf"
    eps: Number = 0.03  # pixels in [0, 1]
    train_steps: Many = 10
    train_step_size: Positive | None = None  # None: 2.5 eps / min(steps, 10)
    delta: Share = 0.03  # weight of the transformation label, Eq. 3
    num_transforms: Few = 1  # M
    replace_head: bool = False  # draw the whole head afresh when widening it
    # What the attack of a method with extra logits climbs: Eq. 4, or the K classes alone.
    train_objective: Literal["label_augmentation", "cross_entropy"] = "label_augmentation"
    train_label_source: Literal["true", "predicted"] = "true"  # what the training attack leaves
    # Changes of the training attack, one dict for each transformation logit: images take turns.
    transforms: list[dict] = field(default_factory=list)
    methods: list[str] | None = None  # of RECIPES; None: pretrained, std, adv and adv_plus
    seeds: list[_whole(0, 2**63 - 1)] = field(default_factory=lambda: [0])
    attacks: list[str] | None = None  # of threat.PROTOCOLS; None: pgd40
    corruptions: Literal["generated", "published", "none"] | None = None  # None: generated
    corruptions_dir: str | None = None  # folder of the published set; None looks beside the data
    corruption_images: Count | None = None  # a stratified subset; None: all
    # Trained and evaluated by `make audit`, with the first seed alone: id -> {method: of RECIPES,
    # title: …, and the keys of ABLATED that it changes}.
    ablations: dict[str, dict] = field(default_factory=dict)
    # Many methods beside their bases, on pages of their own; not audited by ledger and battery.
    zoo: bool = False
    ledger_images: Count | None = None  # under every switch of the threat model; None: all
    battery_images: Count | None = 500  # under the battery of attacks, AutoAttack among them
    # Half of what AutoAttack on a draw may add to the 95 % interval of the error, such as 0.01.
    autoattack_width: Positive | None = None  # None: AutoAttack is not run
    groups: dict[str, list[str]] = field(default_factory=dict)  # group -> names of its classes
    checkpoints: dict[str, str] = field(default_factory=dict)  # your networks: name -> weights file
    predictions: dict[str, str] | str = field(default_factory=dict)  # yours: name -> CSV or Parquet
    class_names: list[str] | None = None  # for predictions about a data set that is not known here
    eval_batch_size: Many | None = None  # None: 128, on a GPU 512 where images are small
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # auto: bfloat16 if native
    n_resamples: Many | None = None  # None: 10,000, or 1,000 for predictions
    devices: Few | None = None  # processes on this machine, one a GPU; None: one
    accumulate: Many = 1  # equal pieces in which a process computes its part of a batch

    def __post_init__(self):
        for name, value in self._filled().items():
            object.__setattr__(self, name, value)
        check_study(self)

    def _filled(self) -> dict:
        """What the study file left out and other keys decide."""
        given = self.predictions
        if isinstance(given, str):  # one file, named by itself
            stem = re.sub(r"[^A-Za-z0-9_-]", "_", Path(given).name.split(".")[0])
            given = {stem: given} if given else {}
        brought = list(given or self.checkpoints)
        found = {
            "title": self.title if one_line(self.title) else self.study,
            "methods": brought or ["pretrained", "std", "adv", "adv_plus"],
            "attacks": [] if given else ["pgd40"],
            "corruptions": "none" if given else "generated",
            "n_resamples": 1_000 if given else 10_000,
        }
        found = {key: found[key] for key in found if getattr(self, key) is None or key == "title"}
        found |= {"num_transforms": len(self.transforms)} if self.transforms else {}
        return found | {"predictions": given}

    @property
    def train_threat(self) -> ThreatModel:
        """The attack of adversarial training: the last iterate of one start (Madry)."""
        return ThreatModel(
            norm=self.norm,
            eps=self.eps,
            steps=self.train_steps,
            step_size=self.train_step_size,
            label_source=self.train_label_source,
            success="last",
        )

    @property
    def train_threats(self) -> list[ThreatModel]:
        """The attack behind each transformation logit; one for all without ``transforms``."""
        threat, threats = self.train_threat, []
        for changes in self.transforms or [{}]:
            refuse_unknown(set(changes) - set(TRANSFORMED), list(TRANSFORMED))
            try:
                threats.append(dataclasses.replace(threat, **changes))
            except ValueError as error:
                raise ValueError(f"transforms {changes}: {error}") from error
        return threats

    def threat(self, attack: str) -> ThreatModel:
        """A named protocol at the study's norm, and its ε in place of the paper's."""
        protocol = dataclasses.replace(PROTOCOLS[attack], norm=self.norm)
        return protocol.with_eps(self.eps * (protocol.eps / ThreatModel.eps))

    @property
    def late_threat(self) -> ThreatModel:
        """The attack under which late checkpoints are compared: PGD-10, as papers choose them."""
        return dataclasses.replace(self.threat("pgd40"), steps=10)

    @property
    def runs(self) -> Path:
        """Where this study's fresh runs lie: ``runs/<study>``, or under ``ADVLIB_RUNS``."""
        return ROOT / Path(os.environ.get("ADVLIB_RUNS") or "runs").expanduser() / self.study

    @property
    def published(self) -> Path:
        """Where this study's committed tables lie: ``results/<study>``."""
        return ROOT / "results" / self.study

    def to_dict(self) -> dict:
        """Plain values, as papermill and the pages take them."""
        return dataclasses.asdict(self)


class _Loader(yaml.SafeLoader):
    """YAML in which no key comes twice: the safe loader would take the last one silently."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"the key {key.value!r} comes twice: leave one of them out",
                    problem_mark=key.start_mark,
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def load_study(name: str | Path, **overrides) -> Study:
    """Read and validate a study file, an id in ``notebooks/studies`` or a path.

    ``overrides`` replace the file's values. Raises FileNotFoundError for a missing file, ValueError
    for an unknown key or a value that cannot be meant.
    """
    path = find_study(name)
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _Loader)
        if not isinstance(values, dict):
            raise ValueError(f"expected lines of `key: value`, got {type(values).__name__}")
        study = make_study({**values, **overrides})
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    except FileNotFoundError as error:  # of a method's own
        raise FileNotFoundError(f"{path}: {error}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    FILES.pop(study.study, None)
    if path != STUDIES / f"{study.study}.yaml":
        FILES[study.study] = str(name)
    return study


def make_study(values: dict) -> Study:
    """A study from plain values; unknown keys are refused with the nearest known one."""
    known = [key.name for key in dataclasses.fields(Study)]
    refuse_unknown(set(values) - set(known), known)
    for key in ("study", "dataset"):
        if key not in values:
            raise ValueError(f"the key {key!r} is missing")
    study = Study(**values)
    # Not in Study itself, since that of an ablation trains its own method alone.
    for name in study.trained:
        training_settings(study, name, 0, "", None)
    return study


def json_schema() -> str:
    """The JSON schema of a study file, for editors; the comments above describe its keys."""
    schema = TypeAdapter(Study).json_schema() | {"description": "A study file of this book."}
    source = inspect.getsource(Study)
    for name, key in schema["properties"].items():
        del key["title"]
        found = re.search(rf"((?:    # .*\n)*)    {name}: .*?(?:  # (.+))?\n", source)
        if said := " ".join([*re.findall("# (.+)", found[1]), *filter(None, [found[2]])]):
            key["description"] = said.replace("None", "null")
    return json.dumps(schema, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    (STUDIES / "study.schema.json").write_text(json_schema(), encoding="utf-8")
