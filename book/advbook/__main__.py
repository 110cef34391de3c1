"""The command line: ``python -m advbook train|evaluate|data|plan|record``.

``train`` and ``evaluate`` work in one process, or in several that torchrun starts, one a GPU:
``torchrun --nproc-per-node 8 -m advbook train --study cifar10 --method adv``; on several nodes as
torchrun's ``--nnodes`` and ``--rdzv-endpoint`` say. The notebooks do the same for a study with
``devices: 8``.
"""

import argparse
import re
from collections.abc import Sequence

import yaml

from advbook.commands import plainly, under_torchrun
from advbook.studies.checks import check_choice, refuse_unknown
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
    from advbook.studies import evaluate as make
    from advlib import distributed

    with distributed.process_group():
        study = load_study(options.study)
        known = ("clean", "corruptions", "autoattack", *PROTOCOLS)
        check_choice("benchmark", options.benchmark, known)
        if options.benchmark == "clean":
            make.clean_predictions(study, ablations=options.ablations)
        elif options.benchmark == "corruptions":
            make.corruption_predictions(study)
        else:
            known = (*study.recipes, *study.checkpoints, *study.ablations)
            check_choice("method", options.method, known)
            which = (study, options.method, options.seed)
            if options.benchmark == "autoattack":
                make.strong_predictions(*which)
            else:
                make.attack_predictions(*which, options.benchmark)


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


def record(options) -> None:
    """Write records of the leaderboard: of a study's networks, or of brought predictions."""
    from advbook.zoo.leaderboard import ABOUT, record_network, record_predictions

    files, threat, about = (dict(getattr(options, name)) for name in PAIRS)
    refuse_unknown(set(about) - set(ABOUT), ABOUT)
    if options.study:
        study = load_study(options.study)
        for method in [options.method] if options.method else study.methods:
            print(record_network(study, method, options.seed, about))
        return
    threat = {key: yaml.safe_load(value) for key, value in threat.items()}
    own = {name: getattr(options, name) for name in BROUGHT}
    print(record_predictions(files, threat=threat, about=about, **own))


PAIRS = {
    "predictions": "brought: clean=FILE pgd40=FILE, perhaps autoattack=FILE",
    "threat": "of brought predictions under pgd40: norm=Linf eps=8/255, and what else differs",
    "about": "keys of RobustBench: link=… authors=… architecture=… …",
}
BROUGHT = {
    "name": (str, "of the network whose predictions are brought"),
    "dataset": (str, "of its images: a data set by its name, or any other name"),
    "images": (int, "how many there are"),
    "classes": (int, "how many there are"),
    "selection": (str, "how its checkpoint was chosen: 'last epoch', 'validation images', …"),
}


def _pair(text: str) -> list[str]:
    if not re.fullmatch("[^=]+=.+", text):
        raise argparse.ArgumentTypeError(f"expected KEY=VALUE, got {text!r}")
    return text.split("=", 1)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; what the user can mend ends with a sentence, and 1."""
    parser = argparse.ArgumentParser(prog="python -m advbook")
    commands = parser.add_subparsers(required=True, metavar="|".join(f.__name__ for f in COMMANDS))
    parts = {f.__name__: commands.add_parser(f.__name__, help=f.__doc__) for f in COMMANDS}
    for function in COMMANDS:
        parts[function.__name__].set_defaults(run=function)
    for name in ("train", "evaluate", "record"):
        own = name != "record"
        parts[name].add_argument("--study", required=own, help="an id, or a study file's path")
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
    add = parts["record"].add_argument
    add("--method", help="of the study, also an ablation; without it: all its methods")
    for name, said in PAIRS.items():
        add(f"--{name}", type=_pair, nargs="*", default=[], metavar="KEY=VALUE", help=said)
    for name, (kind, said) in BROUGHT.items():
        add(f"--{name}", type=kind, help=said)
    options = parser.parse_args(arguments)
    with plainly("error"):
        options.run(options)


COMMANDS = (train, evaluate, data, plan, record)

if __name__ == "__main__":
    if under_torchrun():
        from torch.distributed.elastic.multiprocessing import errors

        main = errors.record(main)
    main()
