"""What a study file may not say: rules about several of its keys, or about names."""

import dataclasses

from pydantic import TypeAdapter

from advbook.studies.checks import COLUMNS, check_choice, check_distinct, may_name, refuse_unknown
from advbook.studies.identity import ABLATED, recipe_for, recipe_of, training_settings
from advlib.data.catalogue import DATASETS
from advlib.recipes import RECIPES, Recipe
from advlib.threat import PROTOCOLS

TAKEN = ("paper", "benchmark", "plan", "imagenet_models", "leaderboard")
"""Folders of ``results/`` that hold no study. No study has one of these ids."""

NAME = f"of letters, digits, '.', '-' and '_', with a letter, and none of {', '.join(COLUMNS)}"


def check_study(study) -> None:
    """Raise ValueError for keys of a study that do not go together, or for a name that is taken."""
    if "." in study.study or not may_name(study.study) or study.study in TAKEN:
        raise ValueError(
            "study is an id of letters, digits, '-' and '_', with a letter, no number, other than "
            f"{', '.join(map(repr, TAKEN))}; got {study.study!r}"
        )
    for name in ("methods", "seeds", "attacks"):
        values = getattr(study, name)
        if len(set(values)) < len(values) or not (values or name == "attacks"):
            raise ValueError(f"{name} is a list without repetition, got {values}")
    for name in (*study.predictions, *study.checkpoints):
        if not may_name(name):
            raise ValueError(f"the name of a model is {NAME}; got {name!r}: write `name: file`")
    if study.predictions:
        _check_predictions(study)
    else:
        _check_methods(study)
    check_distinct("class_names", study.class_names or [])
    if study.class_names is not None and study.dataset != "none":
        raise ValueError(f"{study.dataset} has names of its own: leave class_names out")
    check_distinct("the names of groups", study.groups)
    grouped = [name for names in study.groups.values() for name in names]
    if twice := sorted({name for name in grouped if grouped.count(name) > 1}):
        raise ValueError(f"groups: {', '.join(twice)} in more than one place; once each")
    _ = study.train_threats  # checks norm, eps, steps and step size
    if study.zoo and ("adv" not in study.methods or "pgd40" not in study.attacks):
        raise ValueError("a zoo compares methods with adv, under pgd40: add both to the study")
    _check_ablations(study)


def _check_predictions(study) -> None:
    if study.checkpoints or study.methods != list(study.predictions):
        raise ValueError(
            "a study of predictions holds nothing else: leave checkpoints and methods out"
        )
    check_choice("dataset", study.dataset, ("imagenet", "none"))
    if study.seeds != [0]:
        raise ValueError("predictions have no training seed: leave seeds out")


def _check_methods(study) -> None:
    check_choice("dataset", study.dataset, tuple(DATASETS))
    keys = {field.name for field in dataclasses.fields(Recipe)}
    for name, said in study.own_methods.items():
        refuse_unknown(set(said) - keys, sorted(keys))
        if not may_name(name) or name in RECIPES or not {"title", "objective"} <= set(said):
            raise ValueError(
                f"own method {name}: give it a name that no other method has, a title, and an "
                'objective such as "my_method.py:MyMethod"'
            )
        try:
            TypeAdapter(Recipe).validate_python({**said})
        except ValueError as error:
            raise ValueError(f"own method {name}: {error}") from error
        trained = {*study.methods, *(what.get("method") for what in study.ablations.values())}
        if (base := said.get("base")) and (base not in trained or base == name):
            raise ValueError(
                f"own method {name}: its base is a method that this study trains too, got {base!r}"
            )
    for name in study.methods:
        check_choice("methods", name, (*study.recipes, *study.checkpoints))
    check_choice("pretrain_method", study.pretrain_method, tuple(study.recipes))
    for name in (*study.options, study.pretrain_method, *study.trained):
        check_choice("options", name, tuple(study.recipes))
        _check_recipe(study, name)
    for name in study.attacks:
        check_choice("attacks", name, tuple(PROTOCOLS))
    if missing := sorted(set(study.checkpoints) - set(study.methods)):
        raise ValueError(f"methods leaves out the checkpoints {', '.join(missing)}: add them")
    if not study.model:
        raise ValueError("the key 'model' is missing: the network's name, such as resnet50")
    if len(study.methods) < 2 and not study.checkpoints:
        raise ValueError(f"methods are compared: name at least two, got {study.methods}")
    if not study.trained and len(study.seeds) > 1:
        raise ValueError(
            f"brought networks have no training seed: leave seeds out, got {study.seeds}"
        )
    if study.trained and study.weights is None and study.pretrain_epochs < 1:
        raise ValueError("a study without pretrained weights needs pretrain_epochs of 1 or more")
    if (study.mean is None) != (study.std is None):
        raise ValueError("mean and std are given together, one value for each channel")


def _check_recipe(study, method: str) -> None:
    """What a method needs beside its images must be there."""
    recipe = recipe_for(study, method)
    if recipe.validation and not study.holdout_images:
        raise ValueError(
            f"{method} looks at validation images: set holdout_images, the number of training "
            "images that are kept apart for it"
        )
    if recipe.helper and (recipe.helper not in study.methods or method == recipe.helper):
        raise ValueError(
            f"{method} consults the network of {recipe.helper}: add {recipe.helper} to methods"
        )


def _check_ablations(study) -> None:
    if study.ablations and not study.trained:
        raise ValueError("ablations are trained: a study of brought models has none")
    methods = study.trained if study.ablations else []
    known = {name: training_settings(study, name, 0, "", None) for name in methods}
    for name, changes in study.ablations.items():
        refuse_unknown(set(changes) - {"method", "title", *ABLATED}, ["method", *ABLATED])
        base, changed = changes.get("method"), set(changes) & set(ABLATED)
        for key, kind in {"method": str, "options": dict, "transforms": list}.items():
            if not isinstance(changes.get(key, kind()), kind):
                words = {str: "a name", dict: "a mapping", list: "a list"}[kind]
                raise ValueError(f"ablation {name}: {key} is {words}, got {changes[key]!r}")
        if base not in study.recipes or base == "pretrained":
            choices = ", ".join([*study.recipes][1:])
            raise ValueError(f"ablation {name}: method is one of {choices}, got {base!r}")
        taken = name in study.methods or (name in study.recipes and (name != base or changed))
        if not may_name(name) or taken:
            raise ValueError(
                f"the id of an ablation is {NAME}, and that of no method; got {name!r}"
            )
        try:
            settings = training_settings(study, name, 0, "", None)
            _check_recipe(recipe_of(study, name)[0], base)
        except ValueError as error:
            raise ValueError(f"ablation {name}: {error}") from error
        if same := [other for other in known if known[other] == settings]:
            raise ValueError(
                f"the ablation {name} would be trained just as {same[0]} is: what it changes does "
                f"nothing to {base}, so leave it out"
            )
        known[name] = settings
    for name in study.trained if study.zoo and len(study.seeds) > 1 else ():
        if (base := study.recipes[name].base) in study.ablations:
            raise ValueError(
                f"{name} has several seeds and its base, the ablation {base}, the first alone: "
                f"move {base} to methods, or {name} to ablations"
            )
    for name, number in study.late_epochs.items():
        kept = (m for m in study.trained if m != "pretrained" and not study.recipes[m].post_hoc)
        check_choice("late_epochs", name, (*kept, *study.ablations))
        if number > recipe_of(study, name)[0].epochs or not study.holdout_images:
            raise ValueError(
                f"late_epochs: {name} is trained for {recipe_of(study, name)[0].epochs} epochs, "
                f"keep at most so many, got {number}, and set holdout_images for their choice"
            )
    titles = [*study.names.values(), *study.ablation_names.values()]
    check_distinct("the names and titles of networks", titles)
