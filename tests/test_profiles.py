"""Jobs at scale: what they ask for, GPUs of their own, and a submit command that runs here."""

import dataclasses
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image

from advbook.studies.inputs import images_of
from advbook.studies.schema import ROOT, load_study
from conftest import copy_project, look, snakemake
from pipeline import gpus, jobs

PROFILES = ROOT / "profiles"


@pytest.fixture(scope="module")
def imagenet():
    return load_study("imagenet")


# ---------------------------------------------------------------- what a job asks for


def test_passes_are_images_times_epochs_times_steps(imagenet):
    train = {m: jobs.passes(imagenet, "train", m) for m in ("pretrained", "std", "adv", "adv_plus")}
    assert train["std"] == 1_281_167 * 10 * 3
    assert train["adv"] == train["adv_plus"] == 1_281_167 * 10 * 23
    assert train["pretrained"] == 0  # published weights: nothing to train
    cifar10 = load_study("cifar10")
    assert jobs.passes(cifar10, "train", "pretrained") == 50_000 * 20 * 3
    assert jobs.passes(cifar10, "train", "adv_plus_mix") == 50_000 * 10 * 26
    assert jobs.passes(imagenet, "evaluate_attack", attack="pgd40") == 50_000 * 82
    assert jobs.passes(imagenet, "evaluate_clean") == 50_000 * 4
    assert jobs.passes(imagenet, "evaluate_corruptions") == 50_000 * 4 * 75
    zoo = load_study("cifar10_zoo")  # offsets: 20 rounds of PGD-10 on the images kept apart
    assert jobs.passes(zoo, "train", "logit_offset") == 20 * zoo.holdout_images * 22
    brought = dataclasses.replace(imagenet, checkpoints={"adv": "hf_hub:timm/resnet50.a1_in1k"})
    assert jobs.passes(brought, "train", "adv") == 0


def test_subsets_cost_less():
    study = load_study("fashion_mnist_quick")
    assert jobs.images(study) == (10_000, 4_000, 2_000)
    held_out = dataclasses.replace(study, evaluation_split="holdout")
    assert jobs.images(held_out) == (10_000, 1_000, 1_000)


def test_the_known_sizes_are_those_of_the_data():
    study = load_study("digits")
    assert jobs.images(study)[:2] == (len(images_of(study, "train")), len(images_of(study, "test")))


def test_time_follows_the_stated_speed_and_the_gpus(imagenet):
    def minutes(**stated):
        return jobs.needs(imagenet, "train", method="adv", max_minutes=10**6, **stated)["runtime"]

    hours = 1_281_167 * 10 * 23 / 600 / 3600  # 136 hours on one GPU at 600 passes a second
    assert minutes() == pytest.approx(60 * hours * 1.5 + 20, abs=1)
    assert minutes(passes_per_second=1200) == pytest.approx(60 * hours * 1.5 / 2 + 20, abs=1)
    assert minutes(devices=8) == pytest.approx(60 * hours * 1.5 / 8 + 20, abs=1)
    assert jobs.needs(imagenet, "train", method="adv")["runtime"] == 1440
    assert jobs.needs(imagenet, "train", method="adv", max_minutes=600)["runtime"] == 600


def test_a_job_asks_for_the_gpus_of_its_study(imagenet):
    one = jobs.needs(imagenet, "train", method="adv")
    several = jobs.needs(dataclasses.replace(imagenet, devices=4), "train", method="adv")
    assert (one["gpu"], several["gpu"]) == (1, 4)
    assert several["threads"] == 4 * one["threads"] == 4 * (8 + 2)  # eight workers a process
    assert several["mem_mb"] > 3 * one["mem_mb"]
    assert jobs.needs(imagenet, "train", method="adv", devices=2)["gpu"] == 2
    for stated in (False, "false"):  # the latter is what Snakemake makes of it
        assert jobs.needs(imagenet, "train", method="adv", gpu=stated)["gpu"] == 0
    for rule, method in (("train", "pretrained"), ("data", None), ("analyse", None)):
        assert jobs.needs(imagenet, rule, method=method, devices=4)["gpu"] == 0


def test_a_job_tried_again_gets_twice_the_memory_and_not_ever_more(imagenet):
    first, second, ninth = (
        jobs.needs(imagenet, "train", method="adv", attempt=n) for n in (1, 2, 9)
    )
    assert ninth["mem_mb"] == second["mem_mb"] == 2 * first["mem_mb"]
    assert second["runtime"] == first["runtime"]


def test_the_reference_shows_what_the_command_prints():
    page = (ROOT / "book/reference/studies.md").read_text()
    command = re.search(r"```bash\npython (pipeline/jobs\.py imagenet.*)\n```", page)[1]
    printed = subprocess.run(
        [sys.executable, *command.split()], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert printed.strip() in page


# ---------------------------------------------------------------- profiles


def asked(text: str) -> dict[str, dict[str, str]]:
    """The resources that a dry run prints for each job, by rule and wildcards."""
    found = {}
    for rule, block in re.findall(r"\n(?:local)?rule (\w+):\n((?:    .*\n)+)", text):
        wildcards = re.search(r"wildcards: (.*)", block)
        resources = re.search(r"resources: (.*)", block)[1]
        found[f"{rule} {wildcards[1] if wildcards else ''}".strip()] = dict(
            item.split("=", 1) for item in resources.split(", ")
        )
    return found


def dry_run(profile, tmp_path, *options: str, dry=("-n",)) -> subprocess.CompletedProcess:
    options = [*dry, "-p", "--nolock", "--profile", str(profile), *options]
    return look(ROOT, {"ADVLIB_RUNS": str(tmp_path)}, *options)


def test_jobs_on_slurm_ask_for_what_the_study_file_says(tmp_path):
    # Without the plugin, which the tests do not need: its own keys are left out.
    settings = yaml.safe_load((PROFILES / "slurm" / "config.yaml").read_text())
    own = {key for key in settings if key == "executor" or key.startswith("slurm-")}
    assert own == {"executor", "slurm-requeue"} and settings["executor"] == "slurm"
    left = {key: value for key, value in settings.items() if key not in own}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(left))
    options = ("study=imagenet", "devices=8", "passes_per_second=1000")
    done = dry_run(tmp_path, tmp_path / "runs", "--config", *options)
    assert done.returncode == 0, done.stdout
    found = asked(done.stdout)
    for key, rule, method in (
        ("train method=adv, seed=0", "train", "adv"),
        ("train method=pretrained, seed=0", "train", "pretrained"),
        ("evaluate_clean", "evaluate_clean", None),
        ("evaluate_corruptions", "evaluate_corruptions", None),
    ):
        expected = jobs.needs(
            load_study("imagenet"), rule, method=method, devices=8, passes_per_second=1000
        )
        for name in ("gpu", "mem_mb", "runtime"):
            assert found[key][name] == str(expected[name]), (key, name)
    assert found["train method=adv, seed=0"]["gpu"] == "8"
    assert "-r method adv -p seed 0 -p devices 8" in done.stdout
    assert "python pipeline/gpus.py" not in done.stdout  # Slurm says which GPUs a job has


def test_jobs_beside_each_other_share_gpus_and_cores(tmp_path):
    options = ("--cores", "8", "--resources", "gpu=4", "--config", "study=digits")
    done = dry_run(PROFILES / "local-gpus", tmp_path, *options)
    assert done.returncode == 0, done.stdout
    found = re.findall(r"threads: (\d+)\n(?:.*\n)*?Shell command: (.*train\.ipynb)", done.stdout)
    assert len(found) == 4
    assert all(int(n) == 2 and "ADVLIB_GPUS=1 " in line and "gpus.py" in line for n, line in found)
    pairs = dry_run(PROFILES / "local-gpus", tmp_path, *options, "devices=2").stdout
    assert "ADVLIB_GPUS=2 " in pairs and "threads: 4\n" in pairs


def test_an_audit_meets_autoattack_where_the_study_asks_for_it(tmp_path):
    """Every network, of all seeds; a study that states no width has no such part."""
    text = (ROOT / "notebooks/studies/digits.yaml").read_text()
    text = text.replace("study: digits", "study: mine").replace("seeds: [0]", "seeds: [0, 1]")
    file = tmp_path / "mine.yaml"
    file.write_text(text.replace("(8 × 8)", "(mine)") + "autoattack_width: 0.05\n")
    study = load_study(file)
    options = ("--config", f"study={file}", "mode=audit")
    done = dry_run(PROFILES / "local-gpus", tmp_path / "runs", *options)
    assert done.returncode == 0, done.stdout
    drawn = {key: r for key, r in asked(done.stdout).items() if key.startswith("evaluate_auto")}
    runs = {f"method={method}, seed={seed}" for method, seed in study.method_runs}
    assert drawn.keys() == {f"evaluate_autoattack {run}" for run in runs} and len(runs) == 8
    assert {r["gpu"] for r in drawn.values()} == {"1"}
    assert "evaluate_autoattack" in jobs.table(study)
    # Of 500 images, 222 hold a rate of a half within 0.05, drawn without replacement.
    assert jobs.passes(study, "evaluate_autoattack") == 222 * jobs.STRONG_PASSES
    assert "autoattack" not in dataclasses.replace(study, autoattack_width=None).audits


@pytest.mark.parametrize(
    "setting, said",
    [
        ("passes_per_secnd=9", "did you mean 'passes_per_second'"),
        ("mode=raed", "mode is one of run, audit, read, got 'raed'"),
        ("devices=two", "devices is a valid integer, got 'two'"),
        ("accumulate=0", "accumulate is greater than or equal to 1, got 0"),
    ],
)
def test_a_setting_that_cannot_be_meant_stops_before_any_work(setting, said, tmp_path):
    done = dry_run(PROFILES / "local-gpus", tmp_path, "--config", setting)
    assert done.returncode != 0
    assert said in done.stdout + done.stderr


def test_after_an_interrupted_audit_a_plain_run_attacks_nothing_more(tmp_path):
    """The switches were finished, the battery was not: it stays as published."""
    study = load_study("fashion_mnist_quick")
    ignored = shutil.ignore_patterns("battery", "models")
    shutil.copytree(study.published, tmp_path / study.study, ignore=ignored)
    done = dry_run(PROFILES / "local-gpus", tmp_path, "--config", f"study={study.study}")
    assert done.returncode == 0, done.stdout
    assert "rule place_study" in done.stdout and "rule evaluate_battery" not in done.stdout


def test_other_files_in_a_folder_of_images_are_noticed(tmp_path):
    for split in ("train", "test"):
        for name in ("ape", "bee"):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(tmp_path / "data" / split / name / "1.png")
    file = tmp_path / "birds.yaml"
    text = "study: birds\ndataset: folder\nmodel: resnet50\nweights: DEFAULT\n"
    file.write_text(text + f"pretrain_epochs: 1\ndata_dir: {tmp_path / 'data'}\n")
    target = str(tmp_path / "birds/fetched")

    def fetch(*options):
        options = ("--directory", str(tmp_path), "--config", f"study={file}", *options)
        done = dry_run(PROFILES / "local-gpus", tmp_path, *options, "--", target, dry=())
        assert done.returncode == 0, done.stdout
        return done.stdout + done.stderr

    fetch()
    assert "Nothing to be done" in fetch("-n")
    Image.new("RGB", (8, 8)).save(tmp_path / "data/train/ape/2.png")
    assert "rule fetch" in fetch("-n")


def test_another_way_to_run_makes_nothing_again(project):
    for options in (("--resources", "gpu=2"), ("--jobs", "9")):
        done = snakemake(project, "-n", *options)
        assert done.returncode == 0 and "Nothing to be done" in done.stdout + done.stderr


SUBMIT = """#!/bin/sh
# What a scheduler does: takes what the job asks for, says a number, runs the job in its own time.
echo "$1" >> {log}
sh "$2" > "$2.out" 2>&1 &
echo $!
"""


def test_a_job_runs_through_a_submit_command(tmp_path):
    copy = tmp_path / "copy"
    copy_project(copy)
    log, submit = tmp_path / "submitted.txt", tmp_path / "submit.sh"
    submit.write_text(SUBMIT.format(log=shlex.quote(str(log))))
    asks = "{rule}:{threads}:{resources.gpu}:{resources.mem_mb}:{resources.runtime}"
    done = snakemake(
        *(copy, "--jobs", "2", "--latency-wait", "20", "--executor", "cluster-generic"),
        *("--cluster-generic-submit-cmd", f"sh {shlex.quote(str(submit))} {asks}"),
        *("--seconds-between-status-checks", "1"),
        "runs/mine/train/pretrained-seed0.json",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    expected = jobs.needs(load_study(copy / "my_study.yaml"), "train", method="pretrained")
    values = [expected[name] for name in ("threads", "gpu", "mem_mb", "runtime")]
    assert log.read_text().split() == [":".join(map(str, ["train", *values]))]  # fetch ran here
    assert (copy / "runs/mine/train/pretrained-seed0.json").is_file()


# ---------------------------------------------------------------- GPUs of one's own


@pytest.fixture
def cards(tmp_path):
    """Names of two GPUs that no real job has."""
    names = [f"{tmp_path.name}-{os.getpid()}-{i}" for i in range(2)]
    yield names
    for name in names:
        Path(gpus.LOCKS, name).unlink(missing_ok=True)


def start(cards, count, command="echo $CUDA_VISIBLE_DEVICES; read x", **env) -> subprocess.Popen:
    """A command on `count` of these GPUs, which by default says which and holds them."""
    env = os.environ | {"ADVLIB_GPUS": str(count), "CUDA_VISIBLE_DEVICES": ",".join(cards)} | env
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    return subprocess.Popen(
        [sys.executable, str(ROOT / "pipeline/gpus.py"), "sh", "-c", command],
        env=env,
        text=True,
        **pipes,
    )


def finish(*processes) -> None:
    for process in processes:
        process.communicate("\n")


def test_each_job_has_its_own_gpu_and_a_killed_one_frees_it(cards):
    first, second = start(cards, 1), start(cards, 1)
    on_first, on_second = (process.stdout.readline().strip() for process in (first, second))
    assert {on_first, on_second} == set(cards)
    third = start(cards, 1)
    assert third.stderr.readline().startswith("Waiting for 1 free of 2 GPUs")
    first.kill()
    assert third.stdout.readline().strip() == on_first
    finish(first, second, third)


def test_a_job_for_two_takes_both_or_none(cards):
    single = start(cards, 1)
    single.stdout.readline()
    both = start(cards, 2)
    assert both.stderr.readline().startswith("Waiting for 2")
    other = start(cards, 1)  # the one that is left is not kept from others meanwhile
    assert other.stdout.readline().strip() in cards
    finish(single, other)
    assert both.stdout.readline().strip().split(",") == cards
    finish(both)


def test_many_jobs_never_share(cards, tmp_path):
    log = tmp_path / "log"
    log.touch()
    command = f'echo "$CUDA_VISIBLE_DEVICES +" >> {log}; echo "$CUDA_VISIBLE_DEVICES -" >> {log}'
    finish(*[start(cards, 1, command) for _ in range(6)])
    held, lines = set(), log.read_text().splitlines()
    assert len(lines) == 12
    for card, sign in map(str.split, lines):
        assert (card in held) == (sign == "-")
        held ^= {card}


def test_too_few_gpus_are_named(cards):
    said = start(cards, 3).communicate()[1]
    assert "3 GPUs are wanted and 2 found" in said and "CUDA_VISIBLE_DEVICES" in said
    assert start([], 1).communicate()[1].startswith("1 GPUs are wanted and 0 found (none)")


def test_a_job_without_gpus_sees_none(cards):
    assert start(cards, 0, "echo got:$CUDA_VISIBLE_DEVICES").communicate()[0] == "got:\n"


def test_a_command_that_fails_fails(cards):
    process = start(cards, 1, "exit 3")
    process.communicate()
    assert process.returncode == 3


def test_gpus_are_known_by_what_identifies_them(tmp_path, monkeypatch):
    fake = tmp_path / "nvidia-smi"
    fake.write_text('#!/bin/sh\nprintf "0, GPU-aa\\n1, GPU-bb\\n2, GPU-cc\\n"\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert gpus.visible() == ["GPU-aa", "GPU-bb", "GPU-cc"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, 0,2")
    assert gpus.visible() == ["GPU-cc", "GPU-aa"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-bb,MIG-1")
    assert gpus.visible() == ["GPU-bb", "MIG-1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert gpus.visible() == []
