"""What only a GPU can show, which `make test-gpu` asks for; elsewhere all of it is skipped.

No test names another device than `DEVICE`, which is what a study takes. The processes of
`tests/test_distributed.py` take a GPU each where there are GPUs.
"""

import copy
import dataclasses

import pytest
import torch
from safetensors.torch import load_file

from advbook.studies.evaluate import attack_predictions
from advbook.studies.launch import launch
from advbook.studies.runs import read_run
from advlib.attacks.autoattack import autoattack
from advlib.attacks.worst_case import evaluate_attack
from advlib.networks.device import autocast, default_device
from advlib.predictions import read_facts
from advlib.threat import ThreatModel
from two_processes import Stopped, normed, stop_at, train

DEVICE = default_device()
pytestmark = [
    pytest.mark.skipif(DEVICE.type != "cuda", reason="there is no CUDA device on this machine"),
    pytest.mark.filterwarnings("default"),  # of drivers and libraries, which are not ours
]


def broken(table):
    return table.label != table.predicted_class


@pytest.mark.parametrize("norm, eps", [("Linf", 0.15), ("L2", 1.0)])
def test_pgd_finds_what_it_finds_on_the_processor(digit_networks, digit_images, norm, eps):
    threat = ThreatModel(norm=norm, eps=eps, random_start=False)
    network, how = digit_networks["adv"], {"num_classes": 10, "dtype": "float32"}
    wanted = evaluate_attack(network, digit_images, threat, device="cpu", **how)
    network = copy.deepcopy(network)  # it moves to the device
    for dtype in ("float32", "auto"):
        how["dtype"] = dtype
        found = evaluate_attack(network, digit_images, threat, device=DEVICE, **how)
        assert (broken(found) != broken(wanted)).sum() <= 2  # of 100
        assert norm == "L2" or found.linf.max() <= eps * (1 + 1e-5)
    assert next(network.parameters()).device.type == DEVICE.type


def test_starts_depend_on_the_image_alone(digit_networks, digit_images):
    """They are drawn on the device: another batch, the same starts, up to rounding."""
    network, threat = copy.deepcopy(digit_networks["adv"]), ThreatModel(eps=0.15, steps=3)
    how = {"num_classes": 10, "device": DEVICE, "dtype": "float32"}
    whole = evaluate_attack(network, digit_images, threat, **how)
    half = evaluate_attack(
        network, digit_images, threat, indices=torch.arange(50, 100), batch_size=7, **how
    )
    rest = whole[50:].reset_index(drop=True)
    assert (half.file_name == rest.file_name).all()
    assert (half.predicted_probability - rest.predicted_probability).abs().median() < 1e-4


def test_autoattack_breaks_about_the_same_images(digit_networks, digit_images):
    """Squares and starts are drawn on the device, so they are others than on the processor."""
    network, threat = digit_networks["adv"], ThreatModel(eps=0.15)
    short = {"num_classes": 10, "steps": 20, "targets": 3, "queries": 200}
    wanted = autoattack(network, digit_images, threat, device="cpu", **short)
    found = autoattack(copy.deepcopy(network), digit_images, threat, device=DEVICE, **short)
    assert (broken(found) != broken(wanted)).sum() <= 4  # of 100
    assert found.linf.max() <= threat.eps * (1 + 1e-5)
    assert found.broken_by.eq("apgd_ce").sum() > 5


def test_a_resumed_training_ends_with_the_same_bits(tiny_study, tmp_path):
    whole, again = tmp_path / "whole", tmp_path / "again"
    train(tiny_study, "adv", whole, normed, device=DEVICE)
    with pytest.raises(Stopped):
        train(tiny_study, "adv", again, normed, device=DEVICE, on_step=stop_at(4))
    train(tiny_study, "adv", again, normed, device=DEVICE)
    one, two = (load_file(folder / "checkpoint.safetensors") for folder in (whole, again))
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def test_float32_is_computed_without_tf32():
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(64, 64, 3).to(DEVICE)
    x = torch.rand(8, 64, 16, 16, device=DEVICE)
    with torch.no_grad(), autocast(DEVICE, torch.float32):
        found, product = conv(x), x[0, 0] @ x[0, 1]
        error = (found - conv.double()(x.double())).abs().max()
    assert error < 1e-5  # TF32 keeps ten bits: 1e-3
    assert (product - x[0, 0].double() @ x[0, 1].double()).abs().max() < 1e-5


def test_a_study_in_a_process_group_on_one_gpu(tiny_study):
    """Training and PGD as torchrun starts them: with NCCL, where the device is a GPU."""
    study = dataclasses.replace(tiny_study, devices=1)
    launch(study, "train", "--method", "pretrained")
    launch(study, "evaluate", "--benchmark", "pgd40", "--method", "pretrained")
    assert len(read_run(study, "pretrained", 0)["checkpoint_hash"]) > 8
    path = attack_predictions(study, "pretrained", 0, "pgd40")  # what is kept is read
    assert read_facts(path)["device"] == str(DEVICE)
