import math

import pytest
import torch
from torch.nn import functional as F

from advlib.labels import (
    class_logits,
    label_augmentation_loss,
    label_augmentation_targets,
    widen_head,
)


def test_targets_of_eq_3():
    targets = label_augmentation_targets(
        torch.tensor([1, 0, 2]),
        torch.tensor([0, 1, -1]),
        num_classes=3,
        num_transforms=2,
        delta=0.03,
    )
    expected = [[0, 0.97, 0, 0.03, 0], [0.97, 0, 0, 0, 0.03], [0, 0, 1, 0, 0]]
    torch.testing.assert_close(targets, torch.tensor(expected))


def test_loss_of_eq_4_by_hand():
    # Two classes and one transformation; softmax of (ln 2, 0, ln 3) is (1/3, 1/6, 1/2).
    logits = torch.tensor([[math.log(2), 0.0, math.log(3)]] * 2)
    loss = label_augmentation_loss(
        logits, torch.tensor([0, 1]), torch.tensor([0, -1]), num_classes=2, delta=0.25
    )
    transformed = -(0.75 * math.log(1 / 3) + 0.25 * math.log(1 / 2))
    untransformed = -math.log(1 / 6)
    assert loss.item() == pytest.approx((transformed + untransformed) / 2, rel=1e-6)


def test_delta_zero_is_plain_cross_entropy_over_all_logits():
    logits, y = torch.randn(16, 13), torch.randint(0, 10, (16,))
    transform = torch.randint(-1, 3, (16,))
    loss = label_augmentation_loss(logits, y, transform, num_classes=10, delta=0.0)
    torch.testing.assert_close(loss, F.cross_entropy(logits, y))


@pytest.mark.parametrize("num_transforms", [1, 3])
def test_the_algebra_of_the_method_chapter(num_transforms):
    """(1-δ)·CE_K + [−(1−δ)·log(1−p_T) − δ·log p_{K+j}], p_T over all transformation logits."""
    delta, classes = 0.03, 5
    logits = torch.randn(64, classes + num_transforms, dtype=torch.float64)
    y = torch.randint(0, classes, (64,))
    j = torch.randint(0, num_transforms, (64,))
    p = logits.softmax(1)
    p_t = p[:, classes:].sum(1)
    own = p[torch.arange(64), classes + j]
    rest = -(1 - delta) * torch.log(1 - p_t) - delta * torch.log(own)
    parts = (1 - delta) * F.cross_entropy(logits[:, :classes], y, reduction="none") + rest
    loss = label_augmentation_loss(logits, y, j, num_classes=classes, delta=delta)
    assert loss.item() == pytest.approx(parts.mean().item(), rel=1e-5)


@pytest.mark.parametrize("num_transforms", [1, 3])
def test_where_p_t_is_delta_the_classes_are_pulled_as_in_adv(num_transforms):
    """By the class logits: 1-δ times Adv's gradient there, and (δ-p_T)·q besides elsewhere."""
    delta, classes = 0.03, 5
    logits = torch.randn(64, classes + num_transforms, dtype=torch.float64)
    y = torch.randint(0, classes, (64,))
    j = torch.randint(0, num_transforms, (64,))

    def pull(loss, at):
        at = at.clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(loss(at), at)
        return gradient[:, :classes]

    adv = pull(lambda z: F.cross_entropy(z[:, :classes], y), logits)
    mass = logits[:, :classes].logsumexp(1) - logits[:, classes:].logsumexp(1)
    moved = logits.clone()
    moved[:, classes:] += (mass + math.log(delta / (1 - delta)))[:, None]
    for given in (moved, logits):
        found = pull(
            lambda z: label_augmentation_loss(z, y, j, num_classes=classes, delta=delta), given
        )
        p_t = given.softmax(1)[:, classes:].sum(1, keepdim=True)
        besides = (delta - p_t) * given[:, :classes].softmax(1) / len(y)
        torch.testing.assert_close(found, (1 - delta) * adv + besides)
    assert (moved.softmax(1)[:, classes:].sum(1) - delta).abs().max() < 1e-12


@pytest.mark.parametrize(
    "change, said",
    [
        ({"delta": 1.0}, "delta"),
        ({"delta": -0.1}, "delta"),
        ({"y": torch.tensor([3])}, "label"),
        ({"transform": torch.tensor([1])}, "transform"),
        ({"transform": torch.tensor([-2])}, "transform"),
        ({"num_transforms": 0}, "num_transforms"),
        ({"transform": torch.tensor([False]), "num_transforms": 2}, "transform holds whole"),
    ],
)
def test_refuses_values_out_of_range(change, said):
    values = {"y": torch.tensor([0]), "transform": torch.tensor([0])}
    values |= {"num_classes": 3, "num_transforms": 1, "delta": 0.1} | change
    y, transform = values.pop("y"), values.pop("transform")
    with pytest.raises(ValueError, match=said):
        label_augmentation_targets(y, transform, **values)


def test_class_logits_are_the_first_k():
    logits = torch.arange(12.0).view(2, 6)
    assert class_logits(logits, 4).tolist() == [[0, 1, 2, 3], [6, 7, 8, 9]]
    with pytest.raises(ValueError, match="6 logits for 7 classes"):
        class_logits(logits, 7)


def test_a_wider_head_keeps_the_trained_rows():
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    x = torch.randn(5, 4)
    before = model(x)
    generator = torch.Generator().manual_seed(0)
    widen_head(model, 2, generator=generator)
    after = model(x)
    assert after.shape == (5, 5)
    torch.testing.assert_close(after[:, :3], before)
    fresh = model[2].weight[3:]
    assert fresh.abs().max() <= 8**-0.5 and fresh.std() > 0


def test_a_replaced_head_is_drawn_afresh():
    model = torch.nn.Sequential(torch.nn.Linear(4, 3))
    before = model[0].weight.clone()
    widen_head(model, 1, replace=True, generator=torch.Generator().manual_seed(0))
    assert not torch.isclose(model[0].weight[:3], before).any()


def test_a_bare_linear_layer_cannot_be_widened_in_place():
    with pytest.raises(ValueError, match=r"wrap it in nn\.Sequential"):
        widen_head(torch.nn.Linear(4, 3), 1)
