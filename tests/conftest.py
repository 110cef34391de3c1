import dataclasses

import pytest
import torch

from advlib.study import load_study

torch.set_num_threads(1)  # 8 x 8 digits gain nothing from more


@pytest.fixture(autouse=True)
def own_runs(tmp_path, monkeypatch):
    """Every test has a folder of runs of its own."""
    monkeypatch.setenv("ADVLIB_RUNS", str(tmp_path / "runs"))


@pytest.fixture
def tiny_study():
    """The digits study cut to seconds."""
    study = load_study("digits")
    return dataclasses.replace(
        study, train_images=320, test_images=100, pretrain_epochs=2, epochs=2, train_steps=3
    )


@pytest.fixture
def linear_model():
    """Three classes on two pixels: gradients and worst cases are known by hand."""
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(2, 3))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[2.0, 0.0], [0.0, 2.0], [-1.0, -1.0]]))
        model[1].bias.zero_()
    return model.eval()
