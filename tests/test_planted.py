"""Planted cases that were not used in building the battery, nor in choosing its thresholds.

They stand for ways of hiding a gradient beside the zeros and the saturation that the battery was
tried on (Athalye et al. 2018): chance, shattering, and a gradient that is plainly wrong. For chance
the battery has a test, ``deterministic``, that alarms at any random layer: in each case another
test must alarm as well.
"""

import math

import pytest
import torch
from torch import nn

from advbook.audit import battery_tests as battery_verdicts
from advlib.data.sets import stratified_subset
from test_battery import judged


class Noise(nn.Module):
    """Another noise on the image at each look: an attack chases what is gone at the next."""

    def forward(self, x):
        return x + 0.2 * torch.randn_like(x)


class Shatter(nn.Module):
    """Waves that vanish at the grey levels of a digit, and have steep slopes between them.

    The network answers clean images as before; its gradient beside them points anywhere.
    """

    def forward(self, x):
        return x + 0.05 * torch.sin(2 * math.pi * 64 * x)


class WrongSign(nn.Module):
    """The image as it is, but a gradient that has the wrong sign on every other pixel."""

    def forward(self, x):
        rows, columns = (torch.arange(n, device=x.device) for n in x.shape[-2:])
        sign = 1.0 - 2.0 * ((rows[:, None] + columns) % 2)
        return sign * x + (x - sign * x).detach()


# A random network gives other logits when it is compared with its folded copy.
@pytest.mark.filterwarnings("ignore:batch norm stays unfolded")
@pytest.mark.parametrize(
    "layer, n_images, queries",  # chance hides from all the attacks alike: it takes more to tell
    [(Noise(), 100, 500), (Shatter(), 50, 100), (WrongSign(), 50, 100)],
    ids=["chance", "shattering", "wrong sign"],
)
def test_a_hidden_gradient_that_the_battery_was_not_built_for_alarms(
    digit_networks, digit_images, layer, n_images, queries
):
    torch.manual_seed(0)
    masked = nn.Sequential(layer, *digit_networks["adv"])
    sources = {"std": digit_networks["std"]}
    few = stratified_subset(digit_images, n_images)
    found, verdict, table, _ = judged(masked, few, sources, queries)
    broken = battery_verdicts.broken_images(table)
    assert broken.clean.mean() < 0.3  # it still classifies
    shown = found[["measured", "verdict"]].to_string()
    assert verdict == battery_verdicts.ALARMING, shown
    others = found.drop("deterministic")
    assert (others.verdict == battery_verdicts.ALARMING).any(), shown
