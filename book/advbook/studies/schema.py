"""A study: one file that says what is trained, attacked and compared, and where its runs lie."""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import math
import os
import re
import reprlib
import shlex
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from advbook.text import one_line
from advlib.files import file_hash
from advlib.recipes import RECIPES, Training
from advlib.threat import PROTOCOLS, ThreatModel, identity, parse_number

ROOT = Path(__file__).resolve().parents[3]
STUDIES = ROOT / "notebooks" / "studies"


ABLATED = (
    *("delta", "replace_head", "train_objective", "train_label_source", "transforms"),
    *("train_steps", "train_step_size", "epochs", "lr", "weight_decay"),
)
"""Keys that an ablation may change; all others stay, so that it can be compared with its study."""

TRANSFORMED = ("eps", "steps", "step_size", "random_start", "loss")
"""Keys of the threat model that may differ between the transformations of a study.

The attack of a method with extra logits climbs Eq. 4, unless train_objective is cross_entropy: a
loss of its own is then refused.
"""

TAKEN = ("paper", "benchmark", "plan")
"""Folders of ``results/`` that hold no study: no study has one of these ids."""

COLUMNS = (
    *("label", "other", "benchmark", "direction", "place", "largest", "method", "seed"),
    *("class_name", "statistic"),
)
"""Columns of tables that have one more for each method: no network has one of these names."""

RECIPE_FIELDS = frozenset({"adversarial", "mix", "extra_logits", "label_augmentation"})
RECIPE_FIELDS |= {"title", "label_smoothing"}
DATA_FIELDS = ("dataset", "data_dir", "train_images", "test_images", "holdout_images")
DATA_FIELDS += ("image_size", "resize", "interpolation", "evaluation_split")
NETWORK_FIELDS = ("dataset", "model", "weights", "image_size", "resize", "interpolation")
NETWORK_FIELDS += ("mean", "std")
TRAINING_FIELDS = ("augment", "dtype", "batch_size", "momentum", "weight_decay", "lr_final_factor")
STUDY_FIELDS = frozenset({*DATA_FIELDS, *NETWORK_FIELDS, *TRAINING_FIELDS})
"""Fields by which results are always recognised; see `advlib.threat.identity`.

A new field of `Recipe` needs nothing. A new one of `Study` that decides images or weights is named
in `Study.data_settings` or `Study.training_settings`. Nothing is added here.
"""

DATASETS = ("digits", "fashion_mnist", "cifar10", "cifar100", "imagenet", "folder")
"""Keys of `advlib.data.sets.DATASETS`, which needs torch."""

BROUGHT = "brought"
"""What the id of predictions begins with that are brought without an id of their own."""

AT_MOST = {"weight_decay": 1, "n_resamples": 1_000_000}
AT_MOST |= dict.fromkeys(("epochs", "pretrain_epochs", "train_steps"), 1_000_000)
AT_MOST |= dict.fromkeys(("batch_size", "eval_batch_size", "accumulate"), 1_000_000)
AT_MOST |= dict.fromkeys(("num_transforms", "workers", "devices"), 1_000)
AT_MOST |= dict.fromkeys(("image_size", "resize"), 10_000)
"""Far beyond what anybody means: a digit too many is found before it takes hours or all memory."""

HOW = ("devices", "accumulate")
"""Keys about how a study is computed: they decide neither its name nor which run goes on."""


@dataclass(frozen=True)
class Study:
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
            if not _may_name(name):
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
                if not _may_name(f"attack-{name}") or name in (*COLUMNS, ".", ".."):
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
            if not _may_name(name) or taken:
                raise ValueError(
                    "the id of an ablation is of letters, digits, '.', '-' and '_', with a letter, "
                    "and that of no method and no column of a table "
                    f"({', '.join(COLUMNS)}); got {name!r}"
                )
            try:
                trained = self.training_settings(name, 0, "", None)
            except ValueError as error:
                raise ValueError(f"ablation {name}: {error}") from error
            for other in (*self.methods, *self.ablations):
                if other != name and self.training_settings(other, 0, "", None) == trained:
                    raise ValueError(
                        f"the ablation {name} would be trained just as {other} is: what it changes "
                        f"does nothing to {base}, so leave it out"
                    )
        titles = [*self.names.values(), *self.ablation_names.values()]
        for title in titles:
            if not isinstance(title, str):
                raise ValueError(f"the title of an ablation is a text, got {title!r}")
        _check_distinct("the names and titles of networks", titles)
        if self.ablations and not self.trained:
            raise ValueError("ablations are trained: a study of brought models has none")

    def _check_groups(self) -> None:
        _check_distinct("class_names", self.class_names or [])
        _check_distinct("the names of groups", self.groups)
        named = [name for names in self.groups.values() for name in names]
        if twice := sorted({name for name in named if named.count(name) > 1}):
            raise ValueError(f"groups: {', '.join(twice)} in more than one place; once each")

    @property
    def names(self) -> dict[str, str]:
        """What pages call each method: its book name, or the name that its owner gave it."""
        return {m: RECIPES[m].title if m in RECIPES else m for m in self.methods}

    @property
    def ablation_names(self) -> dict[str, str]:
        """What pages call each ablation."""
        return {
            name: changes.get("title", RECIPES[name].title if name in RECIPES else name)
            for name, changes in self.ablations.items()
        }

    @property
    def method_runs(self) -> list[tuple[str, int]]:
        """(method, seed) of every network that the chapters compare."""
        return [(method, seed) for method in self.methods for seed in self.seeds]

    @property
    def ablation_runs(self) -> list[tuple[str, int]]:
        """(ablation, seed) of every ablation: the first seed alone."""
        return [(name, self.seeds[0]) for name in self.ablations]

    def recipe(self, name: str) -> tuple["Study", str]:
        """How a method or an ablation is trained: the study with its changes, and the method."""
        if name not in self.ablations:
            return self, name
        changes = {k: v for k, v in self.ablations[name].items() if k in ABLATED}
        if "transforms" in changes:
            changes["num_transforms"] = max(1, len(changes["transforms"]))
        changed = dataclasses.replace(self, ablations={}, **changes)
        return changed, self.ablations[name]["method"]

    @property
    def trained(self) -> list[str]:
        """The methods that are trained here; all others are brought."""
        return [m for m in self.methods if m not in {*self.checkpoints, *self.predictions}]

    @property
    def splits(self) -> list[str]:
        """The splits whose images the study needs."""
        return list(dict.fromkeys([*(["train"] * bool(self.trained)), self.evaluation_split]))

    @property
    def benchmarks(self) -> tuple[str, ...]:
        """The benchmarks with prediction tables; ReaL and ImageNet-X are read off the clean one."""
        corrupted = ("corruptions",) if self.corruptions != "none" else ()
        return ("clean", *self.attacks, *corrupted)

    @property
    def audits(self) -> tuple[str, ...]:
        """The parts of `make audit`, which attacks networks: predictions have none."""
        if self.predictions:
            return ()
        return (*(["ablations"] if self.ablations else []), "ledger", "battery")

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """The comparisons that pages make, (before, after): all pairs of a user's own models."""
        if self.predictions or self.checkpoints:
            return [(a, b) for i, a in enumerate(self.methods) for b in self.methods[i + 1 :]]
        known = [("std", "adv"), ("std", "adv_plus"), ("adv", "adv_plus")]
        known += [("adv_mix", "adv_plus_mix")]
        found = [pair for pair in known if set(pair) <= set(self.methods)]
        return found or [tuple(self.methods[:2])]

    @property
    def unavailable(self) -> dict[str, str]:
        """The chapters that the study's data do not allow, and why."""
        reasons = {}
        if not self.trained:
            reasons["training"] = "the models were trained elsewhere"
        if self.predictions:
            reasons["gallery"] = "pictures are made by attacking networks: bring checkpoints"
        if self.corruptions == "none":
            reasons["corruptions"] = (
                "there are no predictions of corrupted images: bring rows with corruption and "
                "severity"
                if self.predictions
                else "the study file says `corruptions: none`"
            )
        if self.dataset == "imagenet" and self.evaluation_split == "holdout":
            for name in ("evaluate_imagenet_x", "evaluate_real"):
                reasons[name] = "the evaluated images are training images"
        if self.dataset != "imagenet":
            only = "exist for ImageNet's validation images alone"
            reasons["evaluate_imagenet_x"] = f"ImageNet-X's annotations {only}"
            reasons["evaluate_real"] = f"ReaL's labels {only}"
            if self.predictions:
                reasons["factors"] = "factors are measured on images: no image files were brought"
            if not self.groups:
                reasons["groups"] = "the study file names no `groups` of classes"
        if len(self.benchmarks) == 1 and "evaluate_real" in reasons:
            reasons["hard_classes"] = "there is only one benchmark"
        return reasons

    def require(self, chapter: str) -> None:
        """Refuse a chapter that is run by hand and that the study's data do not allow."""
        if reason := self.unavailable.get(chapter):
            raise ValueError(f"the chapter {chapter} is not for {self.study}: {reason}")

    def group_of(self, class_names: list[str]) -> dict[int, str]:
        """Each class's group by its number; empty if the study names no groups.

        Raises
        ------
        ValueError
            If `groups` names a class that there is not, or leaves one out.
        """
        named = {name: group for group, names in self.groups.items() for name in names}
        unknown = [name for name in named if name not in class_names]
        missing = [name for name in class_names if named and name not in named]
        for said, names in (("names classes that there are not", unknown), ("lacks", missing)):
            if names:
                raise ValueError(f"groups {said}: {', '.join(names[:5])} ({len(names)} in all)")
        return {i: named[name] for i, name in enumerate(class_names) if named}

    def condition(self, benchmark: str) -> str:
        """What a benchmark's predictions were made under, in words."""
        if self.predictions and benchmark in self.attacks:
            return (
                f"{benchmark}, an attack that the brought file names; its threat model is unknown"
            )
        return str(self.threat(benchmark)) if benchmark in self.attacks else benchmark

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

    def training(self, method: str) -> Training:
        """How this study trains one of `advlib.recipes.RECIPES`."""
        clean = method == "pretrained"
        return Training(
            epochs=self.pretrain_epochs if clean else self.epochs,
            batch_size=self.batch_size,
            lr=self.pretrain_lr if clean else self.lr,
            schedule=self.pretrain_schedule if clean else "cosine",
            lr_final_factor=self.lr_final_factor,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            augment=self.augment,
            threats=tuple(self.train_threats),
            num_transforms=self.num_transforms,
            delta=self.delta,
            train_objective=self.train_objective,
            accumulate=self.accumulate,
            dtype=self.dtype,
            workers=self.workers,
        )

    def threat(self, attack: str) -> ThreatModel:
        """A named protocol at the study's norm and ε."""
        return dataclasses.replace(PROTOCOLS[attack], norm=self.norm).with_eps(self.eps)

    @staticmethod
    def file(given: str) -> Path:
        """A file that the study names, from the project's root or from the working directory.

        Raises
        ------
        FileNotFoundError
            If it is at neither place.
        ValueError
            If another file is at each of them.
        """
        if path := _located(given):
            return path
        raise FileNotFoundError(
            f"there is no file {given}: give its path from the project's folder, or the whole path"
        )

    @classmethod
    def said(cls, given: str) -> str:
        """A file that the study names, with the place where it was found, in words."""
        if Path(given).expanduser().is_absolute():
            return given
        where = "project's folder" if (ROOT / given).is_file() else "working directory"
        return f"{given} in the {where}"

    def again(self, what: str = "book") -> str:
        """The command that makes the study's tables anew, in words for a message."""
        if self.predictions and self.study.startswith(BROUGHT + "-"):
            return "run notebooks/bring_your_own.ipynb with these files again"
        name = self.called
        if self.study in _TRIALS:
            return f"run its notebooks again with -p study {name} and the same parameters"
        return f"run `make {what} STUDY={name}`"

    def to_train(self, method: str, seed: int) -> str:
        """The command that trains one network, in words for a message."""
        command = f"papermill notebooks/train.ipynb out.ipynb -p study {self.called}"
        same = ", with the same parameters" if self.study in _TRIALS else ""
        return f"{command} -p method {method} -p seed {seed}{same}"

    @property
    def called(self) -> str:
        """What commands call the study: its id, or the path of its file if that lies elsewhere."""
        return shlex.quote(_FILES.get(self.study, self.study))

    @property
    def data_root(self) -> Path | None:
        """`data_dir`, relative to the project's root whatever the working directory."""
        return None if self.data_dir is None else ROOT / Path(self.data_dir).expanduser()

    def images(self, split: str):
        """The study's images of "train", "holdout" or "test", an `advlib.data.sets.Images`."""
        # These need torch, which reading a study does not.
        from advlib.data.sets import load_dataset
        from advlib.networks.build import study_preprocessing

        prepared = study_preprocessing(self)
        return load_dataset(
            self.dataset,
            split,
            data_dir=self.data_root,
            n_images={"train": self.train_images, "test": self.test_images}.get(split),
            holdout_images=self.holdout_images,
            image_size=prepared["image_size"],
            resize=prepared["resize"],
            interpolation=prepared["interpolation"],
        )

    def audit_set(self, images, n_images: int | None):
        """Up to `n_images` of the images, as many of each class, at least one; None: all.

        Raises
        ------
        ValueError
            If a class has fewer images than that, which would make the subset much smaller.
        """
        from advlib.data.sets import stratified_subset

        if n_images is None or n_images >= len(images):
            return images
        classes = len(images.labels.unique())
        return stratified_subset(images, max(1, n_images // classes) * classes)

    def corruption_set(self, images) -> tuple:
        """The images that are corrupted, and the folder of the published set or None."""
        from advlib.data.corruptions import locate_published
        from advlib.data.sets import stratified_subset

        if self.corruption_images is not None:
            images = stratified_subset(images, self.corruption_images)
        if self.corruptions == "generated":
            return images, None
        folder = self.corruptions_dir
        folder = None if folder is None else ROOT / Path(folder).expanduser()
        return images, locate_published(self.dataset, folder)

    @property
    def runs(self) -> Path:
        """Where this study's fresh runs lie: ``runs/<study>``, or under ``ADVLIB_RUNS``.

        Raises
        ------
        NotADirectoryError
            If that is a file.
        """
        folder = ROOT / Path(os.environ.get("ADVLIB_RUNS") or "runs").expanduser()
        if folder.exists() and not folder.is_dir():
            raise NotADirectoryError(
                f"{folder}, where runs are kept, is no folder: name one in ADVLIB_RUNS, or unset it"
            )
        return folder / self.study

    @property
    def published(self) -> Path:
        """Where this study's committed tables lie: ``results/<study>``."""
        return ROOT / "results" / self.study

    def tables(self, source: str) -> Path:
        """The folder that pages read: all "fresh" tables or all "committed" ones.

        Raises
        ------
        FileNotFoundError
            If that folder is not there.
        """
        check_choice("source", source, ("fresh", "committed"))
        folder = self.runs if source == "fresh" else self.published
        if not folder.is_dir():
            other, there = ("committed", self.published), ("fresh", self.runs)
            other, there = other if source == "fresh" else there
            read = f", or read the {other} ones: source = {other!r}" if there.is_dir() else ""
            raise FileNotFoundError(
                f"the study {self.study!r} has no {source} tables in {folder}: {self.again()}{read}"
            )
        return folder

    def data_settings(self) -> dict:
        """What decides the images of the study."""
        return self._said(DATA_FIELDS)

    def _said(self, keys) -> dict:
        """These fields, as far as they belong to a result's identity."""
        said = identity(self, STUDY_FIELDS)
        return {key: said[key] for key in keys if key in said}

    def training_settings(self, method: str, seed: int, data: str, start) -> dict:
        """All that decides the weights of one run; its hash names the run's folder.

        Parameters
        ----------
        method : str
            A key of `RECIPES`, of `checkpoints` or of `ablations`.
        seed : int
        data : str
            Fingerprint of the training images.
        start : str, dict or None
            Hash of the checkpoint or of the weights file that the run starts from, or is; with what
            those weights want of the images, where that is known.
        """
        if method in self.ablations:
            changed, base = self.recipe(method)
            return changed.training_settings(base, seed, data, start)
        settings = {"method": method, "seed": seed, "data": data, "start": start}
        network = self._said(NETWORK_FIELDS)
        if method in self.checkpoints:
            del network["weights"]
            return network | settings
        settings |= network | self._said(TRAINING_FIELDS)
        recipe = RECIPES[method]
        clean = method == "pretrained"
        settings["epochs"] = self.pretrain_epochs if clean else self.epochs
        settings["lr"] = self.pretrain_lr if clean else self.lr
        settings |= self._said(("pretrain_schedule",)) if clean else {}
        settings |= {k: v for k, v in identity(recipe, RECIPE_FIELDS).items() if k != "title"}
        if recipe.adversarial:
            threats = [threat.to_dict() for threat in self.train_threats]
            settings["threat"] = threats if len(threats) > 1 else threats[0]
        if recipe.label_augmentation or recipe.label_smoothing:
            settings["delta"] = self.delta
        if recipe.extra_logits:
            settings["num_transforms"] = self.num_transforms
            settings["replace_head"] = self.replace_head
            settings["train_objective"] = self.train_objective
            if self.train_objective == "label_augmentation" and any(
                "loss" in changes for changes in self.transforms
            ):
                raise ValueError(
                    f"the training attack of {method} climbs Eq. 4, and no loss of a "
                    "transformation: leave loss out of transforms, or set train_objective to "
                    "cross_entropy"
                )
        return settings

    def changed_since(self, method: str, settings: dict) -> list[str]:
        """The training settings in which a run of the method is not what the study now says."""
        start = {key: settings.get(key) for key in ("seed", "data", "start")}
        now = json.loads(json.dumps(self.training_settings(method, **start)))
        changed = [k for k in now.keys() | settings.keys() if now.get(k) != settings.get(k)]
        if given := self.checkpoints.get(method):
            start = settings.get("start")  # by `advbook.studies.runs`
            start = start.get("weights") if isinstance(start, dict) else start
            with contextlib.suppress(FileNotFoundError):  # the run has a copy of its own
                changed += [given] if file_hash(self.file(given)) != start else []
        return sorted(changed)

    def to_dict(self) -> dict:
        """Plain values, as papermill and the pages take them."""
        return dataclasses.asdict(self)


def digest(settings: dict) -> str:
    """Ten hex digits of the SHA-256 of the settings as JSON: the same settings, the same name."""
    text = json.dumps(settings, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


_FILES: dict[str, str] = {}  # by id, the file that a study was read from, if not in `STUDIES`
_TRIALS: set[str] = set()  # ids of studies with other values than their files'


def _located(given: str | Path) -> Path | None:
    """The file at a path from the project's root, or else from the working directory."""
    path = Path(given).expanduser()
    places = [place for place in (ROOT / path, path) if place.is_file()]
    if len(places) > 1 and file_hash(places[0]) != file_hash(places[1]):
        raise ValueError(
            f"there are two files {given}, which differ, in the project's folder and in the "
            "working directory: give the whole path of the one that is meant"
        )
    return places[0] if places else None


def find_study(name: str | Path) -> Path:
    """The file of a study given by its id or by the path of its file.

    Raises
    ------
    FileNotFoundError
        Listing the studies there are.
    ValueError
        For what is neither, and for a path at which two files lie, one from the project's root and
        one from the working directory.
    """
    if not isinstance(name, str | Path) or not str(name):
        raise ValueError(f"study is an id or the path of a study file, got {name!r}")
    if (own := STUDIES / f"{name}.yaml").is_file():
        return own
    if path := _located(name):
        return path
    known = ", ".join(sorted(p.stem for p in STUDIES.glob("*.yaml")))
    raise FileNotFoundError(
        f"no study {str(name)!r}: expected one of {known}, or the path of a study file"
    )


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
    _FILES.pop(study.study, None)
    if path != STUDIES / f"{study.study}.yaml":
        _FILES[study.study] = str(name)
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
        study.training_settings(name, 0, "", None)
    return study


def refuse_unknown(unknown: set[str], known: list[str]) -> None:
    """Raise ValueError for unknown names, with the nearest known one."""
    import difflib

    for name in sorted(unknown, key=str):  # YAML reads 8 and yes as a number and a truth value
        close = difflib.get_close_matches(str(name), known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}"
        raise ValueError(f"unknown parameter {name!r}: {hint}")


def _may_name(name: str) -> bool:
    """Whether tables and commands can tell a network by this name: a number is none."""
    valid = re.fullmatch(r"[A-Za-z0-9_.-]+", name) and re.search("[A-Za-z]", name)
    return bool(valid) and name not in COLUMNS


def _check_distinct(what: str, names) -> None:
    """Refuse an empty name, and two that read alike: pages and charts tell things apart by name."""
    shown = [one_line(name) for name in names]
    if "" in shown:
        raise ValueError(f"{what}: number {shown.index('') + 1} of {len(shown)} is empty; name it")
    for i, name in enumerate(shown):
        if name in shown[:i]:
            raise ValueError(
                f"{what}: numbers {shown.index(name) + 1} and {i + 1} are both {name!r}; charts "
                "would show them as one, so add what tells them apart"
            )


def check_choice(name: str, value, allowed: tuple) -> None:
    if value not in allowed:
        raise ValueError(f"{name} is one of {', '.join(map(str, allowed))}, got {value!r}")


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
