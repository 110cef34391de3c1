import copy
import dataclasses
import warnings

import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from advlib.attacks import pgd as attacks
from advlib.attacks.pgd import pgd_attack
from advlib.attacks.worst_case import default_batch_size, evaluate_attack
from advlib.labels import class_logits
from advlib.networks.build import Normalize, build_model
from advlib.predictions import predict
from advlib.threat import ThreatModel


@pytest.fixture(scope="module")
def network():
    """A small network with batch norm and dropout, trained for a moment on real digits."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    x = torch.tensor(digits.images / 16, dtype=torch.float32)[:, None]
    y = torch.tensor(digits.target)
    torch.manual_seed(0)
    net = build_model("cifar_resnet8", num_classes=10, mean=(0.3,), std=(0.4,))
    model = nn.Sequential(net.normalize, net.net[:-1], nn.Dropout(0.2), net.net[-1])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    model.train()
    for step in range(40):
        batch = torch.arange(64 * step, 64 * step + 64) % 1600
        optimizer.zero_grad()
        F.cross_entropy(model(x[batch]), y[batch]).backward()
        optimizer.step()
    optimizer.zero_grad()
    return model.eval(), x[1600:1728], y[1600:1728]


def items(x, y):
    return [
        (image, int(label), f"image-{i}") for i, (image, label) in enumerate(zip(x, y, strict=True))
    ]


@pytest.mark.parametrize("norm, eps", [("Linf", 0.1), ("L2", 0.7)])
@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("random_start", [True, False])
def test_stays_in_the_ball_and_the_box(network, norm, eps, clip, random_start):
    model, x, y = network
    threat = ThreatModel(norm=norm, eps=eps, clip=clip, random_start=random_start)
    x_adv = pgd_attack(model, x, y, threat)
    delta = (x_adv - x).flatten(1)
    size = delta.abs().amax(1) if norm == "Linf" else delta.norm(dim=1)
    assert size.max() <= eps * (1 + 1e-5)
    assert size.min() > 0.5 * eps
    if clip:
        assert x_adv.min() >= 0 and x_adv.max() <= 1
    else:
        assert x_adv.min() < 0  # digits are black at the border: unclipped, it must leave the box


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_climbs_the_loss_more_with_more_steps(network, norm):
    model, x, y = network
    eps = 0.1 if norm == "Linf" else 0.7
    losses = [F.cross_entropy(model(x), y).item()]
    for steps in (1, 10):
        threat = ThreatModel(norm=norm, eps=eps, steps=steps, random_start=False)
        losses.append(F.cross_entropy(model(pgd_attack(model, x, y, threat)), y).item())
    assert losses[0] < losses[1] < losses[2]


def test_fgsm_is_eq_2(network):
    model, x, y = network
    leaf = x.clone().requires_grad_()
    F.cross_entropy(model(leaf), y).backward()
    expected = (x + 0.1 * leaf.grad.sign()).clamp(0, 1)
    threat = ThreatModel(eps=0.1, steps=1, step_size=0.1, random_start=False)
    torch.testing.assert_close(pgd_attack(model, x, y, threat), expected)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("eps_space", ["pixel", "normalized"])
def test_eps_zero_changes_nothing(network, norm, eps_space):
    model, x, y = network
    threat = ThreatModel(eps=0, norm=norm, eps_space=eps_space)
    assert torch.equal(pgd_attack(model, x, y, threat), x)
    table = evaluate_attack(model, items(x, y), threat, num_classes=10)
    with torch.no_grad():
        assert table.predicted_class.tolist() == model(x).argmax(1).tolist()
    assert table.linf.max() == 0


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_leaves_the_model_as_it_was(network, training, mode):
    model, x, y = copy.deepcopy(network[0]), *network[1:]
    model.train(training)
    model[1][0].eval()  # a part that a user froze
    first, second = list(model.parameters())[:2]
    first.requires_grad_(False)
    second.grad = torch.ones_like(second)
    buffers = [buffer.clone() for buffer in model.buffers()]
    modes = [module.training for module in model.modules()]
    pgd_attack(model, x, y, ThreatModel(eps=0.1, model_mode=mode))
    assert [module.training for module in model.modules()] == modes
    assert not first.requires_grad and second.requires_grad
    assert torch.equal(second.grad, torch.ones_like(second))
    assert all(p.grad is None for p in model.parameters() if p is not second)
    assert all(torch.equal(a, b) for a, b in zip(buffers, model.buffers(), strict=True))


def test_leaves_the_model_as_it_was_after_an_error(network):
    model, x, y = copy.deepcopy(network[0]).train(), *network[1:]

    def broken(logits, y):
        raise RuntimeError("no loss")

    with pytest.raises(RuntimeError, match="no loss"):
        pgd_attack(model, x, y, ThreatModel(), objective=broken)
    assert model.training and all(p.requires_grad for p in model.parameters())


def test_crafts_in_evaluation_mode(network):
    """With dropout active, two attacks with the same start would differ."""
    model, x, y = copy.deepcopy(network[0]).train(), *network[1:]
    threat = ThreatModel(eps=0.1)
    pair = [
        pgd_attack(model, x, y, threat, generator=torch.Generator().manual_seed(1))
        for _ in range(2)
    ]
    assert torch.equal(*pair)


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda x, y: (x * 255, y), r"images are in \[0, 1\]"),
        (lambda x, y: (x - 0.5, y), r"images are in \[0, 1\]"),
        (lambda x, y: (x * float("nan"), y), r"images are in \[0, 1\]"),
        (lambda x, y: (x, y + 1), r"label is in \[0, 10\)"),
        (lambda x, y: (x, y - 1), r"label is in \[0, 10\)"),
    ],
)
def test_refuses_bad_batches(network, change, said):
    model, x, y = network
    with pytest.raises(ValueError, match=said):
        pgd_attack(model, *change(x, y), ThreatModel())


def test_predicted_label_can_push_a_mistake_onto_its_class(linear_model):
    """A misclassified image: leaving the predicted label must lower the loss of the true one."""
    x = torch.tensor([0.6, 0.5]).view(1, 1, 1, 2)
    y = torch.tensor([1])  # the model says 0
    for label_source, predicted in (("true", 0), ("predicted", 1)):
        threat = ThreatModel(eps=0.2, random_start=False, label_source=label_source)
        x_adv = pgd_attack(linear_model, x, y, threat)
        assert linear_model(x_adv).argmax().item() == predicted


def test_all_logits_let_the_attack_raise_a_transformation_logit():
    """The masking gap: over K+M logits the gradient points to the third, which is no class."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 3, bias=False))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 50.0]]))
    x, y = torch.full((1, 1, 1, 2), 0.5), torch.tensor([0])
    threat = ThreatModel(eps=0.1, random_start=False)
    moved = pgd_attack(model, x, y, threat, num_classes=2) - x
    torch.testing.assert_close(moved.flatten(), torch.tensor([-0.1, 0.0]))
    seen = dataclasses.replace(threat, attack_logits="all")
    moved = pgd_attack(model, x, y, seen, num_classes=2) - x
    torch.testing.assert_close(moved.flatten(), torch.tensor([-0.1, 0.1]))


def test_normalised_space_multiplies_eps_by_the_std():
    net = nn.Sequential(nn.Flatten(), nn.Linear(3, 2, bias=False))
    model = nn.Sequential(Normalize((0.5,) * 3, (0.1, 0.2, 0.4)), net)
    x, y = torch.full((4, 3, 1, 1), 0.5), torch.tensor([0, 1, 0, 1])
    threat = ThreatModel(eps=0.3, eps_space="normalized", random_start=False)
    change = (pgd_attack(model, x, y, threat) - x).abs().amax(0).flatten()
    torch.testing.assert_close(change, torch.tensor([0.03, 0.06, 0.12]))
    with pytest.raises(ValueError, match="Normalize"):
        pgd_attack(net, x, y, threat)


def test_an_l2_step_in_normalised_space_is_the_steepest_one_there():
    """As if the attack ran on normalised images: along their gradient, and step long in them."""
    mean, std = (0.5,) * 3, torch.tensor([0.1, 0.2, 0.8])
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(3, 4))
    model = nn.Sequential(Normalize(mean, tuple(std.tolist())), net)
    x, y = torch.rand(8, 3, 1, 1), torch.randint(0, 4, (8,))
    options = {"norm": "L2", "eps": 1.0, "steps": 1, "step_size": 0.01, "random_start": False}
    threat = ThreatModel(eps_space="normalized", clip=False, **options)
    moved = (pgd_attack(model, x, y, threat) - x).flatten(1) / std
    z = ((x.flatten(1) - 0.5) / std).requires_grad_()
    F.cross_entropy(net(z), y, reduction="sum").backward()
    torch.testing.assert_close(moved, 0.01 * F.normalize(z.grad), atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("size", [1.0, 1e-24, 1e-38, 0.0])
def test_an_l2_step_is_as_long_however_small_the_gradient(size):
    x, direction = torch.full((1, 1, 2, 2), 0.5), torch.tensor([[[[1.0, -2.0], [0.5, 0.0]]]])
    threat = ThreatModel(norm="L2", eps=1.0, step_size=0.01)
    moved = attacks._step(x, x, size * direction, 1.0, 0.01, threat) - x
    expected = 0.01 * direction / direction.norm() if size else torch.zeros_like(x)
    torch.testing.assert_close(moved, expected, atol=1e-6, rtol=1e-3)


def brute_force(model, x, y, threat, seed, batch=1):
    """Error by the definition: every image alone, every iterate looked at."""
    from advlib.attacks.pgd import _project, _radius, _step, attack_mode, logits_and_gradient
    from advlib.attacks.worst_case import image_noise

    broken = []
    for i in range(len(x)):
        image, label = x[i : i + 1], y[i : i + 1]
        names, one = {0: f"image-{i}"}, torch.tensor([0])
        found = False
        for restart in range(threat.n_restarts):
            noise = image_noise(image, one, names, threat, seed, restart)
            x_adv = _project(image, image + threat.eps * noise, threat.eps, threat)
            wrong = []
            with attack_mode(model, "eval"):
                for _ in range(threat.steps + 1):
                    logits, gradient = logits_and_gradient(model, x_adv, label, threat, 10)
                    wrong.append(bool(class_logits(logits, 10).argmax(1) != label))
                    x_adv = _step(image, x_adv, gradient, *_radius(model, image, threat), threat)
            found |= any(wrong) if threat.success == "any" else wrong[-1]
        with torch.no_grad():
            clean_mistake = bool(model(image).argmax(1) != label)
        broken.append(found or (threat.success == "any" and clean_mistake))
    return broken


@pytest.mark.parametrize("success", ["any", "last"])
@pytest.mark.parametrize("n_restarts", [1, 3])
def test_a_batch_that_refills_finds_what_single_images_find(network, success, n_restarts):
    model, x, y = network[0], network[1][:20], network[2][:20]
    threat = ThreatModel(eps=0.06, steps=5, success=success, n_restarts=n_restarts)
    table = evaluate_attack(
        model, items(x, y), threat, num_classes=10, batch_size=7, seed=3, dtype="float32"
    )
    found = (table.label != table.predicted_class).tolist()
    assert found == brute_force(model, x, y, threat, seed=3)
    assert 0.1 < sum(found) / len(found) < 0.9  # else the test could not tell
    assert table.linf.max() <= 0.06 * (1 + 1e-5)
    assert table.steps_used.max() <= 5
    if success == "last":
        assert (table.steps_used == 5).all()


def test_outcome_depends_neither_on_batches_nor_on_the_part(network):
    model, x, y = network
    threat = ThreatModel(eps=0.06, steps=5)
    whole = evaluate_attack(model, items(x, y), threat, num_classes=10, dtype="float32")
    pieces = evaluate_attack(
        model, items(x, y), threat, num_classes=10, batch_size=5, dtype="float32",
        indices=torch.arange(64, 128),
    )  # fmt: skip
    same = whole.predicted_class[64:].to_numpy() == pieces.predicted_class.to_numpy()
    assert same.all()
    other = evaluate_attack(model, items(x, y), threat, num_classes=10, dtype="float32", seed=9)
    assert not torch.equal(torch.tensor(other.linf), torch.tensor(whole.linf))


@pytest.mark.parametrize("success", ["any", "last"])
def test_a_bf16_search_finds_as_much_as_a_float32_one(network, success):
    model, x, y = network
    threat = ThreatModel(eps=0.06, steps=10, success=success)
    fast = evaluate_attack(model, items(x, y), threat, num_classes=10, dtype="bfloat16")
    exact = evaluate_attack(model, items(x, y), threat, num_classes=10, dtype="float32")
    errors = [(table.label != table.predicted_class).mean() for table in (fast, exact)]
    assert errors[0] == pytest.approx(errors[1], abs=0.05)


@pytest.mark.parametrize("success", ["any", "last"])
def test_what_is_recorded_is_the_float32_verdict(success):
    """A network that errs in bf16 alone must come out without an error."""

    class Shaky(nn.Module):
        def forward(self, x):
            assert x.min() > -1  # a question that cannot be traced, so it is run as it is
            right = torch.stack([x.flatten(1).mean(1) + 5, 0 * x.flatten(1).sum(1)], 1)
            return right.flip(1) if torch.is_autocast_enabled("cpu") else right

    pairs = [(torch.rand(1, 4, 4), 0) for _ in range(9)]
    threat = ThreatModel(steps=3, success=success)
    with pytest.warns(UserWarning, match="unfolded"):
        table = evaluate_attack(
            Shaky(), pairs, threat, num_classes=2, dtype="bfloat16", batch_size=4
        )
    assert (table.predicted_class == 0).all() and (table.steps_used == 3).all()


def test_more_restarts_never_find_less(network):
    model, x, y = network
    errors = []
    for n_restarts in (1, 2, 4):
        threat = ThreatModel(eps=0.05, steps=3, n_restarts=n_restarts)
        table = evaluate_attack(model, items(x, y), threat, num_classes=10, dtype="float32")
        errors.append(set(table.file_name[table.label != table.predicted_class]))
    assert errors[0] <= errors[1] <= errors[2]


def test_items_without_names_get_zero_padded_indices(network):
    model, x, y = network
    pairs = [(image, int(label)) for image, label in zip(x[:12], y[:12], strict=True)]
    table = evaluate_attack(model, pairs, ThreatModel(steps=1), num_classes=10)
    assert table.file_name.tolist() == [f"{i:02d}" for i in range(12)]


@pytest.mark.parametrize("n_restarts", [1, 2])
@pytest.mark.parametrize("label_source", ["true", "predicted"])
@pytest.mark.parametrize("success", ["any", "last"])
def test_progress_counts_every_image_once(network, success, label_source, n_restarts):
    model, x, y = network[0], network[1][:30], network[2][:30]
    threat = ThreatModel(
        eps=0.08, steps=4, success=success, label_source=label_source, n_restarts=n_restarts
    )
    counted = []
    table = evaluate_attack(
        model, items(x, y), threat, num_classes=10, batch_size=8, progress=counted.append
    )
    assert 0 < (table.label != table.predicted_class).sum() < 30
    assert sum(counted) == 30 and min(counted) >= 0


class PerImage(nn.Module):
    """Divides each image by its own deviation, whose gradient at a constant image is infinite."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(48, 4))

    def forward(self, x):
        change = x - x.mean((1, 2, 3), keepdim=True)
        return self.net(change / (change.square().mean((1, 2, 3), keepdim=True).sqrt() + 1e-3))


@pytest.mark.parametrize("success", ["any", "last"])
@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("label", [0, 1, 2, 3])
def test_an_image_without_a_finite_gradient_is_neither_robust_nor_broken(norm, success, label):
    """Unless it is wrong from the start, which an attack need not show."""
    model, x = PerImage().eval(), torch.rand(9, 3, 4, 4)
    x[5] = 0.5
    with torch.no_grad():
        y = model(x).argmax(1)
    right, y[5] = int(y[5]) == label, label
    options = {"norm": norm, "eps": 0.05, "steps": 3, "random_start": False}
    threat = ThreatModel(success=success, **options)
    own = {"num_classes": 4, "batch_size": 4, "dtype": "float32", "device": "cpu"}
    if right or success == "last":
        said = "no finite gradient for 1 of . images .'image-5'.*neither robust nor broken"
        with pytest.raises(FloatingPointError, match=said):
            evaluate_attack(model, items(x, y), threat, **own)
    else:
        table = evaluate_attack(model, items(x, y), threat, **own)
        assert table.predicted_class[5] != label and table.linf[5] == 0
    with pytest.raises(FloatingPointError, match=r"no finite gradient for 1 of 9 images \(5\)"):
        pgd_attack(model, x, y, threat)
    others = torch.arange(9) != 5
    assert pgd_attack(model, x[others], y[others], threat).isfinite().all()


def test_logits_that_are_no_numbers_are_said_before_the_attack(network):
    class Rare(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = network[0]

        def forward(self, x):
            return self.net(x) / (x.flatten(1).amax(1, keepdim=True) < 2 / 3)

    x, y = network[1][:8] * 0.6, network[2][:8]
    x[6, 0, 0, 0] = 0.9
    with pytest.raises(FloatingPointError, match="no finite logits for 1 of 8 images .'image-6'"):
        evaluate_attack(Rare(), items(x, y), ThreatModel(), num_classes=10)
    with pytest.raises(
        FloatingPointError, match="network 'm' .* no numbers for 1 of 8 .*'image-6'"
    ):
        predict({"m": Rare()}, items(x, y), num_classes=10)


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda x, y: items(x * 255, y), r"images are in \[0, 1\], got .*normalisation inside"),
        (lambda x, y: items(x * 2 - 1, y), r"images are in \[0, 1\]"),
        (lambda x, y: items(x, y + 1), r"label is in \[0, 10\), got 3 to 10"),
        (lambda x, y: items(x, y) * 2, "8 images occur twice, 'image-0' among them"),
    ],
)
def test_predictions_of_what_cannot_be_meant_are_refused(network, change, said):
    model, x, y = network[0], network[1][:8], torch.arange(8) + 2
    with pytest.raises(ValueError, match=said):
        predict({"m": model}, change(x, y), num_classes=10)


class Gives(nn.Module):
    """A model that does something with the logits of another."""

    def __init__(self, change):
        super().__init__()
        self.net, self.change = nn.Sequential(nn.Flatten(), nn.Linear(48, 5)).eval(), change

    def forward(self, x):
        return self.change(self.net(x))


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda logits: (logits, None), "the model gives tuple; expected its logits"),
        (lambda logits: {"logits": logits}, "the model gives dict; expected"),
        (lambda logits: logits[:, :, None], r"gives float32 of shape \(4, 5, 1\); expected"),
        (lambda logits: logits.argmax(1), r"gives int64 of shape \(4,\); expected"),
    ],
)
def test_a_model_gives_logits(change, said):
    x, y, threat = torch.rand(4, 3, 4, 4), torch.arange(4), ThreatModel(steps=2)
    for check in (lambda: pgd_attack(Gives(change), x, y, threat, num_classes=5),
                  lambda: evaluate_attack(Gives(change), items(x, y), threat, num_classes=5),
                  lambda: predict({"": Gives(change)}, items(x, y), num_classes=5)):  # fmt: skip
        with pytest.raises(TypeError, match=said), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it is not folded either
            check()


def test_an_attack_says_what_it_takes():
    net = Gives(lambda logits: logits)
    x, y, threat = torch.rand(4, 3, 4, 4), torch.arange(4), ThreatModel(steps=2, random_start=False)
    expected = pgd_attack(net, x, y, threat)
    for labels in (y.int(), y.numpy(), y.tolist(), y.to(torch.uint8)):
        assert torch.equal(pgd_attack(net, x, labels, threat), expected)
    for images, labels in ((x, y[:, None]), (x, y.float()), (x[:0], y[:0]), (x, y[:3])):
        with pytest.raises(ValueError, match="one image or more, .* one whole number for each"):
            pgd_attack(net, images, labels, threat)
    for attack in (torch.inference_mode()(pgd_attack), pgd_attack):
        model = net if attack is not pgd_attack else Gives(torch.Tensor.detach)
        with pytest.raises(ValueError, match="no gradient: .*inference_mode"):
            attack(model, x, y, threat)


@pytest.mark.parametrize(
    "dataset, said",
    [
        ([], "no images in the data set"),
        (DataLoader([(torch.rand(3, 4, 4), 0)]), "got DataLoader: .* pass loader.dataset"),
        (
            [{"image": torch.rand(3, 4, 4), "label": 0}],
            "an item of the data set is dict .*; expected",
        ),
        ([(Image.new("RGB", (4, 4)), 0)], r"is tuple .*; expected .*ToTensor"),
        ([(torch.rand(1, 3, 4, 4), 0)], r"an image \(1, 3, 4, 4\) and the label 0"),
        ([(torch.rand(3, 4, 4), 0.5)], "the label 0.5"),
    ],
)
def test_a_data_set_holds_images_and_labels(dataset, said):
    model = Gives(lambda logits: logits)
    for use in (lambda: evaluate_attack(model, dataset, ThreatModel(), num_classes=5),
                lambda: predict({"": model}, dataset, num_classes=5)):  # fmt: skip
        with pytest.raises((TypeError, ValueError), match=said):
            use()


def test_how_many_images_are_attacked_at_once_does_not_depend_on_the_day():
    small, large = [(torch.rand(1, 8, 8), 0)], [(torch.rand(1, 65, 65), 0)]
    sizes = [default_batch_size(data, kind) for data in (small, large) for kind in ("cpu", "cuda")]
    assert sizes == [128, 512, 128, 128]


def test_in_train_mode_any_iterate_breaks_what_the_last_one_breaks(network):
    """Images share batch norm's statistics: were broken ones replaced, the attack would change."""
    model, x, y = network
    own = {"num_classes": 10, "batch_size": 32, "dtype": "float32"}
    broken = {}
    for success in ("any", "last"):
        threat = ThreatModel(eps=0.08, steps=20, model_mode="train", success=success)
        # 97 = 3 * 32 + 1: a batch of one image has no statistics
        table = evaluate_attack(model, items(x, y)[:97], threat, **own)
        broken[success] = table.label != table.predicted_class
    assert (broken["any"] | ~broken["last"]).all()
    assert 0.3 < broken["last"].mean() < broken["any"].mean()
    again = evaluate_attack(model, items(x, y)[:97], threat, **own)
    assert again.equals(table)  # dropout too


@pytest.mark.parametrize("n_images, batch_size", [(12, 4), (7, 2), (3, 2)])
def test_in_train_mode_every_pass_sees_the_whole_batch(n_images, batch_size):
    """Batch norm at 1 x 1 refuses one image; restarts attack what the first start broke as well."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    x, y = torch.rand(n_images, 1, 2, 2), torch.arange(n_images) % 3
    passes = []

    def watch(module, inputs):
        if module.training:
            passes.append(len(inputs[0]))

    hook = model.register_forward_pre_hook(watch)
    threat = ThreatModel(eps=0.3, steps=3, model_mode="train", n_restarts=2)
    own = {"num_classes": 3, "batch_size": batch_size, "dtype": "float32"}
    counted = []
    table = evaluate_attack(model, items(x, y), threat, progress=counted.append, **own)
    hook.remove()
    assert 0 < (table.label != table.predicted_class).sum() and sum(counted) == n_images
    assert min(passes) >= 2 and sum(passes) == n_images * threat.steps * threat.n_restarts


def test_in_train_mode_batches_mix_the_classes(network):
    """Files come sorted by class: a batch of one class has statistics that no training saw."""
    model, x, y = network
    order = y.argsort(stable=True)
    x, y, seen = x[order], y[order], []

    def watch(module, inputs):
        if module.training:
            seen.append(inputs[0].detach().clone())

    hook = model.register_forward_pre_hook(watch)
    threat = ThreatModel(eps=1e-6, steps=1, model_mode="train")  # images pass nearly as they are
    own = {"num_classes": 10, "batch_size": 32, "dtype": "float32"}
    table = evaluate_attack(model, items(x, y), threat, **own)
    hook.remove()
    assert table.label.tolist() == y.tolist()  # in the order of the data set
    assert len(seen) == -(-len(x) // 32)
    for batch in seen:
        place = torch.cdist(batch.flatten(1), x.flatten(1)).argmin(1)
        assert y[place].unique().numel() >= 6


@pytest.mark.parametrize("loss", ["margin", "dlr"])
def test_other_losses_against_their_formulas(loss, network):
    model, x, y = network
    logits = model(x[:8]).detach()
    expected = []
    for row, label in zip(logits.tolist(), y[:8].tolist(), strict=True):
        top = sorted(row, reverse=True)
        margin = max(v for i, v in enumerate(row) if i != label) - row[label]
        expected.append(margin if loss == "margin" else margin / (top[0] - top[2]))
    found = attacks._LOSSES[loss](logits, y[:8])
    torch.testing.assert_close(found, torch.tensor(expected))


@pytest.mark.parametrize("loss", ["margin", "dlr"])
def test_other_losses_break_about_as_many_images(loss, network):
    model, x, y = network
    own = {"num_classes": 10, "batch_size": 64, "dtype": "float32"}
    errors = {}
    for name in ("cross_entropy", loss):
        table = evaluate_attack(model, items(x, y), ThreatModel(eps=0.1, loss=name), **own)
        errors[name] = float((table.label != table.predicted_class).mean())
    assert errors["cross_entropy"] > 0.3 and abs(errors[loss] - errors["cross_entropy"]) < 0.1


def test_dlr_says_how_many_logits_it_needs():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    with pytest.raises(ValueError, match="needs 3 logits.*margin"):
        pgd_attack(model, torch.rand(2, 1, 2, 2), torch.tensor([0, 1]), ThreatModel(loss="dlr"))
