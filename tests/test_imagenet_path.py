"""What a full-size study adds: large images, networks by name, weights from files; no network."""

import dataclasses
import os
import signal

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from advbook.studies.evaluate import clean_predictions
from advbook.studies.inputs import images_of
from advbook.studies.runs import load_run, train_method
from advbook.studies.schema import make_study
from advlib.data import fetch
from advlib.data.batches import training_batches
from advlib.data.sets import load_dataset
from advlib.networks.build import build_model
from advlib.predictions import predict
from processes import exit_code, train_with_dropout

timm = pytest.importorskip("timm")
HALF = (0.5, 0.5, 0.5)
WNIDS = ("n01440764", "n02102040", "n03888257")  # classes 0, 217 and 701


@pytest.fixture(autouse=True)
def isolated(tmp_path, monkeypatch):
    monkeypatch.delenv("ADVLIB_DATA", raising=False)
    monkeypatch.setattr(fetch, "DATA", tmp_path / "project" / "data")


def write_tree(root, classes, side, per_class=4, test="val"):
    rng = np.random.default_rng(0)
    for split in ("train", test):
        for name in classes:
            (root / split / name).mkdir(parents=True)
            for i in range(per_class):
                pixels = rng.integers(0, 256, (side, side + 20, 3), np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{name}_{split}{i}.png")
    return root


@pytest.fixture(scope="session")
def imagenet(tmp_path_factory):
    return write_tree(tmp_path_factory.mktemp("data") / "imagenet", WNIDS, 140)


@pytest.fixture(scope="session")
def lite0(tmp_path_factory):
    """EfficientNet-Lite0 for 1,000 classes as timm makes it, and the file of its weights."""
    torch.manual_seed(0)
    net = timm.create_model("tf_efficientnet_lite0").eval()
    path = tmp_path_factory.mktemp("weights") / "lite0.pth"
    torch.save({"epoch": 9, "state_dict": net.state_dict()}, path)
    return net, path


@pytest.fixture
def study(imagenet, lite0):
    """Lite0 as it is, and one step of fine-tuning, on 12 images of three classes."""
    return make_study(
        dict(
            study="full",
            dataset="imagenet",
            data_dir=str(imagenet),
            model="timm/tf_efficientnet_lite0",
            weights=str(lite0[1]),
            image_size=112,
            methods=["pretrained", "adv", "adv_plus"],
            epochs=1,
            batch_size=12,
            train_steps=1,
            corruptions="none",
            dtype="float32",
        )
    )


# --- images -----------------------------------------------------------------------------------


def test_interpolation_is_pillows(tmp_path):
    root = write_tree(tmp_path / "tree", ("a", "b"), 200, 1)
    found = {}
    for name, filter in (("bilinear", Image.BILINEAR), ("bicubic", Image.BICUBIC)):
        images = load_dataset(
            "folder", "test", data_dir=root, image_size=112, resize=128, interpolation=name
        )
        with Image.open(images.paths[1]) as file:
            scaled = file.resize((round(220 * 128 / 200 - 0.5), 128), filter)
        left = round((scaled.width - 112) / 2)
        expected = np.array(scaled)[8:120, left : left + 112].transpose(2, 0, 1)
        assert np.array_equal(images.decode(1).numpy(), expected)
        assert images.subset([1]).interpolation == name
        found[name] = images.decode(1)
    assert not torch.equal(*found.values())


def test_cached_images_are_kept_apart_by_interpolation(tmp_path):
    root = write_tree(tmp_path / "tree", ("a", "b"), 60, 1)

    def load(interpolation):
        given = dict(data_dir=root, image_size=32, resize=36, interpolation=interpolation)
        return load_dataset("folder", "train", **given).pixels

    first, second, default = load("bilinear"), load("bicubic"), load(None)
    assert not torch.equal(first, second) and torch.equal(first, default)
    assert len(list((fetch.DATA / "cache").glob("folder-*"))) == 2
    assert torch.equal(load("bicubic"), second)


def test_training_crops_interpolate_as_the_evaluation(imagenet):
    found = []
    for name in ("bilinear", "bicubic"):
        given = dict(data_dir=imagenet, image_size=112, interpolation=name)
        images = load_dataset("imagenet", "train", **given)
        batches = training_batches(
            images, batch_size=4, seed=0, epoch=0, augment="random_resized_crop"
        )
        found.append(next(batches)[0])
    assert not torch.equal(*found) and (found[0] - found[1]).abs().mean() < 0.1


# --- a network of timm's from a file ----------------------------------------------------------


def test_the_weights_decide_how_images_are_prepared(study, lite0):
    run = train_method(study, "pretrained", 0)
    start = run["settings"]["start"]
    assert start["mean"] == start["std"] == [0.5] * 3
    assert (start["resize"], start["image_size"], start["interpolation"]) == (256, 224, "bicubic")
    assert len(start["weights"]) == 16
    images = images_of(study, "test")
    assert (images.resize, images.image_size, images.interpolation) == (128, 112, "bicubic")
    model, _ = load_run(study, "pretrained", 0)
    table = predict({"it": model}, images, num_classes=1000)["it"]
    with torch.no_grad():
        x = torch.stack([images[i][0] for i in range(len(images))])
        expected = lite0[0]((x - 0.5) / 0.5).softmax(1).max(1)
    assert table.predicted_class.tolist() == expected.indices.tolist()
    np.testing.assert_allclose(table.predicted_probability, expected.values, rtol=1e-4)
    assert table.label.tolist() == [0] * 4 + [217] * 4 + [701] * 4


def test_a_studys_own_mean_is_another_run(study, capsys):
    ours = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    first = train_method(study, "pretrained", 0)
    assert "128 px (bicubic), centre 112 px; mean 0.5, 0.5, 0.5" in capsys.readouterr().out
    changed = dataclasses.replace(study, **ours)
    second = train_method(changed, "pretrained", 0)
    assert "mean 0.485, 0.456, 0.406 and SD 0.229" in capsys.readouterr().out
    assert first["folder"] != second["folder"]
    model, _ = load_run(changed, "pretrained", 0)
    assert model.normalize.mean.flatten().tolist() == pytest.approx(ours["mean"])


@pytest.mark.parametrize("method, outputs", [("adv", 1000), ("adv_plus", 1001)])
def test_fine_tuning_loads_what_it_trained(study, lite0, method, outputs):
    run = train_method(study, method, 0)
    model, _ = load_run(study, method, 0)
    path = study.runs / "models" / run["folder"] / "checkpoint.safetensors"
    state = {f"model.{k}": v for k, v in model.state_dict().items()}
    stored = load_file(path)
    assert all(torch.equal(state[k], stored[k]) for k in state)
    assert model.normalize.mean.flatten().tolist() == [0.5] * 3
    head = model.net.classifier.weight
    assert len(head) == outputs
    moved = (head[:1000] - lite0[0].classifier.weight).abs().max()
    assert 0 < moved < 0.1  # fine-tuned, from these weights


def test_a_head_for_other_classes_is_trained_first(study, tmp_path):
    root = write_tree(tmp_path / "tree", ("ape", "bee"), 140, 6)
    other = dataclasses.replace(study, dataset="folder", data_dir=str(root))
    with pytest.raises(ValueError, match="for 1000 classes, the data have 2: set pretrain_epochs"):
        train_method(other, "pretrained", 0)
    other = dataclasses.replace(other, pretrain_epochs=1)
    train_method(other, "pretrained", 0)
    train_method(other, "adv_plus", 0)
    assert load_run(other, "adv_plus", 0)[0].net.classifier.out_features == 3


def test_images_of_one_channel_are_refused(study):
    grey = dataclasses.replace(study, dataset="digits", image_size=None, pretrain_epochs=1)
    with pytest.raises(ValueError, match="normalises 3 channels, the images of Digits have 1"):
        train_method(grey, "pretrained", 0)


# --- the user's own networks ------------------------------------------------------------------


@pytest.fixture
def brought(imagenet):
    """A function that makes a study of one's own small network, from a file."""

    def study(path, **more):
        given = dict(study="own", dataset="imagenet", data_dir=str(imagenet), corruptions="none")
        given |= dict(
            model="mobilenetv3_small_050", image_size=112, checkpoints={"mine": str(path)}
        )
        return make_study(given | more)

    return study


def network(num_classes):
    name = "timm/mobilenetv3_small_050"
    return build_model(name, num_classes=num_classes, mean=HALF, std=HALF, seed=4)


@pytest.mark.parametrize("outputs", [1000, 1001, 1003])
def test_brought_networks_are_taken_as_they_are(brought, tmp_path, outputs, capsys):
    model = network(outputs)
    torch.save(model.net.state_dict(), tmp_path / "mine.pt")
    given = dict(mean=list(HALF), std=list(HALF), num_transforms=max(1, outputs - 1000))
    study = brought(tmp_path / "mine.pt", **given)
    run = train_method(study, "mine", 0)
    said = capsys.readouterr().out
    assert ("1000 classes, then" in said) == (outputs > 1000)
    again, _ = load_run(study, "mine", 0)
    x = torch.rand(2, 3, 112, 112)
    assert torch.equal(again(x), model(x)) and again(x).shape == (2, outputs)
    assert (study.runs / "train" / "mine-seed0.csv").is_file()
    model.net.conv_stem.weight.data.add_(1)
    torch.save(model.net.state_dict(), tmp_path / "mine.pt")
    assert train_method(study, "mine", 0)["folder"] != run["folder"]


def test_images_changed_in_place_are_evaluated_again(brought, tmp_path):
    """BMP files of one name, size and time: parts of the evaluation before must not answer."""
    root = tmp_path / "photos"
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (root / "test" / name).mkdir(parents=True)
        for i in range(4):
            pixels = rng.integers(0, 256, (112, 112, 3), np.uint8)
            Image.fromarray(pixels).save(root / "test" / name / f"{i}.bmp")
    torch.save(network(2).net.state_dict(), tmp_path / "mine.pt")
    given = dict(dataset="folder", data_dir=str(root), mean=list(HALF), std=list(HALF))
    study = brought(tmp_path / "mine.pt", **given)
    train_method(study, "mine", 0)

    def probabilities():
        (path,) = clean_predictions(study).values()
        return pd.read_parquet(path).predicted_probability.tolist()

    before = probabilities()
    for path in root.rglob("*.bmp"):
        status = path.stat()
        Image.fromarray(255 - np.array(Image.open(path))).save(path)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    after = probabilities()
    assert after != before


def test_a_checkpoint_of_this_project_brings_its_normalisation(brought, study, tmp_path):
    run = train_method(study, "adv_plus", 0)
    path = study.runs / "models" / run["folder"] / "checkpoint.safetensors"
    own = brought(path, model="timm/tf_efficientnet_lite0")
    train_method(own, "mine", 0)
    x = torch.rand(1, 3, 112, 112)
    expected = load_run(study, "adv_plus", 0)[0](x)
    assert torch.equal(load_run(own, "mine", 0)[0](x), expected)
    other = dataclasses.replace(own, mean=[0.1] * 3, std=[0.1] * 3)
    with pytest.raises(ValueError, match="mean is .* in the study, but .*leave mean and std out"):
        train_method(other, "mine", 0)


def test_brought_networks_of_other_shape_say_so(brought, tmp_path):
    torch.save(network(1002).net.state_dict(), tmp_path / "a.pt")
    with pytest.raises(ValueError, match="has 1002 outputs: expected 1000, .* or 1001 with"):
        train_method(brought(tmp_path / "a.pt"), "mine", 0)
    with pytest.raises(ValueError, match="do not fit this model"):
        train_method(brought(tmp_path / "a.pt", model="resnet18"), "mine", 0)
    with pytest.raises(FileNotFoundError, match="gone.pt"):
        train_method(brought(tmp_path / "gone.pt"), "mine", 0)


# --- networks with dropout --------------------------------------------------------------------


def test_dropout_is_resumed_and_belongs_to_the_seed(tmp_path):
    """MobileNet drops a fifth of its features; another process draws other numbers globally."""
    root = write_tree(tmp_path / "tree", ("a", "b"), 40, 6)

    def start(folder, kill, noise):
        return exit_code(train_with_dropout, tmp_path / folder, root, kill, noise)

    assert start("whole", -1, 1) == 0
    assert start("killed", 2, 2) == -signal.SIGKILL
    assert start("killed", -1, 3) == 0
    whole, killed = (
        load_file(tmp_path / name / "checkpoint.safetensors") for name in ("whole", "killed")
    )
    assert all(torch.equal(whole[k], killed[k]) for k in whole | killed)
