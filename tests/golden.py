"""Compare what two commits compute, bit for bit, on one machine: ``python tests/golden.py BASE``.

Run by hand before and after code moves. Bits differ between machines, so nothing is stored: the
base commit and the working tree both run the studies below and build the book from committed
tables, each in a folder of its own. Compared are the tensors of every checkpoint, the rows of every
Parquet table and the text of every CSV table, but for columns that measure time. Ends with 1 if
anything differs.
"""

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parent.parent
TIMES = ("images_per_second", "seconds")
STUDY = """
study: {name}
title: {name}
dataset: digits
model: cifar_resnet8
train_images: 320
test_images: 100
corruption_images: 20
ledger_images: 20
battery_images: 20
pretrain_epochs: 2
epochs: 2
train_steps: 3
batch_size: 64
eps: 0.1
dtype: float32
n_resamples: 200
eval_batch_size: 32
"""
STUDIES = {
    "golden": (
        "methods: [pretrained, std, adv, adv_plus, adv_mix, adv_plus_mix, adv_smoothing, "
        "adv_extra_logit]\n"
        "ablations:\n  adv_plus_delta: {method: adv_plus, delta: 0.3}\n"
        "  adv_plus_ce: {method: adv_plus, train_objective: cross_entropy}\n"
    ),
    "golden_l2": "methods: [pretrained, adv_mix]\nnorm: L2\naccumulate: 2\naugment: crop_flip\n",
    "golden_two": "methods: [pretrained, std, adv_plus]\ndevices: 2\n",
    "golden_many": (
        "methods: [pretrained, std, adv, adv_plus]\ntransforms: [{}, {eps: 0.05}, {steps: 1}]\n"
        "train_label_source: predicted\n"
    ),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base", help="a commit, such as main")
    parser.add_argument("--keep", type=Path, help="where the results go, kept for a second look")
    options = parser.parse_args()
    folder = options.keep or Path(tempfile.mkdtemp())
    trees = {"base": folder / "tree", "here": ROOT}
    if not trees["base"].exists():
        command = ["git", "worktree", "add", "--detach", trees["base"], options.base]
        subprocess.run(command, cwd=ROOT, check=True)
    found = {side: results(tree, folder / f"runs-{side}") for side, tree in trees.items()}
    names = sorted(found["base"].keys() | found["here"].keys())
    differing = [n for n in names if found["base"].get(n) != found["here"].get(n)]
    for name in differing:
        sides = [side for side in found if name in found[side]]
        print(name, "differs" if len(sides) == 2 else f"only in {sides[0]}")
    print(f"{len(names)} results compared, {len(differing)} differ; kept in {folder}")
    return bool(differing)


def results(tree: Path, runs: Path) -> dict[str, str]:
    """Run everything in a tree; the digest of each result by its name."""
    runs.mkdir(parents=True, exist_ok=True)
    for name, more in STUDIES.items():
        (runs / f"{name}.yaml").write_text(STUDY.format(name=name) + more)
        mode = "audit" if name == "golden" else "run"
        snakemake(tree, runs, f"mode={mode}", f"study={runs / name}.yaml")
    snakemake(tree, runs, "mode=read")
    built = tree / "_build" / "studies"
    found = {f"runs/{name}": digest for name, digest in digests(runs).items()}
    return found | {f"built/{name}": digest for name, digest in digests(built).items()}


def snakemake(tree: Path, runs: Path, *config: str) -> None:
    """The pipeline of a tree, whose code comes first wherever a process of it imports."""
    env = os.environ | {"ADVLIB_RUNS": str(runs)}
    env["PYTHONPATH"] = os.pathsep.join([str(tree), str(tree / "book")])
    command = [sys.executable, "-m", "snakemake", "--cores", "2", "--nolock", "--quiet", "all"]
    subprocess.run([*command, "--config", *config], cwd=tree, env=env, check=True)


def digests(folder: Path) -> dict[str, str]:
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".safetensors":
            content = {k: v.numpy().tobytes() for k, v in sorted(load_file(path).items())}
        elif path.suffix == ".parquet":
            content = pd.read_parquet(path).to_csv()
        elif path.suffix == ".csv":
            table = pd.read_csv(path, dtype=str, keep_default_na=False)
            content = table.drop(columns=[c for c in TIMES if c in table]).to_csv()
        else:
            continue
        # Folders of runs are named by the hash of their settings, which is compared with the name.
        found[str(path.relative_to(folder))] = hashlib.sha256(repr(content).encode()).hexdigest()
    return found


if __name__ == "__main__":
    sys.exit(main())
