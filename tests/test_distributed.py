"""Training and evaluation by several processes, in pieces, and when memory runs out."""

import dataclasses
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import psutil
import pytest
import torch
from safetensors.torch import load_file

from advbook.__main__ import main
from advbook.studies import evaluate, launch
from advbook.studies.identity import training_settings
from advbook.studies.inputs import images_of
from advbook.studies.runs import train_method
from advbook.studies.schema import load_study, make_study
from advlib import distributed
from advlib.data.batches import training_batches
from advlib.objectives import OBJECTIVES
from advlib.train import batch_share
from two_processes import METHODS, WITH_VALIDATION, Stopped, stop_at, train, without_corrupting

TESTS = str(Path(__file__).parent)
pytestmark = pytest.mark.skipif(
    torch.cuda.device_count() == 1 or torch.backends.mps.is_available(),
    reason="two processes need two GPUs where there is one",
)


def small_study():
    return dataclasses.replace(
        load_study("digits"),
        **{"train_images": 320, "test_images": 100, "corruption_images": 10},
        **{"pretrain_epochs": 1, "epochs": 2, "train_steps": 3, "methods": ["pretrained", "std"]},
    )


def weights(folder):
    return load_file(folder / "checkpoint.safetensors")


def assert_same_training(one, two, columns=("epoch", "step", "lr", "loss", "error")):
    """Weights and momenta, and the log: within what another order of additions changes."""
    expected, found = weights(one), weights(two)
    assert expected.keys() == found.keys()
    for key in expected:
        torch.testing.assert_close(found[key], expected[key], rtol=1e-3, atol=1e-5, msg=key)
    logs = [pd.read_csv(folder / "log.csv") for folder in (one, two)]
    pd.testing.assert_frame_equal(*(log[[*columns]] for log in logs), rtol=1e-4)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """Folders of what one process and two processes did; evaluations under ``<folder>/runs``."""
    folder = tmp_path_factory.mktemp("processes")
    one, two = folder / "one", folder / "two"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADVLIB_RUNS", str(one / "runs"))
        study = small_study()
        for method in study.methods:
            train_method(study, method, 0)
        shutil.copytree(one / "runs", two / "runs")
        without_corrupting(evaluate)
        patch.setattr(evaluate, "ATTACK_PART", 33)
        evaluate.clean_predictions(study)
        evaluate.corruption_predictions(study)
        evaluate.attack_predictions(study, "std", 0, "pgd40")
        for method, name in (("adv_mix", "mixed"), ("adv", "adv"), *((m, m) for m in METHODS)):
            train(study, method, one / name)
        with pytest.raises(Stopped):
            train(study, "adv", two / "from_one", on_step=stop_at(4))

        patch.setenv("ADVLIB_RUNS", str(two / "runs"))
        whole, parts = evaluate.evaluate_attack, []

        def broken(*given, **options):
            if parts:
                raise Stopped
            parts.append(options["indices"])
            return whole(*given, **options)

        with patch.context() as inner, pytest.raises(Stopped):
            inner.setattr(evaluate, "evaluate_attack", broken)
            evaluate.attack_predictions(study, "std", 0, "pgd40")
        patch.setenv("PYTHONPATH", TESTS)
        study = dataclasses.replace(study, devices=2)
        launch.launch(study, "--folder", str(two), module="two_processes")
    return one, two


def test_a_mixed_batch_on_two_processes(done):
    one, two = done
    assert_same_training(one / "mixed", two / "mixed")


def test_pieces_on_two_processes(done):
    one, two = done
    assert_same_training(one / "adv", two / "pieces")


def test_two_processes_go_on_where_one_stopped(done):
    one, two = done
    assert_same_training(one / "adv", two / "from_one")


def test_one_process_goes_on_where_two_stopped(done):
    one, two = done
    train(small_study(), "adv", two / "to_one")
    assert_same_training(one / "adv", two / "to_one")


def test_two_processes_interrupted_and_resumed_end_with_the_same_bits(done):
    whole, again = (weights(done[1] / folder) for folder in ("normed", "normed_again"))
    assert whole.keys() == again.keys() and all(k.startswith("model.") for k in whole)
    assert all(torch.equal(whole[k], again[k]) for k in whole)


@pytest.mark.parametrize("method", METHODS)
def test_a_method_of_the_field_on_two_processes(done, method):
    """Its weights of images and classes are those of the whole batch."""
    one, two = done
    # HAM trains on some of a process's images, so the mean of the processes' errors is another.
    columns = ["step", "loss"] if method == "ham" else ["step", "loss", "error"]
    assert_same_training(one / method, two / method, columns)


@pytest.mark.parametrize("method", METHODS + WITH_VALIDATION)
def test_a_state_is_the_same_on_both_processes(done, method):
    """In the second epoch of a run in pieces; so a run may go on with any number of processes."""
    found = weights(done[1] / f"{method}_stopped")
    state = {k: v for k, v in found.items() if k.startswith("method.")}
    others = {k.removeprefix("rank1."): v for k, v in found.items() if k.startswith("rank1.method")}
    assert bool(state) == (method not in ("awp", "ham", "faal")) and state.keys() == others.keys()
    assert all(torch.equal(state[k], others[k]) for k in state)
    varied = [v for k, v in state.items() if v.dim() and len(v.unique()) > 1]
    assert varied or method in ("awp", "gairat", "ham", "faal")


@pytest.mark.parametrize("table", ["clean/pretrained", "clean/std", "corruptions/std", "pgd40/std"])
def test_two_processes_predict_what_one_does(done, table):
    """Of the attack one process had made a part, which the two, with other parts, pass over."""
    one, two = (
        pd.read_parquet(folder / f"runs/digits/predictions/{table}-seed0.parquet")
        for folder in done
    )
    exact = [c for c in one if c not in ("predicted_probability", "linf")]
    pd.testing.assert_frame_equal(two[exact], one[exact])
    pd.testing.assert_frame_equal(two, one, check_exact=False, rtol=0, atol=1e-5)


def test_the_processes_took_different_images(done):
    found = sorted(path.stem for path in (done[1] / "runs/digits/parts").glob("*/0*.parquet"))
    attack = [f"{a:08d}-{b:08d}" for a, b in ((0, 33), (0, 25), (25, 50), (50, 75), (75, 100))]
    clean = ["00000000-00000050", "00000050-00000100"]
    assert found == sorted(attack + clean)


def test_a_study_with_devices_trains_on_as_many_processes(monkeypatch, capsys):
    """As the notebook does it: the processes' output appears, and the run is found again."""
    study = dataclasses.replace(small_study(), devices=2)
    run = train_method(study, "pretrained", 0)
    out = capsys.readouterr().out
    assert "batches of 64 images, 32 on each of 2 processes; learning rate 0.1 to 1e-05" in out
    assert run["how"]["devices"] == 2
    log = pd.read_csv(study.runs / "train/pretrained-seed0.csv")
    assert log.step.tolist() == [1, 2, 3, 4, 5]
    assert train_method(dataclasses.replace(study, devices=None), "pretrained", 0) == run


def test_a_failing_process_stops_all_with_its_message(monkeypatch, capsys):
    monkeypatch.setenv("PYTHONPATH", TESTS)
    study = dataclasses.replace(small_study(), devices=2)
    with pytest.raises(RuntimeError, match="2 processes failed.*ValueError: rank 1 stumbled"):
        launch.launch(study, module="two_processes")
    assert "Traceback" in capsys.readouterr().out


def test_a_batch_that_does_not_divide_is_refused_before_anything_starts(monkeypatch):
    monkeypatch.setattr(launch, "launch", None)
    study = dataclasses.replace(small_study(), devices=3)
    with pytest.raises(ValueError, match="64 images does not divide among 3 processes.*such as 63"):
        train_method(study, "pretrained", 0)
    study = dataclasses.replace(study, devices=2, accumulate=3)
    with pytest.raises(ValueError, match="accumulate from 1, 2, 4, 8, 16, 32"):
        train_method(study, "pretrained", 0)
    assert not study.runs.exists()
    assert batch_share(dataclasses.replace(study, batch_size=12), 2) == 6


def test_a_gpu_less_than_processes_is_said_at_once(monkeypatch):
    monkeypatch.setattr(distributed, "default_device", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match="2 processes, one a GPU.*shows 1"):
        launch.launch(dataclasses.replace(small_study(), devices=2), module="x")


@pytest.mark.parametrize("kind", ["crop", "crop_flip"])
def test_any_number_of_processes_sees_the_same_augmented_images(kind):
    images = images_of(small_study(), "train")
    options = dict(seed=0, epoch=1, start_step=2, augment=kind)
    x, y, index = next(training_batches(images, batch_size=64, **options))
    parts = [
        next(training_batches(images, batch_size=16, rank=rank, world_size=4, **options))
        for rank in range(4)
    ]
    for whole, part in zip((x, y, index), zip(*parts, strict=True), strict=True):
        assert torch.equal(torch.cat(part), whole)


def test_a_batch_in_pieces_is_the_batch(done, tmp_path):
    study = dataclasses.replace(small_study(), accumulate=4)
    train(study, "adv_mix", tmp_path)
    assert_same_training(done[0] / "mixed", tmp_path)


@pytest.mark.parametrize(
    "error, pieces",
    [
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 1),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), 2),
    ],
)
def test_when_memory_runs_out(monkeypatch, tmp_path, error, pieces):
    study = dataclasses.replace(small_study(), accumulate=pieces)
    works, calls = OBJECTIVES["standard"], []

    def made(*given):
        objective = works(*given)

        def loss(step):
            calls.append(1)
            if len(calls) > 5 * pieces:  # in the second epoch
                raise error
            return objective(step)

        return loss

    monkeypatch.setitem(OBJECTIVES, "standard", made)
    said = f"{64 // pieces} images at once, of a batch of 64.*set accumulate to {2 * pieces} "
    with pytest.raises(MemoryError, match=said):
        train(study, "std", tmp_path)
    assert len(pd.read_csv(tmp_path / "log.csv")) == 5
    monkeypatch.undo()
    assert len(train(dataclasses.replace(study, accumulate=2 * pieces), "std", tmp_path)) == 10


def test_other_errors_of_torch_stay_as_they_are(monkeypatch, tmp_path):
    def broken(step):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setitem(OBJECTIVES, "standard", lambda *_: broken)
    with pytest.raises(RuntimeError, match="mat1"):
        train(small_study(), "std", tmp_path)


def test_how_a_study_is_computed_does_not_decide_what_it_is(tmp_path):
    """So a run goes on with another number of processes, and finds what it started from."""
    from advbook.studies.parameters import notebook_parameters

    values = {"study": "digits", "devices": 2, "accumulate": 4}
    study, _ = notebook_parameters(values)
    assert (study.study, study.devices, study.accumulate) == ("digits", 2, 4)
    settings = [training_settings(s, "adv", 0, "data", None) for s in (study, load_study("digits"))]
    assert settings[0] == settings[1]
    for change in ({"devices": 0}, {"accumulate": 0}):
        with pytest.raises(ValueError, match=next(iter(change))):
            make_study(study.to_dict() | change)


def test_an_evaluation_by_command(done, monkeypatch, capsys):
    monkeypatch.setenv("ADVLIB_RUNS", str(done[0] / "runs"))
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(SystemExit, match="benchmark is one of clean, corruptions"):
        main(["evaluate", "--study", "digits", "--benchmark", "pgd41"])
    with pytest.raises(SystemExit, match="method is one of"):
        main(["evaluate", "--study", "digits", "--benchmark", "pgd40"])
    assert "RANK" not in os.environ


def test_a_process_ends_with_the_torchrun_that_started_it():
    """It has a session of its own, so nothing else would end it."""
    child = (
        "import os, threading, time; from advlib.distributed import _end_with_parent; "
        "threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start(); "
        "print(os.getpid(), flush=True); time.sleep(60)"
    )
    start = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    parent = subprocess.Popen([sys.executable, "-c", start], stdout=subprocess.PIPE, text=True)
    process = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    parent.stdout.close()
    for _ in range(100):
        if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
            return
        time.sleep(0.1)
    process.kill()
    pytest.fail("the process goes on without its parent")
