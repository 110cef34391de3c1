"""The samples table: which images, what is kept of each, and the page that shows it."""

import dataclasses
import io
import json
import re
import shutil

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from advbook.build import pages
from advbook.charts import pictures as charts_gallery
from advbook.charts.base import METHOD_COLOURS
from advbook.studies.identity import data_settings, training_settings
from advbook.studies.inputs import images_of
from advbook.studies.runs import load_run, train_method
from advbook.studies.samples import (
    coarse_share,
    coarse_share_of_noise,
    decode_png,
    encode_png,
    make_samples,
    mean_over_images,
    read_samples,
    sample_positions,
)
from advbook.studies.schema import load_study
from advlib.attacks.pgd import classify
from advlib.attacks.worst_case import evaluate_attack
from advlib.importing import read_predictions
from advlib.networks.device import default_device
from advlib.predictions import read_facts

QUICK = load_study("fashion_mnist_quick")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A tiny study of the digits, its three networks trained, and the folder of its runs."""
    study = dataclasses.replace(
        load_study("digits"),
        methods=["pretrained", "std", "adv_plus"],
        **{"train_images": 320, "test_images": 100, "pretrain_epochs": 2, "epochs": 1},
        train_steps=3,
    )
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADVLIB_RUNS", str(folder))
        for method in study.methods:
            train_method(study, method, 0)
        train, test = images_of(study, "train"), images_of(study, "test")
        record = {"train": {"fingerprint": train.fingerprint, "images": len(train)}}
        record |= {"test": {"fingerprint": test.fingerprint, "images": len(test)}}
        record |= {"class_names": test.class_names, "settings": data_settings(study)}
        (study.runs / "data.json").write_text(json.dumps(record))
        make_samples(study)
    return study, folder


@pytest.fixture
def study(made):
    """The tiny study; its runs are this test's own."""
    study, folder = made
    shutil.copytree(folder / study.study, study.runs)
    return study


# --- which images ---------------------------------------------------------------------------------


def test_images_are_chosen_by_their_names_alone():
    labels = np.repeat(np.arange(10), 20)
    names = np.array([f"test-{i:05d}" for i in range(200)])
    chosen = sample_positions(names, labels, 28)
    assert np.bincount(labels[chosen]).tolist() == [3] * 10
    shuffled = np.random.default_rng(0).permutation(200)
    again = sample_positions(names[shuffled], labels[shuffled], 28)
    assert set(names[shuffled][again]) == set(names[chosen])
    # Neither the first images of a class, nor the same places in every class.
    assert len({i % 20 for i in chosen}) > 6


@pytest.mark.parametrize(
    "classes, side, each, count",
    [(10, 65, 1, 10), (4, 224, 3, 12), (2, 28, 3, 6), (1000, 28, 1, 30), (1000, 224, 1, 12)],
)
def test_large_images_and_many_classes_have_fewer(classes, side, each, count):
    labels = np.arange(5000) % classes
    chosen = sample_positions([f"{i}.png" for i in range(5000)], labels, side)
    assert len(chosen) == len(set(chosen)) == count
    assert np.bincount(labels[chosen]).max() == each


# --- what is kept ---------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 5, 8), (3, 7, 4)])
def test_png_is_what_others_read(shape):
    pixels = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    png = encode_png(pixels)
    theirs = np.array(Image.open(io.BytesIO(png)))
    assert theirs.shape == (shape[1:] if shape[0] == 1 else (*shape[1:], 3))
    np.testing.assert_array_equal(theirs.reshape(*shape[1:], shape[0]).transpose(2, 0, 1), pixels)
    np.testing.assert_array_equal(decode_png(png), pixels)


def test_samples_hold_the_images_and_what_the_attack_does_to_them(study):
    samples, images = read_samples(study, "fresh"), images_of(study, "test")
    assert len(samples) == 3 * 30 and samples.groupby(["method", "label"]).size().eq(3).all()
    place = {name: i for i, name in enumerate(images.file_names)}
    chosen = [place[name] for name in samples.file_name]
    assert samples.label.tolist() == images.labels[chosen].tolist()
    pixels = np.stack([decode_png(png) for png in samples.image])
    np.testing.assert_array_equal(pixels, images.pixels[chosen].numpy())
    # White is +ε, black -ε: nothing leaves [0, 1] by more than the rounding, and most is used.
    delta = study.eps * (np.stack([decode_png(p) for p in samples.perturbation]) / 127.5 - 1)
    half = study.eps / 255 + 1e-9
    assert np.abs(delta).max() == study.eps == samples.scale.unique()
    attacked = pixels / 255 + delta
    assert attacked.min() >= -half and attacked.max() <= 1 + half
    assert (np.abs(delta) > 0.9 * study.eps).mean() > 0.3


def test_samples_are_those_of_the_attack_on_the_whole_data_set(study):
    samples, images = read_samples(study, "fresh"), images_of(study, "test")
    for method, found in samples.groupby("method"):
        model, _ = load_run(study, method, 0)
        threat, k = study.threat("pgd40_last"), images.num_classes
        whole = evaluate_attack(model, images, threat, num_classes=k, dtype="float32")
        whole = whole.set_index("file_name").loc[found.file_name]
        assert found.adversarial_class.tolist() == whole.predicted_class.tolist()
        expected = whole.predicted_probability.to_numpy()
        np.testing.assert_allclose(found.adversarial_probability, expected, atol=1e-3)
        assert (whole.linf > 0).any()


def test_clean_answers_are_the_networks_on_the_kept_pixels(study):
    samples = read_samples(study, "fresh")
    for method, found in samples.groupby("method"):
        model, run = load_run(study, method, 0)
        x = torch.tensor(np.stack([decode_png(png) for png in found.image])) / 255
        x = x.to(default_device())
        seen, probability = classify(model.to(x.device), x, run["num_classes"], 30)
        assert found.predicted_class.tolist() == seen.tolist()
        np.testing.assert_allclose(found.predicted_probability, probability.cpu(), atol=1e-5)


def test_the_same_networks_give_the_same_bytes(study):
    before = (study.runs / "samples.parquet").read_bytes()
    assert make_samples(study).read_bytes() == before


def test_under_l2_the_largest_change_is_black_or_white(study):
    other = dataclasses.replace(study, norm="L2", eps=0.5)
    # The networks stay those of the study, as if they had been trained so: the attack is another.
    for file in (study.runs / "train").glob("*.json"):
        run = json.loads(file.read_text(encoding="utf-8"))
        was = {key: run["settings"][key] for key in ("seed", "data", "start")}
        run["settings"] = training_settings(other, run["method"], **was)
        file.write_text(json.dumps(run), encoding="utf-8")
    table = pq.read_table(made := make_samples(other)).to_pandas()
    assert read_facts(made)["threat"]["norm"] == "L2"
    assert table.scale.between(0.03, 0.5).all() and table.scale.nunique() > 10
    for row in table.itertuples():
        delta = row.scale * (decode_png(row.perturbation) / 127.5 - 1)
        assert np.linalg.norm(delta) < 0.5 + 8 * row.scale / 255
        assert np.abs(delta).max() > 0.99 * row.scale


# --- which tables are refused ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "change, said",
    [
        ({"eps": 0.05}, "another threat: run `make book STUDY=digits`"),
        ({"lr": 0.5}, "another lr: run"),
        ({"methods": ["pretrained", "std"]}, "of other methods or another seed"),
        ({"seeds": [1]}, "of other methods or another seed"),
        ({"test_images": 50}, "data.json is of other images"),
    ],
)
def test_samples_of_another_study_are_refused(study, change, said):
    with pytest.raises(ValueError, match=said):
        read_samples(dataclasses.replace(study, **change), "fresh")


def test_samples_of_another_network_are_refused(study):
    path = study.runs / "train/std-seed0.json"
    run = json.loads(path.read_text())
    path.write_text(json.dumps(run | {"checkpoint_hash": "new"}))
    with pytest.raises(ValueError, match="a network trained before this one: run `make book"):
        read_samples(study, "fresh")


def test_missing_samples_leave_the_other_parts(study):
    assert pages.tables_shown(study, [])["fresh"] == ["samples"]
    (study.runs / "samples.parquet").unlink()
    with pytest.raises(FileNotFoundError, match="samples.parquet is missing: run `make book"):
        read_samples(study, "fresh")
    assert "fresh" not in pages.tables_shown(study, [])
    assert pages.tables_shown(study, ["samples"])["fresh"] == ["samples"]  # it is being made


# --- the published table --------------------------------------------------------------------------


def test_published_samples_are_small_and_of_the_published_networks():
    samples = read_samples(QUICK, "committed")
    assert (QUICK.published / "samples.parquet").stat().st_size < 400_000
    for method, found in samples.groupby("method"):
        model, run = load_run(QUICK, method, 0, "committed")
        x = torch.tensor(np.stack([decode_png(png) for png in found.image])) / 255
        seen, probability = classify(model, x, run["num_classes"], 30)
        assert found.predicted_class.tolist() == seen.tolist()
        np.testing.assert_allclose(found.predicted_probability, probability, atol=1e-4)
        clean = read_predictions(QUICK.published / f"predictions/clean/{method}-seed0.parquet")
        clean = clean.astype({"file_name": str}).set_index("file_name").loc[found.file_name]
        assert found.label.tolist() == clean.label.tolist()
        assert found.predicted_class.tolist() == clean.predicted_class.tolist()


def test_the_published_network_gives_its_extra_logit_little_of_clean_and_attacked_images_alike():
    """What the page *Why little was to be expected* says, which is built without torch."""
    study = load_study("cifar10")
    samples = read_samples(study, "committed").query("method == 'adv_plus'")
    model, _ = load_run(study, "adv_plus", 0, "committed")
    clean = np.stack([decode_png(png) for png in samples.image]) / 255
    change = np.stack([decode_png(png) for png in samples.perturbation]) / 127.5 - 1
    attacked = clean + change * samples.scale.to_numpy()[:, None, None, None]
    for images, said in ((clean, 0.022), (attacked, 0.025)):
        with torch.no_grad():
            p_t = model(torch.tensor(images, dtype=torch.float32)).softmax(1)[:, 10:].sum(1)
        assert len(p_t) == 30 and p_t.mean().item() == pytest.approx(said, abs=5e-4)


# --- what is measured and shown -------------------------------------------------------------------


def test_coarse_share_of_known_waves():
    i, j = np.mgrid[:32, :32]

    def share(values):
        return coarse_share(encode_png(np.rint(127.5 + 100 * values)[None]))

    assert share(np.sin(2 * np.pi * i / 16)) > 0.999
    assert share(np.sin(2 * np.pi * (i + j) / 8)) < 0.001  # 5.7 px from crest to crest
    both = np.sin(2 * np.pi * i / 16) / 2 + np.sin(np.pi * j / 2 + 0.5) / 2
    assert share(both) == pytest.approx(0.5, abs=0.01)
    assert np.isnan(share(np.full((32, 32), 0.5)))  # a mean change alone has no waves


def test_noise_has_the_share_of_the_dashed_line():
    noise = np.random.default_rng(0).integers(0, 256, (300, 3, 28, 28))
    pngs = [encode_png(pixels) for pixels in noise]
    assert np.mean([coarse_share(png) for png in pngs]) == pytest.approx(
        coarse_share_of_noise(pngs[0]), abs=0.001
    )


def test_the_interval_over_images_is_students():
    shares = pd.DataFrame({"method": "std", "share": [0.1, 0.2, 0.3, 0.4]})
    row = mean_over_images(shares).iloc[0]
    # t(0.975, 3) = 3.182, and the standard error is 0.1291 / 2.
    assert [row.value, row.low, row.high] == pytest.approx([0.25, 0.0446, 0.4554], abs=1e-4)


def test_the_gallery_shows_every_image_of_every_method():
    samples = read_samples(QUICK, "committed")
    html = charts_gallery.gallery(samples, QUICK.names, list(map(str, range(10))))
    images = re.findall(r"<img [^>]*>", html)
    assert len(images) == 30 + 2 * len(samples)
    assert all(re.search(r'alt="[^"]+" src="data:image/png;base64,', image) for image in images)
    assert "http" not in html and "<script" not in html
    assert len(re.findall(r"<input [^>]* checked>", html)) == 1
    right = (samples.label == samples.adversarial_class).sum()
    assert sum('class="dark-light right"' in image for image in images) == right
    right += (samples.label == samples.predicted_class).sum()
    assert html.count('aria-label="right"') == right


def test_names_cannot_break_the_page():
    samples = read_samples(QUICK, "committed")
    samples = samples.assign(file_name="a/<b>" + samples.file_name)
    class_names = [f'<"{i}">' for i in range(10)]
    html = charts_gallery.gallery(samples, {"std": "<i>Std"}, class_names)
    assert f"--method: {METHOD_COLOURS['std']}" in html  # whatever its title
    assert "&lt;&quot;3&quot;&gt;" in html and "&lt;i&gt;Std" in html
    assert not re.search(r'<"|<i>|<b>', html)


def test_large_images_are_thinned_to_the_weight_of_a_page():
    pixels = np.random.default_rng(0).integers(0, 256, (3, 224, 224))
    png = encode_png(pixels)
    rows = {"label": range(12), "file_name": list("abcdefghijkl"), "image": png, "scale": 0.03}
    samples = pd.DataFrame(rows | {"perturbation": png}).merge(
        pd.DataFrame({"method": list("wxyz")}), how="cross"
    )
    answers = {f"{which}_class": 0 for which in ("predicted", "adversarial")}
    answers |= {f"{which}_probability": 0.5 for which in ("predicted", "adversarial")}
    samples = samples.assign(**answers)
    class_names = [str(i) for i in range(1000)]
    html = charts_gallery.gallery(samples, {name: name for name in "wxyz"}, class_names)
    assert 500_000 < len(html) <= charts_gallery.MOST
    step = int(re.search(r"Of every (\d+) × \1 pixels one", html)[1])
    assert step > 1 and html.count("<img") == 12 * 9
