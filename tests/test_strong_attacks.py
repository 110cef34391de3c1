"""APGD, FAB, Square, AutoAttack: the published step rules, the images that other code breaks."""

import copy
import dataclasses
import datetime
import json
from collections import Counter

import numpy as np
import pandas as pd
import pytest
import torch
import torchattacks
from torch import nn

from advbook.studies.runs import load_run
from advbook.studies.samples import decode_png, read_samples
from advbook.studies.schema import load_study
from advlib.attacks import components
from advlib.attacks.apgd import apgd_attack
from advlib.attacks.autoattack import COMPONENTS, autoattack, write_state
from advlib.attacks.fab import crossing, start_walk, walk_on
from advlib.attacks.pgd import classify
from advlib.attacks.square import draws_needed, hunt_on, start_hunt
from advlib.data.sets import stratified_subset
from advlib.predictions import check_predictions
from advlib.threat import ThreatModel

LINF, L2 = ThreatModel(eps=0.02), ThreatModel(norm="L2", eps=0.3)


def test_a_target_is_a_class():
    net, x = nn.Sequential(nn.Flatten(), nn.Linear(4, 10)), torch.rand(2, 1, 2, 2)
    for target in ([-1, 2], [2, 10]):
        with pytest.raises(ValueError, match=r"target is in \[0, 10\)"):
            apgd_attack(net, x, [0, 1], LINF, target=torch.tensor(target))


def square_attack(
    net, x, y, threat, *, num_classes=10, generator=None, queries=60, draws=None, **how
):
    """Square by itself, in one batch."""
    if draws is None:
        draws = torch.rand(len(x), draws_needed(x.shape, queries), generator=generator)
    hunt = start_hunt(x, y, draws, threat)
    with torch.no_grad():
        while (hunt.taken <= queries).any():
            hunt = hunt_on(net, hunt, threat, num_classes, queries, **how)
    return hunt.best


@pytest.fixture(scope="module")
def toy():
    """A small network in double precision, so that rounding leaves the signs of gradients alone."""
    generator = torch.Generator().manual_seed(3)
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.Tanh(), nn.Flatten(), nn.Linear(512, 10))
    with torch.no_grad():
        for parameter in net.parameters():
            bound = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.1
            parameter.uniform_(-bound, bound, generator=generator)
    net = net.double().eval()
    x = torch.rand(12, 1, 10, 10, dtype=torch.float64, generator=generator)
    return net, x, net(x).argmax(1)


def theirs(net, x, y, threat, steps, rank=None):
    """The iterates of torchattacks, image by image, and the noise that they start from.

    Image by image, since its APGD-T for L2 takes the step of the first image for all.
    """
    known = {"norm": threat.norm, "eps": threat.eps, "steps": steps}
    loss = "ce" if threat.loss == "cross_entropy" else threat.loss
    attack = (
        torchattacks.APGDT(net, **known) if rank else torchattacks.APGD(net, loss=loss, **known)
    )
    attack.target_class = rank
    found = []
    for i in range(len(x)):
        torch.manual_seed(i)
        best, standing, _, broken = attack.attack_single_run(x[i : i + 1], y[i : i + 1])
        torch.manual_seed(i)
        noise = 2 * torch.rand(best.shape) - 1 if threat.norm == "Linf" else torch.randn(best.shape)
        size = noise.abs().max() if threat.norm == "Linf" else noise.norm()
        found.append((torch.where(standing, best, broken), standing, noise.double() / size))
    return [torch.cat(part).detach() for part in zip(*found, strict=True)]


@pytest.mark.parametrize("threat", [LINF, L2], ids=["Linf", "L2"])
@pytest.mark.parametrize("loss, rank", [("cross_entropy", None), ("dlr", None), ("dlr", 3)])
@pytest.mark.parametrize("steps", [1, 7, 30])
def test_apgd_takes_the_steps_of_torchattacks(toy, threat, loss, rank, steps):
    net, x, y = toy
    threat = dataclasses.replace(threat, loss=loss, steps=steps)
    wanted, standing, noise = theirs(net, x, y, threat, steps, rank)
    target = net(x).sort(dim=1)[1][:, -rank] if rank else None
    found = apgd_attack(net, x, y, threat, target=target, noise=noise)
    assert ((net(found).argmax(1) == y) == standing).all()
    # The DLR of what is broken may be constant: its gradient is rounding alone.
    same = ((found - wanted).abs().flatten(1).amax(1) < 1e-4)[standing]
    assert len(same) > 2 and same.all()


@pytest.mark.parametrize("threat", [LINF, L2], ids=["Linf", "L2"])
@pytest.mark.parametrize("attack", [apgd_attack, square_attack])
def test_strong_attacks_stay_in_the_ball_and_leave_the_network_alone(
    digit_networks, attack, threat
):
    net = digit_networks["adv"]
    x = torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    y = torch.arange(16) % 10
    options = {"num_classes": 10, "generator": torch.Generator().manual_seed(1)}
    found = attack(net, x, y, dataclasses.replace(threat, steps=10), **options)
    change = (found - x).flatten(1)
    size = change.abs().amax(1) if threat.norm == "Linf" else change.norm(dim=1)
    assert (size <= threat.eps * (1 + 1e-5)).all() and size.max() > 0.9 * threat.eps
    assert found.min() >= 0 and found.max() <= 1
    assert all(p.requires_grad and p.grad is None for p in net.parameters())


@pytest.mark.parametrize("threat", [LINF, L2], ids=["Linf", "L2"])
def test_square_takes_the_squares_of_torchattacks(toy, threat, monkeypatch):
    """Its random numbers are handed to ours, place by place; one channel, since its L2 sums up all.

    Its places leave out the last row and column, ours do not: the same place is another number.
    """
    net, x, y = toy
    queries, threat = 200, threat.with_eps(2 * threat.eps)
    start = draws_needed(x.shape, queries) - 6 * queries
    rand, broken = torch.rand, 0
    for i in range(len(x)):
        drawn, generator = [], torch.Generator().manual_seed(i)

        def recorded(*shape, drawn=drawn, generator=generator):
            drawn.append(rand(*shape, generator=generator, dtype=torch.float64))
            return drawn[-1]

        monkeypatch.setattr(torch, "rand", recorded)
        known = {"norm": threat.norm, "eps": threat.eps, "resc_schedule": False}
        attack = torchattacks.Square(net, n_queries=queries, **known)
        attack.init_hyperparam(x)
        wanted = attack.attack_single_run(x[i : i + 1], y[i : i + 1])[1]
        monkeypatch.setattr(torch, "rand", rand)

        draws = torch.zeros(1, start + 6 * queries, dtype=torch.float64)
        first, each = (1, 3) if threat.norm == "Linf" else (50, 6)  # a grid of five by five bumps
        flat = torch.cat([d.flatten() for d in drawn[:first]])
        draws[0, : len(flat)] = flat
        for query in range((len(drawn) - first) // each):
            numbers = torch.cat([d.flatten() for d in drawn[first + each * query :][:each]])
            attack_share = attack.p_selection(query)
            side = max(round((attack_share * 100) ** 0.5), 1 if threat.norm == "Linf" else 3)
            side += threat.norm == "L2" and side % 2 == 0
            places = numbers[: 2 if threat.norm == "Linf" else 4]
            at = start + 6 * query
            draws[0, at : at + len(places)] = ((places * (10 - side)).long() + 0.5) / (11 - side)
            if threat.norm == "L2":
                draws[0, at + 4] = numbers[4]
            draws[0, at + 5] = numbers[-1]
        found = square_attack(net, x[i : i + 1], y[i : i + 1], threat, queries=queries, draws=draws)
        assert (found - wanted).abs().max() < 1e-4
        broken += int(net(found).argmax(1) != y[i])
    assert 0 < broken < len(x)


@pytest.mark.parametrize("threat", [LINF, L2], ids=["Linf", "L2"])
def test_square_ends_the_same_where_float32_decides_about_few(digit_networks, digit_images, threat):
    """bfloat16 passes over what gains nothing; by itself it would end at other images."""
    net, asked, seen = digit_networks["adv"], Counter(), []
    x, y = digit_images.pixels[:40].float() / 255, digit_images.labels[:40]
    generator = torch.Generator().manual_seed(0)
    draws = torch.rand(40, draws_needed(x.shape, 300), generator=generator)
    how = {"queries": 300, "draws": draws}

    def count(_, args):
        asked[torch.is_autocast_enabled("cpu")] += len(args[0])

    for dtype in (torch.float32, torch.bfloat16):
        asked.clear()
        with net.register_forward_pre_hook(count):
            found = square_attack(net, x, y, threat, dtype=dtype, **how)
        logits = net(found).detach()
        others = logits.scatter(1, y[:, None], -torch.inf).max(1).values
        seen.append(others - logits.gather(1, y[:, None])[:, 0])
    assert asked[False] < 0.75 * asked[True]
    assert ((seen[0] > 0) != (seen[1] > 0)).sum() <= 1
    torch.testing.assert_close(seen[0], seen[1], rtol=0, atol=0.05 * float(seen[0].std()))


def test_square_does_not_ask_what_it_knows(digit_networks, digit_images):
    """A grey square often lies at its border already: of so many queries fewer are asked.

    Alone and in a batch an image leaves them out at other times, and ends the same.
    """
    net, threat, asked = digit_networks["adv"], ThreatModel(eps=0.1), []
    x, y = digit_images.pixels[:20].float() / 255, digit_images.labels[:20]
    draws = torch.rand(20, draws_needed(x.shape, 600), generator=torch.Generator().manual_seed(0))
    with net[0].register_forward_hook(lambda *_: asked.append(1)):
        found = square_attack(net, x, y, threat, num_classes=10, queries=600, draws=draws)
    assert len(asked) < 560
    for i in range(0, 20, 5):
        one = slice(i, i + 1)
        own = {"num_classes": 10, "queries": 600, "draws": draws[one]}
        torch.testing.assert_close(square_attack(net, x[one], y[one], threat, **own), found[one])


@pytest.mark.parametrize("norm, shape", [("Linf", "linf"), ("L2", "l2")])
@pytest.mark.parametrize("corners", [0, 1])
def test_the_smallest_change_that_crosses_a_plane(norm, shape, corners):
    """Also where many pixels are 0 or 1, gradients are 0, and where the plane is out of reach."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(40, 3, 8, 8, generator=generator, dtype=torch.float64)
    x = ((x - 0.5) * (1 + 2 * corners) + 0.5).clamp(0, 1)
    gradient = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    gradient *= torch.rand(x.shape, generator=generator) > 0.3
    reach = gradient.abs().flatten(1).sum(1)
    offset = torch.randn(40, generator=generator, dtype=torch.float64) * 0.2 * reach
    offset[:2] = torch.stack([2 * reach[0], 0 * reach[0]])
    found = crossing(x, gradient, offset, norm)
    assert (x + found >= -1e-12).all() and (x + found <= 1 + 1e-12).all()
    project = getattr(torchattacks.attacks.fab, f"projection_{shape}")
    plane = (gradient * x).flatten(1).sum(1) - offset
    wanted = project(x.flatten(1), gradient.flatten(1), plane).view(x.shape)
    reached = offset + (gradient * found).flatten(1).sum(1)
    crossed = reached.abs() < 1e-9 * reach
    assert 20 < crossed.sum() < 40 and not crossed[0]
    assert torch.allclose(found[crossed], wanted[crossed], atol=1e-9)
    # To the corner that is nearest to the plane.
    assert ((x + found)[0][gradient[0] != 0] % 1 == 0).all()


@pytest.mark.parametrize("threat", [LINF, L2], ids=["Linf", "L2"])
@pytest.mark.parametrize("rank", [2, 5])
def test_fab_takes_the_steps_of_torchattacks(toy, threat, rank):
    """Nothing of it is random: the smallest change that crosses a border is the same."""
    net, x, y = copy.deepcopy(toy[0]).float(), toy[1].float(), toy[2]
    attack = torchattacks.FAB(net, norm=threat.norm, steps=25, multi_targeted=True)
    attack.target_class = rank
    change = (attack.attack_single_run_targeted(x, y) - x).flatten(1)
    wanted = change.abs().amax(1) if threat.norm == "Linf" else change.norm(dim=1)
    walk = start_walk(x, y, net(x).sort(dim=1)[1][:, -rank], torch.arange(len(x)))
    for _ in range(25):
        x_adv, broken, walk = walk_on(net, walk, threat, 10)
        size = (x_adv - x).flatten(1)
        size = size.abs().amax(1) if threat.norm == "Linf" else size.norm(dim=1)
        assert (broken == ((net(x_adv).argmax(1) != y) & (size <= threat.eps))).all()
        assert x_adv.min() >= 0 and x_adv.max() <= 1
    assert wanted.min() > 0 and torch.allclose(walk.nearest, wanted, rtol=1e-3)


def test_attacks_refuse_what_they_cannot_do(toy):
    net, x, y = toy
    with pytest.raises(ValueError, match="4 logits or more"):
        apgd_attack(
            nn.Sequential(net, nn.Linear(10, 3).double()), x, y % 3, LINF, target=(y + 1) % 3
        )
    with pytest.raises(ValueError, match="another class than the label"):
        apgd_attack(net, x, y, LINF, target=y)


def test_apgd_names_images_without_a_gradient(toy):
    net, x, y = toy

    class Root(nn.Module):
        def forward(self, x):
            return x + (x - x.detach()).square().sum((1, 2, 3), keepdim=True).sqrt()

    with pytest.raises(FloatingPointError, match="no finite gradient for 12 of 12"):
        apgd_attack(nn.Sequential(Root(), net), x, y, LINF)


def test_all_logits_and_the_predicted_label(toy):
    """K of K+M: only `attack_logits="all"` climbs against the tenth logit."""
    net, x, _ = toy
    y, _ = classify(net, x, 9, 20)
    options = {"num_classes": 9, "noise": torch.zeros_like(x)}
    threat = dataclasses.replace(LINF, steps=3)
    plain = apgd_attack(net, x, y, threat, **options)
    seen = dataclasses.replace(threat, attack_logits="all")
    assert not torch.equal(plain, apgd_attack(net, x, y, seen, **options))
    predicted = dataclasses.replace(threat, label_source="predicted")
    assert torch.equal(plain, apgd_attack(net, x, (y + 1) % 9, predicted, **options))


class FirstTen(nn.Module):
    def forward(self, logits):
        return logits[:, :10]


THREAT = ThreatModel(eps=0.15)
SHORT = {"steps": 20, "targets": 3, "queries": 200}


@pytest.fixture(scope="module")
def attacked(digit_networks, digit_images):
    return autoattack(digit_networks["adv"], digit_images, THREAT, num_classes=10, **SHORT)


def test_autoattack_breaks_the_images_that_torchattacks_breaks(
    digit_networks, digit_images, attacked
):
    """The same order and strength, other starts and squares: the same images, bar a few."""
    adv = copy.deepcopy(digit_networks["adv"]).eval().requires_grad_(False)
    net = torch.nn.Sequential(adv, FirstTen())
    x, y = digit_images.pixels / 255, digit_images.labels
    known = {"norm": "Linf", "eps": THREAT.eps}
    attacks = {
        "apgd_ce": torchattacks.APGD(net, steps=20, **known),
        "apgd_t": torchattacks.APGDT(net, steps=20, n_classes=4, **known),
        "fab_t": torchattacks.FAB(net, steps=20, multi_targeted=True, n_classes=4, **known),
        "square": torchattacks.Square(net, n_queries=500, resc_schedule=False, **known),
    }
    assert (*attacks,) == COMPONENTS
    ours, wanted = attacked.broken_by == "clean", (net(x).argmax(1) != y).numpy()
    for component, attack in attacks.items():
        ours |= attacked.broken_by == component
        with torch.random.fork_rng():
            x_adv = attack(x[~wanted], y[~wanted])
        wanted[~wanted] = (net(x_adv).argmax(1) != y[~wanted]).numpy()
        assert (ours != wanted).sum() <= 3, component
    assert check_predictions(attacked, num_classes=10, n_images=100) is attacked
    wrong = attacked.label != attacked.predicted_class
    assert (wrong == (attacked.broken_by != "")).all() and 20 < wrong.sum() < 90
    assert (attacked.linf <= 0.15 + 1e-6).all() and attacked.broken_by.isin(["apgd_ce"]).any()


def test_autoattack_leaves_network_and_generator_as_they_were(digit_networks, digit_images):
    model, before = copy.deepcopy(digit_networks["adv"]), torch.get_rng_state()
    few = {"indices": torch.arange(20), **SHORT}
    autoattack(model, digit_images, THREAT, num_classes=10, **few)
    assert torch.equal(before, torch.get_rng_state())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_a_component_that_leaves_the_ball_stops_autoattack(
    digit_networks, digit_images, monkeypatch
):
    def leaves(model, walk, threat, num_classes):
        return (walk.x + 0.2).clamp(0, 1), walk.label >= 0, walk._replace(taken=walk.taken + 20)

    monkeypatch.setattr(components, "walk_on", leaves)
    with pytest.raises(RuntimeError, match="fab_t leaves the ball"):
        autoattack(
            digit_networks["std"], digit_images, THREAT, num_classes=10, components=["fab_t"],
            steps=20,
        )  # fmt: skip


@pytest.fixture(scope="module")
def published():
    """A published network of Adv, a small one, and the images of its page that it gets right."""
    study = load_study("fashion_mnist_quick")
    samples = read_samples(study, "committed")
    samples = samples[(samples.method == "adv") & (samples.label == samples.predicted_class)]
    x = torch.tensor(np.stack([decode_png(png) for png in samples.image])) / 255
    model, run = load_run(study, "adv", 0, "committed")
    images = list(zip(x, samples.label.tolist(), samples.file_name, strict=True))
    return model, images, ThreatModel(eps=study.eps), run["num_classes"]


@pytest.mark.parametrize(
    "component, allowed", [("apgd_ce", 1), ("apgd_t", 1), ("fab_t", 1), ("square", 2)]
)
def test_components_break_what_torchattacks_breaks_of_a_published_network(
    published, component, allowed
):
    """Folded and, where the machine has it, in bfloat16; other starts and squares than theirs."""
    model, images, threat, num_classes = published
    if component == "square":  # which breaks next to nothing with so few queries
        threat = threat.with_eps(2 * threat.eps)
    x, y = torch.stack([x for x, *_ in images]), torch.tensor([y for _, y, _ in images])
    known = {"norm": "Linf", "eps": threat.eps}
    attack = {
        "apgd_ce": lambda: torchattacks.APGD(model, steps=40, **known),
        "apgd_t": lambda: torchattacks.APGDT(model, steps=40, n_classes=4, **known),
        "fab_t": lambda: torchattacks.FAB(
            model, steps=40, multi_targeted=True, n_classes=4, **known
        ),
        "square": lambda: torchattacks.Square(model, n_queries=600, resc_schedule=False, **known),
    }[component]()
    with torch.random.fork_rng():
        wanted = classify(model.eval(), attack(x, y).detach(), num_classes, 30)[0] != y
    short = {"steps": 40, "targets": 3, "queries": 600, "components": [component]}
    found = autoattack(model, images, threat, num_classes=num_classes, **short)
    ours = torch.tensor((found.broken_by == component).to_numpy())
    assert (ours != wanted).sum() <= allowed
    assert 3 <= wanted.sum() <= len(images) - 3


def test_an_image_fares_the_same_in_any_company(digit_networks, digit_images, attacked):
    """So several processes can each take some images."""
    parts = [
        autoattack(
            digit_networks["adv"], digit_images, THREAT, num_classes=10, batch_size=size,
            indices=torch.arange(*ends), **SHORT,
        )
        for size, ends in ((7, (0, 30)), (64, (30, 100)))
    ]  # fmt: skip
    whole = pd.concat(parts, ignore_index=True)
    assert (whole.file_name == attacked.file_name).all()
    assert ((whole.broken_by == "") != (attacked.broken_by == "")).sum() <= 1  # rounding


def test_a_stopped_autoattack_goes_on(digit_networks, digit_images, tmp_path):
    model, options = digit_networks["adv"], {"num_classes": 10, "batch_size": 4, **SHORT}
    images = stratified_subset(digit_images, 40)
    whole = autoattack(model, images, THREAT, **options)
    assert (~whole.broken_by.isin(["clean", "apgd_ce"])).sum() > 16  # APGD-T has two pieces
    seen = []

    def stopped(component, n):
        seen.append((component, n))
        if component == "apgd_t":
            raise KeyboardInterrupt

    state = tmp_path / "state.parquet"
    with pytest.raises(KeyboardInterrupt):
        autoattack(model, images, THREAT, state=state, progress=stopped, **options)
    later = []
    found = autoattack(
        model,
        images,
        THREAT,
        state=state,
        progress=lambda *what: later.append(what),
        **options,
    )
    pd.testing.assert_frame_equal(found, whole)
    assert not any(component == "apgd_ce" for component, _ in later)
    attacked_t = sum(n for component, n in seen + later if component == "apgd_t")
    assert attacked_t == (~whole.broken_by.isin(["clean", "apgd_ce"])).sum()
    with pytest.raises(ValueError, match="state of another run .other queries"):
        autoattack(model, images, THREAT, state=state, **options | {"queries": 100})
    with pytest.raises(ValueError, match="state of another run .other weights"):
        autoattack(digit_networks["std"], images, THREAT, state=state, **options)


def test_a_state_belongs_to_its_images(digit_networks, digit_images, tmp_path):
    """Those of a list have no names: their positions do not tell them apart."""
    pairs = list(zip(digit_images.pixels[:4] / 255, digit_images.labels[:4], strict=True))
    how = {"num_classes": 10, "components": ["square"], "queries": 1, "state": tmp_path / "s"}
    found = autoattack(digit_networks["std"], pairs, THREAT, **how)
    pd.testing.assert_frame_equal(autoattack(digit_networks["std"], pairs, THREAT, **how), found)
    with pytest.raises(ValueError, match="state of another run .other images"):
        autoattack(digit_networks["std"], pairs[::-1], THREAT, **how)


def test_a_state_file_is_what_the_published_code_reads(attacked, tmp_path):
    """The fields of its dataclass `EvaluationState`, and the types that it makes of them."""
    path = tmp_path / "state.json"
    write_state(attacked, path)
    state = json.loads(path.read_text())
    names = "_attacks_to_run path _run_attacks _robust_flags _last_saved _SAVE_TIMEOUT"
    assert set(state) == {*names.split(), "_clean_accuracy"}
    flags = torch.tensor(state["_robust_flags"], dtype=torch.bool)
    assert (flags.numpy() == (attacked.label == attacked.predicted_class)).all()
    assert state["_clean_accuracy"] == (attacked.broken_by != "clean").mean() > flags.float().mean()
    assert set(state["_run_attacks"]) == {"apgd-ce", "apgd-t", "fab-t", "square"}
    assert datetime.datetime.fromisoformat(state["_last_saved"])


def test_few_classes(digit_networks, digit_images):
    """Three classes leave the targeted DLR no logits, and nine targets are two."""
    few = [(x.float() / 255, int(y)) for x, y in zip(digit_images.pixels, digit_images.labels,
                                                     strict=True) if y < 3]  # fmt: skip
    known = {"num_classes": 3, "steps": 5, "queries": 20}
    with pytest.warns(UserWarning, match="no apgd_t: with 3 classes"):
        found = autoattack(digit_networks["adv"], few, THREAT, **known)
    assert set(found.broken_by) <= {"clean", "apgd_ce", "fab_t", "square", ""}
    found = autoattack(
        digit_networks["adv"], few, THREAT, **known | {"num_classes": 5}, components=["apgd_t"]
    )
    assert (found.broken_by == "apgd_t").any()


@pytest.mark.parametrize(
    "change", [{"eps_space": "normalized"}, {"clip": False}, {"success": "last"}, {"eps": 0}]
)
def test_autoattack_refuses_other_threat_models(digit_networks, digit_images, change):
    threat = dataclasses.replace(THREAT, **change)
    with pytest.raises(ValueError, match=next(iter(change))):
        autoattack(digit_networks["adv"], digit_images, threat, num_classes=10)
