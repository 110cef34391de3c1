"""What a study costs: on paper, against published figures and by hand; and its plan."""

import dataclasses
import re
import subprocess
import sys
import time

import pandas as pd
import pytest

from advbook.__main__ import main
from advbook.studies.schema import ROOT, load_study
from advlib.data import fetch
from advlib.data.fetch import DataError
from advlib.files import usable_cores
from advlib.recipes import RECIPES
from conftest import look
from pipeline import cost, jobs, plan, probe

A100 = {"forward_gflop": 8.178, "tflops": 312.0, "efficiency": 0.2}


@pytest.mark.parametrize(
    ("name", "gmac", "parameters"),
    [  # as torchvision and the papers print them
        ("resnet50", 4.09, 25_557_032),
        ("resnet18", 1.81, 11_689_512),
        ("convnext_tiny", 4.46, 28_589_128),
        ("vit_b_16", 17.56, 86_567_656),
    ],
)
def test_flops_are_twice_the_published_multiply_adds(name, gmac, parameters):
    found = cost.network_cost(name, 224)
    assert found["forward_gflop"] == pytest.approx(2 * gmac, rel=0.02)
    assert found["parameters"] == parameters
    # The assumption of `Recipe.passes`: the input gradient costs as much as the forward pass.
    assert found["attack_gflop"] == pytest.approx(2 * found["forward_gflop"], rel=0.05)
    committed = pd.read_csv(ROOT / "results/plan/networks.csv").set_index("network")
    assert committed.forward_gflop[name] == pytest.approx(found["forward_gflop"], rel=1e-3)


def test_flops_grow_with_the_area_and_do_not_depend_on_the_number_of_images():
    small = cost.network_cost("cifar_resnet8", 32, channels=1, num_classes=10)
    large = cost.network_cost("cifar_resnet8", 64, channels=1, num_classes=10)
    assert large["forward_gflop"] / small["forward_gflop"] == pytest.approx(4, rel=0.01)
    assert large["activations_mb"] / small["activations_mb"] == pytest.approx(4, rel=0.02)
    # By hand: 32 x 32 x 16 outputs of 9 multiply-adds in the first layer of `cifar_resnet8`, which
    # is less than a tenth of it.
    assert small["forward_gflop"] > 10 * 2 * 32 * 32 * 16 * 9 / 1e9


def test_pgd_training_is_2k_plus_3_forward_passes():
    assert [RECIPES[m].passes(10) for m in ("std", "adv", "adv_plus")] == [3, 23, 23]
    assert RECIPES["adv_mix"].passes(10) == 26
    assert RECIPES["adv"].passes(0) == RECIPES["std"].passes(7) == 3


def test_hours_by_hand():
    # 3.6e9 passes of 1 GFLOP on half of 1 TFLOP/s take 7.2e6 seconds.
    one = {"forward_gflop": 1.0, "tflops": 1.0, "efficiency": 0.5}
    assert cost.compute_hours(3.6e9, **one) == pytest.approx(2000)
    assert cost.compute_hours(3.6e9, **one, scaling=0.5) == pytest.approx(2000)  # one GPU
    assert cost.compute_hours(3.6e9, **one, n_gpus=4, scaling=0.5) == pytest.approx(1000)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"efficiency": 1.2}, "efficiency is in"),
        ({"efficiency": 20}, "efficiency is in"),  # per cent
        ({"tflops": 0}, "tflops is positive"),
        ({"n_gpus": 0}, "n_gpus is positive"),
        ({"n_gpus": 2, "scaling": 0}, "scaling is in"),
    ],
)
def test_numbers_that_cannot_be_meant_are_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        cost.compute_hours(1e6, **A100 | changed)
    with pytest.raises(ValueError, match=message):
        cost.on_paper(load_study("imagenet"), **A100 | changed)


def test_nvidias_own_speed_comes_out_of_its_own_efficiency():
    # 2,470 images/s on an A100 (DeepLearningExamples): 19 % of the peak.
    efficiency = 2470 * 3 * 8.178e9 / 312e12
    hours = cost.compute_hours(3 * 1_281_167, **A100 | {"efficiency": efficiency})
    assert hours * 3600 == pytest.approx(1_281_167 / 2470)
    assert cost.default_efficiency(312, 2039) == pytest.approx(efficiency, rel=0.05)
    assert cost.default_efficiency(1, 1000) == 1  # never more than the peak


def test_the_papers_study_on_paper():
    study = load_study("imagenet")
    run, mean = cost.on_paper(study, **A100), cost.default_iterates()
    adv = run[(run.rule == "train") & (run.job == "adv")].iloc[0]
    flop = 1_281_167 * 10 * 23 * 8.178e9
    assert adv.compute_hours == pytest.approx(flop / (0.2 * 312e12) / 3600)
    assert set(run[run.rule == "train"].job) == {"std", "adv", "adv_plus"}  # weights are published
    attacks = run[run.rule == "evaluate_attack"].set_index("job").passes
    assert attacks["pgd40, std"] == 2 * mean["standard"] + 2
    assert attacks["pgd40, adv"] == 2 * mean["adversarial"] + 2
    clean = run[run.rule == "evaluate_clean"].iloc[0]
    assert (clean.images, clean.passes) == (50_000, 4)
    assert run[run.rule == "evaluate_corruptions"].images.item() == 75 * 50_000


def test_twice_the_data_twice_the_hours_and_more_gpus_fewer():
    study = load_study("imagenet")
    once, twice = (cost.on_paper(study, **A100, data_factor=factor) for factor in (1, 2))
    trained = once.rule == "train"
    assert (twice.hours[trained] / once.hours[trained]).to_list() == pytest.approx([2, 2, 2])
    assert (twice.hours[~trained] == once.hours[~trained]).all()
    eight = cost.on_paper(study, **A100, n_gpus=8, scaling=0.5)
    assert eight.compute_hours.to_list() == pytest.approx((once.compute_hours / 4).to_list())
    assert eight.gpu_hours.to_list() == pytest.approx((8 * eight.hours).to_list())
    seeds = cost.on_paper(dataclasses.replace(study, seeds=[0, 1]), **A100)
    assert seeds.compute_hours.sum() == pytest.approx(2 * once.compute_hours.sum())


def test_the_slower_of_computing_and_decoding_counts():
    study = load_study("imagenet")
    one_core = cost.on_paper(study, **A100, decoded_per_core=100, cores_per_gpu=1)
    std = one_core[one_core.job == "std"].iloc[0]
    assert std.hours == pytest.approx(1_281_167 * 10 / 100 / 3600)
    many = cost.on_paper(study, **A100, cores_per_gpu=1000)
    assert (many.hours == many.compute_hours).all()


def test_passes_of_an_attack_are_read_off_its_table():
    table = pd.DataFrame({"steps_used": [0, 0, 3, 40], "linf": [0.0, 0.1, 0.1, 0.1]})
    assert cost.iterates(table, 40) == (0 + 1 + 4 + 40) / 4
    mean = cost.default_iterates()
    assert 1 < mean["standard"] < 5 < mean["adversarial"] < 40


def test_a_last_iterate_attack_takes_every_step(tiny_study):
    study = dataclasses.replace(tiny_study, attacks=["pgd40", "pgd40_last"])
    assert cost.expected_iterates(study, "pgd40_last", "std", 0) == (
        40,
        "every image takes every step",
    )
    mean, origin = cost.expected_iterates(study, "pgd40", "adv", 0)
    assert mean == pytest.approx(cost.default_iterates()["adversarial"]) and "assumed" in origin


@pytest.fixture(scope="module")
def dry_run(tmp_path_factory):
    """The jobs of the digits study, none of them finished, and what Snakemake said last."""
    said = []

    def heard(command, **how):
        assert command[:3] == [sys.executable, "-m", "snakemake"]
        done = look(how["cwd"], {}, *command[3:])
        said.append(done.stdout)
        return done

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADVLIB_RUNS", str(tmp_path_factory.mktemp("runs")))
        patch.setattr(subprocess, "run", heard)
        return plan.jobs("digits"), said[-1]


@pytest.fixture
def digits(dry_run):
    """Those jobs."""
    return dry_run[0]


@pytest.fixture
def measured(digits):
    """Round numbers in place of a probe."""
    values = {"analyse": 6, "start training": 5, "start evaluation": 4}
    values |= {"forward": 1e-3, "attack": 2e-3, "training clean": 3e-3, "corrupt": 1e-2}
    values |= {"training adversarial": 2e-2, "training adversarial, with extra logits": 4e-2}
    values["start corrupting"] = 3
    table = pd.DataFrame({"seconds": values, "memory_gb": 0.5, "device_gb": None, "lacking": 0})
    table.loc["training clean", "lacking"] = 50
    return table


SIZES = {"train": 1297, "test": 500, "corrupted": 100, "num_classes": 10, "channels": 1}
SIZES |= {"image_size": 8, "in_memory": True}


def test_plan_names_every_job_that_snakemake_counts(dry_run, digits, measured):
    counts = re.findall(r"^(\w+) +(\d+)$", dry_run[1], flags=re.M)
    table = plan.plan(load_study("digits"), digits, measured, SIZES)
    assert table[table.left].groupby("rule").size().to_dict() == {
        rule: int(count) for rule, count in counts if rule != "total"
    }
    assert table.seconds.ge(0).all() and table.seconds_at_most.ge(table.seconds).all()
    assert table.memory_gb.gt(0).all() and table.disk_gb.ge(0).all()


def test_the_data_are_checked_before_anything_is_trained(dry_run):
    """What their notebook refuses would else be refused after days."""
    blocks = dict(re.findall(r"\n(?:local)?rule (\w+):\n((?:    .*\n)+)", dry_run[1]))
    assert "    priority: 1\n" in blocks["data"] and "priority" not in blocks["train"]


def test_the_plan_adds_up(digits, measured):
    study = load_study("digits")
    table = plan.plan(study, digits, measured, SIZES)
    seconds = table.set_index(["rule", "job"]).seconds
    images = study.epochs * (1297 // 64) * 64
    assert seconds["train", "method=adv, seed=0"] == pytest.approx(5 + images * 2e-2)
    assert seconds["train", "method=adv_plus, seed=0"] == pytest.approx(5 + images * 4e-2)
    assert seconds["train", "method=std, seed=0"] == pytest.approx(5 + images * 3e-3)
    assert seconds["evaluate_clean", ""] == pytest.approx(4 + 500 * 4 * 1e-3)
    # The probe's batch lacked 50 images: their activations are added.
    memory = table.set_index(["rule", "job"]).memory_gb
    network = cost.network_cost(study.model, 8, channels=1, num_classes=10)
    grown = 0.5 + 50 * network["activations_mb"] / 1e3
    assert memory["train", "method=std, seed=0"] == pytest.approx(grown)
    assert memory["train", "method=adv, seed=0"] == 0.5
    attack = table[(table.rule == "evaluate_attack") & table.job.str.contains("method=std")].iloc[0]
    mean = cost.default_iterates()["standard"]
    assert attack.seconds == pytest.approx(4 + 500 * (mean * 2e-3 + 2e-3))
    assert attack.seconds_at_most == pytest.approx(4 + 500 * (40 * 2e-3 + 2e-3))
    made = 4 + 7500 * 4e-3 + 3 + 7500 * 1e-2 / usable_cores()
    assert seconds["evaluate_corruptions", ""] == pytest.approx(made)
    summary = plan.totals(table)
    assert summary.seconds["in all"] == pytest.approx(table[table.left].seconds.sum())
    assert summary.jobs["train"] == 4


def test_the_audit_is_planned_beside_the_run(digits, measured):
    """What it attacks, and what it trains: an ablation takes as long as its own settings say."""
    study = load_study("digits")
    table = plan.plan(study, digits, measured, SIZES)
    assert {*table[table.audit].rule} == {"evaluate_battery", "evaluate_ledger"}
    ledger = table[table.rule == "evaluate_ledger"].seconds
    assert ledger.to_numpy() == pytest.approx(4 + jobs.passes(study, "evaluate_ledger") * 1e-3)
    few = plan.plan(study, digits, measured, SIZES | {"test": 5})  # as many as there are
    assert few[few.rule == "evaluate_ledger"].seconds.max() < ledger.max() / 50
    changed = {"longer": {"epochs": 30}, "stronger": {"train_steps": 40}}
    ablations = {name: {"method": "adv"} | change for name, change in changed.items()}
    longer = dataclasses.replace(study, ablations=ablations)
    job = {"rule": "train", "job": "method=longer, seed=0", "audit": True, "left": True}
    each = [job | {"benchmark": ""}, job | {"benchmark": "", "job": "method=stronger, seed=0"}]
    found = plan.plan(longer, pd.DataFrame(each), measured, SIZES)
    images = (1297 // 64) * 64
    assert found.seconds[0] == pytest.approx(5 + 30 * images * 2e-2)
    share = (2 * 40 + 3) / (2 * study.train_steps + 3)
    assert found.seconds[1] == pytest.approx(5 + study.epochs * images * 2e-2 * share)


def test_the_probe_runs_the_real_functions(tiny_study, monkeypatch, tmp_path, capfd):
    monkeypatch.setattr(probe, "_notebooks", lambda: [])  # they take a quarter of a minute
    methods = ["pretrained", "std", "adv", "adv_plus", "adv_mix"]
    study = dataclasses.replace(tiny_study, methods=methods, corruption_images=None)
    sizes = probe.image_sizes(study)
    found = probe.measure(study, sizes, seconds=0.05)
    assert found.seconds.gt(0).all() and found.memory_gb.gt(0.05).all()
    kinds = {"clean", "adversarial", "adversarial, with extra logits", "adversarial, mixed"}
    assert {f"training {kind}" for kind in kinds} < set(found.index)
    assert {"forward", "attack"} < set(found.index)
    assert (sizes["train"], sizes["test"], sizes["image_size"]) == (320, 100, 8)
    assert sizes["corrupted"] == 100
    assert not list((tmp_path / "runs").glob("**/*.safetensors"))
    assert "loss" not in capfd.readouterr().out


def test_a_study_without_data_is_planned_by_the_data_sets_numbers(monkeypatch, tmp_path):
    monkeypatch.setenv("ADVLIB_DATA", str(tmp_path))
    sizes = probe.image_sizes(load_study("imagenet"))
    assert (sizes["train"], sizes["test"], sizes["corrupted"]) == (1_281_167, 50_000, 50_000)
    assert (sizes["num_classes"], sizes["image_size"], sizes["in_memory"]) == (1000, 224, False)
    assert "not here" in sizes["found"]


def test_a_plan_downloads_nothing(monkeypatch, tmp_path):
    monkeypatch.setenv("ADVLIB_DATA", str(tmp_path))
    monkeypatch.setattr(fetch, "DATA", tmp_path / "none")
    monkeypatch.setattr(fetch, "DOWNLOADS", {"cifar10": [("a download", None)]})  # none is called
    assert "not here" in probe.image_sizes(load_study("cifar10"))["found"]


def test_damaged_data_stop_the_plan(monkeypatch, tmp_path):
    monkeypatch.setenv("ADVLIB_DATA", str(tmp_path))
    (tmp_path / "fashion_mnist").mkdir()
    damaged = tmp_path / "fashion_mnist/t10k-images-idx3-ubyte.gz"
    damaged.write_bytes(b"half of it")
    with pytest.raises(DataError, match=f"{damaged} is missing or damaged"):
        probe.image_sizes(load_study("fashion_mnist"))


def test_a_folder_that_is_not_there_stops_the_plan(tmp_path):
    from advlib.data.sets import DataError

    own = dataclasses.replace(
        load_study("imagenet"), study="mine", dataset="folder", data_dir=str(tmp_path / "none")
    )
    with pytest.raises(DataError, match="data_dir"):
        probe.image_sizes(own)


def test_a_finished_study_is_compared_with_its_plan(digits, measured, tmp_path):
    table = plan.plan(load_study("digits"), digits, measured, SIZES)
    table["benchmark"] = [str(tmp_path / f"{i}.tsv") for i in range(len(table))]
    (tmp_path / "0.tsv").write_text("s\th:m:s\n2.5\t0:00:02\n")
    assert plan.compared(table, since=time.time() + 60).empty  # of a run before the plan
    found = plan.compared(table, since=time.time() - 60)
    assert found.measured.to_list() == [2.5] and found.predicted.item() == table.seconds[0]


def test_an_unknown_study_is_refused():
    with pytest.raises(SystemExit, match="error: no study 'imagenett'"):
        main(["plan", "imagenett"])
    with pytest.raises(SystemExit, match="make plan"):
        main(["plan", "digits", "--compare"])


def test_times_as_people_say_them():
    said = [cost.in_words(s) for s in (4.25, 40, 600, 7 * 3600 + 1800, 2 * 86_400, 31 * 86_400)]
    assert said == ["4.2 s", "40 s", "10 min", "7.5 h", "2.0 days", "31 days"]


def test_images_that_are_not_there_are_missed_before_the_probe(tmp_path, monkeypatch):
    """Nothing else says how many images a folder has; a probe takes a minute."""
    file = tmp_path / "mine.yaml"
    file.write_text(
        f"study: mine\ndataset: folder\ndata_dir: {tmp_path / 'birds'}\nmodel: resnet18\n"
        "weights: DEFAULT\npretrain_epochs: 1\n"
    )
    monkeypatch.setattr(subprocess, "run", None)  # neither a dry run nor a notebook is started
    with pytest.raises(SystemExit, match="birds"):
        main(["plan", str(file)])
