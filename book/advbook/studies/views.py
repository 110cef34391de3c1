"""What pages say and compare of a study, and how commands call it."""

import shlex

from advlib.recipes import RECIPES, Recipe

BROUGHT = "brought"
"""What the id of predictions begins with that are brought without an id of their own."""

FILES: dict[str, str] = {}
"""By id, the file that a study was read from, if it lies in another folder than all others."""

TRIALS: set[str] = set()
"""Ids of studies with other values than their files'."""


class Views:
    """What follows from a study's fields; `advbook.studies.schema.Study` is one."""

    @property
    def names(self) -> dict[str, str]:
        """What pages call each method: its book name, or the name that its owner gave it."""
        titles = {name: recipe.title for name, recipe in self.recipes.items()}
        if self.pretrain_method != "pretrained":  # it was not trained on clean images
            titles["pretrained"] = "Start"
        return {m: titles.get(m, m) for m in self.methods}

    @property
    def recipes(self) -> dict[str, Recipe]:
        """All recipes that the study may train: those of the library and its own."""
        own = {name: Recipe(**{"base": "adv", **said}) for name, said in self.own_methods.items()}
        return RECIPES | own

    @property
    def ablation_names(self) -> dict[str, str]:
        """What pages call each ablation."""
        known = self.recipes
        return {
            name: str(changes.get("title", known[name].title if name in known else name))
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
        parts = {
            "ablations": self.ablations or self.zoo or "adv_mix" in self.methods,
            "ledger": not self.zoo,
            "battery": not self.zoo,
            "autoattack": self.autoattack_width,
            "late": self.late_epochs,
        }
        return tuple(part for part, wanted in parts.items() if wanted)

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """The comparisons that pages make, (before, after): all pairs of a user's own models."""
        if self.predictions or self.checkpoints:
            return [(a, b) for i, a in enumerate(self.methods) for b in self.methods[i + 1 :]]
        known = [("std", "adv"), ("std", "adv_plus"), ("adv", "adv_plus")]
        known += [("adv_mix", "adv_plus_mix")]
        found = [pair for pair in known if set(pair) <= set(self.methods)]
        # All start from pretrained: it is compared where nothing else is.
        trained = [method for method in self.methods if method != "pretrained"]
        return found or [tuple((trained if len(trained) > 1 else self.methods)[:2])]

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
        return reasons


def group_of(study, class_names: list[str]) -> dict[int, str]:
    """Each class's group by its number; empty if the study names no groups.

    Raises ValueError if `groups` names a class that there is not, or leaves one out.
    """
    named = {name: group for group, names in study.groups.items() for name in names}
    unknown = [name for name in named if name not in class_names]
    missing = [name for name in class_names if named and name not in named]
    for said, names in (("names classes that there are not", unknown), ("lacks", missing)):
        if names:
            raise ValueError(f"groups {said}: {', '.join(names[:5])} ({len(names)} in all)")
    return {i: named[name] for i, name in enumerate(class_names) if named}


def condition_of(study, benchmark: str) -> str:
    """What a benchmark's predictions were made under, in words."""
    if study.predictions and benchmark in study.attacks:
        return f"{benchmark}, an attack that the brought file names; its threat model is unknown"
    return str(study.threat(benchmark)) if benchmark in study.attacks else benchmark


def to_make(study, what: str = "book") -> str:
    """The command that makes the study's tables anew, in words for a message."""
    if study.predictions and study.study.startswith(BROUGHT + "-"):
        return "run notebooks/bring_your_own.ipynb with these files again"
    name = called(study)
    if study.study in TRIALS:
        return f"run its notebooks again with -p study {name} and the same parameters"
    return f"run `make {what} STUDY={name}`"


def to_train(study, method: str, seed: int) -> str:
    """The command that trains one network, in words for a message."""
    command = f"papermill notebooks/train.ipynb out.ipynb -p study {called(study)}"
    same = ", with the same parameters" if study.study in TRIALS else ""
    return f"{command} -p method {method} -p seed {seed}{same}"


def called(study) -> str:
    """What commands call the study: its id, or the path of its file if that lies elsewhere."""
    return shlex.quote(FILES.get(study.study, study.study))
