"""Data sets, their sources and their batches. No network; every fetch here is a stand-in."""

import functools
import gzip
import hashlib
import http.server
import json
import os
import pickle
import re
import shutil
import socket
import struct
import threading
import warnings
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from advbook.__main__ import main
from advbook.studies.schema import ROOT
from advlib.data import annotations, decoding, fetch
from advlib.data.batches import augment, evaluation_batches, stream_seed, training_batches
from advlib.data.images import Images
from advlib.data.sets import DATASETS, DataError, load_dataset, warn_of_shared
from advlib.data.vision import torchvision
from advlib.recipes import Training
from advlib.steps import check_images


@pytest.fixture(autouse=True)
def isolated(tmp_path, monkeypatch):
    """No data of this machine and no network."""
    monkeypatch.delenv("ADVLIB_DATA", raising=False)
    monkeypatch.setattr(fetch, "DATA", tmp_path / "project" / "data")
    monkeypatch.setattr(fetch, "DEBIAN_FOLDER", tmp_path / "no-such-package")
    monkeypatch.setattr(fetch, "DOWNLOADS", {})


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits", "train")


def all_of(batches):
    return [tuple(part.clone() for part in batch) for batch in batches]


def same(a, b):
    return len(a) == len(b) and all(
        torch.equal(p, q) for u, v in zip(a, b, strict=True) for p, q in zip(u, v, strict=True)
    )


# --- seeds -----------------------------------------------------------------------------------


def test_stream_seed_is_stable():
    assert stream_seed(0, "order", 1) == 8677279991123922410
    assert stream_seed(1) != stream_seed("1")
    assert stream_seed("ab", "c") != stream_seed("a", "bc")
    assert all(0 <= stream_seed("x", i) < 2**63 for i in range(100))


# --- digits, subsets, holdout ----------------------------------------------------------------


def test_digits_are_the_real_ones(digits):
    from sklearn.datasets import load_digits

    test = load_dataset("digits", "test")
    assert (len(digits), len(test)) == (1297, 500)
    assert test.labels.bincount().tolist() == [50] * 10
    assert not set(digits.file_names) & set(test.file_names)
    image, label, name = digits[7]
    assert image.dtype == torch.float32 and image.shape == (1, 8, 8) and type(label) is int
    original = load_digits()
    position = int(name.removeprefix("train-"))
    assert label == original.target[position]
    assert np.abs(image[0].numpy() - original.images[position] / 16).max() <= 0.002
    pixels = digits.pixels.float() / 255
    assert pixels.min() == 0 and pixels.max() == 1
    info = DATASETS["digits"]
    assert pixels.mean().item() == pytest.approx(info.mean[0], abs=0.005)
    assert pixels.std().item() == pytest.approx(info.std[0], abs=0.005)


def test_loading_twice_gives_the_same(digits):
    again = load_dataset("digits", "train")
    assert again.fingerprint == digits.fingerprint and len(again.fingerprint) == 64
    assert again.file_names == digits.file_names
    assert load_dataset("digits", "test").fingerprint != digits.fingerprint


def test_subset_is_stratified_nested_and_deterministic():
    small, large = (load_dataset("digits", "train", n_images=n) for n in (50, 200))
    assert small.labels.bincount().tolist() == [5] * 10
    assert large.labels.bincount().tolist() == [20] * 10
    assert set(small.file_names) < set(large.file_names)
    again = load_dataset("digits", "train", n_images=50)
    assert again.file_names == small.file_names and again.fingerprint == small.fingerprint


def test_holdout_is_disjoint_from_train_and_completes_it(digits):
    hold = load_dataset("digits", "holdout", holdout_images=100)
    train = load_dataset("digits", "train", holdout_images=100)
    assert hold.labels.bincount().tolist() == [10] * 10
    assert not set(hold.file_names) & set(train.file_names)
    assert set(hold.file_names) | set(train.file_names) == set(digits.file_names)
    test = load_dataset("digits", "test", holdout_images=100)
    assert len(test) == 500
    fewer = load_dataset("digits", "train", holdout_images=100, n_images=50)
    assert set(fewer.file_names) < set(train.file_names)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(name="nope", split="train"), "choose one of digits, fashion_mnist"),
        (dict(name="digits", split="val"), "'train', 'holdout' or 'test'"),
        (dict(name="digits", split="holdout"), "needs holdout_images"),
        (dict(name="digits", split="train", n_images=15), "choose a positive multiple of 10"),
        (dict(name="digits", split="train", n_images=0), "choose a positive multiple of 10"),
        (dict(name="digits", split="test", n_images=510), "only 50 of class .* at most 500"),
        (dict(name="digits", split="train", holdout_images=5000), "holdout_images = 5000 needs"),
        (dict(name="digits", split="train", image_size=32), "images of digits are 8 px"),
        (dict(name="folder", split="train"), "needs data_dir"),
    ],
)
def test_wrong_requests_say_what_to_do(arguments, message):
    with pytest.raises((ValueError, DataError), match=message):
        load_dataset(**arguments)


# --- Fashion-MNIST: sources and damage -------------------------------------------------------


def idx(array):
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def fashion(tmp_path, monkeypatch):
    """A function that writes a tiny Fashion-MNIST; its checksums stand in the table."""
    rng = np.random.default_rng(0)
    contents = {}
    for prefix, n in (("train", 40), ("t10k", 20)):
        images = rng.integers(0, 256, (n, 28, 28), np.uint8)
        contents[f"{prefix}-images-idx3-ubyte"] = idx(images)
        contents[f"{prefix}-labels-idx1-ubyte"] = idx(np.arange(n, dtype=np.uint8) % 10)
    table = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    monkeypatch.setattr(fetch, "FASHION_MNIST_SHA256", table)

    def write(folder, zipped=True):
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            path = folder / (f"{name}.gz" if zipped else name)
            path.write_bytes(gzip.compress(content, mtime=0) if zipped else content)
        return folder

    return write


def test_published_checksums_name_the_four_files():
    names = {name for name in fetch.FASHION_MNIST_SHA256}
    assert names == {
        path.removesuffix(".gz") for path, _ in torchvision.datasets.FashionMNIST.resources
    }
    assert all(re.fullmatch("[0-9a-f]{64}", v) for v in fetch.FASHION_MNIST_SHA256.values())


@pytest.mark.parametrize("below", ["", "fashion_mnist", "FashionMNIST/raw"])
@pytest.mark.parametrize("zipped", [True, False])
def test_fashion_mnist_in_a_named_folder(fashion, tmp_path, below, zipped):
    fashion(tmp_path / "mine" / below, zipped)
    train = load_dataset("fashion_mnist", "train", data_dir=tmp_path / "mine")
    test = load_dataset("fashion_mnist", "test", data_dir=tmp_path / "mine")
    assert train.pixels.shape == (40, 1, 28, 28) and len(test) == 20
    assert test.file_names[3] == "test-00003" and test.labels[3] == 3
    assert train.source == "the folder named by data_dir"
    assert train.class_names[9] == "Ankle boot"


def test_sources_are_tried_in_order(fashion, tmp_path, monkeypatch):
    def source(data_dir=None):
        return fetch.locate("fashion_mnist", data_dir)[1]

    def download(work, result):
        fashion(result)

    monkeypatch.setattr(fetch, "DOWNLOADS", {"fashion_mnist": [("a download", download)]})
    assert source() == "a download"
    assert [p.name for p in fetch.DATA.iterdir()] == ["fashion_mnist"]
    assert source() == "an earlier fetch"
    assert len(load_dataset("fashion_mnist", "test")) == 20
    root = tmp_path / "root"
    root.mkdir()
    monkeypatch.setenv("ADVLIB_DATA", str(root))
    assert source() == "an earlier fetch"  # nothing there: the next source
    fashion(root / "FashionMNIST" / "raw")
    assert source() == "ADVLIB_DATA"
    assert source(fashion(tmp_path / "mine")) == "the folder named by data_dir"


def test_installed_debian_package_goes_before_downloads(fashion, monkeypatch):
    fashion(fetch.DEBIAN_FOLDER)
    monkeypatch.setattr(fetch, "DOWNLOADS", {"fashion_mnist": [("never", None)]})
    assert "installed" in load_dataset("fashion_mnist", "train").source


def test_named_folder_is_never_replaced_by_another_source(fashion, tmp_path):
    fashion(fetch.DATA / "fashion_mnist")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty holds no fashion_mnist: put the four files"):
        load_dataset("fashion_mnist", "train", data_dir=tmp_path / "empty")
    with pytest.raises(DataError, match="nowhere, which is no folder"):
        load_dataset("fashion_mnist", "train", data_dir=tmp_path / "nowhere")


def test_a_data_root_that_is_no_folder_is_an_error(fashion, tmp_path, monkeypatch):
    fashion(fetch.DATA / "fashion_mnist")
    (tmp_path / "file").write_text("")
    for bad in ("nowhere", "file"):
        monkeypatch.setenv("ADVLIB_DATA", str(tmp_path / bad))
        with pytest.raises(DataError, match=f"ADVLIB_DATA names .*{bad}, which is no folder"):
            load_dataset("fashion_mnist", "train")


@pytest.mark.parametrize("how", ["flip", "truncate", "missing", "no gzip"])
@pytest.mark.parametrize("where", ["data_dir", "ADVLIB_DATA", "earlier fetch"])
def test_damage_names_file_checksum_and_remedy(fashion, tmp_path, monkeypatch, how, where):
    folder = tmp_path / "root" / "fashion_mnist"
    if where == "earlier fetch":
        folder = fetch.DATA / "fashion_mnist"
        fashion(fetch.DEBIAN_FOLDER)  # whole, but behind the damaged one
    fashion(folder)
    path = folder / "train-images-idx3-ubyte.gz"
    content = path.read_bytes()
    if how == "missing":
        path.unlink()
    elif how == "flip":
        plain = bytearray(gzip.decompress(content))
        plain[1000] ^= 1
        path.write_bytes(gzip.compress(bytes(plain)))
    else:
        path.write_bytes(content[:500] if how == "truncate" else b"<html>404</html>")
    if where == "ADVLIB_DATA":
        monkeypatch.setenv("ADVLIB_DATA", str(tmp_path / "root"))
    with pytest.raises(DataError) as caught:
        load_dataset("fashion_mnist", "train", data_dir=folder if where == "data_dir" else None)
    message = str(caught.value)
    assert str(path) in message and "Put the original file there" in message
    assert fetch.FASHION_MNIST_SHA256["train-images-idx3-ubyte"] in message
    assert ("it is then fetched again" in message) == (where == "earlier fetch")


def test_final_error_names_every_source_and_leaves_nothing(fashion, monkeypatch):
    def refused(work, result):
        (result / "train-images-idx3-ubyte.gz").write_bytes(b"half")
        raise DataError("no route to host")

    def run(arguments, **how):
        """apt-get and dpkg, which leave a package with a damaged file."""
        unpacked = fashion(how["cwd"] / "unpacked" / fetch.DEBIAN_FOLDER.relative_to("/"))
        (unpacked / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(b"x"))
        return fetch.subprocess.CompletedProcess(arguments, 0, "", "")

    monkeypatch.setattr(fetch.subprocess, "run", run)
    sources = [("first", refused), ("second", fetch._debian_fashion_mnist)]
    monkeypatch.setattr(fetch, "DOWNLOADS", {"fashion_mnist": sources})
    with pytest.raises(DataError) as caught:
        load_dataset("fashion_mnist", "train")
    message = str(caught.value)
    for part in (
        "ADVLIB_DATA: not set",
        "earlier fetch: ",
        "fashion-mnist, installed: ",
        "first: no route to host",
        "second: ",
        "is missing or damaged",
        "name it as data_dir in the study file",
    ):
        assert part in message
    assert list(fetch.DATA.iterdir()) == []


def test_an_interrupted_fetch_leaves_nothing(fashion, monkeypatch):
    def interrupted(work, result):
        fashion(result)
        raise KeyboardInterrupt

    monkeypatch.setattr(fetch, "DOWNLOADS", {"fashion_mnist": [("slow", interrupted)]})
    with pytest.raises(KeyboardInterrupt):
        load_dataset("fashion_mnist", "train")
    assert list(fetch.DATA.iterdir()) == []


@pytest.fixture
def server(tmp_path):
    """A web server on this machine: its address, and the folder that it shows."""
    folder = tmp_path / "server"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    handler = functools.partial(Quiet, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as found:
        threading.Thread(target=found.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{found.server_port}/", folder
        found.shutdown()


@pytest.fixture
def published_cifar(server, tmp_path, monkeypatch):
    """A small CIFAR-10 on a server, as torchvision describes it; the archive's path."""
    address, shown = server
    files = write_cifar("cifar10", tmp_path, monkeypatch)[0]
    archive = shown / "cifar-10-python.tar.gz"
    shutil.make_archive(shown / "cifar-10-python", "gztar", files.parent, files.name)
    dataset = fetch._torchvision("cifar10")
    monkeypatch.setattr(dataset, "url", address + archive.name)
    monkeypatch.setattr(dataset, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    download = functools.partial(fetch._published, "cifar10")
    monkeypatch.setattr(fetch, "DOWNLOADS", {"cifar10": [("a download", download)]})
    return archive


def test_a_published_archive_is_fetched_once(published_cifar):
    assert load_dataset("cifar10", "train").source == "a download"
    published_cifar.unlink()
    assert load_dataset("cifar10", "test").source == "an earlier fetch"
    assert [p.name for p in fetch.DATA.iterdir()] == ["cifar10"]


@pytest.mark.parametrize("how", ["cut off", "gone"])
def test_what_a_server_gives_instead_is_refused(published_cifar, how):
    content = published_cifar.read_bytes()
    published_cifar.unlink() if how == "gone" else published_cifar.write_bytes(content[:99])
    said = "404" if how == "gone" else "MD5 hash"
    with pytest.raises(DataError, match=rf"a download: http.*tar.gz: .*{said}"):
        load_dataset("cifar10", "train")
    assert list(fetch.DATA.iterdir()) == []


def test_a_silent_or_absent_server_is_given_up_for_the_next_one(server, tmp_path, monkeypatch):
    address, shown = server
    (shown / "labels.gz").write_bytes(b"12")
    dataset = fetch._torchvision("fashion_mnist")
    files = [("labels.gz", hashlib.md5(b"12").hexdigest())]
    monkeypatch.setattr(dataset, "resources", files)
    monkeypatch.setattr(fetch, "NETWORK_TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # it accepts, and never answers
        mirrors = [f"http://127.0.0.1:{silent.getsockname()[1]}/", "http://127.0.0.1:9/"]
        monkeypatch.setattr(dataset, "mirrors", mirrors)
        with pytest.raises(DataError, match="labels.gz: .*timed? ?out.*; http.*9/.*: .*refused"):
            fetch._published("fashion_mnist", tmp_path, tmp_path)
        monkeypatch.setattr(dataset, "mirrors", [*mirrors, address])
        fetch._published("fashion_mnist", tmp_path, tmp_path)
    assert (tmp_path / "labels.gz").read_bytes() == b"12"


def test_debian_without_apt_or_package(tmp_path, monkeypatch):
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "sh").symlink_to(shutil.which("sh"))
    monkeypatch.setenv("PATH", str(tools))
    with pytest.raises(DataError, match="apt-get: not found"):
        fetch._debian_fashion_mnist(tmp_path / "a", tmp_path)
    (tools / "apt-get").write_text("#!/bin/sh\necho E: Unable to locate package >&2; exit 100")
    (tools / "apt-get").chmod(0o755)
    with pytest.raises(DataError, match="Unable to locate package"):
        fetch._debian_fashion_mnist(tmp_path / "b", tmp_path)


# --- CIFAR-10 as pickles ---------------------------------------------------------------------


class Bomb:
    """A pickle of it creates a file when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


CIFARS = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}


def write_cifar(name, root, monkeypatch):
    """A small CIFAR as torchvision keeps it, and the same images in folders of PNG files."""
    folder, tree = root / "files" / CIFARS[name], root / "tree"
    folder.mkdir(parents=True)
    dataset = fetch._torchvision(name)
    classes, rng = DATASETS[name].class_names, np.random.default_rng(0)
    key = "labels" if name == "cifar10" else "fine_labels"

    def batch(file, split):
        labels = rng.permutation(len(classes)).tolist()
        pixels = rng.integers(0, 256, (len(labels), 3072), np.uint8)
        names = [f"{rng.choice(['a', 'b'])}_s_{i:06d}.png" for i in rng.permutation(len(labels))]
        names = [f"{file}_{each}" for each in names]
        for row, label, each in zip(pixels, labels, names, strict=True):
            path = tree / split / classes[label] / each
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(row.reshape(3, 32, 32).transpose(1, 2, 0)).save(path)
        content = {"data": pixels, key: labels, "filenames": names}
        (folder / file).write_bytes(pickle.dumps(content))
        return [file, hashlib.md5((folder / file).read_bytes()).hexdigest()]

    train, test = [file for file, _ in dataset.train_list], dataset.test_list[0][0]
    monkeypatch.setattr(dataset, "train_list", [batch(file, "train") for file in train])
    monkeypatch.setattr(dataset, "test_list", [batch(test, "test")])
    return folder, tree


@pytest.fixture
def cifar_pickles(tmp_path, monkeypatch):
    return write_cifar("cifar10", tmp_path, monkeypatch)[0]


@pytest.mark.parametrize("name", CIFARS)
def test_cifar_is_the_same_from_its_files_and_from_folders(tmp_path, monkeypatch, name):
    folder, tree = write_cifar(name, tmp_path, monkeypatch)
    for split in ("train", "test"):
        files = load_dataset(name, split, data_dir=folder)
        folders = load_dataset(name, split, data_dir=tree)
        assert files.file_names == folders.file_names
        assert files.class_names == folders.class_names
        assert files.fingerprint == folders.fingerprint and files.title == folders.title
        some = 2 * files.num_classes if split == "train" and name == "cifar10" else None
        again = load_dataset(name, split, data_dir=folder.parent, n_images=some)
        assert set(again.file_names) <= set(files.file_names)
    stored = pickle.loads((folder / fetch._torchvision(name).test_list[0][0]).read_bytes())
    for i, position in enumerate(files.positions.tolist()):  # as CIFAR-10-C is ordered
        assert np.array_equal(files.pixels[i].numpy().ravel(), stored["data"][position])
    other = folder.rename(folder.with_name(name))  # in a folder of its name
    assert torch.equal(load_dataset(name, "test", data_dir=other).pixels, files.pixels)


def test_cifar10_is_not_unpickled_before_its_checksum_holds(cifar_pickles, tmp_path):
    bomb = tmp_path / "exploded"
    (cifar_pickles / "test_batch").write_bytes(pickle.dumps(Bomb(bomb)))
    with pytest.raises(DataError, match="test_batch is missing or damaged: MD5 .*, expected"):
        load_dataset("cifar10", "train", data_dir=cifar_pickles)
    assert not bomb.exists()
    (cifar_pickles / "test_batch").unlink()
    with pytest.raises(DataError, match="test_batch is missing or damaged: MD5 missing, expected"):
        load_dataset("cifar10", "test", data_dir=cifar_pickles)


# --- trees of image files --------------------------------------------------------------------


def write_tree(root, classes=("ape", "bee"), per_class=4, size=(16, 16), ending="png", test="test"):
    rng = np.random.default_rng(0)
    for split in ("train", test):
        for class_name in classes:
            folder = root / split / class_name
            folder.mkdir(parents=True)
            for i in range(per_class):
                pixels = rng.integers(0, 256, (size[1], size[0], 3), np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.{ending}")
    return root


def test_small_tree_is_decoded_once_and_cached(tmp_path, monkeypatch):
    root = write_tree(tmp_path / "tree")
    train = load_dataset("folder", "train", data_dir=root, image_size=16)
    assert train.pixels.shape == (8, 3, 16, 16) and train.class_names == ("ape", "bee")
    assert train.file_names[5] == "bee/1.png" and train.labels.tolist() == [0] * 4 + [1] * 4
    with Image.open(root / "train" / "bee" / "1.png") as image:
        assert np.array_equal(train.pixels[5].numpy(), np.array(image).transpose(2, 0, 1))
    cache = list((fetch.DATA / "cache").glob("folder-train-*.npz"))
    assert len(cache) == 1

    def forbidden(*arguments):
        raise AssertionError("decoded again")

    with monkeypatch.context() as patch:
        patch.setattr(decoding, "decode", forbidden)
        assert (
            load_dataset("folder", "train", data_dir=root, image_size=16).fingerprint
            == train.fingerprint
        )
    cache[0].write_bytes(cache[0].read_bytes()[:-500])
    with pytest.warns(UserWarning, match="is damaged .* making it again"):
        assert (
            load_dataset("folder", "train", data_dir=root, image_size=16).fingerprint
            == train.fingerprint
        )
    Image.new("RGB", (16, 16)).save(root / "train" / "ape" / "0.png")
    assert load_dataset("folder", "train", data_dir=root, image_size=16).pixels[0].sum() == 0


def test_cache_that_cannot_be_written_only_warns(tmp_path):
    fetch.DATA.mkdir(parents=True)
    (fetch.DATA / "cache").write_text("in the way")
    with pytest.warns(UserWarning) as caught:
        train = load_dataset(
            "folder", "train", data_dir=write_tree(tmp_path / "tree"), image_size=16
        )
    assert "not cached" in str(caught[-1].message) and len(train) == 8


def test_image_size_resizes_and_crops_small_images(tmp_path):
    root = write_tree(tmp_path / "tree", size=(20, 16))
    assert load_dataset("folder", "test", data_dir=root, image_size=8).pixels.shape[2:] == (8, 8)
    with pytest.raises(ValueError, match="resize = 8 px is smaller than the crop"):
        load_dataset("folder", "test", data_dir=root, image_size=16, resize=8)


@pytest.mark.parametrize(
    ("ending", "title"), [("jpg", "CIFAR-10 (JPEG copy)"), ("png", "CIFAR-10")]
)
def test_cifar10_tree_says_what_it_is(tmp_path, ending, title):
    classes = DATASETS["cifar10"].class_names
    root = write_tree(tmp_path / "tree", classes, 2, (32, 32), ending)
    test = load_dataset("cifar10", "test", data_dir=root, n_images=10)
    assert test.title == title and test.labels.tolist() == list(range(10))
    assert test.pixels.shape == (10, 3, 32, 32)


def test_cifar10_tree_with_other_classes(tmp_path):
    with pytest.raises(DataError, match="does not hold CIFAR-10: its classes are ape, bee"):
        load_dataset("cifar10", "test", data_dir=write_tree(tmp_path / "tree"))


def test_val_serves_as_test(tmp_path):
    root = write_tree(tmp_path / "tree", test="val")
    assert load_dataset("folder", "test", data_dir=root, image_size=16).file_names[0] == "ape/0.png"


@pytest.mark.parametrize("size", [16, 128])
def test_tree_errors_name_the_folder(tmp_path, size):
    def loading(root, split="train"):
        dataset = load_dataset("folder", split, data_dir=root, image_size=size)
        return all_of(evaluation_batches(dataset, batch_size=4))

    root = write_tree(tmp_path / "a", size=(size, size))
    (root / "test" / "bee").rename(root / "test" / "cow")
    with pytest.raises(
        DataError, match=r"a/train and .*a/test hold different class folders, such as 'bee'"
    ):
        loading(root)
    root = write_tree(tmp_path / "b", size=(size, size))
    (root / "test").rename(root / "elsewhere")
    assert len(loading(root)) == 2
    with pytest.raises(DataError, match="b has no folder test or val: .*b/test/<class>/"):
        loading(root, "test")
    root = write_tree(tmp_path / "c", size=(size, size))
    for file in (root / "train" / "bee").iterdir():
        file.rename(file.with_suffix(".txt"))
    with pytest.raises(DataError, match="class folder .*c/train/bee holds no image"):
        loading(root)
    root = write_tree(tmp_path / "d", size=(size, size))
    broken = root / "train" / "ape" / "2.png"
    broken.write_bytes(broken.read_bytes()[: 60 + size])
    with pytest.raises(DataError, match=r"d/train/ape/2.png does not decode .*whole copy"):
        loading(root)
    (tmp_path / "e" / "train").mkdir(parents=True)
    with pytest.raises(DataError, match="e/train holds 0 class folders"):
        loading(tmp_path / "e")
    root = write_tree(tmp_path / "f", classes=("ape",), size=(size, size))
    with pytest.raises(DataError, match="f/train holds 1 class folders: expected two"):
        loading(root)


# --- what an image is, and which files count -------------------------------------------------


GREY = np.arange(64 * 64).reshape(64, 64) % 256


def one_file(tmp_path, name, content):
    """A tree of grey ramps, and one more test image: bytes, or an image to be saved."""
    for split in ("train", "test"):
        for class_name in ("ape", "bee"):
            (tmp_path / "tree" / split / class_name).mkdir(parents=True)
            path = tmp_path / "tree" / split / class_name / "ramp.png"
            Image.fromarray(GREY.astype(np.uint8)).save(path)
    path = tmp_path / "tree" / "test" / "bee" / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        content.save(path)
    return tmp_path / "tree"


def png(*chunks):
    packed = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in (*chunks, (b"IEND", b""))
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


@pytest.mark.parametrize(
    "pixels",
    [(GREY / 255).astype(np.float32), GREY.astype(np.int32), (257 * GREY).astype(np.uint16)],
)
def test_pixels_of_more_than_eight_bits_are_refused(tmp_path, pixels):
    """Pillow would clip them to white."""
    root = one_file(tmp_path, "a.tif", Image.fromarray(pixels))
    with pytest.raises(DataError, match="test/bee/a.tif .*its pixels are .*: save it with 8 bits"):
        load_dataset("folder", "test", data_dir=root, image_size=16)


def test_alpha_and_orientation_are_read_as_torchvision_reads_them(tmp_path):
    rng = np.random.default_rng(0)
    logo = Image.fromarray(rng.integers(0, 256, (64, 64, 4), np.uint8))
    logo.save(tmp_path / "logo.png")
    photo = Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8))
    turned = photo.getexif()
    turned[0x0112] = 6
    photo.save(tmp_path / "photo.jpg", exif=turned)
    for name in ("logo.png", "photo.jpg"):
        expected = torchvision.datasets.folder.default_loader(tmp_path / name)
        found = decoding.decode(str(tmp_path / name), 64, 64)
        assert np.array_equal(found, np.array(expected).transpose(2, 0, 1))


def test_an_image_changed_in_place_is_another_one(tmp_path):
    """BMP files of one size, with the time of the file before: no name, size or time tells."""
    root = write_tree(tmp_path / "tree", size=(120, 120), ending="bmp")
    before = load_dataset("folder", "test", data_dir=root, image_size=112)
    path = root / "test" / "ape" / "0.bmp"
    status = path.stat()
    Image.new("RGB", (120, 120)).save(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_size == status.st_size
    after = load_dataset("folder", "test", data_dir=root, image_size=112)
    assert after.file_names == before.file_names and after.fingerprint != before.fingerprint
    shutil.copytree(root, tmp_path / "copy")
    copy = load_dataset("folder", "test", data_dir=tmp_path / "copy", image_size=112)
    assert copy.fingerprint == after.fingerprint  # wherever it lies, whenever it was written


def test_a_file_is_read_once(tmp_path, monkeypatch):
    root = write_tree(tmp_path / "tree", size=(120, 120))
    before = load_dataset("folder", "train", data_dir=root, image_size=112).fingerprint
    with monkeypatch.context() as patch:
        patch.setattr(Image, "open", None)
        assert load_dataset("folder", "train", data_dir=root, image_size=112).fingerprint == before
    for cache in (fetch.DATA / "cache").iterdir():
        cache.write_bytes(cache.read_bytes()[:-100])
    with pytest.warns(UserWarning, match="contents-.* is damaged .* making it again"):
        assert load_dataset("folder", "train", data_dir=root, image_size=112).fingerprint == before


def test_damaged_large_images_are_found_before_anything_is_trained(tmp_path):
    root = write_tree(tmp_path / "tree", size=(150, 120), ending="jpg")
    whole = (root / "train" / "bee" / "1.jpg").read_bytes()
    (root / "train" / "ape" / "0.jpg").write_bytes(whole + b"\0\0")  # as some cameras do
    for i, content in enumerate((whole[:-40], whole[: len(whole) // 2], b"no image", b"")):
        (root / "train" / "bee" / f"{i}.jpg").write_bytes(content)
    with pytest.raises(DataError) as caught:
        load_dataset("folder", "train", data_dir=root, image_size=112)
    lines = str(caught.value).splitlines()
    assert [re.search(r"train/(\S+) does not decode", line)[1] for line in lines] == [
        f"bee/{i}.jpg" for i in range(4)
    ]
    with pytest.raises(DataError, match="train/bee/0.jpg does not decode"):  # nor the next time
        load_dataset("folder", "train", data_dir=root, image_size=112)


HEADER = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)


@pytest.mark.parametrize("size", [64, 128])
def test_files_that_cannot_be_read_are_named(tmp_path, size):
    huge = png((b"IHDR", HEADER), (b"IDAT", zlib.compress(b"\0")))
    root = one_file(tmp_path, "huge.png", huge)
    (root / "test" / "bee" / "link.png").symlink_to("nowhere.png")
    with pytest.raises(DataError, match="(?s)test/bee/huge.png .*exceeds limit.*bee/link.png"):
        load_dataset("folder", "test", data_dir=root, image_size=size)


def test_links_to_folders_are_followed_but_not_in_a_circle(tmp_path):
    root = write_tree(tmp_path / "tree")
    shutil.move(root / "train" / "ape", tmp_path / "elsewhere")
    (root / "train" / "ape").symlink_to(tmp_path / "elsewhere")
    assert len(load_dataset("folder", "train", data_dir=root, image_size=16)) == 8
    (tmp_path / "elsewhere" / "latest").symlink_to(".")
    with pytest.raises(DataError, match="ape/latest is a link to a folder above itself"):
        load_dataset("folder", "train", data_dir=root, image_size=16)


def test_images_that_are_resized_otherwise_are_not_the_same(tmp_path):
    """Their files are, and so is the fingerprint; the state of a run tells them apart."""
    paths = sorted(map(str, write_tree(tmp_path / "tree").rglob("*.png")))
    names = [str(number) for number in range(len(paths))]
    known = {"title": "t", "source": "s", "labels": [0] * len(paths), "class_names": ["a"]}
    known |= {"file_names": names, "paths": paths, "resize": 18, "image_size": 16}
    how = [{}, {"resize": 20}, {"interpolation": "bicubic"}, {"image_size": 15}]
    sets = [Images(**known | changed) for changed in how]
    assert len({images.fingerprint for images in sets}) == 1
    assert len({images.prepared for images in sets}) == 4


def test_hidden_files_and_folders_do_not_count(tmp_path):
    root = write_tree(tmp_path / "tree")
    for name in (".ipynb_checkpoints", "@eaDir"):  # of Jupyter, of Synology: copies of images
        shutil.copytree(root / "train" / "ape", tmp_path / name)
        shutil.move(tmp_path / name, root / "train" / "ape" / name)
    (root / "train" / "ape" / "._0.png").write_bytes(b"of macOS")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(load_dataset("folder", "train", data_dir=root, image_size=16)) == 8


def test_what_is_left_out_is_said(tmp_path):
    root = write_tree(tmp_path / "tree")
    for name in ("notes.txt", "README", "0.gif", "1.gif"):
        (root / "train" / "ape" / name).write_text("")
    said = "files in .*train are left out, since only .jpg .* are read: 2 .gif, 1 "
    with pytest.warns(UserWarning, match=said):
        assert len(load_dataset("folder", "train", data_dir=root, image_size=16)) == 8


def test_copies_are_said(tmp_path):
    root = write_tree(tmp_path / "tree")
    shutil.copy(root / "train" / "ape" / "1.png", root / "train" / "bee" / "copy.png")
    said = "1 of the 9 images of Image folder are exact copies of others, such as bee/copy.png"
    with pytest.warns(UserWarning, match=said):
        load_dataset("folder", "train", data_dir=root, image_size=16)


def test_test_images_that_are_trained_on_are_said(tmp_path):
    root = write_tree(tmp_path / "tree")
    parts = {s: load_dataset("folder", s, data_dir=root, image_size=16) for s in ("train", "test")}
    warn_of_shared(parts)  # which a warning would end
    shutil.copy(root / "train" / "bee" / "2.png", root / "test" / "ape" / "0.png")
    parts["test"] = load_dataset("folder", "test", data_dir=root, image_size=16)
    said = "1 images of train are also images of test, such as bee/2.png"
    with pytest.warns(UserWarning, match=said):
        warn_of_shared(parts)


def test_only_where_images_are_kept_depends_on_how_many_there_are(tmp_path, monkeypatch):
    root = write_tree(tmp_path / "tree")
    test = load_dataset("folder", "test", data_dir=root, image_size=48)
    monkeypatch.setattr(decoding, "SMALL_BYTES", 100)
    kept = load_dataset("folder", "test", data_dir=root, image_size=48)
    assert kept.pixels is None and torch.equal(kept.decode(3), test.pixels[3])
    with pytest.raises(ValueError, match="image_size is missing: set it"):
        load_dataset("folder", "test", data_dir=root)


def test_of_two_folders_of_test_images_one_is_taken_and_said(tmp_path):
    root = write_tree(tmp_path / "tree")
    shutil.copytree(root / "train", root / "val")
    with pytest.warns(UserWarning, match="tree holds test and val: the images of test are"):
        test = load_dataset("folder", "test", data_dir=root, image_size=16)
    train = load_dataset("folder", "train", data_dir=root, image_size=16)
    assert not torch.equal(test.pixels, train.pixels)


# --- large images, decoded when asked for ----------------------------------------------------


@pytest.fixture
def large(tmp_path):
    root = write_tree(tmp_path / "large", per_class=5, size=(150, 120), ending="jpg")
    return load_dataset("folder", "train", data_dir=root, image_size=112)


def test_large_images_are_decoded_when_asked_for(large):
    assert large.pixels is None and (large.resize, large.image_size) == (116, 112)
    transform = torchvision.transforms.v2.Compose(
        [torchvision.transforms.v2.Resize(116), torchvision.transforms.v2.CenterCrop(112)]
    )
    image, label, name = large[6]
    with Image.open(large.paths[6]) as file:
        expected = torchvision.transforms.v2.functional.pil_to_tensor(transform(file))
    assert torch.equal(image, expected.float() / 255) and (label, name) == (1, "bee/1.jpg")


def test_large_fingerprint_follows_names_and_order(large):
    before = large.fingerprint
    assert large.subset(range(10)).fingerprint == before
    assert large.subset(range(9, -1, -1)).fingerprint != before
    large.file_names[0] = "ape/other.jpg"
    assert large.subset(range(10)).fingerprint != before


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_drops_nothing(large, workers):
    batches = all_of(evaluation_batches(large, batch_size=4, workers=workers))
    assert [len(x) for x, _, _ in batches] == [4, 4, 2]
    x, y, index = (torch.cat(parts) for parts in zip(*batches, strict=True))
    assert index.tolist() == list(range(10)) and torch.equal(y, large.labels)
    assert x.dtype == torch.float32 and torch.equal(x[7], large[7][0])


@pytest.mark.parametrize("kind", ["none", "crop_flip", "random_resized_crop"])
def test_large_training_resumes_exactly(large, kind):
    torch.manual_seed(0)
    state = torch.get_rng_state()
    arguments = dict(batch_size=3, seed=5, epoch=2, augment=kind)
    full = all_of(training_batches(large, **arguments))
    assert len(full) == 3 and full[0][0].shape == (3, 3, 112, 112)
    assert same(all_of(training_batches(large, **arguments, start_step=2)), full[2:])
    assert same(all_of(training_batches(large, **arguments, workers=2)), full)
    assert torch.equal(torch.get_rng_state(), state)  # the global generator is left alone
    if kind == "random_resized_crop":
        other = all_of(training_batches(large, **{**arguments, "epoch": 3}))
        position = other[0][2].tolist().index
        both = [i for i in full[0][2].tolist() if i in other[0][2].tolist()]
        for i in both:
            a = full[0][0][full[0][2].tolist().index(i)]
            assert not torch.equal(a, other[0][0][position(i)])


def test_decode_error_in_a_worker_names_the_file(large):
    with open(large.paths[3], "r+b") as file:
        file.truncate(300)
    for workers in (0, 1):
        with pytest.raises(DataError, match="/.*ape/3.jpg does not decode .* whole copy"):
            all_of(evaluation_batches(large, batch_size=4, workers=workers))


# --- ImageNet --------------------------------------------------------------------------------


def test_imagenet_subset_is_numbered_among_all_classes(tmp_path, monkeypatch):
    root = write_tree(tmp_path / "in", ("n00000003", "n00000007"), 1, (120, 130), "JPEG", "val")
    for wnid in ("n00000003", "n00000007"):
        (root / "val" / wnid / "0.JPEG").rename(root / "val" / wnid / f"{wnid}_0.JPEG")
    monkeypatch.setattr(annotations, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="pip install imagenet-x"):
        load_dataset("imagenet", "test", data_dir=root)
    package = tmp_path / "imagenet_x"
    (package / "annotations").mkdir(parents=True)
    listing = "\n".join(f"n{i:08d},class {i}" for i in range(1000))
    (package / "annotations" / "imagenet_labels.txt").write_text(listing)
    (package / "annotations" / "filename_label.csv").write_text("file_name,label\n")

    class Spec:
        submodule_search_locations = [str(package)]

    monkeypatch.setattr(annotations, "find_spec", lambda name: Spec)
    test = load_dataset("imagenet", "test", data_dir=root)
    assert test.labels.tolist() == [3, 7] and test.num_classes == 1000
    assert test.file_names == ["n00000003_0.JPEG", "n00000007_0.JPEG"]
    assert (test.resize, test.image_size) == (232, 224) and test[0][0].shape == (3, 224, 224)
    with pytest.raises(DataError, match="two images of ImageNet are called 0.JPEG"):
        load_dataset("imagenet", "train", data_dir=root)


def test_imagenet_needs_wordnet_folders(tmp_path):
    root = write_tree(tmp_path / "in", test="val")
    with pytest.raises(DataError, match="does not hold ImageNet: .*'ape'"):
        load_dataset("imagenet", "test", data_dir=root)
    with pytest.raises(DataError, match="(?s)imagenet was not found.*image-net.org"):
        load_dataset("imagenet", "test")


def test_an_imagenet_image_in_a_wrong_folder_is_named(tmp_path):
    root = write_tree(tmp_path / "in", ("n01440764", "n01443537"), 1, (120, 130), "JPEG", "val")
    for path in root.glob("val/*/0.JPEG"):  # the first images of these classes
        number = {"n01440764": 293, "n01443537": 236}[path.parent.name]
        path.rename(path.with_name(f"ILSVRC2012_val_{number:08d}.JPEG"))
    assert load_dataset("imagenet", "test", data_dir=root).labels.tolist() == [0, 1]
    first = root / "val/n01440764/ILSVRC2012_val_00000001.JPEG"
    shutil.copy(next(root.glob("train/*/*")), first)
    said = "1 of 3 images .* lie in another class's folder: .*00000001.* belongs to n01751748"
    with pytest.raises(DataError, match=said):
        load_dataset("imagenet", "test", data_dir=root)


# --- augmentation and batches in memory ------------------------------------------------------


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("side", "pad"), [(8, 1), (28, 4), (32, 4)])
def test_crop_is_a_window_of_the_padded_image(side, pad):
    x = torch.rand(40, 2, side, side, generator=generator()) + 0.1
    padded = torch.nn.functional.pad(x, (pad,) * 4)
    shifts = set()
    for original, cropped in zip(padded, augment(x, "crop", generator(1)), strict=True):
        found = [
            (i, j)
            for i in range(2 * pad + 1)
            for j in range(2 * pad + 1)
            if torch.equal(original[:, i : i + side, j : j + side], cropped)
        ]
        assert len(found) == 1
        shifts.update(found)
    assert len(shifts) > 2 * pad


def test_crop_flip_flips_half_and_is_deterministic():
    x = torch.rand(400, 1, 8, 8, generator=generator())
    crops, flipped = augment(x, "crop", generator(1)), augment(x, "crop_flip", generator(1))
    straight = (crops == flipped).flatten(1).all(1)
    assert torch.equal(flipped[~straight], crops[~straight].flip(3))
    assert 150 < straight.sum() < 250
    assert torch.equal(flipped, augment(x, "crop_flip", generator(1)))
    assert not torch.equal(flipped, augment(x, "crop_flip", generator(2)))


@pytest.mark.parametrize("kind", ["none", "crop", "crop_flip"])
def test_training_resumes_exactly(digits, kind):
    arguments = dict(batch_size=64, seed=3, epoch=1, augment=kind)
    full = all_of(training_batches(digits, **arguments))
    assert len(full) == 1297 // 64
    for start in (0, 1, 19, 20):
        assert same(all_of(training_batches(digits, **arguments, start_step=start)), full[start:])
    x, y, index = full[0]
    assert x.dtype == torch.float32 and x.min() >= 0 and x.max() <= 1
    assert torch.equal(y, digits.labels[index])
    seen = torch.cat([batch[2] for batch in full])
    assert len(seen.unique()) == len(seen) == 20 * 64
    if kind == "none":
        assert torch.equal(x[5], digits[int(index[5])][0])


def test_order_depends_on_seed_and_epoch(digits):
    orders = {
        tuple(next(training_batches(digits, batch_size=32, seed=s, epoch=e))[2].tolist())
        for s in (0, 1)
        for e in (0, 1)
    }
    assert len(orders) == 4


def test_processes_share_a_step(digits):
    arguments = dict(seed=0, epoch=0, augment="crop")
    whole = all_of(training_batches(digits, batch_size=64, **arguments))
    parts = [
        all_of(training_batches(digits, batch_size=32, rank=r, world_size=2, **arguments))
        for r in (0, 1)
    ]
    assert len(parts[0]) == len(parts[1]) == len(whole)
    for step, batch in enumerate(whole):
        assert torch.equal(torch.cat([part[step][2] for part in parts]), batch[2])


def test_wrong_batches_say_what_to_do(digits):
    with pytest.raises(ValueError, match="1297 training images do not fill one batch: .*got 1298"):
        check_images(digits, Training(epochs=1, batch_size=1298))
    with pytest.raises(ValueError, match="augment is one of none, crop, .*got 'mixup'"):
        training_batches(digits, batch_size=8, seed=0, epoch=0, augment="mixup")
    with pytest.raises(ValueError, match="choose crop or crop_flip"):
        training_batches(digits, batch_size=8, seed=0, epoch=0, augment="random_resized_crop")


def test_evaluation_in_memory_with_and_without_indices(digits):
    batches = all_of(evaluation_batches(digits, batch_size=500))
    assert [len(x) for x, _, _ in batches] == [500, 500, 297]
    assert torch.equal(torch.cat([y for _, y, _ in batches]), digits.labels)
    (chosen,) = evaluation_batches(digits, batch_size=500, indices=[9, 4])
    assert chosen[2].tolist() == [9, 4] and torch.equal(chosen[0][1], digits[4][0])
    assert all_of(evaluation_batches(digits, batch_size=5, indices=[])) == []


def test_evaluation_takes_any_sequence():
    items = [(torch.full((1, 2, 2), i / 10), i, f"image {i}") for i in range(7)]
    batches = all_of(evaluation_batches(items, batch_size=3))
    assert [y.tolist() for _, y, _ in batches] == [[0, 1, 2], [3, 4, 5], [6]]
    assert batches[1][0][2, 0, 0, 0] == pytest.approx(0.5)


# --- command line ----------------------------------------------------------------------------


def test_command_line(capsys, tmp_path):
    main(["data", "digits"])
    line = capsys.readouterr().out
    assert line.count("\n") == 3 and "licence: CC BY 4.0" in line
    assert "Digits: 1,297 train images in 10 classes, from scikit-learn" in line
    assert "Digits: 500 test images in 10 classes, from scikit-learn" in line
    with pytest.raises(SystemExit, match="error: .* holds no fashion_mnist"):
        main(["data", "fashion_mnist", "--data-dir", str(tmp_path)])


# --- the notebook of the images -----------------------------------------------------------------


@pytest.mark.parametrize(
    "change, said",
    [
        ({}, "0.0 GB free: make room"),
        ({"corruption_images": 7}, "n_images = 7 is not the same number for each of the 10"),
        ({"corruption_images": 1000}, "n_images = 1000 needs 100 images of each class"),
        ({"corruptions": "published"}, "no published set of corruptions of digits was found"),
        ({"corruptions": "published", "corruptions_dir": "none"}, "none is no folder"),
        ({"corruptions": "published", "corruptions_dir": "~"}, "does not hold|lacks|missing"),
    ],
)
def test_corruptions_that_cannot_be_are_refused_before_anything_is_trained(
    change, said, tmp_path, monkeypatch
):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=10**5))
    notebook = json.loads((ROOT / "notebooks/data.ipynb").read_text(encoding="utf-8"))
    cell = next(cell for cell in notebook["cells"] if "images_of" in "".join(cell["source"]))
    values = {"study": "digits", **change}
    given = "\n".join(["# Parameters", *(f"{k} = {v!r}" for k, v in values.items())])
    with pytest.raises((ValueError, DataError), match=said):
        exec("".join(cell["source"]), {"In": [given], **values})
