"""A study: one file that says what is trained, attacked and compared, and where its runs lie."""

import dataclasses
import itertools
import math
import re
import reprlib
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from advbook.studies.checks import (
    COLUMNS,
    check_choice,
    check_distinct,
    may_name,
    refuse_unknown,
)
from advbook.studies.identity import ABLATED, training_settings
from advbook.studies.places import ROOT, STUDIES, find_study, runs_folder
from advbook.studies.views import FILES, Views
from advbook.text import one_line
from advlib.recipes import RECIPES
from advlib.threat import PROTOCOLS, ThreatModel, parse_number

TRANSFORMED = ("eps", "steps", "step_size", "random_start", "loss")
"""Keys of the threat model that may differ between the transformations of a study.

The attack of a method with extra logits climbs Eq. 4, unless train_objective is cross_entropy: a
loss of its own is then refused.
"""

TAKEN = ("paper", "benchmark", "plan")
"""Folders of ``results/`` that hold no study: no study has one of these ids."""

DATASETS = ("digits", "fashion_mnist", "cifar10", "cifar100", "imagenet", "folder")
"""Keys of `advlib.data.sets.DATASETS`, which needs torch."""

AT_MOST = {"weight_decay": 1, "n_resamples": 1_000_000}
AT_MOST |= dict.fromkeys(("epochs", "pretrain_epochs", "train_steps"), 1_000_000)
AT_MOST |= dict.fromkeys(("batch_size", "eval_batch_size", "accumulate"), 1_000_000)
AT_MOST |= dict.fromkeys(("num_transforms", "workers", "devices"), 1_000)
AT_MOST |= dict.fromkeys(("image_size", "resize"), 10_000)
"""Far beyond what anybody means: a digit too many is found before it takes hours or all memory."""


@dataclass(frozen=True)
class Study(Views):
    """Every setting of a study; the paper's values where it gives one.

    A study file states only what differs. ε and steps may be written ``8/255``.

    Raises
    ------
    ValueError
        For a value of the wrong type or out of range, naming the key.
    """

    study: str  # id: the name of its file and of its folders
    dataset: str  # digits, fashion_mnist, cifar10, cifar100, imagenet, or folder (an ImageFolder)
    model: str = ""  # cifar_resnet8, cifar_resnet8_w32, … or a torchvision or timm classifier
    title: str = ""  # as pages show it; the id if empty
    note: str = ""  # what the study's index page says of its settings, where they deviate
    data_dir: str | None = None  # folder with the data; None looks in the usual places
    image_size: int | None = None  # px after cropping; None: the data set's own
    resize: int | None = None  # px of the short side before cropping, for large images
    interpolation: str | None = None  # bilinear or bicubic; None: as the named weights want
    mean: list[float] | None = None  # the network's normalisation, per channel of pixels in [0, 1];
    std: list[float] | None = None  # None: what the named weights want, else the data set's own
    train_images: int | None = None  # a stratified subset; None: all
    test_images: int | None = None
    holdout_images: int = 0  # training images kept apart for choices such as ε
    evaluation_split: str = "test"  # or holdout: for choices that must not see the test images
    augment: str = "none"  # none, crop, crop_flip, random_resized_crop
    workers: int = 0  # processes that decode images, for each of `devices`
    weights: str | None = None  # pretrained: a name such as DEFAULT, or a .safetensors or .pt file
    pretrain_epochs: int = 0  # clean epochs first, needed without weights or for other classes
    pretrain_lr: float = 0.1
    pretrain_schedule: str = "cosine"  # or one_cycle: up to pretrain_lr, then down
    epochs: int = 10
    lr: float = 0.01
    lr_final_factor: float = 1e-4  # cosine annealing ends at lr times this
    momentum: float = 0.9
    weight_decay: float = 1e-4  # not stated in the paper
    batch_size: int = 64  # images a step, those of all processes together
    norm: str = "Linf"
    eps: float = 0.03  # pixels in [0, 1]
    train_steps: int = 10
    train_step_size: float | None = None  # None: 2.5 eps / min(steps, 10)
    delta: float = 0.03  # weight of the transformation label, Eq. 3
    num_transforms: int = 1  # M
    replace_head: bool = False  # draw the whole head afresh when widening it
    train_objective: str = "label_augmentation"  # what Adv+'s attack climbs: Eq. 4 or cross_entropy
    train_label_source: str = "true"  # the label that the training attack leaves; or predicted
    # Changes of the training attack, one dict for each transformation logit: images take turns.
    transforms: list[dict] = field(default_factory=list)
    methods: list[str] | None = None  # of RECIPES; None: pretrained, std, adv and adv_plus
    seeds: list[int] = field(default_factory=lambda: [0])
    attacks: list[str] | None = None  # of threat.PROTOCOLS; None: pgd40
    corruptions: str | None = None  # generated, published or none; None: generated
    corruptions_dir: str | None = None  # folder of the published set; None looks beside the data
    corruption_images: int | None = None  # a stratified subset of the evaluated images; None: all
    # Trained and evaluated by `make audit`, with the first seed alone: id -> {method: of RECIPES,
    # title: …, and the keys of ABLATED that it changes}.
    ablations: dict[str, dict] = field(default_factory=dict)
    ledger_images: int | None = None  # under every switch of the threat model; a subset, None: all
    battery_images: int | None = 500  # under the battery of attacks, AutoAttack among them
    groups: dict[str, list[str]] = field(default_factory=dict)  # group -> names of its classes
    checkpoints: dict[str, str] = field(default_factory=dict)  # your networks: name -> weights file
    predictions: dict[str, str] | str = field(default_factory=dict)  # yours: name -> CSV or Parquet
    class_names: list[str] | None = None  # for predictions about a data set that is not known here
    eval_batch_size: int | None = None  # None: 128, on a GPU 512 where images are small
    dtype: str = "auto"  # auto: bfloat16 where the device computes in it natively
    n_resamples: int | None = None  # of the bootstrap; None: 10,000, or 1,000 for predictions
    devices: int | None = None  # processes on this machine, one a GPU; None: one
    accumulate: int = 1  # equal pieces in which a process computes its part of a training batch

    def __post_init__(self):
        for key in dataclasses.fields(self):
            object.__setattr__(self, key.name, _typed(key, getattr(self, key.name)))
        if isinstance(self.predictions, str):  # one file, named by itself
            stem = re.sub(r"[^A-Za-z0-9_-]", "_", Path(self.predictions).name.split(".")[0])
            named = {stem: self.predictions}
            object.__setattr__(self, "predictions", named if self.predictions else {})
        brought = list(self.predictions or self.checkpoints)
        methods = brought or ["pretrained", "std", "adv", "adv_plus"]
        defaults = {"title": self.study, "methods": methods}
        defaults |= {"attacks": [] if self.predictions else ["pgd40"]}
        defaults |= {"corruptions": "none" if self.predictions else "generated"}
        defaults |= {"n_resamples": 1_000 if self.predictions else 10_000}
        for name, default in defaults.items():
            value = getattr(self, name)
            if value in (None, "") or (name == "title" and not one_line(value)):
                object.__setattr__(self, name, default)
        named = re.fullmatch(r"[A-Za-z0-9_-]+", self.study) and re.search("[A-Za-z]", self.study)
        if not named or self.study in TAKEN:
            raise ValueError(
                "study is an id of letters, digits, '-' and '_', with a letter, other than "
                f"{', '.join(map(repr, TAKEN))}; got {self.study!r}"
            )
        check_choice("augment", self.augment, ("none", "crop", "crop_flip", "random_resized_crop"))
        check_choice("pretrain_schedule", self.pretrain_schedule, ("cosine", "one_cycle"))
        check_choice("dtype", self.dtype, ("auto", "float32", "bfloat16"))
        check_choice("evaluation_split", self.evaluation_split, ("test", "holdout"))
        check_choice(
            "train_objective", self.train_objective, ("label_augmentation", "cross_entropy")
        )
        check_choice("train_label_source", self.train_label_source, ("true", "predicted"))
        if self.interpolation is not None:
            check_choice("interpolation", self.interpolation, ("bilinear", "bicubic"))
        check_choice("corruptions", self.corruptions, ("generated", "published", "none"))
        for name in ("methods", "seeds", "attacks"):
            values = getattr(self, name)
            if len(set(values)) < len(values) or not (values or name == "attacks"):
                raise ValueError(f"{name} is a list without repetition, got {values}")
        if self.transforms:
            object.__setattr__(self, "num_transforms", len(self.transforms))
        self._check_methods()
        self._check_groups()
        for name in (
            *("epochs", "batch_size", "num_transforms", "eval_batch_size", "n_resamples"),
            *("train_images", "test_images", "corruption_images", "image_size", "resize"),
            *("devices", "accumulate", "ledger_images", "battery_images"),
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is at least 1, got {value}")
        for name in ("holdout_images", "workers", "pretrain_epochs", "weight_decay"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is at least 0, got {getattr(self, name)}")
        for name, most in AT_MOST.items():
            if (getattr(self, name) or 0) > most:
                raise ValueError(f"{name} is at most {most:,}, got {getattr(self, name):g}")
        if self.class_names is not None and self.dataset != "none":
            raise ValueError(
                f"class_names are those of predictions with dataset: none; {self.dataset} has "
                "names of its own: leave class_names out"
            )
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum is in [0, 1), got {self.momentum}")
        if not 0 <= self.lr_final_factor <= 1 or not all(0 <= seed < 2**63 for seed in self.seeds):
            raise ValueError("lr_final_factor is in [0, 1] and seeds are at least 0, below 2**63")
        if not 0 <= self.delta < 1:
            raise ValueError(f"delta is in [0, 1), got {self.delta}")
        if not self.lr > 0 or not self.pretrain_lr > 0:
            raise ValueError(f"lr and pretrain_lr are positive, got {self.lr}, {self.pretrain_lr}")
        _ = self.train_threats  # checks norm, eps, steps and step size
        self._check_ablations()

    def _check_methods(self) -> None:
        brought = [*self.predictions, *self.checkpoints]
        for name in brought:
            if not may_name(name):
                raise ValueError(
                    "the name of a model is of letters, digits, '.', '-' and '_', with a letter, "
                    f"and that of no column of a table ({', '.join(COLUMNS)}); got {name!r}: give "
                    "it another, as in `name: file`"
                )
        if self.predictions:
            if self.checkpoints or self.methods != list(self.predictions):
                raise ValueError(
                    "a study of predictions holds nothing else: leave checkpoints and methods out"
                )
            check_choice("dataset", self.dataset, ("imagenet", "none"))
            for name in self.attacks:
                if not may_name(f"attack-{name}") or name in (*COLUMNS, ".", ".."):
                    raise ValueError(
                        "the name of an attack is of letters, digits, '.', '-' and '_', and that "
                        f"of no column of a table; got {name!r}"
                    )
            if self.seeds != [0]:
                raise ValueError("predictions have no training seed: leave seeds out")
            return
        check_choice("dataset", self.dataset, DATASETS)
        for name in self.methods:
            check_choice("methods", name, (*RECIPES, *self.checkpoints))
        for name in self.attacks:
            check_choice("attacks", name, tuple(PROTOCOLS))
        if missing := sorted(set(self.checkpoints) - set(self.methods)):
            raise ValueError(f"methods leaves out the checkpoints {', '.join(missing)}: add them")
        if not self.model:
            raise ValueError("the key 'model' is missing: the network's name, such as resnet50")
        if len(self.methods) < 2 and not brought:
            raise ValueError(f"methods are compared: name at least two, got {self.methods}")
        if not self.trained and len(self.seeds) > 1:
            raise ValueError(
                f"brought networks have no training seed: leave seeds out, got {self.seeds}"
            )
        if self.trained and self.weights is None and self.pretrain_epochs < 1:
            raise ValueError(
                "a study without pretrained weights needs pretrain_epochs of 1 or more"
            )
        for name in ("mean", "std"):
            values = getattr(self, name)
            if values is None:
                continue
            if len(values) not in (1, 3):
                raise ValueError(f"{name} has one value for each channel, 1 or 3; got {values}")
            if not 0 <= min(values) <= max(values) <= 1:
                raise ValueError(
                    f"{name} is that of pixels in [0, 1], so at least 0 and at most 1; got {values}"
                    ": divide values of pixels in [0, 255] by 255"
                )
        if (self.mean is None) != (self.std is None) or min(self.std or [1]) < 1e-3:
            raise ValueError("mean and std are given together, and no std is 0 or below 0.001")

    def _check_ablations(self) -> None:
        for name, changes in self.ablations.items():
            refuse_unknown(set(changes) - {"method", "title", *ABLATED}, ["method", *ABLATED])
            base, changed = changes.get("method"), set(changes) & set(ABLATED)
            if base not in RECIPES or base == "pretrained":
                raise ValueError(
                    f"ablation {name}: method is one of {', '.join([*RECIPES][1:])}, got {base!r}"
                )
            taken = name in self.methods or (name in RECIPES and (name != base or changed))
            if not may_name(name) or taken:
                raise ValueError(
                    "the id of an ablation is of letters, digits, '.', '-' and '_', with a letter, "
                    "and that of no method and no column of a table "
                    f"({', '.join(COLUMNS)}); got {name!r}"
                )
            try:
                trained = training_settings(self, name, 0, "", None)
            except ValueError as error:
                raise ValueError(f"ablation {name}: {error}") from error
            for other in (*self.methods, *self.ablations):
                if other != name and training_settings(self, other, 0, "", None) == trained:
                    raise ValueError(
                        f"the ablation {name} would be trained just as {other} is: what it changes "
                        f"does nothing to {base}, so leave it out"
                    )
        titles = [*self.names.values(), *self.ablation_names.values()]
        for title in titles:
            if not isinstance(title, str):
                raise ValueError(f"the title of an ablation is a text, got {title!r}")
        check_distinct("the names and titles of networks", titles)
        if self.ablations and not self.trained:
            raise ValueError("ablations are trained: a study of brought models has none")

    def _check_groups(self) -> None:
        check_distinct("class_names", self.class_names or [])
        check_distinct("the names of groups", self.groups)
        named = [name for names in self.groups.values() for name in names]
        if twice := sorted({name for name in named if named.count(name) > 1}):
            raise ValueError(f"groups: {', '.join(twice)} in more than one place; once each")

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
        try:
            threat = self.train_threat
        except ValueError as error:  # in the words of the study file
            said = re.sub(r"^(steps|step_size|label_source)\b", r"train_\1", str(error))
            raise ValueError(said) from error
        threats = []
        for changes in self.transforms or [{}]:
            refuse_unknown(set(changes) - set(TRANSFORMED), list(TRANSFORMED))
            try:
                threats.append(dataclasses.replace(threat, **changes))
            except ValueError as error:
                raise ValueError(f"transforms {changes}: {error}") from error
        return threats

    def threat(self, attack: str) -> ThreatModel:
        """A named protocol at the study's norm and ε."""
        return dataclasses.replace(PROTOCOLS[attack], norm=self.norm).with_eps(self.eps)

    @property
    def runs(self) -> Path:
        """Where this study's fresh runs lie: see `advbook.studies.places.runs_folder`."""
        return runs_folder(self.study)

    @property
    def published(self) -> Path:
        """Where this study's committed tables lie: ``results/<study>``."""
        return ROOT / "results" / self.study

    def to_dict(self) -> dict:
        """Plain values, as papermill and the pages take them."""
        return dataclasses.asdict(self)


class _Loader(yaml.SafeLoader):
    """YAML in which no key comes twice: the safe loader would take the last one silently.

    Nor does an alias lead to an alias again and again until nothing could print the values.
    """

    def get_single_node(self):
        node = super().get_single_node()
        if node is not None and _expanded(node, {}) > 100_000:
            raise yaml.constructor.ConstructorError(
                problem="its aliases (*name) stand for too much: write the values out"
            )
        return node

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


def _expanded(node: yaml.Node, sizes: dict[int, float]) -> float:
    """How many values a node holds if each alias is written out; one in itself, without end."""
    if id(node) not in sizes:
        sizes[id(node)] = math.inf
        below = node.value if isinstance(node, yaml.CollectionNode) else []
        below = itertools.chain(*below) if isinstance(node, yaml.MappingNode) else below
        sizes[id(node)] = 1 + sum(_expanded(child, sizes) for child in below)
    return sizes[id(node)]


def load_study(name: str | Path, **overrides) -> Study:
    """Read and validate a study file.

    Parameters
    ----------
    name : str or path
        An id in ``notebooks/studies`` or a file.
    **overrides
        Values that replace the file's.

    Raises
    ------
    FileNotFoundError, ValueError
        For a missing file, an unknown key, or a value that cannot be meant.
    """
    path = find_study(name)
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8 text ({error}): save it as UTF-8") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    except RecursionError:
        raise ValueError(f"{path} is not a study: its brackets are nested too deeply") from None
    except ValueError as error:  # a number of thousands of digits
        raise ValueError(f"{path}: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} is a list of `key: value` lines, got {type(values).__name__}")
    try:
        study = make_study({**values, **overrides})
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


def _typed(key: dataclasses.Field, value):
    """The value as the annotated type, or an error that names the key."""
    options = typing.get_args(key.type) if isinstance(key.type, types.UnionType) else (key.type,)
    for option in options:
        if _fits(value, option):
            if option is float:
                return parse_number(value, key.name)
            if option == list[float]:
                return [parse_number(item, key.name) for item in value]
            return value
    expected = " or ".join(
        (o.__name__ if isinstance(o, type) and not typing.get_args(o) else str(o)).replace(
            "NoneType", "null"
        )
        for o in options
    )
    raise ValueError(f"{key.name} is {expected}, got {reprlib.repr(value)}")


def _fits(value, kind) -> bool:
    """Whether a plain value can stand for the type; numbers may be written 8/255."""
    inner = typing.get_args(kind)
    if typing.get_origin(kind) is list:
        return isinstance(value, list) and all(_fits(item, inner[0]) for item in value)
    if typing.get_origin(kind) is dict:
        return isinstance(value, dict) and all(
            _fits(k, inner[0]) and _fits(v, inner[1]) for k, v in value.items()
        )
    if kind is float:
        return isinstance(value, int | float | str) and not isinstance(value, bool)
    return type(value) is kind
