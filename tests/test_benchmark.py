"""The speed benchmark: who is measured how, what its tables say, and that it can be stopped."""

import importlib.util
import json
import socket
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from advbook.studies.schema import ROOT
from advlib.attacks.autoattack import autoattack
from advlib.attacks.pgd import pgd_attack
from advlib.attacks.worst_case import evaluate_attack
from advlib.data.fetch import DataError
from advlib.networks.build import build_model
from advlib.threat import ThreatModel
from conftest import run_notebook

sys.path.insert(0, str(ROOT / "benchmarks"))
import measurements
import speed
import speed_tables

STUDY = """
study: timed
dataset: digits
model: cifar_resnet8
pretrain_epochs: 1
methods: [pretrained, adv]
dtype: float32
"""
PEER_SPEED = 0.25  # of ours, where a peer's measurement is made up


def in_process(folder, job):
    """A measurement without a process of its own; peers' are made up from ours."""
    if job.get("library", "advlib") == "advlib":
        return speed.measure(folder, job)
    ours = job | {"library": "advlib", "attack": "PGD"}
    rows = measurements.MEASURES[job["measure"]](measurements.Bench(folder), ours)
    for row in rows:
        row |= {k: row[k] / PEER_SPEED for k in ("seconds", "cpu_seconds") if k in row}
        row |= {k: row[k] * PEER_SPEED for k in ("images_per_second",) if k in row}
    path = speed.job_file(folder, job)
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"job": job, "rows": rows}))


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """A function that runs the benchmark on digits, and the folder of its measurements."""
    home = tmp_path_factory.mktemp("benchmark")
    (home / "timed.yaml").write_text(STUDY)

    def run(*options):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("ADVLIB_RUNS", str(home / "runs"))
            patch.setattr(speed, "find_spec", lambda name: True)
            patch.setattr(speed, "version", lambda name: "1.0")
            patch.setattr(speed, "run_job", in_process)
            speed.main(["--study", str(home / "timed.yaml"), "--quick", *options])

    run()
    return run, home / "runs/timed_quick/benchmark"


@pytest.fixture
def tables(bench):
    return {path.stem: pd.read_csv(path) for path in (bench[1] / "tables").glob("*.csv")}


def test_every_setting_has_a_row_for_each_network(tables):
    rows = tables["speed"].query("what == 'evaluation'")
    assert set(rows.library) == {"advlib", "torchattacks", "foolbox"}
    assert rows.groupby(["library", "attack", "setting", "dtype"]).model.nunique().eq(2).all()
    assert rows.images.eq(16).all() and (rows.images_per_second > 0).all()
    assert set(rows[rows.library == "torchattacks"].attack) == {"PGD", "APGD"}
    spared = rows[rows.setting == "tuned, clean mistakes left out"]
    assert set(spared.attack) == {"PGD", "LinfPGD"}  # APGD leaves them out by itself


def test_the_error_is_that_of_the_attack(bench, tables, monkeypatch):
    monkeypatch.setenv("ADVLIB_RUNS", str(bench[1].parent.parent))
    own = measurements.Bench(bench[1])
    found = evaluate_attack(
        own.model("adv"), own.images(), own.threat, num_classes=10, dtype="float32"
    )
    row = tables["speed"].query("setting == 'default' and dtype == 'float32' and model == 'adv'")
    wrong = (found.label != found.predicted_class).mean()
    assert row.query("what == 'evaluation'").error.item() == pytest.approx(wrong)


def test_autoattack_is_measured_component_by_component(bench, tables, monkeypatch):
    monkeypatch.setenv("ADVLIB_RUNS", str(bench[1].parent.parent))
    own = measurements.Bench(bench[1])
    job = {"library": "torchattacks", "setting": "tuned", "dtype": "float32", "models": ["adv"]}
    peer = pd.DataFrame(measurements.measure_autoattack(own, job))
    assert peer.component.tolist() == ["apgd_ce", "apgd_t", "fab_t", "square"]
    ours = tables["autoattack"].query("library == 'advlib' and model == 'adv'")
    for rows in (peer, ours):
        left = rows.images - rows.clean_mistakes - rows.broken.cumsum() + rows.broken
        assert (rows.attacked == left).all() and (rows.seconds > 0).all()
    found = autoattack(
        own.model("adv"), own.images(part=slice(8)), own.threat, num_classes=10, dtype="float32",
        steps=3, targets=2, queries=5,
    )  # fmt: skip
    assert ours.broken.sum() == (~found.broken_by.isin(["", "clean"])).sum()
    assert abs(ours.broken.sum() - peer.broken.sum()) <= 1


def test_results_hold_no_name_and_no_path_of_the_machine(bench):
    for path in (bench[1] / "tables").iterdir():
        text = path.read_text()
        assert str(bench[1].parent) not in text and socket.gethostname() not in text


def test_a_stopped_run_goes_on_where_it_stopped(bench, monkeypatch):
    run, folder = bench
    before = {path: path.stat().st_mtime_ns for path in (folder / "jobs").iterdir()}
    lost = [path for path in before if path.name.startswith(("training-advlib", "growth-classes"))]
    for path in lost:
        path.unlink()
    run()
    after = {path: path.stat().st_mtime_ns for path in (folder / "jobs").iterdir()}
    assert {path for path in after if after[path] != before[path]} == set(lost)
    assert after.keys() == before.keys()


def test_measurements_of_two_settings_are_not_mixed(bench):
    with pytest.raises(SystemExit, match="other settings .*images.*: --fresh starts again"):
        bench[0]("--images", "10")


def test_a_measurement_runs_in_a_process_of_its_own_and_its_failure_is_told(bench, monkeypatch):
    monkeypatch.setenv("ADVLIB_RUNS", str(bench[1].parent.parent))
    job = {"name": "broken", "measure": "evaluation", "library": "advlib", "models": ["nobody"]}
    with pytest.raises(SystemExit, match="(?s)nobody.*broken failed; the others are kept"):
        speed.run_job(bench[1], job)
    assert not speed.job_file(bench[1], job).exists()


def test_a_missing_library_is_named_before_anything_is_trained(monkeypatch, tmp_path):
    monkeypatch.setattr(speed, "find_spec", lambda name: None)
    with pytest.raises(
        SystemExit, match="torchattacks, foolbox is not installed: run `make bench`"
    ):
        speed.main([])


def test_fashion_mnist_takes_the_place_of_missing_data_aloud(monkeypatch, capsys):
    def missing(*_):
        raise DataError("no CIFAR-10 here")

    monkeypatch.setattr(speed.fetch, "locate", missing)
    study = speed.choose_study(speed.parse([]))
    assert (study.dataset, study.study) == ("fashion_mnist", "speed_fashion_mnist")
    assert "Fashion-MNIST takes its place" in capsys.readouterr().out


def test_the_page_reads_these_tables(bench, tables):
    glued = run_notebook("benchmark", folder=str(bench[1] / "tables")).glued
    rates = tables["speed"].query("model == 'adv' and what == 'evaluation' and attack != 'APGD'")
    rates = rates.groupby([rates.library == "advlib", "setting"]).images_per_second.max()
    times = rates[True, "default"] / rates[False, "as documented"]
    assert "Digits" in glued["data"] and float(glued["times_documented"]) == pytest.approx(
        times, 0.1
    )


# -- the parts ------------------------------------------------------------------------------------


def evaluated(library, setting, repeat, seconds, first, wrong, images=2):
    job = {"measure": "evaluation", "library": library, "attack": "PGD", "setting": setting}
    job |= {"dtype": "float32", "success": "any" if setting == "default" else "last"}
    job |= {"model": "adv", "batch_size": 2, "repeat": repeat, "first_image": first}
    job |= {"images": images, "seconds": seconds, "wrong": wrong}
    return job | {"peak_memory_mb": 10 * seconds}


def test_repeats_share_the_images_and_errors_are_compared_on_the_same_ones():
    rows = [
        evaluated("advlib", "default", 0, 1.0, 0, [0, 1, 2], images=4),
        evaluated("torchattacks", "tuned", 0, 4.0, 0, [0]),
        evaluated("advlib", "default", 1, 2.0, 0, [3], images=4),  # not the first: not judged
        evaluated("torchattacks", "tuned", 1, 1.0, 2, [0, 1]),
    ]
    table = speed_tables.speed_table(rows).set_index("library")
    ours, peer = table.loc["advlib"], table.loc["torchattacks"]
    assert (ours.error, peer.error) == (0.75, 0.75) and peer.images == 4
    # Image 1 is broken by us alone, image 3 by the peer alone: the mean is 0, the SD sqrt(1/2).
    assert peer.error_difference == 0
    assert peer.difference_high == pytest.approx(1.96 * np.sqrt(0.5) / 2)
    assert (peer.images_per_second, peer.low, peer.high) == (1.25, 0.5, 2.0)
    assert (ours.images_per_second, ours.low, ours.high) == (3.0, 2.0, 4.0)
    assert peer.peak_memory_mb == 40


def convolutions(seconds):
    """Two layers, the second one twice, of 1 GFLOP a pass each."""
    return [
        {"dtype": "float32", "batch_size": size, "layer": layer, "count": layer,
         "direction": direction, "gflop": 1.0, "seconds": each}
        for size, each in seconds.items() for layer in (1, 2)
        for direction in ("forward", "input gradient", "weight gradient")
    ]  # fmt: skip


def test_the_share_of_the_convolution_speed_by_hand():
    rows = convolutions({2: 0.5, 4: 0.1})  # 2 and 10 GFLOP/s
    rows[-1]["seconds"] = 0.2  # the weight gradient of the second layer, in batches of 4
    ceilings = speed_tables.convolution_speed(rows, train_steps=10)
    found = ceilings.set_index(["what", "batch_size"]).gflop_per_second
    assert found["evaluation", 4] == pytest.approx(10)
    # Passes, each of 0.1 s: 33 forward, 32 input gradients and 1 weight gradient, and 2 of 0.2 s.
    assert found["training", 4] == pytest.approx(68 / (0.1 * 66 + 0.2 * 2))
    rates = {"what": "evaluation", "dtype": "float32", "success": "last", "attack": "PGD"}
    rates |= {"library": "advlib", "setting": "s", "model": "adv", "batch_size": 4}
    table = pd.DataFrame([rates | {"images_per_second": 5.0}])
    settings = {"gflop": {"attack step": 0.02, "training pass": 0.03}, "steps": 40}
    settings |= {"study": {"train_steps": 10}}
    row = speed_tables.efficiency_table(table, ceilings, settings).iloc[0]
    assert row.ceiling_batch_size == 4
    assert row.fraction == pytest.approx(5 * 40 * 0.02 / 10)


def test_growth_is_a_median_for_a_thousand_images():
    rows = [
        {"what": "steps", "value": 1, "steps": 1, "images": 50, "dtype": "float32", "seconds": s}
        for s in (1.0, 3.0, 2.0)
    ]
    row = speed_tables.growth_table(rows).iloc[0]
    assert (row.seconds_per_1000, row.low, row.high) == (40, 20, 60)


def test_flops_of_a_pass_are_those_of_its_layers():
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 3, stride=2, padding=1),
        nn.Flatten(), nn.Linear(4 * 16, 10),
    )  # fmt: skip
    first, others = 2 * 8 * 27 * 64, 2 * 4 * 72 * 16 + 2 * 64 * 10
    found = measurements.pass_flops(net, torch.rand(5, 3, 8, 8), torch.zeros(5, dtype=torch.long))
    assert found["attack step"] * 1e9 == pytest.approx(2 * (first + others))
    # The gradient to the image is not needed, those to the weights are.
    assert found["training pass"] * 1e9 == pytest.approx(2 * first + 3 * others)


def test_the_convolutions_timed_are_all_of_the_networks(bench, monkeypatch):
    monkeypatch.setenv("ADVLIB_RUNS", str(bench[1].parent.parent))
    own = measurements.Bench(bench[1])
    table = pd.read_csv(bench[1] / "tables/convolution.csv").query("direction == 'forward'")
    table = table[(table.batch_size == 8) & (table.dtype == "float32")]
    convs = [m for m in own.model("adv").modules() if isinstance(m, nn.Conv2d)]
    assert table["count"].sum() == len(convs)
    head = 2 * 64 * 10 / 1e9  # the linear layer, forward
    step = own.settings["gflop"]["attack step"]
    assert (table.gflop * table["count"]).sum() / 8 == pytest.approx(step / 2 - head, rel=1e-4)


def test_images_outside_of_the_ball_are_refused(linear_model):
    x = torch.tensor([[[[0.5, 0.4]]], [[[0.4, 0.5]]]])
    y = torch.tensor([0, 0])
    wrong, linf = measurements.judge(linear_model, x, x + 0.1, y, 0.1)
    assert wrong.tolist() == [False, True] and linf == pytest.approx(0.1)
    with pytest.raises(ValueError, match="within 0.05 of the image"):
        measurements.judge(linear_model, x, x + 0.1, y, 0.05)
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        measurements.judge(linear_model, x, x + 0.7, y, 0.8)


@pytest.mark.parametrize(
    ("operator", "group"),
    [
        ("aten::mkldnn_convolution", "convolution"),
        ("aten::convolution_backward", "convolution"),
        ("aten::native_batch_norm", "normalisation"),
        ("aten::copy_", "copies and casts"),
        ("aten::_to_copy", "copies and casts"),
        ("aten::add_", "elementwise"),
        ("aten::threshold_backward", "elementwise"),
        ("aten::linear", "other operators"),
        ("aten::addmm", "other operators"),
    ],
)
def test_operators_belong_to_groups(operator, group):
    assert measurements.group_of(operator) == group


@pytest.mark.parametrize(("library", "attack"), [("torchattacks", "PGD"), ("foolbox", "LinfPGD")])
def test_a_peer_attacks_under_the_same_threat_model(library, attack):
    """Without a random start there is no chance in PGD: the same images, whoever makes them."""
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed (`make bench` installs it)")
    model = build_model("cifar_resnet8", num_classes=5, mean=(0.5,), std=(0.2,))
    x, y = torch.rand(6, 1, 8, 8), torch.arange(6) % 5
    threat = ThreatModel(eps=0.1, steps=4, random_start=False, success="last")
    layout = measurements.prepare_peer(model, tuned=True)
    found = measurements.make_peer(library, attack, model, threat)
    x_adv = measurements.run_peer(found, x, y, layout, 4, torch.float32)
    ours = pgd_attack(model, x, y, threat, num_classes=5)
    assert (x_adv - ours).abs().max() < 1e-4
