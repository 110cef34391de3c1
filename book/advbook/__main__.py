"""The command line: ``python -m advbook train|evaluate|data|plan``.

``train`` and ``evaluate`` work in one process, or in several that torchrun starts, one a GPU:
``torchrun --nproc-per-node 8 -m advbook train --study cifar10 --method adv``; on several nodes as
torchrun's ``--nnodes`` and ``--rdzv-endpoint`` say. The notebooks do the same for a study with
``devices: 8``.
"""

import argparse
from collections.abc import Sequence

from advbook.commands import plainly, under_torchrun
from advbook.studies.checks import check_choice
from advbook.studies.schema import load_study
from advlib.threat import PROTOCOLS


def train(options) -> None:
    """Train one method of a study."""
    from advbook.studies.runs import train_method
    from advlib import distributed

    with distributed.process_group() as device:
        study = load_study(options.study)
        check_choice(
            "method", options.method, (*study.recipes, *study.checkpoints, *study.ablations)
        )
        run = train_method(study, options.method, options.seed, device=device)
        if distributed.rank() == 0:
            print(f"{run['n_images']:,} training images, checkpoint {run['checkpoint_hash']}")


def evaluate(options) -> None:
    """Predictions of a study's networks on one benchmark."""
    from advbook.studies.evaluate import (
        attack_predictions,
        clean_predictions,
        corruption_predictions,
        strong_predictions,
    )
    from advlib import distributed

    with distributed.process_group():
        study = load_study(options.study)
        known = ("clean", "corruptions", "autoattack", *PROTOCOLS)
        check_choice("benchmark", options.benchmark, known)
        if options.benchmark == "clean":
            clean_predictions(study, ablations=options.ablations)
        elif options.benchmark == "corruptions":
            corruption_predictions(study)
        else:
            known = (*study.recipes, *study.checkpoints, *study.ablations)
            check_choice("method", options.method, known)
            which = (study, options.method, options.seed)
            if options.benchmark == "autoattack":
                strong_predictions(*which)
            else:
                attack_predictions(*which, options.benchmark)


def data(options) -> None:
    """Fetch or check a data set, and say in a line what it is."""
    from advlib.data.sets import DATASETS, load_dataset

    check_choice("dataset", options.dataset, tuple(DATASETS))
    # Any side will do, since the question is whether the images are there and whole.
    how = {"data_dir": options.data_dir, "image_size": DATASETS[options.dataset].image_size or 224}
    parts = {split: load_dataset(options.dataset, split, **how) for split in options.split}
    for split, images in parts.items():
        print(
            f"{images.title}: {len(images):,} {split} images in {images.num_classes} classes, from "
            f"{images.source}; fingerprint {images.fingerprint[:12]}"
        )
    print(f"licence: {DATASETS[options.dataset].licence}")


def plan(options) -> None:
    """Predict hours, memory and disk of a study on this machine, by a probe of about a minute."""
    from pipeline.plan import report

    report(options.study, compare=options.compare)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; what the user can mend ends with a sentence, and 1."""
    parser = argparse.ArgumentParser(prog="python -m advbook")
    commands = parser.add_subparsers(required=True, metavar="train|evaluate|data|plan")
    parts = {f.__name__: commands.add_parser(f.__name__, help=f.__doc__) for f in COMMANDS}
    for function in COMMANDS:
        parts[function.__name__].set_defaults(run=function)
    for name in ("train", "evaluate"):
        parts[name].add_argument("--study", required=True, help="an id, or a study file's path")
        parts[name].add_argument("--seed", type=int, default=0, help="of the network")
    parts["train"].add_argument("--method", required=True, help="one of the study's")
    add = parts["evaluate"].add_argument
    add("--benchmark", required=True, help="clean, corruptions, an attack, or autoattack")
    add("--method", help="for an attack: a method or an ablation of the study")
    add("--ablations", action="store_true", help="for clean: of these networks")
    add = parts["data"].add_argument
    add("dataset", help="a data set by its name")
    add("--data-dir", help="the folder that holds it")
    add("--split", nargs="*", default=["train", "test"], help="what is needed")
    add = parts["plan"].add_argument
    add("study", nargs="?", default="fashion_mnist_quick", help="an id, or a study file's path")
    add("--compare", action="store_true", help="the last plan beside what the run then took")
    options = parser.parse_args(arguments)
    with plainly("error"):
        options.run(options)


COMMANDS = (train, evaluate, data, plan)

if __name__ == "__main__":
    if under_torchrun():
        from torch.distributed.elastic.multiprocessing.errors import record

        main = record(main)
    main()
