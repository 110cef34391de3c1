"""The notebooks as sources, and run alone: by papermill where it has a part in what is tested."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from jupyter_server.services.contents.largefilemanager import LargeFileManager

from advbook.studies.schema import ROOT
from advlib.data import load_dataset
from advlib.networks.build import build_model
from conftest import run_notebook

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def papermill(name, out, *options):
    command = [sys.executable, "-m", "papermill", "--no-progress-bar", "--kernel", "python3"]
    command += [str(ROOT / "notebooks" / f"{name}.ipynb"), str(out), *options]
    return subprocess.run(command, capture_output=True, text=True, cwd=out.parent)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_sources(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.cells[0].source.startswith("# ")
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    tagged = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    assert len(tagged) == 1 and tagged[0] is code[0]
    for line in tagged[0].source.splitlines():
        assert "#" in line, f"a parameter without a comment: {line}"
    assert not any(word in cell.source for cell in code for word in ("/home/", "/Users/", "!pip"))
    for node in (node for cell in code for node in ast.walk(ast.parse(cell.source))):
        if isinstance(node, ast.ImportFrom) and node.module.startswith(("advlib", "advbook")):
            exec(ast.unparse(node))  # raises ImportError for what has moved


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_every_figure_has_a_caption_and_is_cited(path):
    notebook = nbformat.read(path, as_version=4)
    prose = " ".join(c.source for c in notebook.cells if c.cell_type == "markdown")
    for cell in notebook.cells:
        figure = cell.metadata.get("mystnb", {}).get("figure")
        if figure:
            assert figure["caption"].endswith(".")
            # A study's page is its tables: no text leads to each.
            cited = f"{{numref}}`{figure['name']}`" in prose or path.stem == "study"
            assert cited, f"{figure['name']} is not cited"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_the_box_of_sources_stands_below_all_figures(path):
    cells = nbformat.read(path, as_version=4).cells
    box = [i for i, cell in enumerate(cells) if "{{ provenance }}" in cell.source]
    figures = [i for i, cell in enumerate(cells) if "figure" in cell.metadata.get("mystnb", {})]
    assert not box or figures == [] or figures[-1] < box[0]


def test_jupyterlab_saves_the_sources_without_outputs(tmp_path):
    for name in ("known.ipynb", "copy.ipynb"):
        cell = nbformat.v4.new_code_cell("1", execution_count=1)
        cell.outputs = [nbformat.v4.new_output("stream", text="1")]
        nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / name)
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    subprocess.run(["git", "add", "known.ipynb"], cwd=tmp_path, check=True)
    # As `make lab` starts it, so that the name of the option is tried too.
    manager = LargeFileManager(root_dir=str(tmp_path), pre_save_hook="pipeline.lab.without_outputs")
    for name, kept in (("known.ipynb", False), ("copy.ipynb", True)):
        model = manager.get(name)
        model["content"]["metadata"]["widgets"] = {}  # as JupyterLab does
        manager.save(model, name)
        notebook = nbformat.read(tmp_path / name, as_version=4)
        assert bool(notebook.cells[0].outputs) == kept
        assert bool(notebook.cells[0].execution_count) == kept == ("widgets" in notebook.metadata)
    assert (
        "--ContentsManager.pre_save_hook=pipeline.lab.without_outputs"
        in (ROOT / "Makefile").read_text()
    )


def test_a_mistyped_parameter_stops_in_the_first_cell(tmp_path):
    done = papermill("train", tmp_path / "out.ipynb", "-p", "study", "digits", "-p", "metod", "adv")
    assert done.returncode != 0
    assert "unknown parameter 'metod': did you mean 'method'" in done.stderr
    ran = nbformat.read(tmp_path / "out.ipynb", as_version=4)
    executed = [c for c in ran.cells if c.cell_type == "code" and c.execution_count]
    assert len(executed) == 3  # parameters, injected parameters, and the check


def test_a_notebook_runs_alone_from_any_folder_with_a_study_file(tmp_path):
    study = tmp_path / "a copy.yaml"  # elsewhere, of any name: a trial still has its own folder
    text = (ROOT / "notebooks/studies/digits.yaml").read_text(encoding="utf-8")
    study.write_text(text.replace("study: digits", "study: copied"), encoding="utf-8")
    options = [f"--parameters_file={study}", "-p", "method", "pretrained"]
    options += ["-p", "pretrain_epochs", "1"]
    options += ["-p", "train_images", "320"]
    done = papermill("train", tmp_path / "out.ipynb", *options)
    assert done.returncode == 0, done.stderr
    logs = list((tmp_path / "runs").glob("*/train/*.csv"))
    assert [log.name for log in logs] == ["pretrained-seed0.csv"]
    assert logs[0].parts[-3].startswith("copied-")


def test_own_predictions_are_read_and_results_of_earlier_runs_are_not(table, tmp_path):
    """Not even in one folder for all results, of which the notebook lists what it wrote."""
    table.to_csv(tmp_path / "mine.csv", index=False)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/bring_your_own-ratios.csv").touch()
    options = ["-p", "predictions", "mine.csv", "-p", "output", "out"]
    done = papermill("bring_your_own", tmp_path / "out.ipynb", *options)
    assert done.returncode == 0, done.stderr[-2000:]
    page = (tmp_path / "out.ipynb").read_text(encoding="utf-8")
    assert "mine: mine.csv" in page
    assert "bring_your_own-summary.csv" in page and "ratios.csv" not in page
    assert not (tmp_path / "out/bring_your_own-ratios.csv").exists()
    assert len(list((tmp_path / "runs").glob("brought-*/data.json"))) == 1


def test_evaluating_an_untrained_method_says_what_to_run():
    with pytest.raises(FileNotFoundError, match="not trained yet: papermill notebooks/train.ipynb"):
        run_notebook("evaluate_pgd", study="digits")


def python_blocks(notebook: str) -> list[str]:
    cells = nbformat.read(ROOT / f"notebooks/{notebook}.ipynb", as_version=4).cells
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    return re.findall(r"```python\n(.*?)```", text, flags=re.S)


def test_the_lines_that_make_a_csv_of_a_factory_or_of_autoattack(tmp_path, monkeypatch):
    """As the page shows them, on digits; the page then reads both files."""
    factory, state = python_blocks("bring_your_own")
    monkeypatch.chdir(tmp_path)
    model = build_model("cifar_resnet8", num_classes=10, mean=(0.3,), std=(0.4,))
    digits = load_dataset("digits", "test")
    few = [digits[i] for i in range(60)]
    monkeypatch.setattr("advlib.data.load_dataset", lambda name, split: few)
    exec(factory, {"my_factory": lambda: model})
    made = pd.read_csv("mine.csv")
    assert made.attack.fillna("").value_counts().to_dict() == {"": 60, "pgd40": 60}
    clean = made[made.attack.isna()].drop(columns="attack")
    clean.to_csv("clean.csv", index=False)
    robust = (clean.label == clean.predicted_class) & (clean.index % 2 == 0)
    left = {"_attacks_to_run": ["apgd-ce", "square"], "_run_attacks": ["apgd-ce"]}
    left |= {"_robust_flags": robust.tolist()}
    (tmp_path / "state.json").write_text(json.dumps(left))
    with pytest.raises(AssertionError, match="it was stopped"):
        exec(state, {})
    whole = left | {"_run_attacks": ["square", "apgd-ce"]}  # of a set, in any order
    (tmp_path / "state.json").write_text(json.dumps(whole))
    Path("mine.csv").rename("first.csv")
    exec(state, {})
    for file, attack in {"first.csv": "pgd40", "mine.csv": "autoattack"}.items():
        run_notebook("bring_your_own", predictions=file, attacks=[attack], output=f"out-{attack}")
        summary = pd.read_csv(f"out-{attack}/bring_your_own-summary.csv")
        error = summary[summary.statistic == "error"].set_index("benchmark").value
        assert error["clean"] == pytest.approx((clean.label != clean.predicted_class).mean())
        if attack == "autoattack":
            assert error["autoattack"] == pytest.approx(1 - robust.mean())
