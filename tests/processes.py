"""Processes of tests that may be killed, forked from one that has imported what takes seconds."""

import dataclasses
import multiprocessing
import os
import signal
import sys

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    ["advlib.train", "advbook.studies.inputs", "sklearn.datasets", "snakemake.cli"]
)


def exit_code(function, *arguments) -> int:
    """Run a function of a module beside this in a process of its own; -9 if it is killed.

    Its environment is that of the first such process, so whatever it is to know is an argument.
    """
    process = FORKS.Process(target=function, args=arguments)
    process.start()
    process.join()
    return process.exitcode


def run_snakemake(options, folder, env, out) -> None:
    """What ``python -m snakemake`` does in a folder, its output into a file."""
    with open(out, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(env)
    sys.path[:0] = ["", *env["PYTHONPATH"].split(os.pathsep)]
    for name in [m for m in sys.modules if m.partition(".")[0] in ("advlib", "advbook")]:
        del sys.modules[name]  # a copy of the project has its own
    from snakemake.cli import main

    main([*options])


def train_digits(folder, moment, step) -> None:
    """Training that kills its process at a step, while it writes a checkpoint, or "never"."""
    import torch

    from advbook.studies.identity import training_of
    from advbook.studies.inputs import images_of
    from advbook.studies.schema import load_study
    from advlib import checkpoints, train
    from advlib.networks.build import build_model
    from advlib.recipes import RECIPES

    torch.set_num_threads(1)
    study = dataclasses.replace(
        load_study("digits"), train_images=320, epochs=3, train_steps=3, augment="crop"
    )
    if moment == "writing":
        save = checkpoints.save_file

        def half(tensors, path, **more):
            save(tensors, path, **more)
            if path.with_name("checkpoint.safetensors").exists():
                os.truncate(path, path.stat().st_size // 2)
                die()

        checkpoints.save_file = half
    train.fit(
        build_model("cifar_resnet8", num_classes=10, mean=(0.3,), std=(0.4,)),
        images_of(study, "train"),
        training_of(study, "adv_mix"),
        RECIPES["adv_mix"],
        seed=0,
        folder=folder,
        checkpoint_seconds=0,
        on_step=lambda done: moment == "step" and done == step and die(),
    )


def train_with_dropout(folder, data, step, noise) -> None:
    """Training of a MobileNet that kills its process at a step; `noise` seeds the process."""
    import torch

    from advbook.studies.identity import training_of
    from advbook.studies.inputs import images_of
    from advbook.studies.schema import make_study
    from advlib import train
    from advlib.networks.build import build_model
    from advlib.recipes import RECIPES

    torch.set_num_threads(1)
    torch.manual_seed(noise)
    study = dict(study="s", dataset="folder", data_dir=str(data), model="mobilenet_v3_small")
    study |= dict(image_size=32, pretrain_epochs=1, epochs=2, batch_size=4, train_steps=1)
    study = make_study(study | {"dtype": "float32"})
    model = build_model(study.model, num_classes=2, mean=(0.5,) * 3, std=(0.5,) * 3)
    before = torch.get_rng_state()
    train.fit(
        model,
        images_of(study, "train"),
        training_of(study, "adv"),
        RECIPES["adv"],
        seed=0,
        folder=folder,
        checkpoint_seconds=0,
        on_step=lambda done: done == step and die(),
    )
    assert torch.equal(torch.get_rng_state(), before), "the global generator is not as it was"


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
