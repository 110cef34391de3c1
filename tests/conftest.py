import ast
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pytest
import torch
import vl_convert
from PIL import Image
from torch import nn

from advbook.studies.schema import ROOT, load_study
from advlib.attacks.pgd import pgd_attack
from advlib.data.sets import load_dataset, stratified_subset
from advlib.threat import ThreatModel
from processes import exit_code, run_snakemake

torch.set_num_threads(1)  # 8 x 8 digits gain nothing from more


def marks(chart) -> str:
    """The SVG that Vega draws, so that a wrong field or type shows as missing marks."""
    return vl_convert.vegalite_to_svg(chart.to_dict(validate=False))


class Ran(NamedTuple):
    """What a notebook leaves."""

    names: dict
    shown: dict[str, list]  # by the name of the figure, or else the id of the cell
    glued: dict


def run_notebook(name: str, **parameters) -> Ran:
    """Run a notebook's cells in this process, with parameters as papermill gives them.

    A kernel of its own would take seconds, most of them for imports.
    """
    notebook = json.loads((ROOT / f"notebooks/{name}.ipynb").read_text(encoding="utf-8"))
    place, shown, glued = "", {}, {}

    def display(*values):
        shown.setdefault(place, []).extend(values)

    names = {"__name__": name, "display": display}  # a kernel knows the latter without an import
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("IPython.display.display", display)
        patch.setattr("myst_nb.glue", lambda key, value, display=True: glued.update({key: value}))
        for cell in notebook["cells"]:
            if cell["cell_type"] != "code":
                continue
            place = cell["metadata"].get("mystnb", {}).get("figure", {}).get("name", cell["id"])
            source = "".join(cell["source"])
            tree = ast.parse(source)
            last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
            exec(compile(tree, place, "exec"), names)
            if last is not None:
                value = eval(compile(ast.Expression(last.value), place, "eval"), names)
                if value is not None:
                    display(value)
            if "parameters" in cell["metadata"].get("tags", []):
                names |= parameters
                # As papermill and Jupyter leave them, by which a notebook knows its parameters.
                given = [f"{key} = {value!r}" for key, value in parameters.items()]
                names["In"] = [source, "\n".join(["# Parameters", *given])]
    return Ran(names, shown, glued)


def as_text(value) -> str:
    """The Markdown or else the HTML that a page shows of a value."""
    from IPython.core.formatters import DisplayFormatter

    data, _ = DisplayFormatter().format(value)
    return data.get("text/markdown") or data["text/html"]


CHROMIUM_FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()

# Names as hostile as a folder or a study file can make them. Pages show them as they are written
# here, and nothing of them runs: a dialog would tell.
CLASSES = [
    "<img src onerror=alert(1)>",
    "{{ 7 * 7 }} {% raw %}",
    "*star* _under_ `code`",
    "[link](javascript:alert(1))",
    "$5 and $10",
    "a | b",
    r"\(x^2\) and \n",
    'it\'s "said" -- &amp; ...',
    "# 1. {include} `x`",
    "NA",
]
TITLE = (
    "My own study: </script><script>alert(1)</script> {{ 7 * 7 }} <b>bold</b> *star* "
    "[link](javascript:alert(1)) a | b $x$"
)
GROUPS = ["Round </script><script>alert(1)</script>", "**Straight** <svg onload=alert(1)>"]
NOTE = """A *stressed* word, `code` and [the web](https://example.org).
<script>alert(1)</script> <img src onerror=alert(1)> [link](javascript:alert(1)) {{ 7 * 7 }}
{download}`secret <../../../my_study.yaml>`

```{include} /etc/hostname
```
"""

OWN_STUDY = f"""
study: mine
title: {json.dumps(TITLE)}
note: {json.dumps(NOTE)}
dataset: folder
data_dir: ../somebody/photos
image_size: 8
model: cifar_resnet8
train_images: 320
test_images: 100
pretrain_epochs: 2
epochs: 1
train_steps: 3
batch_size: 64
eps: 0.1
dtype: float32
n_resamples: 500
methods: [pretrained, adv, adv_plus]
corruption_images: 20
groups:
  {json.dumps(GROUPS[0])}: {json.dumps(CLASSES[:4])}
  {json.dumps(GROUPS[1])}: {json.dumps(CLASSES[4:])}
"""


def on_path(folder: Path) -> dict[str, str]:
    """The environment of a process that imports from this folder first."""
    found = os.environ.get("PYTHONPATH", "")
    places = [str(folder), str(folder / "book"), *filter(None, [found])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(places)}


def look(folder: Path, env: dict[str, str], *options: str) -> subprocess.CompletedProcess:
    """A run of Snakemake that makes nothing; forked: there are many, and half is imports."""
    with tempfile.NamedTemporaryFile("r") as said:
        code = exit_code(run_snakemake, options, folder, on_path(folder) | env, said.name)
        return subprocess.CompletedProcess(options, code, said.read(), "")


def snakemake(folder: Path, *options: str, runs=None, stops=False) -> subprocess.CompletedProcess:
    """Run the pipeline of a copy of the project on its own study file.

    One that only looks (``-n``), or `stops` before any job, is forked.
    """
    env = on_path(folder) | {"ADVLIB_RUNS": str(runs or folder / "runs")}
    options = ["--cores", "2", "--config", "study=my_study.yaml", *options]
    if stops or "-n" in options:
        return look(folder, env, *options)
    command = [sys.executable, "-m", "snakemake", *options]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)


def save_digits(folder: Path) -> None:
    """Digits as a tree of images, in class folders and under names that try to break a page."""
    for split, n in (("train", 320), ("test", 100)):
        images = stratified_subset(load_dataset("digits", split), n)
        for i, (pixels, label) in enumerate(zip(images.pixels, images.labels, strict=True)):
            path = folder / split / CLASSES[label] / f"<b onclick=alert(1)>{{{{ {i} }}}}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels[0].numpy()).save(path)


def copy_project(copy: Path) -> None:
    """A copy of the project with a user's own study, whose file and images lie elsewhere."""
    left_out = {ROOT / name for name in ("_build", "build", "runs", "data", "book/generated")}
    left_out |= set(ROOT.glob("results/*/models"))
    hidden = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info")

    def ignored(folder, names):
        return hidden(folder, names) | {n for n in names if Path(folder) / n in left_out}

    shutil.copytree(ROOT, copy, ignore=ignored)
    for file in (copy / "notebooks/studies").glob("*.yaml"):  # their analyses cost minutes
        file.write_text(f"{file.read_text(encoding='utf-8')}n_resamples: 500\n", encoding="utf-8")
    elsewhere = copy.parent / "somebody"
    save_digits(elsewhere / "photos")
    (elsewhere / "my_study.yaml").write_text(OWN_STUDY)
    (copy / "my_study.yaml").symlink_to(elsewhere / "my_study.yaml")


@pytest.fixture(scope="session")
def project(tmp_path_factory):
    """`copy_project`, in which the user's own study has been run and the book built."""
    copy = tmp_path_factory.mktemp("project") / "my project ü [a] {b} o'neil"
    copy_project(copy)
    # Networks for 8 x 8 images gain nothing from two threads, and would each run alone. Two kernels
    # that start at once may take the same port.
    evaluations = (f"evaluate_{what}" for what in ("clean", "attack", "samples", "corruptions"))
    one_thread = [f"{rule}=1" for rule in ("train", *evaluations)]
    done = snakemake(copy, "--set-threads", *one_thread, "--retries", "1")
    assert done.returncode == 0, f"the book does not build:\n{done.stdout}\n{done.stderr}"
    assert "No such file" not in done.stdout + done.stderr  # a second attempt would hide it
    return copy


@pytest.fixture(scope="session")
def browser():
    """Chromium, driven by Playwright, which allows one at a time in a process."""
    names = ("chromium", "chromium-browser", "google-chrome")
    program = next((path for name in names if (path := shutil.which(name))), None)
    if program is None:
        assert not os.environ.get("CI"), "Chromium is missing where these tests must run"
        pytest.skip("Chromium is not installed (Debian: apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program, args=CHROMIUM_FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture(autouse=True)
def own_runs(tmp_path, monkeypatch):
    """Every test has a folder of runs of its own."""
    monkeypatch.setenv("ADVLIB_RUNS", str(tmp_path / "runs"))


@pytest.fixture(scope="session")
def tiny_study():
    """The digits study cut to seconds."""
    study = load_study("digits")
    return dataclasses.replace(
        study, train_images=320, test_images=100, pretrain_epochs=2, epochs=2, train_steps=3
    )


def trained_on_digits(adversarial: bool, outputs: int) -> torch.nn.Module:
    """A few hundred steps on the digits that are not tested, with Madry's training or without."""
    images = load_dataset("digits", "train")
    x, y = images.pixels.float() / 255, images.labels
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(512, outputs)),
    )
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    attack = ThreatModel(eps=0.15, steps=5, success="last")
    for _ in range(250):
        batch = torch.randint(len(x), (64,), generator=generator)
        shown = x[batch]
        if adversarial:
            shown = pgd_attack(model, shown, y[batch], attack, num_classes=10, generator=generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(shown), y[batch]).backward()
        optimizer.step()
    optimizer.zero_grad()
    return model.eval()


@pytest.fixture(scope="session")
def digit_networks():
    """A standard and a robust network on the digits, the latter with one logit more."""
    return {"std": trained_on_digits(False, 10), "adv": trained_on_digits(True, 11)}


@pytest.fixture(scope="session")
def digit_images():
    """A hundred test digits, ten of each."""
    return stratified_subset(load_dataset("digits", "test"), 100)


@pytest.fixture
def table():
    """Predictions of three images, the last one wrong."""
    return pd.DataFrame(
        {
            "file_name": ["a", "b", "c"],
            "label": [0, 1, 2],
            "predicted_class": [0, 1, 1],
            "predicted_probability": [0.9, 0.8, 0.5],
        }
    )


@pytest.fixture
def linear_model():
    """Three classes on two pixels: gradients and worst cases are known by hand."""
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(2, 3))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[2.0, 0.0], [0.0, 2.0], [-1.0, -1.0]]))
        model[1].bias.zero_()
    return model.eval()
