"""A study: one file that says what is trained, attacked and compared, and where its runs lie."""

import dataclasses
import functools
import inspect
import itertools
import json
import math
import re
import typing
from dataclasses import field
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from advbook.studies.checks import (
    COLUMNS,
    check_choice,
    check_distinct,
    in_words,
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

TAKEN = ("paper", "benchmark", "plan", "imagenet_models")
"""Folders of ``results/`` that hold no study: no study has one of these ids."""

DATASETS = ("digits", "fashion_mnist", "cifar10", "cifar100", "imagenet", "folder")
"""Keys of `advlib.data.sets.DATASETS`, which needs torch."""


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


def _plainly(model):
    """A pydantic dataclass whose errors are one plain sentence: see `in_words`."""
    check, kinds = model.__init__, typing.get_type_hints(model)

    @functools.wraps(check)
    def init(self, *args, **values):
        try:
            check(self, *args, **values)
        except ValidationError as error:
            raise ValueError(in_words(error, values, kinds)) from error

    model.__init__ = init
    return model


@_plainly
@dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid"))
class Study(Views):
    """Every setting of a study; the paper's values where it gives one.

    A study file states only what differs. ε and steps may be written ``8/255``. It cannot be
    changed; `dataclasses.replace` makes another one, which is checked too.

    Raises
    ------
    ValueError
        For a value of the wrong type or out of range, naming the key.
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
    mean: list[Number] | None = None  # what is subtracted, per channel of pixels in [0, 1]
    std: list[Number] | None = None  # what divides; None: as the weights or the data set want
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
    epochs: Many = 10
    lr: Positive = 0.01
    lr_final_factor: _number(ge=0, le=1) = 1e-4  # cosine annealing ends at lr times this
    momentum: Share = 0.9
    weight_decay: _number(ge=0, le=1) = 1e-4  # not stated in the paper
    batch_size: Many = 64  # images a step, those of all processes together
    norm: Literal["Linf", "L2"] = "Linf"
    eps: Number = 0.03  # pixels in [0, 1]
    train_steps: Annotated[int, Field(le=1_000_000)] = 10
    train_step_size: Number | None = None  # None: 2.5 eps / min(steps, 10)
    delta: Share = 0.03  # weight of the transformation label, Eq. 3
    num_transforms: Few = 1  # M
    replace_head: bool = False  # draw the whole head afresh when widening it
    # What the attack of a method with extra logits climbs: Eq. 4, or the K classes alone.
    train_objective: Literal["label_augmentation", "cross_entropy"] = "label_augmentation"
    train_label_source: Literal["true", "predicted"] = "true"  # what the training attack leaves
    # Changes of the training attack, one dict for each transformation logit: images take turns.
    transforms: list[dict] = field(default_factory=list)
    methods: list[str] | None = None  # of RECIPES; None: pretrained, std, adv and adv_plus
    seeds: list[int] = field(default_factory=lambda: [0])
    attacks: list[str] | None = None  # of threat.PROTOCOLS; None: pgd40
    corruptions: Literal["generated", "published", "none"] | None = None  # None: generated
    corruptions_dir: str | None = None  # folder of the published set; None looks beside the data
    corruption_images: Count | None = None  # a stratified subset; None: all
    # Trained and evaluated by `make audit`, with the first seed alone: id -> {method: of RECIPES,
    # title: …, and the keys of ABLATED that it changes}.
    ablations: dict[str, dict] = field(default_factory=dict)
    ledger_images: Count | None = None  # under every switch of the threat model; None: all
    battery_images: Count | None = 500  # under the battery of attacks, AutoAttack among them
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
        named = re.fullmatch(r"[A-Za-z0-9_-]+", self.study) and re.search("[A-Za-z]", self.study)
        if not named or self.study in TAKEN:
            raise ValueError(
                "study is an id of letters, digits, '-' and '_', with a letter, other than "
                f"{', '.join(map(repr, TAKEN))}; got {self.study!r}"
            )
        for name in ("methods", "seeds", "attacks"):
            values = getattr(self, name)
            if len(set(values)) < len(values) or not (values or name == "attacks"):
                raise ValueError(f"{name} is a list without repetition, got {values}")
        if not all(0 <= seed < 2**63 for seed in self.seeds):
            raise ValueError(f"seeds are at least 0, below 2**63, got {self.seeds}")
        self._check_methods()
        self._check_groups()
        if self.class_names is not None and self.dataset != "none":
            raise ValueError(
                f"class_names are those of predictions with dataset: none; {self.dataset} has "
                "names of its own: leave class_names out"
            )
        _ = self.train_threats  # checks norm, eps, steps and step size
        self._check_ablations()

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
        trained = {}
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
                trained[name] = training_settings(self, name, 0, "", None)
            except ValueError as error:
                raise ValueError(f"ablation {name}: {error}") from error
        methods = self.trained if self.ablations else []
        known = {name: training_settings(self, name, 0, "", None) for name in methods} | trained
        for name, settings in trained.items():
            for other in known:
                if other != name and known[other] == settings:
                    raise ValueError(
                        f"the ablation {name} would be trained just as {other} is: what it changes "
                        f"does nothing to {self.ablations[name]['method']}, so leave it out"
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

    Nor does an alias lead to an alias without end, nor is 010 eight or 1:30 ninety.
    """

    def get_single_node(self):
        node = super().get_single_node()
        if node is not None and _expanded(node, {}) > 100_000:
            raise yaml.constructor.ConstructorError(
                problem="its aliases (*name) stand for too much: write the values out"
            )
        return node

    def construct_scalar(self, node):
        text = super().construct_scalar(node)
        if node.tag.endswith((":int", ":float")) and re.match(r"[-+]?0\d|.*:", text):
            raise yaml.constructor.ConstructorError(
                problem=f"to YAML {text} is a number in base 8 or 60: write it in base 10",
                problem_mark=node.start_mark,
            )
        return text

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
        if not isinstance(values, dict):
            raise ValueError(f"expected lines of `key: value`, got {type(values).__name__}")
        study = make_study({**values, **overrides})
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8 text ({error}): save it as UTF-8") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    except RecursionError:
        raise ValueError(f"{path} is not a study: its brackets are nested too deeply") from None
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
    """The JSON schema of a study file, by which editors complete and check it.

    What a comment above says of a key is shown beside it.
    """
    schema = TypeAdapter(Study).json_schema() | {"description": "A study file of this book."}
    source = inspect.getsource(Study)
    for name, key in schema["properties"].items():
        del key["title"]
        if said := re.search(rf"^    {name}: .*  # (.+)$", source, re.MULTILINE):
            key["description"] = said[1].replace("None", "null")
    return json.dumps(schema, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    (STUDIES / "study.schema.json").write_text(json_schema(), encoding="utf-8")
