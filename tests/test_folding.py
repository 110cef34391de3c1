"""The folded network of an attack against the network itself."""

import copy
import random
import warnings
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models import VisionTransformer

from advlib.attacks.folding import folding, sharpen, shows_small_changes
from advlib.networks.build import Normalize, build_model, pixel_std
from advlib.threat import ThreatModel

IMAGES = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def unsettled(model):
    """The model with running statistics and weights of norms that are not 0 and 1."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low in ((module.running_mean, -0.5), (module.running_var, 0.5)):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + low)
            if module.affine:
                for tensor, low in ((module.weight, 0.5), (module.bias, -0.5)):
                    tensor.data.copy_(torch.rand(tensor.shape, generator=generator) + low)
    return model.eval()


def network(name):
    return unsettled(
        build_model(name, num_classes=10, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3), seed=1)
    )


def norms(model):
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def input_gradient(model, x):
    x = x.clone().requires_grad_(True)
    return torch.autograd.grad(model(x).square().sum(), x)[0]


@pytest.mark.parametrize(
    "name, left",
    [
        ("cifar_resnet8", 0),
        ("resnet18", 0),
        ("mobilenet_v2", 0),
        ("shufflenet_v2_x0_5", 0),
        # Pre-activation: a norm that follows a concatenation has no convolution of its own.
        ("densenet121", 62),
        ("timm/tf_efficientnet_lite0", 0),  # norms with an activation inside, "same" padding
    ],
)
def test_same_logits_and_gradients_with_the_norms_folded(name, left):
    model = network(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        folded = folding(model, IMAGES[:1])()
    used = {node.target for node in folded.graph.nodes if node.op == "call_module"}
    found = sum(isinstance(folded.get_submodule(target), nn.BatchNorm2d) for target in used)
    assert (norms(model) > left, found) == (True, left)
    with torch.no_grad():
        torch.testing.assert_close(folded(IMAGES), model(IMAGES), rtol=1e-4, atol=1e-4)
    wanted = input_gradient(model, IMAGES)
    assert (input_gradient(folded, IMAGES) - wanted).norm() < 0.01 * wanted.norm()
    torch.testing.assert_close(pixel_std(folded), pixel_std(model))


def test_follows_the_weights_and_leaves_the_model_as_it_was():
    model = network("cifar_resnet8").train()
    before = copy.deepcopy(model.state_dict())
    current = folding(model, IMAGES[:1])
    first = current()
    assert all(module.training for module in model.modules())
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        F.cross_entropy(model(IMAGES), torch.arange(4)).backward()
        optimizer.step()
    second = current()
    assert second is first
    model.eval()
    second.eval()
    with torch.no_grad():
        torch.testing.assert_close(second(IMAGES), model(IMAGES), rtol=1e-4, atol=1e-4)


class Branches(nn.Module):
    """Norms that must not be folded: their convolution's output, or itself, is used twice."""

    def __init__(self):
        super().__init__()
        self.normalize = Normalize((0.5,) * 3, (0.5,) * 3)
        self.first, self.first_norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.shared = nn.Conv2d(8, 8, 3, padding=1)
        self.one, self.two = nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        self.last, self.last_norm = nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)

    def forward(self, x):
        x = self.first(self.normalize(x))
        x = x + self.first_norm(x)
        x = self.two(self.shared(F.relu(self.one(self.shared(x)))))
        return self.last_norm(self.last(x)).mean((2, 3))


def test_a_convolution_that_serves_twice_is_left_alone():
    model = unsettled(Branches())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        folded = folding(model, IMAGES[:1])()
    with torch.no_grad():
        torch.testing.assert_close(folded(IMAGES), model(IMAGES), rtol=1e-4, atol=1e-4)
    assert sum(n.target == "last_norm" for n in folded.graph.nodes) == 0
    assert (
        sum("norm" in str(n.target) or n.target in ("one", "two") for n in folded.graph.nodes) == 4
    )


def test_a_network_that_cannot_be_followed_is_taken_as_it_is():
    class Asks(nn.Module):
        def forward(self, x):
            return x.flatten(1) if x.sum() > 0 else -x.flatten(1)

    model = Asks().train()
    with pytest.warns(UserWarning, match="unfolded.*TraceError"):
        assert folding(model, IMAGES[:1])() is model
    assert model.training


def test_a_network_with_other_logits_once_folded_is_taken_as_it_is():
    class Moody(nn.Module):
        """A trace keeps the answer that it was given."""

        calls = 0

        def forward(self, x):
            self.calls += 1
            return x.flatten(1) * self.calls

    model = Moody()
    with pytest.warns(UserWarning, match="other logits"):
        assert folding(model, IMAGES[:1])() is model


@pytest.mark.parametrize(
    "draw",
    [
        random.random,
        np.random.rand,
        lambda: torch.rand(()).item(),
        random.Random(0).random,  # of its own
    ],
)
def test_a_network_keeps_its_randomness(draw):
    class Flips(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = network("cifar_resnet8")

        def forward(self, x):
            return self.net(x.flip(3)) if draw() < 0.5 else self.net(x)

    model = Flips().eval()
    for _ in range(10):
        with pytest.warns(UserWarning, match="it gives other logits"):
            assert folding(model, IMAGES[:2])() is model


@pytest.mark.parametrize("name, shown", [("cifar_resnet8", True), ("resnet18", False)])
def test_a_sharp_end_shows_changes_that_bfloat16_hides(name, shown):
    model = network(name)
    kept, folded = copy.deepcopy(model), folding(model, IMAGES)()
    assert not shows_small_changes(folded, IMAGES, ThreatModel(), torch.bfloat16)
    sharpen(folded)
    assert shows_small_changes(folded, IMAGES, ThreatModel(), torch.bfloat16) == shown
    assert shows_small_changes(folded, IMAGES, ThreatModel(), torch.float32)
    with torch.no_grad():
        assert torch.allclose(folded(IMAGES), model(IMAGES), rtol=1e-3, atol=1e-3)
        assert torch.equal(model(IMAGES), kept(IMAGES))  # which shares no changed layer


def test_the_sharp_end_of_a_transformer_is_its_head():
    size = {"image_size": 64, "patch_size": 16, "hidden_dim": 32, "mlp_dim": 64}
    net = VisionTransformer(**size, num_layers=2, num_heads=2, num_classes=10)
    model = nn.Sequential(OrderedDict(normalize=Normalize((0.5,) * 3, (0.2,) * 3), net=net))
    folded = folding(model.eval(), IMAGES)()
    sharpen(folded)
    assert [name for name, m in folded.named_modules() if type(m).__name__ == "_InFloat32"] == [
        "net.heads.head"
    ]
