"""Two planted cases that were not used in building the battery, nor in choosing its thresholds.

They stand for the two ways of hiding a gradient that the battery's own tests leave out (Athalye et
al. 2018): chance, and shattering.
"""

import math

import pytest
import torch
from test_battery import images, judged, networks  # noqa: F401
from torch import nn

from advlib import battery_verdicts


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


# A random network gives other logits when it is compared with its folded copy.
@pytest.mark.filterwarnings("ignore:batch norm stays unfolded")
@pytest.mark.parametrize("layer", [Noise(), Shatter()], ids=["chance", "shattering"])
def test_a_hidden_gradient_that_the_battery_was_not_built_for_alarms(networks, images, layer):  # noqa: F811
    torch.manual_seed(0)
    masked = nn.Sequential(layer, *networks["adv"])
    found, (verdict, words), table, _ = judged(masked, images, {"std": networks["std"]})
    broken = battery_verdicts.broken_images(table)
    assert broken.clean.mean() < 0.3  # it still classifies
    assert verdict == battery_verdicts.ALARMING, found[["measured", "verdict"]].to_string()
