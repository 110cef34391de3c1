import dataclasses
import json
import re
import resource
import shutil
import signal

import filelock
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from advbook.studies.identity import digest, training_of, training_settings
from advbook.studies.inputs import images_of
from advbook.studies.runs import load_run, train_method
from advlib import metrics, steps, train
from advlib.attacks.folding import folding
from advlib.attacks.pgd import pgd_attack
from advlib.attacks.worst_case import evaluate_attack
from advlib.checkpoints import CHECKPOINT, save_checkpoint
from advlib.files import file_hash
from advlib.networks.build import build_model
from advlib.objectives import OBJECTIVES, Networks, Step
from advlib.objectives import step as objective_step
from advlib.predictions import predict, write_predictions
from advlib.recipes import RECIPES, cosine_lr, one_cycle_lr
from advlib.threat import ThreatModel
from advlib.train import fit
from processes import exit_code, train_digits


def weights(path):
    return {k: v for k, v in load_file(path).items() if k.startswith("model.")}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture
def network():
    torch.manual_seed(0)
    return build_model("cifar_resnet8", num_classes=10, mean=(0.3,), std=(0.4,))


def objective_and_step(study, method, model, x, y, noise=None):
    """A method's objective, and a step of it on one batch."""
    training, recipe = training_of(study, method), RECIPES[method]
    objective = OBJECTIVES[recipe.objective](recipe, training, images_of(study, "train"))
    return objective, Step(x, y, None, noise, Networks(model, training, 10))


def loss_of(*given, **more):
    """Loss and error of one batch by one method of a study."""
    objective, step = objective_and_step(*given, **more)
    loss, wrong = objective(step)
    return loss, wrong.float().mean()


def run(study, method="std", folder=None, network=None, seed=0, **more):
    model = network or build_model("cifar_resnet8", num_classes=10, mean=(0.3,), std=(0.4,))
    return fit(
        model,
        images_of(study, "train"),
        training_of(study, method),
        RECIPES[method],
        seed=seed,
        folder=folder,
        **more,
    )


def test_adversarial_training_on_real_digits(tiny_study):
    """The point of it all: Adv must be far more robust than Std, and both must have learnt."""
    study = dataclasses.replace(
        tiny_study, train_images=None, pretrain_epochs=4, epochs=4, train_steps=4
    )
    threat = dataclasses.replace(study.threat("pgd40"), steps=10)
    models = {}
    for method in ("pretrained", "std", "adv", "adv_plus"):
        train_method(study, method, 0)
        models[method] = load_run(study, method, 0)[0]
    test = images_of(study, "test")
    clean = {m: metrics.error(t) for m, t in predict(models, test, num_classes=10).items()}
    robust = {
        method: metrics.error(evaluate_attack(model, test, threat, num_classes=10, dtype="float32"))
        for method, model in models.items()
    }
    assert max(clean.values()) < 0.15
    assert robust["std"] > 0.4
    assert robust["adv"] < robust["std"] - 0.2
    assert robust["adv_plus"] < robust["std"] - 0.2
    assert models["adv_plus"](torch.rand(1, 1, 8, 8)).shape == (1, 11)


@pytest.fixture(scope="module")
def start(tiny_study, tmp_path_factory):
    """The folder of the runs of the network that every method starts from."""
    folder = tmp_path_factory.mktemp("start")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADVLIB_RUNS", str(folder))
        train_method(tiny_study, "pretrained", 0)
    return folder


@pytest.mark.parametrize("method", [m for m, r in RECIPES.items() if r.objective == "standard"])
def test_every_method_trains_and_logs(tiny_study, start, method):
    shutil.copytree(start, tiny_study.runs.parent)
    facts = train_method(tiny_study, method, 0)
    log = (tiny_study.runs / "train" / f"{method}-seed0.csv").read_text().splitlines()
    assert log[0] == "study,method,seed,epoch,step,lr,loss,error,eps,images_per_second"
    assert log[-1].split(",")[3:5] == ["2.0", "10"]
    assert facts["n_images"] == 320 and len(facts["checkpoint_hash"]) == 16
    model, _ = load_run(tiny_study, method, 0)
    assert not model.training


def test_losses_of_the_methods(tiny_study, network):
    """Each method's loss against its definition, with an attack that changes nothing."""
    study = dataclasses.replace(tiny_study, eps=0.0, delta=0.1)
    x, y = torch.rand(16, 1, 8, 8), torch.randint(0, 10, (16,))
    wide = build_model("cifar_resnet8", num_classes=11, mean=(0.3,), std=(0.4,)).train()
    network.train()
    with torch.no_grad():
        plain, extra = network(x), wide(x)
        target = torch.zeros(16, 11)
        target[torch.arange(16), y], target[:, 10] = 0.9, 0.1
        eq_4, clean = F.cross_entropy(extra, target), F.cross_entropy(extra, y)
        expected = {
            "std": F.cross_entropy(plain, y),
            "adv": F.cross_entropy(plain, y),
            "adv_mix": F.cross_entropy(plain, y),
            "adv_smoothing": F.cross_entropy(plain, y, label_smoothing=0.1),
            "adv_extra_logit": clean,
            "adv_plus": eq_4,
            "adv_plus_mix": (eq_4 + clean) / 2,  # clean images carry no transformation
        }
    for method, value in expected.items():
        model = wide if RECIPES[method].extra_logits else network
        loss, error = loss_of(study, method, model, x, y)
        torch.testing.assert_close(loss.detach(), value, msg=method)
        assert 0 <= error <= 1


def test_adv_plus_climbs_eq_4_or_the_cross_entropy(tiny_study, monkeypatch):
    given = []

    def spy(model, x, y, threat, **options):
        given.append(options["objective"])
        return x

    monkeypatch.setattr(objective_step, "pgd_attack", spy)
    model = build_model("cifar_resnet8", num_classes=11, mean=(0.3,), std=(0.4,))
    x, y = torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 3])
    for objective in ("label_augmentation", "cross_entropy"):
        study = dataclasses.replace(tiny_study, train_objective=objective)
        loss_of(study, "adv_plus", model, x, y)
    assert given[0] is not None and given[1] is None
    logits = torch.randn(4, 11)
    target = torch.zeros(4, 11)
    target[torch.arange(4), y], target[:, 10] = 0.97, 0.03
    torch.testing.assert_close(
        given[0](logits, y), F.cross_entropy(logits, target, reduction="sum")
    )


def test_a_mixed_batch_normalises_each_half_by_itself(tiny_study):
    batches = []
    model = build_model("cifar_resnet8", num_classes=10, mean=(0.3,), std=(0.4,)).train()
    model.register_forward_hook(lambda m, args, out: batches.append((m.training, len(out))))
    x, y = torch.rand(8, 1, 8, 8), torch.randint(0, 10, (8,))
    loss_of(tiny_study, "adv_mix", model, x, y)
    assert [n for training, n in batches if training] == [8, 8]


def test_cosine_schedule_of_the_paper():
    rates = [cosine_lr(0.01, 1e-4, step, 100) for step in (0, 50, 100)]
    assert rates == pytest.approx([0.01, (0.01 + 1e-6) / 2, 1e-6])


def test_one_cycle_is_that_of_torch():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    cycle = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 0.2, total_steps=100, cycle_momentum=False, final_div_factor=1e4 / 25
    )
    for step in range(100):
        assert one_cycle_lr(0.2, 1e-4, step, 100) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if step < 99:
            cycle.step()


def test_pretraining_alone_follows_its_schedule(tiny_study, tmp_path):
    study = dataclasses.replace(tiny_study, pretrain_schedule="one_cycle")
    log = run(study, "pretrained", tmp_path)
    expected = [
        one_cycle_lr(study.pretrain_lr, 1e-4, step - 1, log.step.max()) for step in log.step
    ]
    assert log.lr.tolist() == pytest.approx(expected) and log.lr.max() > 1.1 * log.lr[0]
    for method in RECIPES:
        stated = "pretrain_schedule" in training_settings(study, method, 0, "", None)
        assert stated == (method == "pretrained")


def test_same_seed_same_weights_other_seed_other_weights(tiny_study, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        model = build_model("cifar_resnet8", num_classes=10, mean=(0.3,), std=(0.4,))
        run(tiny_study, "adv", tmp_path / name, model, seed=seed)
    a, b, c = (weights(tmp_path / name / "checkpoint.safetensors") for name in "abc")
    assert same(a, b) and not same(a, c)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    assert exit_code(train_digits, folder, "never", 0) == 0
    return load_file(folder / "checkpoint.safetensors")


@pytest.mark.parametrize("moment, step", [("step", 13), ("writing", 0)])
def test_killed_and_resumed_ends_with_the_same_weights(uninterrupted, tmp_path, moment, step):
    """SIGKILL between steps, and while a checkpoint is being written; the log has no gaps."""
    assert exit_code(train_digits, tmp_path, moment, step) == -signal.SIGKILL
    assert exit_code(train_digits, tmp_path, "never", 0) == 0
    killed = load_file(tmp_path / "checkpoint.safetensors")
    assert all(name.startswith("model.") for name in killed)  # as it is published
    assert same(uninterrupted, killed)
    steps = [line.split(",")[1] for line in (tmp_path / "log.csv").read_text().splitlines()[1:]]
    assert steps == [str(step) for step in range(1, 16)]


def test_two_processes_cannot_train_in_one_folder(tiny_study, tmp_path):
    said = f"another process is training in {re.escape(str(tmp_path))}"
    with filelock.FileLock(tmp_path / "lock"), pytest.raises(RuntimeError, match=said):
        run(tiny_study, folder=tmp_path)


def test_a_folder_of_another_run_is_refused(tiny_study, tmp_path):
    run(tiny_study, folder=tmp_path, settings={"lr": 1})
    with pytest.raises(RuntimeError, match="holds a run with other settings"):
        run(tiny_study, folder=tmp_path, settings={"lr": 2})


def test_without_settings_a_folder_belongs_to_recipe_training_seed_and_images(tiny_study, tmp_path):
    found = run(tiny_study, folder=tmp_path)
    assert run(tiny_study, folder=tmp_path).equals(found)
    changed = [{"epochs": 3}, {"lr": 0.2}, {"train_images": 200}]
    others = [(dataclasses.replace(tiny_study, **one), "std", 0) for one in changed]
    for study, method, seed in (*others, (tiny_study, "adv", 0), (tiny_study, "std", 1)):
        with pytest.raises(RuntimeError, match="holds a run with other settings"):
            run(study, method, tmp_path, seed=seed)


def test_nan_stops_and_keeps_the_last_good_checkpoint(tiny_study, tmp_path):
    good = run(dataclasses.replace(tiny_study, epochs=1), folder=tmp_path, settings={})
    assert len(good)
    kept = (tmp_path / "checkpoint.safetensors").read_bytes()
    changed = dataclasses.replace(tiny_study, epochs=3, lr=1e30)
    with pytest.raises(FloatingPointError, match=r"loss is .*lower the learning rate.*kept in"):
        run(changed, folder=tmp_path, settings={})
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == kept


def test_a_finished_run_is_found_and_a_changed_one_is_trained_beside_it(tiny_study, monkeypatch):
    first = train_method(tiny_study, "pretrained", 0)
    with monkeypatch.context() as patch:
        patch.setattr(train, "take_step", None)  # a second training would fail
        assert train_method(tiny_study, "pretrained", 0) == first
    changed = dataclasses.replace(tiny_study, pretrain_lr=0.2)
    second = train_method(changed, "pretrained", 0)
    assert second["folder"] != first["folder"]
    assert (tiny_study.runs / "models" / first["folder"]).is_dir()


def test_epsilon_changes_adv_and_not_std(tiny_study):
    other = dataclasses.replace(tiny_study, eps=0.05)
    hashes = [
        [digest(training_settings(study, method, 0, "data", "start")) for method in RECIPES]
        for study in (tiny_study, other)
    ]
    unchanged = {m for m, a, b in zip(RECIPES, *hashes, strict=True) if a == b}
    assert unchanged == {"pretrained", "std"}


def test_training_before_the_pretrained_network_says_what_to_run(tiny_study):
    with pytest.raises(FileNotFoundError, match="-p method pretrained -p seed 0"):
        train_method(tiny_study, "adv", 0)


def test_a_changed_checkpoint_is_refused(tiny_study):
    facts = train_method(tiny_study, "pretrained", 0)
    path = tiny_study.runs / "models" / facts["folder"] / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(RuntimeError, match="missing or has changed"):
        load_run(tiny_study, "pretrained", 0)


def flipped(path, place):
    """One bit of a file is another."""
    content = bytearray(path.read_bytes())
    content[place] ^= 4
    path.write_bytes(content)


def test_damage_is_never_blessed(tiny_study, monkeypatch):
    """A finished network that is damaged is refused until it is trained again, to the same bits."""
    trained = train_method(tiny_study, "pretrained", 0)
    path = tiny_study.runs / "models" / trained["folder"] / "checkpoint.safetensors"
    expected = {k: v.clone() for k, v in weights(path).items()}  # no view of the file
    for old in (False, True):  # and one of before there were digests
        if old:
            with safe_open(path, "pt") as file:
                facts = json.loads(file.metadata()["advlib"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}
            del facts["digest"]
            save_file(tensors, path, metadata={"advlib": json.dumps(facts)})
            assert train_facts(tiny_study, checkpoint_hash=file_hash(path))
            load_run(tiny_study, "pretrained", 0)
        flipped(path, -100)
        for _ in range(2):
            with pytest.raises(RuntimeError, match="train again, which sets it aside: papermill"):
                load_run(tiny_study, "pretrained", 0)
            with pytest.raises(RuntimeError, match="train again"):  # nor does another start from it
                train_method(tiny_study, "std", 0)
        with pytest.warns(UserWarning, match="safetensors is damaged .it has changed.*made anew"):
            again = train_method(tiny_study, "pretrained", 0)
        assert same(weights(path), expected) and again["folder"] == trained["folder"]
        assert path.with_name("checkpoint.safetensors.damaged").is_file()
        load_run(tiny_study, "pretrained", 0)


def train_facts(study, **change):
    path = study.runs / "train/pretrained-seed0.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    return change


@pytest.fixture(scope="module")
def stopped(tiny_study, tmp_path_factory):
    """A checkpoint of a run that was stopped half way, and what it ends with undisturbed."""
    folder = tmp_path_factory.mktemp("stopped")
    run(tiny_study, folder=folder / "whole")

    def stop(done):
        if done == 5:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        run(tiny_study, folder=folder, on_step=stop, checkpoint_seconds=0)
    return (folder / CHECKPOINT).read_bytes(), weights(folder / "whole" / CHECKPOINT)


@pytest.mark.parametrize("place", [3, 400, "loss", "cut", -3000])
def test_a_damaged_checkpoint_is_set_aside_and_training_starts_anew(
    tiny_study, tmp_path, stopped, place
):
    path, (content, expected) = tmp_path / CHECKPOINT, stopped
    path.write_bytes(content[:-1000] if place == "cut" else content)
    if place != "cut":
        flipped(path, content.index(b"loss") + 10 if place == "loss" else place)
    with pytest.warns(UserWarning, match="safetensors is damaged .* set aside as .*damaged"):
        log = run(tiny_study, folder=tmp_path)
    assert log.step.tolist() == list(range(1, 11))
    assert same(weights(path), expected)


def test_a_weight_that_is_no_number_is_named(tiny_study, tmp_path, network):
    with torch.no_grad():
        network.net[0].weight[0] = torch.nan
    with pytest.raises(FloatingPointError, match=r"^net.0.weight holds .* after step 0$"):
        save_checkpoint(tmp_path / "checkpoint.safetensors", {"model": network}, None, 0, [], {})


def test_a_full_disk_names_the_folder_and_keeps_what_was_there(tiny_study, tmp_path, table):
    path = tmp_path / "checkpoint.safetensors"
    run(dataclasses.replace(tiny_study, epochs=1), folder=tmp_path, settings={})
    kept = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1500, limits[1]))  # no file larger than that
    try:
        for name, write in (
            (path.name, lambda: run(tiny_study, folder=tmp_path, settings={})),
            (
                "t.parquet",
                lambda: write_predictions(table, tmp_path / "t.parquet", note="x" * 2000),
            ),
        ):
            said = f"{name} cannot be written to {tmp_path} .File too large.* choose another folder"
            with pytest.raises(OSError, match=said):
                write()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == kept
    assert write_predictions(table, tmp_path / "t.parquet").is_file()


def test_a_batch_larger_than_the_data_is_refused(tiny_study, tmp_path):
    with pytest.raises(ValueError, match="batch_size of at most 320"):
        run(dataclasses.replace(tiny_study, batch_size=321), folder=tmp_path)


def test_facts_are_plain_json(tiny_study):
    facts = train_method(tiny_study, "pretrained", 0)
    path = tiny_study.runs / "train" / "pretrained-seed0.json"
    assert json.loads(path.read_text()) == json.loads(json.dumps(facts))


def test_each_transformation_attacks_its_own_images_and_has_its_own_logit(tiny_study, monkeypatch):
    """M = 2: half of a batch by PGD, half by FGSM, and Eq. 4 says which."""
    changes = [{}, {"steps": 1, "step_size": 0.05, "random_start": False}]
    study = dataclasses.replace(tiny_study, transforms=changes, delta=0.2)
    assert study.num_transforms == 2
    seen = []

    def spy(model, x, y, threat, **options):
        seen.append((threat.steps, len(x), options["noise"] is None))
        target = torch.zeros(len(x), 12)
        target[torch.arange(len(x)), y], target[:, 10 + len(seen) - 1] = 0.8, 0.2
        logits = torch.randn(len(x), 12)
        expected = F.cross_entropy(logits, target, reduction="sum")
        torch.testing.assert_close(options["objective"](logits, y), expected)
        return x + 0.001 * len(seen)

    monkeypatch.setattr(objective_step, "pgd_attack", spy)
    model = build_model("cifar_resnet8", num_classes=12, mean=(0.3,), std=(0.4,)).train()
    x, y = torch.rand(6, 1, 8, 8), torch.randint(0, 10, (6,))
    given = []
    model.register_forward_hook(lambda m, args, out: given.append((args[0], out.detach())))
    loss, _ = loss_of(study, "adv_plus", model, x, y, noise=torch.zeros_like(x))
    assert seen == [(study.train_steps, 3, False), (1, 3, True)]
    images, logits = given[-1]
    turn = torch.tensor([0, 1] * 3)
    torch.testing.assert_close(images, x + 0.001 * (turn + 1).view(-1, 1, 1, 1))
    target = torch.zeros(6, 12)
    target[torch.arange(6), y], target[torch.arange(6), 10 + turn] = 0.8, 0.2
    torch.testing.assert_close(loss.detach(), F.cross_entropy(logits, target))


@pytest.mark.parametrize("pieces", [1, 3, 6, 12])
def test_images_take_turns_over_the_pieces_of_a_batch(tiny_study, network, monkeypatch, pieces):
    changes = [{}, {"steps": 1}, {"steps": 2}, {"steps": 4}, {"steps": 5}]
    study = dataclasses.replace(tiny_study, transforms=changes)
    attacked = {}

    def spy(model, x, y, threat, **options):
        attacked.setdefault(threat.steps, []).extend(x.flatten(1).amax(1).tolist())
        return x

    monkeypatch.setattr(objective_step, "pgd_attack", spy)
    x = torch.arange(12.0).view(-1, 1, 1, 1).expand(-1, 1, 8, 8) / 12
    y = torch.zeros(12, dtype=torch.long)
    steps.backward(*objective_and_step(study, "adv", network.eval(), x, y), pieces)
    for number, count in enumerate((study.train_steps, 1, 2, 4, 5)):
        expected = [float(value) for value in x[number::5, 0, 0, 0]]
        assert attacked[count] == pytest.approx(expected)


def test_any_network_trains_and_resumes(tiny_study, tmp_path):
    """Not only those of `build_model`, whose weights start with net."""
    layers = [torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Flatten()]
    model = torch.nn.Sequential(*layers, torch.nn.Linear(144, 10))
    run(dataclasses.replace(tiny_study, epochs=1), folder=tmp_path, network=model)
    trained = {k: v.clone() for k, v in model.state_dict().items()}
    other = torch.nn.Sequential(*layers, torch.nn.Linear(144, 10))
    run(dataclasses.replace(tiny_study, epochs=1), folder=tmp_path, network=other)
    assert same(trained, other.state_dict())


@pytest.mark.parametrize(
    "method, outputs, said",
    [
        ("adv_plus", 10, "10 class logits and 1 for transformations, this one has 10"),
        ("std", 11, "10 class logits and 0 for transformations, this one has 11"),
    ],
)
def test_a_network_that_does_not_fit_the_method_is_refused(
    tiny_study, tmp_path, method, outputs, said
):
    model = build_model("cifar_resnet8", num_classes=outputs, mean=(0.3,), std=(0.4,))
    with pytest.raises(ValueError, match=said):
        run(tiny_study, method, tmp_path, model)


def test_float32_gradients_are_computed_without_tf32(tiny_study, tmp_path, network):
    seen = []
    network.net[-1].register_full_backward_hook(
        lambda *_: seen.append(torch.backends.cudnn.allow_tf32)
    )
    study = dataclasses.replace(tiny_study, epochs=1, dtype="float32")
    run(study, folder=tmp_path, network=network)
    assert seen and not any(seen)


def test_the_training_attack_can_leave_the_predicted_label(tiny_study):
    """The objective of Adv⁺ must then climb away from the prediction, not from the label."""
    study = dataclasses.replace(tiny_study, train_label_source="predicted", eps=0.2)
    model = build_model("cifar_resnet8", num_classes=11, mean=(0.3,), std=(0.4,)).eval()
    x = torch.rand(32, 1, 8, 8)
    with torch.no_grad():
        predicted = model(x)[:, :10].argmax(1)
    y = (predicted + 1) % 10  # every image is misclassified
    given = {}
    for source in ("predicted", "true"):
        images = []
        hook = model.register_forward_hook(lambda m, args, out, to=images: to.append(args[0]))
        changed = dataclasses.replace(study, train_label_source=source)
        loss_of(changed, "adv_plus", model, x, y)
        hook.remove()
        with torch.no_grad():
            given[source] = F.cross_entropy(model(images[-1])[:, :10], predicted)
    assert given["predicted"] > given["true"] + 0.01


def test_a_random_start_is_drawn_whatever_the_first_attack_has(tiny_study):
    changes = [{"random_start": False}, {}]
    training = training_of(dataclasses.replace(tiny_study, transforms=changes), "adv_plus")
    noise = steps.starts(torch.zeros(64, 1, 8, 8), training, 0, 0, 0)
    assert noise.unique().numel() > 1000


def test_an_attack_in_training_mode_sees_the_statistics_of_its_batch(tiny_study, network):
    """A folded network, which attacks otherwise see, has none."""
    x, y = torch.rand(16, 1, 8, 8), torch.arange(16) % 10
    networks = Networks(network, training_of(tiny_study, "adv"), 10, radii=[])
    networks = dataclasses.replace(networks, attacked=folding(network, x))
    how = {"eps": 0.1, "random_start": False, "success": "last"}
    for mode in ("train", "eval"):
        threat = ThreatModel(model_mode=mode, **how)
        found, _ = Step(x, y, None, None, networks).attack(threat=threat)
        expected = pgd_attack(network, x, y, threat, num_classes=10)
        assert ((found - expected).abs() < 1e-6).float().mean() > 0.99


def test_an_ablation_is_trained_as_its_method_with_its_changes(tiny_study):
    ablations = {"wide": {"method": "adv_plus", "transforms": [{}, {"eps": 0.05}]}}
    ablations |= {"same": {"method": "adv_plus"}}
    plain = dataclasses.replace(tiny_study, epochs=1)
    study = dataclasses.replace(plain, methods=["pretrained", "adv"], ablations=ablations)
    train_method(plain, "pretrained", 0)
    runs = {"adv_plus": train_method(plain, "adv_plus", 0)}
    runs |= {m: train_method(study, m, 0) for m in ("same", "wide")}
    assert runs["same"]["settings"] == runs["adv_plus"]["settings"]
    models = {m: load_run(study, m, 0)[0] for m in runs}
    image = torch.rand(2, 1, 8, 8)
    assert torch.equal(models["same"](image), models["adv_plus"](image))
    assert models["wide"](image).shape == (2, 12)
    assert [t["eps"] for t in runs["wide"]["settings"]["threat"]] == [study.eps, 0.05]
