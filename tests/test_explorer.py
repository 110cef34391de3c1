"""The explorer: its attack is the library's, and whatever is moved, the page says what happens."""

import base64
import json
import os
import re
import subprocess
import sys
import threading
import time
from concurrent import futures

import nbformat
import pandas as pd
import pytest
import torch

from advbook.charts.base import METHOD_COLOURS
from advbook.charts.explorer import SIDE, probability_chart, verdict
from advbook.charts.pictures import picture
from advbook.studies.runs import load_run
from advbook.studies.samples import decode_png, read_samples
from advbook.studies.schema import ROOT, load_study
from advbook.widgets import explorer
from advbook.widgets.explorer import Background, Explorer, attack_steps
from advlib.attacks.pgd import pgd_attack
from advlib.threat import ThreatModel

STUDY = load_study("fashion_mnist_quick")


@pytest.fixture(scope="module")
def samples():
    return read_samples(STUDY, "committed")


@pytest.fixture(scope="module")
def widened():
    """Adv⁺'s network: ten classes, eleven logits."""
    return load_run(STUDY, "adv_plus", 0, "committed")[0]


@pytest.fixture
def make():
    """A function that opens an explorer of one method; all are closed at the end."""
    made = []

    def open_explorer(**options):
        made.append(Explorer(**{"methods": ["adv"], "delay": 0.0} | options))
        return made[-1]

    yield open_explorer
    for one in made:
        one.close()
        one.background.wait()


def pixels(samples, row=0):
    return torch.tensor(decode_png(samples.image.iloc[row]))[None] / 255


def until(true):
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.005)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"random_start": False, "label_source": "predicted"},
        {"attack_logits": "all", "loss": "margin", "step_size": 0.02},
        {"norm": "L2", "eps": 1.0},
        {"eps": 0.0},
    ],
)
def test_the_last_iterate_is_that_of_pgd_attack(samples, widened, change):
    threat, x, label = ThreatModel(**{"eps": 0.1, "steps": 4} | change), pixels(samples), 6
    found = list(attack_steps(widened, x, label, threat, num_classes=10, seed=3))
    generator = torch.Generator().manual_seed(3)
    y = torch.tensor([label])
    expected = pgd_attack(widened, x, y, threat, num_classes=10, generator=generator)
    assert torch.equal(found[-1][1], expected)
    assert [row["step"] for row, _ in found] == [-1, *range(5 if threat.eps else 1)]
    with torch.no_grad():
        logits = widened.eval()(expected)
    assert logits.shape[1] == 11  # probabilities are over the ten classes alone
    probabilities, last = logits[0, :10].softmax(0), found[-1][0]
    assert last["probability"] == pytest.approx(float(probabilities[label]))
    assert last["predicted_class"] == int(probabilities.argmax())
    probabilities[label] = 0
    assert last["other_class"] == int(probabilities.argmax())
    assert last["other_probability"] == pytest.approx(float(probabilities.max()))


def test_an_attack_that_is_left_gives_the_model_back(samples, widened):
    widened.train()
    steps = attack_steps(widened, pixels(samples), 0, ThreatModel(), num_classes=10)
    for _ in range(4):
        next(steps)
    assert not widened.training
    steps.close()
    assert widened.training and all(p.requires_grad for p in widened.parameters())


def test_at_first_it_shows_what_the_samples_table_holds(make, samples):
    """Another program made that table, image by image in a batch."""
    image = samples.file_name.iloc[4]
    shown = make(methods=["std", "adv_plus"], image=image)
    shown.background.wait()
    assert shown.controls["image"].label == f"Trouser, {image}"
    for method in ("std", "adv_plus"):
        known = samples[(samples.method == method) & (samples.file_name == image)].iloc[0]
        rows = shown.steps[shown.steps.method == STUDY.names[method]]
        assert len(rows) == 42  # clean, start, 40 steps
        for row, kind in ((rows.iloc[0], "predicted"), (rows.iloc[-1], "adversarial")):
            assert row.predicted_class == known[f"{kind}_class"]
            assert row.predicted_probability == pytest.approx(
                known[f"{kind}_probability"], abs=0.01
            )
    assert shown.pictures.value.count("<img") == 3 * 2
    with pytest.raises(ValueError, match="image is one of test-"):
        Explorer(image="test-99999")


def test_cancel_ends_a_job_where_it_yields_next():
    taken = []

    def job():
        while True:
            taken.append(threading.get_ident())
            yield

    background = Background(lambda error: taken.append(error))
    background.start(job())
    until(lambda: len(taken) > 5)
    background.cancel()
    at_most = len(taken) + 1
    background.wait()
    assert len(taken) <= at_most and set(taken).isdisjoint({threading.get_ident()})


def test_a_new_job_waits_until_the_one_before_is_over():
    running, together = [], []

    def job(name):
        running.append(name)
        together.append(len(running))
        try:
            while name < 3:
                yield
        finally:
            running.remove(name)

    background = Background(together.append)
    for name in range(4):
        background.start(job(name))
        until(lambda name=name: background.stop.is_set() or name in running or name == 3)
    background.wait()
    assert together == [1, 1, 1, 1] and not running


def test_the_cancel_button(make):
    shown = make(methods=STUDY.methods)
    shown.controls["steps"].value = 100
    until(lambda: shown.progress.value > 5 and "PGD-100" in shown.status.value)
    assert not shown.cancel.disabled
    shown.cancel.click()
    done = shown.progress.value
    shown.background.wait()
    assert shown.progress.value <= done + 2 < shown.progress.max
    last = shown.steps.iloc[-1]
    assert f"Cancelled at step {last.step} of {last.method}." in shown.status.value
    assert shown.cancel.disabled and len(shown.steps) == shown.progress.value
    shown.controls["steps"].value = 2  # and it can be used again
    shown.background.wait()
    assert "Done." in shown.status.value


def test_a_burst_of_changes_runs_one_attack_with_the_last_values(make, monkeypatch):
    shown, seen = make(delay=0.2), []
    shown.background.wait()
    real = explorer.attack_steps

    def spy(model, x, label, threat, **rest):
        seen.append(threat)
        yield from real(model, x, label, threat, **rest)

    monkeypatch.setattr(explorer, "attack_steps", spy)
    for steps in (30, 20, 3):
        shown.controls["steps"].value = steps
    for name, value in {"eps": 0.05, "step_size": 0.03, "label_source": "predicted"}.items():
        shown.controls[name].value = value
    shown.controls["attack_logits"].value = "all"
    shown.background.wait()
    expected = {"eps": 0.05, "steps": 3, "step_size": 0.03, "attack_logits": "all"}
    assert [{key: getattr(threat, key) for key in expected} for threat in seen] == [expected]
    assert seen[0].label_source == "predicted" and shown.steps.step.max() == 3
    assert "PGD-3," in shown.status.value


def test_the_pictures_hold_what_the_attack_changed(make, samples):
    known = samples[samples.method == "adv"].iloc[0]
    shown = make()
    shown.background.wait()
    assert picture(decode_png(known.image), "The clean image", SIDE) in shown.pictures.value
    assert f"solid {METHOD_COLOURS['adv']}" in shown.pictures.value
    png = re.search(r'alt="Change of Adv, magnified".*?base64,([^"]+)', shown.pictures.value)[1]
    change, expected = decode_png(base64.b64decode(png)), decode_png(known.perturbation)
    assert abs(change.astype(int) - expected).max() <= 1  # the table rounds in float64


def test_an_error_is_shown(make, monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("the <disk> is full")

    monkeypatch.setattr(explorer, "load_run", broken)
    shown = make()
    shown.background.wait()
    assert "RuntimeError: the &lt;disk&gt; is full" in shown.status.value
    assert "Traceback" in shown.status.value and shown.cancel.disabled


def test_an_error_leaves_nothing_of_what_was_shown(make, monkeypatch):
    shown = make()
    shown.background.wait()
    assert shown.pictures.value and len(shown.steps)

    def changed(*args, **kwargs):
        raise RuntimeError("the checkpoint has changed")

    monkeypatch.setattr(explorer, "load_run", changed)
    shown.controls["methods"].value = ["std"]
    shown.background.wait()
    assert "the checkpoint has changed" in shown.status.value
    assert not shown.pictures.value and not len(shown.steps)


def test_the_bar_is_full_at_the_end(make):
    shown = make()
    shown.controls["eps"].value = 0.0
    shown.background.wait()
    assert "Done." in shown.status.value and shown.progress.value == shown.progress.max


def test_networks_that_are_not_there_say_what_to_run(make, monkeypatch):
    def missing(*args):
        raise FileNotFoundError("not published: train them with `make book`")

    monkeypatch.setattr(explorer, "load_run", missing)
    shown = make()
    shown.background.wait()
    assert "train them with `make book`" in shown.status.value
    assert "Traceback" not in shown.status.value


def test_a_study_brings_its_own_attack(make):
    shown = make(study="cifar10")
    shown.background.wait()
    c = shown.controls
    assert (c["eps"].value, c["eps"].max, c["loss"].value) == (0.03, 0.12, "cross_entropy")
    assert "PGD-40, L∞, ε = 0.03" in shown.status.value and "step 0.0075" in shown.status.value
    c["step_size"].value = 0.015
    shown.background.wait()
    assert "step 0.015" in shown.status.value and "Done." in shown.status.value


def test_a_study_without_networks_ends_the_cell():
    with pytest.raises(FileNotFoundError, match="make book STUDY=digits"):
        Explorer(study="digits")


@pytest.mark.parametrize("methods", [["nonsense"], ["adv", "pretraned"]])
def test_an_unknown_method_is_refused(methods):
    with pytest.raises(ValueError, match="methods is one of pretrained, std"):
        Explorer(methods=methods)


def test_closing_ends_the_thread(make):
    shown = make(methods=STUDY.methods)
    until(lambda: shown.progress.value > 2)
    shown.close()
    assert futures.wait([shown.background.running], 30).done and len(shown.steps) < 100
    with pytest.raises(RuntimeError, match="after shutdown"):
        shown.background.start(iter([]))


@pytest.mark.parametrize(
    "predicted, said",
    [
        ([1, 1, 1, 1], "not fooled"),
        ([2, 1, 1, 1], "wrong without an attack"),
        ([1, 2, 2, 2], "fooled by the start (step 0)"),
        ([1, 1, 1, 2], "first fooled at step 2"),
        ([1, 1, 2, 1], "first fooled at step 1, not at the end"),
    ],
)
def test_verdicts(predicted, said):
    steps = pd.DataFrame({"step": [-1, 0, 1, 2], "predicted_class": predicted}).assign(label=1)
    assert verdict(steps) == said


def test_the_axis_of_steps_has_few_ticks():
    names = [f"class {i}" for i in range(1000)]
    row = {"method": "Adv", "label": 1, "other_class": 999, "predicted_class": 1}
    steps = pd.DataFrame([row]).assign(step=-1, probability=0.6, other_probability=0.2)
    for n_steps in (1, 7, 100):
        axis = probability_chart(steps, names, n_steps).to_dict()["layer"][0]["encoding"]["x"]
        assert axis["scale"]["domain"] == [-1, n_steps]
        assert 3 <= len(axis["axis"]["values"]) <= 12


OFFLINE = """
import socket
def only_local(self, address, kind):
    if isinstance(address, tuple) and address[0] not in ("127.0.0.1", "localhost", "::1"):
        raise OSError(f"no network: {address}")
    return kind(self, address)
for name in ("connect", "connect_ex"):
    kind = getattr(socket.socket, name)
    setattr(socket.socket, name, lambda self, a, kind=kind: only_local(self, a, kind))
"""


def test_the_notebook_runs_without_data_and_network(tmp_path, monkeypatch):
    """From the committed weights and samples; its output keeps the first selection."""
    (tmp_path / "path").mkdir()
    (tmp_path / "path/sitecustomize.py").write_text(OFFLINE)
    places = [tmp_path / "path", ROOT, ROOT / "book"]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, places)))
    monkeypatch.setenv("ADVLIB_DATA", str(tmp_path / "nothing"))
    out = tmp_path / "out.ipynb"
    command = [sys.executable, "-m", "papermill", "--no-progress-bar", "--kernel", "python3"]
    command += [str(ROOT / "notebooks/explore.ipynb"), str(out), "-p", "image", "test-09133"]
    command += ["-y", json.dumps({"shown": ["std", "adv_plus_mix"]})]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    cells = nbformat.read(out, as_version=4).cells
    outputs = [o for cell in cells if cell.cell_type == "code" for o in cell.outputs]
    assert not [o for o in outputs if o.output_type == "stream" and o.name == "stderr"]
    pages = [str(o.data.get("text/html", "")) for o in outputs if "data" in o]
    first = next(page for page in pages if "Done." in page)
    assert "Adv⁺ mixed" in first and first.count("<img") == 6
    assert any("strongest other class" in page for page in pages)
