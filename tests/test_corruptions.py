"""Corrupted images: generated ones against the library itself, published ones as they unpack."""

import os
import shutil
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from advlib.data import corrupting, corruptions, fetch
from advlib.data.batches import evaluation_batches, stream_seed
from advlib.data.corruptions import CORRUPTIONS, SEVERITIES, corrupted, prepare
from advlib.data.published_sets import locate_published
from advlib.data.sets import DataError, Images, load_dataset
from advlib.data.vision import torchvision
from advlib.files import replacing

ALL = [(corruption, severity) for corruption in CORRUPTIONS for severity in SEVERITIES]
SOME = [(c, 4) for c in CORRUPTIONS]  # every function, with each generator it draws from
TWO = [("contrast", 2), ("gaussian_noise", 3)]


class InProcess:
    """In place of a pool of processes, each of which takes seconds to import what it needs."""

    def __init__(self, *_, **__):
        pass

    def map(self, function, *columns):
        return map(function, *columns)

    def shutdown(self, **_):
        pass


@pytest.fixture(autouse=True)
def isolated(tmp_path, monkeypatch):
    monkeypatch.delenv("ADVLIB_DATA", raising=False)
    monkeypatch.setattr(fetch, "DATA", tmp_path / "project" / "data")
    monkeypatch.setattr(corruptions, "ProcessPoolExecutor", InProcess)


def in_memory(pixels, names=None, labels=None, positions=None):
    n = len(pixels)
    return Images(
        title="Ten things",
        source="made up",
        labels=np.arange(n) % 10 if labels is None else labels,
        file_names=names or [f"test-{i:05d}" for i in range(n)],
        class_names=[f"thing {i}" for i in range(10)],
        pixels=pixels,
        positions=positions,
    )


def smooth(n, side, channels=3, seed=0):
    """Random images with some structure, uint8 (n, channels, side, side)."""
    coarse = np.random.default_rng(seed).integers(0, 256, (n, channels, 4, 4), dtype=np.uint8)
    return coarse.repeat(side // 4, 2).repeat(side // 4, 3)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """20 digits under all 75 conditions: (clean images, pixels by condition, facts)."""
    images = load_dataset("digits", "test", n_images=20)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fetch, "DATA", tmp_path_factory.mktemp("digits"))
        patch.setattr(corruptions, "ProcessPoolExecutor", InProcess)
        facts = prepare(images)
        found = {c: corrupted(images, *c) for c in ALL}
    return images, found, facts


# --- generated ----------------------------------------------------------------------------------


def test_every_condition_has_the_images_in_order(digits):
    images, found, facts = digits
    for condition, got in found.items():
        assert got.pixels.dtype == torch.uint8 and got.pixels.shape == images.pixels.shape
        assert got.file_names == images.file_names and torch.equal(got.labels, images.labels)
        assert (got.title, got.class_names) == (images.title, images.class_names)
        if condition[0] not in ("pixelate", "zoom_blur"):
            assert not torch.equal(got.pixels, images.pixels), condition
    assert len({got.fingerprint for got in found.values()}) > 65
    assert facts["source"] == "generated" and facts["n_images"] == 20
    assert facts["library"].startswith("imagecorruptions-imaug ") and facts["folder"] is None
    x, y, _ = next(evaluation_batches(found["fog", 3], batch_size=7))
    assert x.shape == (7, 1, 8, 8) and 0 <= x.min() and x.max() <= 1
    assert torch.equal(y, images.labels[:7])


@pytest.mark.parametrize(
    "corruption",
    ["gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "brightness", "contrast"],
)
def test_change_grows_with_severity(digits, corruption):
    images, found, _ = digits
    clean = images.pixels.float()
    change = [(found[corruption, s].pixels.float() - clean).abs().mean() for s in SEVERITIES]
    assert change == sorted(change) and change[0] > 0


def test_an_image_is_corrupted_alike_in_any_company(digits, monkeypatch):
    images, found, _ = digits
    chosen = [13, 2, 17, 5]
    monkeypatch.setattr(corruptions, "CONDITIONS", SOME[::-1])
    prepare(images.subset(chosen))
    for condition in SOME:
        got = corrupted(images.subset(chosen), *condition).pixels
        assert torch.equal(got, found[condition].pixels[chosen]), condition


def test_agrees_with_the_library(monkeypatch):
    import imagecorruptions

    # glass_blur compiles itself anew for most severities: one of them will do.
    conditions = [c for c in ALL if c[0] != "glass_blur" or c[1] == 4]
    monkeypatch.setattr(corruptions, "CONDITIONS", conditions)
    images = in_memory(smooth(2, 32), ["n01/a.png", "n02/b.png"])
    prepare(images)
    for corruption, severity in conditions:
        got = corrupted(images, corruption, severity).pixels.numpy()
        for i, name in enumerate(images.file_names):
            seed = stream_seed(name, corruption, severity) % 2**32
            np.random.seed(seed)
            own = {"seed": seed} if corruption in ("impulse_noise", "glass_blur") else {}
            image = images.pixels[i].permute(1, 2, 0).numpy()
            expected = imagecorruptions.corrupt(image, severity, corruption, **own)
            assert np.array_equal(got[i], expected.transpose(2, 0, 1)), (corruption, severity)


@pytest.mark.parametrize("side", [8, 16, 28, 31])
@pytest.mark.parametrize("channels", [1, 3])
def test_small_images_keep_size_and_strength(side, channels):
    flat = np.full((40, channels, side, side), 128, np.uint8)
    seeds = list(range(40))
    for corruption in CORRUPTIONS:
        got = corrupting.corrupt(flat[:1], corruption, 5, seeds[:1])
        assert got.shape == (1, channels, side, side) and got.dtype == np.uint8
    # By the library's formulas: x + c; blurs and JPEG leave one grey; noise of SD c.
    bright = corrupting.corrupt(flat[:1], "brightness", 2, seeds[:1])
    assert np.all(np.abs(bright - (128 + 0.2 * 255)) <= 1)
    assert np.all(np.abs(corrupting.corrupt(flat[:1], "glass_blur", 1, [1]) - 128.0) <= 2)
    noise = corrupting.corrupt(flat, "gaussian_noise", 2, seeds) - 128.0
    assert noise.std() == pytest.approx(0.12 * 255, rel=0.05)
    assert np.abs(np.corrcoef(noise[:2].reshape(2, -1))[0, 1]) < 0.3  # not one draw for all


def test_small_images_stay_in_place():
    """Neither extending nor enlarging shifts the image."""
    for side in (8, 28):
        pixels = np.random.default_rng(0).integers(40, 200, (1, 3, side, side), dtype=np.uint8)
        pixels[:, 1:] = pixels[:, :1]
        got = corrupting.corrupt(pixels, "brightness", 1, [0])
        assert np.all(np.abs(got - (pixels + 25.5)) <= 1)


def test_the_green_channel_of_a_grey_image_is_kept():
    grey = smooth(1, 28, 1)
    colour = corrupting.corrupt(grey.repeat(3, 1), "frost", 3, [0])  # frost is bluish
    assert np.array_equal(corrupting.corrupt(grey, "frost", 3, [0]), colour[:, 1:2])
    assert not np.array_equal(colour[:, 1], colour[:, 0])


def test_processes_load_no_torch():
    code = (
        "import sys, numpy as np; from advlib.data import corrupting, corruptions; "
        "corrupting.corrupt(np.zeros((1, 1, 8, 8), np.uint8), 'fog', 1, [0]); "
        "sys.exit('torch' in sys.modules)"
    )
    root = Path(corruptions.__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root).returncode == 0


def test_an_interruption_keeps_what_is_finished(monkeypatch):
    """Of real processes; the other tests do without."""
    monkeypatch.setattr(corruptions, "ProcessPoolExecutor", ProcessPoolExecutor)
    images = in_memory(smooth(6, 32))
    conditions = [("contrast", s) for s in SEVERITIES]
    monkeypatch.setattr(corruptions, "CONDITIONS", conditions)

    def interrupted(path):
        if path.name == "contrast-3.npy":
            raise KeyboardInterrupt
        return replacing(path)

    with monkeypatch.context() as patch:
        patch.setattr(corruptions, "ProcessPoolExecutor", InProcess)
        patch.setattr(corrupting, "replacing", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepare(images)
    written = sorted(corruptions._cache(images).glob("contrast-*.npy"))
    assert [path.name for path in written] == ["contrast-1.npy", "contrast-2.npy"]
    first = corrupted(images, "contrast", 1).pixels
    with pytest.raises(
        DataError, match="contrast-3.npy cannot be read as contrast 3.*No such file.*prepare"
    ):
        corrupted(images, "contrast", 3)
    times = [path.stat().st_mtime_ns for path in written]
    prepare(images)
    assert [path.stat().st_mtime_ns for path in written] == times
    assert torch.equal(corrupted(images, "contrast", 1).pixels, first)
    assert not torch.equal(corrupted(images, "contrast", 5).pixels, first)
    monkeypatch.setattr(corruptions, "ProcessPoolExecutor", None)
    prepare(images)  # all there: no process is started


def test_damaged_files_are_found(monkeypatch):
    images = in_memory(smooth(3, 32))
    monkeypatch.setattr(corruptions, "CONDITIONS", TWO)
    prepare(images)
    contrast, noise = (next(fetch.DATA.glob(f"cache/*/{c}-{s}.npy")) for c, s in TWO)
    contrast.write_bytes(contrast.read_bytes()[:-100])
    with pytest.raises(
        DataError, match="contrast-2.npy cannot be read as contrast 2 .* delete it .*prepare"
    ):
        corrupted(images, *TWO[0])
    np.save(noise, np.zeros((2, 3, 32, 32), np.uint8))
    with pytest.raises(DataError, match="holds something else"):
        corrupted(images, *TWO[1])


def test_other_images_have_another_cache():
    pixels = smooth(3, 32)
    first, again, inverted, renamed = (  # file names are seeds
        corruptions._cache(in_memory(p, names))
        for p, names in (
            (pixels, None),
            (pixels, None),
            (255 - pixels, None),
            (pixels, list("abc")),
        )
    )
    assert first == again and len({first, inverted, renamed}) == 3


def test_a_full_disk_is_told_before_the_work(monkeypatch):
    usage = shutil._ntuple_diskusage(10**12, 10**12 - 10**5, 10**5)
    monkeypatch.setattr(corruptions.shutil, "disk_usage", lambda folder: usage)
    monkeypatch.setattr(corruptions, "ProcessPoolExecutor", None)
    images = in_memory(smooth(100, 32))
    for work in (prepare, corruptions.check_generated):  # the second before any training
        with pytest.raises(DataError, match=r"take 0\.0 GB.*link.*corruption_images"):
            work(images)


def test_a_missing_library_is_named(monkeypatch):
    def missing(name):
        raise corruptions.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(corruptions.importlib.metadata, "version", missing)
    with pytest.raises(DataError, match="imagecorruptions-imaug.*make setup"):
        prepare(in_memory(smooth(1, 32)))


def test_a_machine_without_libgl_is_told_what_to_install(monkeypatch):
    def broken():
        raise ImportError("libGL.so.1: cannot open shared object file")

    monkeypatch.setattr(corrupting, "library", broken)
    with pytest.raises(DataError, match="libGL.so.1.*apt-get install libgl1"):
        prepare(in_memory(smooth(1, 32)))


def image_file(path, size, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize(size).save(path, "JPEG", quality=90)


def test_image_files_are_decoded_once_as_for_evaluation(tmp_path, monkeypatch):
    for i in range(3):
        image_file(tmp_path / f"set/test/{'ab'[i % 2]}/{i}.jpg", (150, 120), i)
    images = load_dataset("folder", "test", data_dir=tmp_path / "set", image_size=100, resize=110)
    monkeypatch.setattr(corruptions, "CONDITIONS", TWO)
    prepare(images)
    got = corrupted(images, *TWO[0])
    clean = torch.stack([images.decode(i) for i in range(3)]).double() / 255
    means = clean.mean((2, 3), keepdim=True)
    expected = ((clean - means) * 0.3 + means) * 255  # the library's formula
    assert (got.pixels.double() - expected).abs().max() <= 1
    assert got.file_names == images.file_names
    assert not list(fetch.DATA.glob("cache/*/clean.*"))
    coarser = load_dataset("folder", "test", data_dir=tmp_path / "set", image_size=100)
    with pytest.raises(DataError, match="No such file"):
        corrupted(coarser, *TWO[0])


# --- published: image files ---------------------------------------------------------------------

WNIDS = ("n01440764", "n01443537")
GROUPS = dict.fromkeys(CORRUPTIONS[:3], "noise") | dict.fromkeys(CORRUPTIONS[3:7], "blur")
GROUPS |= dict.fromkeys(CORRUPTIONS[7:10], "weather") | dict.fromkeys(CORRUPTIONS[10:], "digital")


@pytest.fixture
def imagenet(tmp_path):
    """Three validation images, and the published set with one image more."""
    names = [f"ILSVRC2012_val_{i:08d}.JPEG" for i in (293, 236, 2138, 7)]
    for i, name in enumerate(names[:3]):
        image_file(tmp_path / "imagenet/val" / WNIDS[i % 2] / name, (300, 260), i)
    published = tmp_path / "ImageNet-C"
    for i, name in enumerate(names):
        image_file(tmp_path / "one.JPEG", (224, 224), 100 + i)
        image_file(tmp_path / "other.JPEG", (224, 224), 200 + i)
        for corruption, severity in ALL:
            which = "other" if (corruption, severity) == ("snow", 4) else "one"
            place = published / GROUPS[corruption] / corruption / str(severity) / WNIDS[i % 2]
            place.mkdir(parents=True, exist_ok=True)
            os.link(tmp_path / f"{which}.JPEG", place / name)
        (tmp_path / "one.JPEG").unlink()
        (tmp_path / "other.JPEG").unlink()
    return load_dataset("imagenet", "test", data_dir=tmp_path / "imagenet"), published


def pil(path):
    with Image.open(path) as file:
        return file.convert("RGB")


def test_imagenet_c_is_read_pixel_for_pixel(imagenet):
    images, published = imagenet
    assert (images.resize, images.image_size) == (232, 224)  # which would resize a second time
    facts = prepare(images, published=published)
    assert facts["source"] == "published" and facts["library"] is None
    assert (facts["folder"], facts["n_images"]) == ("ImageNet-C", 3)
    assert "ImageNet-C, as it is distributed" in facts["recipe"]
    assert str(published.parent) not in str(facts)
    other = next((published / "noise/gaussian_noise/1").glob(f"*/{images.file_names[0]}"))
    other.unlink()
    image_file(other, (224, 224), 300)  # the set is known by what it holds, not by its name
    assert prepare(images, published=published)["content"] != facts["content"]
    got = corrupted(images, "snow", 4, published=published)
    assert got.file_names == images.file_names and torch.equal(got.labels, images.labels)
    assert got.title == images.title and got.fingerprint != images.fingerprint
    x = torch.cat([x for x, _, _ in evaluation_batches(got, batch_size=2)])
    for i, name in enumerate(images.file_names):
        path = next((published / "weather/snow/4").glob(f"*/{name}"))
        assert np.array_equal((x[i] * 255).round().numpy(), np.array(pil(path)).transpose(2, 0, 1))
    assert not torch.equal(
        got.decode(0), corrupted(images, "snow", 3, published=published).decode(0)
    )


def test_another_size_is_reached_by_one_resize(imagenet):
    images, published = imagenet
    images = load_dataset(
        "imagenet", "test", data_dir=published.parent / "imagenet", image_size=128
    )
    got = corrupted(images, "snow", 4, published=published)
    path = next((published / "weather/snow/4").glob(f"*/{images.file_names[1]}"))
    expected = torchvision.transforms.v2.functional.resize(pil(path), [128])
    assert np.array_equal(got.decode(1).numpy(), np.array(expected).transpose(2, 0, 1))


def test_flat_layout_and_subset(imagenet):
    images, published = imagenet
    for corruption, group in GROUPS.items():
        shutil.move(published / group / corruption, published / corruption)
    subset = images.subset([2, 0])
    assert prepare(subset, published=published)["n_images"] == 2
    assert corrupted(subset, "fog", 1, published=published).file_names == subset.file_names


def test_all_that_a_tree_lacks_is_listed_at_once(imagenet):
    images, published = imagenet
    shutil.rmtree(published / "blur/glass_blur")
    shutil.rmtree(published / "weather/frost/2")
    shutil.rmtree(published / "weather/frost/5")
    (published / "weather/fog/3" / WNIDS[1] / images.file_names[2]).unlink()
    shutil.rmtree(published / "digital/contrast/1" / WNIDS[0])
    with pytest.raises(DataError) as refused:
        prepare(images, published=published)
    message = str(refused.value)
    assert all(f"glass_blur {severity}: missing" in message for severity in SEVERITIES)
    assert "frost 2: missing" in message and "frost 5: missing" in message
    assert f"fog 3: 1 of 3 images missing, such as {images.file_names[2]}" in message
    assert "contrast 1: 2 of 3 images missing" in message
    assert message.count("\n  - ") == 9 and "corruptions: generated" in message
    with pytest.raises(DataError, match="1 of 3 images missing"):
        corrupted(images, "fog", 3, published=published)


def test_names_that_do_not_match_are_shown_beside_ours(imagenet):
    images, published = imagenet
    other = in_memory(smooth(3, 32))
    with pytest.raises(DataError) as refused:
        prepare(other, published=published)
    message = str(refused.value)
    assert "3 of 3 images missing, such as test-00000; there is " in message
    assert "n01440764/ILSVRC" in message
    assert message.count("\n  - ") == 21 and "… and 55 more" in message


def test_no_published_set_at_all(tmp_path):
    with pytest.raises(DataError, match="missing; expected .*1/<class>/<file>, or .* labels.npy"):
        prepare(in_memory(smooth(3, 32)), published=tmp_path)


def test_tiny_imagenet_c_is_matched_by_class_and_base_name(tmp_path):
    """Clean files lie in ``val/<class>/images/``, and two classes have a file of one name."""
    image_file(tmp_path / "one.JPEG", (64, 64))
    image_file(tmp_path / "two.JPEG", (64, 64), 1)
    for i, wnid in enumerate(WNIDS):
        image_file(tmp_path / "tiny/val" / wnid / "images/val_1.JPEG", (64, 64), 7 + i)
        for corruption, severity in ALL:
            place = tmp_path / "Tiny-ImageNet-C" / corruption / str(severity) / wnid
            place.mkdir(parents=True)
            os.link(tmp_path / f"{('one', 'two')[i]}.JPEG", place / "val_1.JPEG")
    images = load_dataset("folder", "test", data_dir=tmp_path / "tiny", image_size=64)
    assert images.pixels is not None and images.file_names[0].count("/") == 2
    published = tmp_path / "Tiny-ImageNet-C"
    prepare(images, published=published)
    got = corrupted(images, "jpeg_compression", 5, published=published)
    for i, name in enumerate(("one", "two")):
        expected = np.array(pil(tmp_path / f"{name}.JPEG")).transpose(2, 0, 1)
        assert np.array_equal(got.decode(i).numpy(), expected)


# --- published: CIFAR-10-C ----------------------------------------------------------------------


@pytest.fixture
def cifar10_c(tmp_path):
    """Files of the true size; their rows hold the severity and the image's position."""
    published = tmp_path / "CIFAR-10-C"
    published.mkdir()
    labels = np.random.default_rng(0).integers(0, 10, 10000).astype(np.uint8)
    np.save(published / "labels.npy", np.tile(labels, 5))
    for corruption in ("fog", "brightness", *CORRUPTIONS):
        path = published / f"{corruption}.npy"
        if corruption not in ("fog", "brightness"):
            os.link(published / "brightness.npy", path)
        elif not path.exists():
            array = np.lib.format.open_memmap(path, "w+", np.uint8, (50000, 32, 32, 3))
            for severity in SEVERITIES:
                for position in (0, 12, 9999):
                    row = array[10000 * (severity - 1) + position]
                    row[..., 0], row[..., 1] = severity, position % 251
                    row[3, 5, 2] = 200 + (corruption == "fog")
    positions = [9999, 0, 12]
    names = [f"test-{i:05d}" for i in positions]
    own = labels[positions].astype(np.int64)
    return in_memory(smooth(3, 32), names, own, positions), published


def test_cifar10_c_rows(cifar10_c):
    images, published = cifar10_c
    facts = prepare(images, published=published)
    assert (facts["source"], facts["folder"], facts["library"]) == ("published", "CIFAR-10-C", None)
    assert prepare(images.subset([0, 1, 2]), published=published) == facts
    assert prepare(images.subset([0, 1]), published=published)["content"] != facts["content"]
    for severity in SEVERITIES:
        got = corrupted(images, "fog", severity, published=published)
        assert got.pixels.shape == (3, 3, 32, 32) and got.pixels.dtype == torch.uint8
        assert torch.all(got.pixels[:, 0] == severity)
        assert got.pixels[:, 1, 0, 0].tolist() == [9999 % 251, 0, 12]
        assert got.pixels[:, 2, 3, 5].tolist() == [201] * 3
        assert got.file_names == images.file_names and torch.equal(got.labels, images.labels)


def test_what_is_wrong_with_cifar10_c_is_listed_at_once(cifar10_c):
    images, published = cifar10_c
    labels = np.load(published / "labels.npy")
    labels[20000 + 12] = (labels[20000 + 12] + 1) % 10
    np.save(published / "labels.npy", labels)
    for name, content in (("snow", None), ("frost", np.zeros(5)), ("zoom_blur", b"<html>")):
        (published / f"{name}.npy").unlink()
        if isinstance(content, bytes):
            (published / f"{name}.npy").write_bytes(content)
        elif content is not None:
            np.save(published / f"{name}.npy", content)
    with pytest.raises(DataError) as refused:
        prepare(images, published=published)
    message = str(refused.value)
    for expected in (
        "gaussian_noise 3: labels.npy: 1 of 3 labels are not those of the images, the first of "
        "them that of test-00012",
        "snow 1: [Errno 2] No such file",
        "frost 4: frost.npy: float64 of shape (5,)",
        "zoom_blur 2: ",
        "… and 7 more",
    ):
        assert expected in message
    (published / "labels.npy").unlink()
    with pytest.raises(DataError, match="missing; expected .*labels.npy"):
        prepare(images, published=published)


def test_cifar10_c_is_not_for_other_images(cifar10_c):
    images, published = cifar10_c
    tree = in_memory(smooth(1, 32), ["airplane/0001.jpg"])
    small = in_memory(smooth(1, 28, 1), positions=[0])
    for other in (tree, small):
        for action in (prepare, lambda *a, **k: corrupted(*a, "fog", 1, **k)):
            with pytest.raises(DataError, match="Ten things do not tell.*cifar-10-batches-py"):
                action(other, published=published)
    with pytest.raises(DataError, match="labels are not those of the images"):
        prepare(in_memory(smooth(1, 32), labels=[10], positions=[10000]), published=published)


# --- where published sets lie -------------------------------------------------------------------


def test_locate_published(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="nowhere is no folder.*corruptions_dir"):
        locate_published("cifar10", tmp_path / "nowhere")
    (tmp_path / "mine").mkdir()
    assert locate_published("folder", tmp_path / "mine") == tmp_path / "mine"
    with pytest.raises(DataError, match="of fashion_mnist was found: name its folder as"):
        locate_published("fashion_mnist")
    with pytest.raises(DataError, match="ImageNet-C is no folder.*corruptions: generated"):
        locate_published("imagenet")
    (fetch.DATA / "ImageNet-C").mkdir(parents=True)
    assert locate_published("imagenet") == fetch.DATA / "ImageNet-C"
    (tmp_path / "all/ImageNet-C").mkdir(parents=True)
    monkeypatch.setenv("ADVLIB_DATA", str(tmp_path / "all"))
    assert locate_published("imagenet") == tmp_path / "all/ImageNet-C"
