"""What tests/test_distributed.py has two processes do."""

import argparse
import contextlib
import dataclasses
import os
import time
from collections import OrderedDict
from pathlib import Path

import torch
from torch.distributed.elastic.multiprocessing.errors import record


class Stopped(Exception):
    pass


def stop_at(step):
    def on_step(done):
        if done == step:
            raise Stopped

    return on_step


def network():
    """No layer looks at other images, so the batch may be divided as one likes."""
    from advlib.networks.build import Normalize

    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(1, 8, 3), torch.nn.ReLU(), torch.nn.Flatten()]
    net = torch.nn.Sequential(*layers, torch.nn.Linear(8 * 36, 10))
    return torch.nn.Sequential(OrderedDict(normalize=Normalize((0.3,), (0.4,)), net=net))


# Methods with a state or with weights that depend on the whole batch.
METHODS = ["awp", "sat", "gairat", "ham", "faal", "cfol", "dafa_at"]
WITH_VALIDATION = ["frl_margin", "csr"]


def train(study, method, folder, make=None, **more):
    from advbook.studies.identity import training_of
    from advbook.studies.inputs import images_of
    from advlib.recipes import RECIPES, with_options
    from advlib.train import fit

    training = dataclasses.replace(training_of(study, method), augment="crop_flip")
    images, recipe = images_of(study, "train"), RECIPES[method]
    how = dict(seed=0, folder=folder, checkpoint_seconds=0)
    if method == "ham":
        recipe = with_options(recipe, first=1)  # of the study's 3 steps
    if recipe.validation:
        how["validation"] = images_of(study, "test")
    return fit((make or network)(), images, training, recipe, **how, **more)


def normed():
    """With batch norm, which is each process's own."""
    from advlib.networks.build import build_model

    return build_model("cifar_resnet8", num_classes=10, mean=(0.3,), std=(0.4,))


def without_corrupting(evaluate):
    evaluate.CORRUPTIONS = evaluate.CORRUPTIONS[:3]
    evaluate.prepare = lambda *_, **__: {"source": "a test"}
    evaluate.corrupted = lambda images, *_, **__: images


@record
def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--study")
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    if options.folder is None:
        if os.environ["RANK"] == "1":
            raise ValueError("rank 1 stumbled")
        time.sleep(600)
    from advbook.studies import evaluate
    from advbook.studies.schema import load_study
    from advlib import distributed

    torch.set_num_threads(1)
    with distributed.process_group():
        study = load_study(options.study)
        train(study, "adv_mix", options.folder / "mixed")
        train(dataclasses.replace(study, accumulate=2), "adv", options.folder / "pieces")
        train(study, "adv", options.folder / "from_one")
        try:
            train(study, "adv", options.folder / "to_one", on_step=stop_at(4))
        except Stopped:
            pass
        for folder, step in (("normed", None), ("normed_again", 4), ("normed_again", None)):
            with contextlib.suppress(Stopped):
                train(study, "adv", options.folder / folder, normed, on_step=stop_at(step))
        for method in METHODS:
            train(study, method, options.folder / method)
        study_in_pieces = dataclasses.replace(study, accumulate=2)
        for method in METHODS + WITH_VALIDATION:
            with contextlib.suppress(Stopped):
                folder = options.folder / f"{method}_stopped"
                train(study_in_pieces, method, folder, on_step=stop_at(8))
        without_corrupting(evaluate)
        evaluate.ATTACK_PART = 33
        evaluate.clean_predictions(study)
        evaluate.corruption_predictions(study)
        evaluate.attack_predictions(study, "std", 0, "pgd40")


if __name__ == "__main__":
    main()
