"""Predictions of a study's networks for its audit: under every switch, and under the battery."""

import functools
from pathlib import Path

import pandas as pd
import torch
from tqdm import tqdm

from advbook.audit.battery import STRENGTHS, battery
from advbook.studies.evaluate import attack_facts, image_facts, run_facts, write_table
from advbook.studies.identity import digest, recipe_of
from advbook.studies.inputs import audit_set, images_of
from advbook.studies.parts import kept
from advbook.studies.runs import load_run, read_run
from advbook.studies.schema import Study
from advbook.studies.switches import ledger_threats, same_attacks
from advbook.studies.views import to_train
from advlib.attacks.worst_case import evaluate_attack
from advlib.checkpoints import EPOCH
from advlib.metrics import class_error
from advlib.networks.weights import load_weights
from advlib.predictions import predict, write_predictions


def ledger_predictions(study: Study, method: str, seed: int) -> Path:
    """Predictions of one trained network under every switch of the ledger.

    A switch that is no other attack for this network is not run. Each finished one is kept, so that
    an interrupted call goes on. ``method`` is a method or an ablation (fewer switches);
    ``ledger_images`` of the study's evaluated images are attacked.

    Returns the path of the prediction table, with ``attack`` (the name of the switch, or "clean")
    and ``linf``. Its facts hold every threat model, and in ``same`` what was not run again.
    """
    model, run = load_run(study, method, seed)
    whole = images_of(study, study.evaluation_split)
    images = audit_set(whole, study.ledger_images)
    with torch.no_grad():
        n_logits = model.eval()(images[0][0][None]).shape[1]
    threats = ledger_threats(study, method)
    same = same_attacks(threats) if n_logits == whole.num_classes else {}
    facts = attack_facts(study, run, whole)
    sizes = {"num_classes": whole.num_classes, "n_images": len(images)}
    common = {"num_classes": whole.num_classes, "workers": study.workers}
    common |= {"batch_size": facts["batch_size"]}

    def judge(progress, threat):
        common["progress"] = progress
        if threat is None:
            return predict({0: model}, images, **common)[0].assign(linf=0.0)
        return evaluate_attack(model, images, threat, dtype=study.dtype, **common)

    todo = {"clean": None} | {name: t for name, t in threats.items() if name not in same}
    parts = []
    with tqdm(total=len(images) * len(todo), unit=" images", mininterval=2) as bar:
        for name, threat in todo.items():
            decided = facts | sizes | {"ledger": threat and threat.to_dict()}
            if threat and threat.model_mode == "train":  # judged by the batch it sits in
                decided |= {"batches": "mixed"}
            part = study.runs / "parts" / digest(decided) / "ledger.parquet"
            bar.set_postfix_str(name)
            rows = kept(part, functools.partial(judge, bar.update, threat), images.file_names)
            parts.append(rows.assign(attack=name))
    table = pd.concat(parts).drop(columns="steps_used")
    # No page reads these probabilities; rounded, the tables stay small.
    table = table.round({"predicted_probability": 2, "linf": 4})
    table = table.astype({"file_name": "category", "attack": "category"})
    facts |= {"threat": threats["default"].to_dict(), "subset": study.ledger_images}
    facts |= {"threats": {name: threat.to_dict() for name, threat in threats.items()}}
    facts |= {"same": same, "n_logits": n_logits}
    path = study.runs / "audit" / "ledger" / f"{method}-seed{seed}.parquet"
    return write_predictions(table, path, **sizes, **facts)


def late_predictions(study: Study, method: str, seed: int) -> Path:
    """Predictions of the networks of a run's last epochs, under PGD-10 at the study's ε.

    They are those that ``late_epochs`` of the study kept, else FileNotFoundError is raised; the
    last is the network itself. Returns the path of the prediction table of the evaluated images,
    with ``attack`` as ``epoch-<n>``. Its facts hold ``validation``: the class errors of each epoch
    on the study's ``holdout_images``.
    """
    model, run = load_run(study, method, seed)
    images, holdout = images_of(study, study.evaluation_split), images_of(study, "holdout")
    threat = study.late_threat
    facts = attack_facts(study, run, images)
    facts |= {"threat": threat.to_dict(), "epochs": study.late_epochs[method]}
    how = {"num_classes": images.num_classes, "workers": study.workers, "dtype": study.dtype}
    how["batch_size"] = facts["batch_size"]
    last = recipe_of(study, method)[0].epochs
    tables, validation = [], {}
    for epoch in tqdm(range(last - facts["epochs"] + 1, last + 1), unit=" epochs", mininterval=2):
        path = study.runs / "models" / run["folder"] / EPOCH.format(epoch)
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} is missing: {method} was trained before late_epochs asked for it; remove "
                f"that folder and {to_train(study, method, seed)}"
            )
        load_weights(model, path)

        def judge(images, epoch=epoch):
            path = study.runs / "parts" / digest(facts | {"epoch": epoch, "of": images.fingerprint})
            attack = functools.partial(evaluate_attack, model, images, threat, **how)
            return kept(path / "late.parquet", attack, images.file_names)

        tables.append(judge(images).assign(attack=f"epoch-{epoch}"))
        validation[epoch] = class_error(judge(holdout)).error.tolist()
    table = pd.concat(tables).drop(columns="steps_used").round({"linf": 4})
    facts |= {"validation": validation}
    path = study.runs / "audit" / "late" / f"{method}-seed{seed}.parquet"
    return write_table(table, path, images, facts)


def battery_predictions(
    study: Study, method: str, seed: int, *, strength: str = "standard"
) -> Path:
    """The battery for one trained network of a study, on a stratified subset of its images.

    The study's other methods are sources of transferred attacks. The draws of the attacks do not
    depend on ``seed``, which is that of the networks. Returns the path of the prediction table; its
    facts hold those of `battery` under the same names. Raises as `battery`.
    """
    model, run = load_run(study, method, seed)
    others = [name for name in study.methods if name != method]
    hashes = {name: read_run(study, name, seed)["checkpoint_hash"] for name in others}
    whole = images_of(study, study.evaluation_split)
    images = audit_set(whole, study.battery_images)
    threat = study.threat("pgd40")
    how = {"dtype": "float32", "batch_size": study.eval_batch_size or 128, "attack_seed": 0}
    facts = run_facts(run) | image_facts(study, whole, **how)
    facts |= {"subset": study.battery_images, "threat": threat.to_dict()}
    decided = facts | {"strength": STRENGTHS[strength], "sources": hashes}
    print(f"{len(images)} of {len(whole):,} images, {strength} strength; transfer from {others}")
    table, found = battery(
        model,
        images,
        threat,
        num_classes=images.num_classes,
        sources={name: load_run(study, name, seed)[0] for name in others},
        batch_size=facts["batch_size"],
        strength=strength,
        folder=study.runs / "parts" / digest(decided),
        progress=functools.partial(print, "finished:"),
    )
    path = study.runs / "audit" / "battery" / f"{method}-seed{seed}.parquet"
    return write_table(table, path, images, facts | found)
