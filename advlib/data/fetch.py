"""Finding a data set on disk, or fetching it once; every file is checked before it is used."""

import contextlib
import functools
import gzip
import hashlib
import os
import pickle
import shlex
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

import numpy as np

# What is fetched or decoded is kept in a checkout's own folder, which git ignores, or, where the
# library is installed, in the user's cache.
_CHECKOUT = Path(__file__).resolve().parents[2]
_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "advlib"
DATA = (_CHECKOUT if (_CHECKOUT / "pyproject.toml").is_file() else _CACHE) / "data"
DEBIAN_PACKAGE = "dataset-fashion-mnist"
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
NETWORK_TIMEOUT = 10  # seconds without an answer
APT_TIMEOUT = 300  # seconds for apt-get, 40 MB in all

# SHA-256 of each file's content after gzip. The published MD5 sums (github.com/zalandoresearch/
# fashion-mnist) are of the .gz files, whose header holds a name and a time. Debian's package leaves
# both out; with them put back, its files have the published sums.
FASHION_MNIST_SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}

# Of each set: the folder that torchvision makes for it, the names of which a folder must hold one
# to count, and where a user finds the data.
_FOLDERS = "train/<class>/* and test/<class>/*"
_CIFAR = f"(https://www.cs.toronto.edu/~kriz/cifar.html), or {_FOLDERS}"
LAYOUTS = {
    "fashion_mnist": (
        "FashionMNIST/raw",
        [name + ending for name in FASHION_MNIST_SHA256 for ending in (".gz", "")],
        "the four files *-ubyte.gz of github.com/zalandoresearch/fashion-mnist",
    ),
    "cifar10": (
        "cifar-10-batches-py",
        ["data_batch_1", "test_batch", "train", "test"],
        f"cifar-10-batches-py {_CIFAR}",
    ),
    "cifar100": ("cifar-100-python", ["train", "test"], f"cifar-100-python {_CIFAR}"),
    "imagenet": (
        "",
        ["train", "val"],
        "train/<wnid>/*.JPEG and val/<wnid>/*.JPEG (ILSVRC2012, from https://image-net.org)",
    ),
    "folder": ("", ["train", "test", "val"], _FOLDERS),
}


class DataError(RuntimeError):
    """A data set is missing, incomplete or damaged; the message says where and how to mend it."""


def locate(name: str, data_dir: str | Path | None = None, download=True) -> tuple[Path, str]:
    """The folder that holds a data set: the first source that has it.

    The order: `data_dir`; ``$ADVLIB_DATA/<name>/`` or torchvision's folder there; an earlier fetch
    in ``data/<name>/``; Debian's package where installed; unless ``download`` is False, a download
    of what is published, or of Debian's package. ImageNet and `folder` are never downloaded. A
    `data_dir` is the set's own folder or the one above it; nothing else is tried then.

    `name` is a key of `LAYOUTS`. Returns the folder, and the source in words; DataError has each
    source that was tried, and its reason.
    """
    below, _, wanted = LAYOUTS[name]
    if data_dir is not None:
        base = _folder(data_dir, f"data_dir of {name}")
        if found := _holding(name, base, base / name):
            return found, "the folder named by data_dir"
        raise DataError(f"data_dir {base} holds no {name}: put {wanted} there.")
    if name == "folder":
        raise DataError(f"data set 'folder' needs data_dir, the folder that holds {wanted}.")
    places, tried = {}, ["ADVLIB_DATA: not set"]
    if root := os.environ.get("ADVLIB_DATA"):
        base, tried = _folder(root, "ADVLIB_DATA"), []
        places["ADVLIB_DATA"] = [base / name, base / (below or name)]
    places["an earlier fetch"] = [DATA / name]
    if name == "fashion_mnist":
        places[f"Debian's package {DEBIAN_PACKAGE}, installed"] = [DEBIAN_FOLDER]
    for source, folders in places.items():
        if found := _holding(name, *folders):
            return found, source
        tried.append(f"{source}: {folders[0]} does not hold it")
    for source, fetch in DOWNLOADS.get(name, []) if download else []:
        print(f"Fetching {name}: {source} …", file=sys.stderr)
        try:
            return _keep(name, fetch), source
        except DataError as error:
            tried.append(f"{source}: {error}")
    listing = "".join(f"\n  - {line}" for line in tried)
    raise DataError(
        f"{name} was not found. Tried:{listing}\nPut {wanted} into a folder and name it as "
        f"data_dir in the study file, or put the files into $ADVLIB_DATA/{name}/."
    )


def _holding(name: str, *bases: Path) -> Path | None:
    """The first of these folders, or of torchvision's folder in them, that holds the set."""
    below, markers, _ = LAYOUTS[name]
    places = [place for base in bases for place in (base / below, base)]
    return next((p for p in places if any((p / marker).exists() for marker in markers)), None)


def _folder(path: str | Path, what: str) -> Path:
    path = Path(path).expanduser().absolute()
    if not path.is_dir():
        raise DataError(f"{what} names {path}, which is no folder: create it, or correct the path.")
    return path


def read_fashion_mnist(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 1, H, W) uint8 and labels (N,) int64 of "train" or "test", checksums verified."""
    prefix = "train" if split == "train" else "t10k"
    images = _checked(folder, f"{prefix}-images-idx3-ubyte")
    labels = _checked(folder, f"{prefix}-labels-idx1-ubyte")
    # IDX: two zero bytes, type 8 (uint8), number of dimensions, then each size as big-endian int32.
    sizes = np.frombuffer(images, ">i4", count=3, offset=4)
    pixels = np.frombuffer(images, np.uint8, offset=16).reshape(sizes[0], 1, sizes[1], sizes[2])
    return pixels.copy(), np.frombuffer(labels, np.uint8, offset=8).astype(np.int64)


def _checked(folder: Path, name: str) -> bytes:
    """The content of a Fashion-MNIST file, gzipped or not, if its checksum holds."""
    path = folder / (name if (folder / name).exists() else f"{name}.gz")
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
        actual = hashlib.sha256(content).hexdigest()
    except (OSError, EOFError, zlib.error) as error:
        actual = error
    if actual != FASHION_MNIST_SHA256[name]:
        raise _damage(path, "SHA-256 after gzip", actual, FASHION_MNIST_SHA256[name])
    return content


def read_cifar(name: str, folder: Path, split: str) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Images (N, 3, 32, 32) uint8, labels (N,) int64 and original names, in the files' order."""
    dataset = _torchvision(name)
    for file, expected in [*dataset.train_list, *dataset.test_list]:  # before any is unpickled
        path = folder / file
        there = path.is_file()
        actual = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest() if there else ""
        if actual != expected:
            raise _damage(path, "MD5", actual or "missing", expected)
    listed = dataset.train_list if split == "train" else dataset.test_list
    parts = [pickle.loads((folder / file).read_bytes(), encoding="latin1") for file, _ in listed]
    labels = [label for part in parts for label in part.get("labels", part.get("fine_labels"))]
    names = [file_name for part in parts for file_name in part["filenames"]]
    pixels = np.concatenate([part["data"] for part in parts]).reshape(-1, 3, 32, 32)
    return pixels, np.asarray(labels, np.int64), names


def _damage(path: Path, checksum: str, actual, expected: str) -> DataError:
    again = f", or delete {path.parent}: it is then fetched again"
    again = again if path.is_relative_to(DATA) else ""
    return DataError(
        f"{path} is missing or damaged: {checksum} {actual}, expected {expected}. Put the original "
        f"file there{again}."
    )


def _torchvision(name: str):
    """torchvision's class of a set, which says where its files are published, and their MD5."""
    from advlib.data.vision import torchvision

    return getattr(torchvision.datasets, {"fashion_mnist": "FashionMNIST"}.get(name, name.upper()))


def _keep(name: str, fetch) -> Path:
    """Fetch into a temporary folder beside ``data/<name>``, and rename it once it is whole."""
    try:
        DATA.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=DATA) as temporary:
            work, result = Path(temporary) / "work", Path(temporary) / name
            work.mkdir()
            result.mkdir()
            fetch(work, result)
            # Replaces an empty folder; fails if another process was quicker, which is as good.
            with contextlib.suppress(OSError):
                result.rename(DATA / name)
    except OSError as error:
        raise DataError(f"{DATA} cannot be written ({error}): make it writable") from error
    if found := _holding(name, DATA / name):
        return found
    raise DataError(f"{DATA / name} is in the way, and is not the data set: delete it")


def _published(name: str, work: Path, result: Path) -> None:
    """What torchvision says is published, each file from the first address that gives it whole."""
    import pooch

    dataset, processor = _torchvision(name), None
    if name == "fashion_mnist":
        files = [([m + file for m in dataset.mirrors], md5) for file, md5 in dataset.resources]
    else:
        files, processor = [([dataset.url], dataset.tgz_md5)], pooch.Untar(extract_dir=result)
    pooch.get_logger().setLevel("WARNING")
    server = pooch.HTTPDownloader(timeout=NETWORK_TIMEOUT, progressbar=True, chunk_size=1 << 16)
    for urls, md5 in files:
        failed = []
        for url in urls:
            place = (url.rpartition("/")[2], work if processor else result)
            try:
                pooch.retrieve(url, f"md5:{md5}", *place, processor, downloader=server)
                break
            except (OSError, ValueError) as error:  # ValueError: another checksum
                failed.append(f"{url}: {' '.join(str(error).split())}")
        else:
            raise DataError("; ".join(failed))


def _debian_fashion_mnist(work: Path, result: Path) -> None:
    """apt-get download with package lists of its own: needs neither root nor an earlier update."""
    for folder in ("lists/partial", "cache/archives/partial"):
        (work / folder).mkdir(parents=True)
    settings = {
        "Dir::State::lists": work / "lists",
        "Dir::Cache": work / "cache",
        "APT::Sandbox::User": "root",  # its usual one may not write into our folder
        "Acquire::Languages": "none",
        "Acquire::Retries": 0,
        "Acquire::EnableSrvRecords": "false",
        "Acquire::http::Timeout": NETWORK_TIMEOUT,  # and https takes this one
    }
    options = " ".join(f"-o {key}={shlex.quote(str(value))}" for key, value in settings.items())
    # An update can fail for a source that is not needed, so only the download's outcome counts.
    script = f"""
        apt-get update {options}
        apt-get download {DEBIAN_PACKAGE} {options} && dpkg -x *.deb unpacked
    """
    # English messages; a name server that does not answer is given up after 3 s.
    env = os.environ | {"LC_ALL": "C", "RES_OPTIONS": "timeout:3 attempts:1"}
    how = dict(cwd=work, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    try:
        subprocess.run(["sh", "-c", script], **how, timeout=APT_TIMEOUT, check=True)
    except subprocess.CalledProcessError as error:
        raise DataError(" / ".join(error.stderr.split("\n")[-3:]).strip(" /")) from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DataError(str(error)) from error
    for name in FASHION_MNIST_SHA256:
        unpacked = work / "unpacked" / DEBIAN_FOLDER.relative_to("/") / f"{name}.gz"
        _checked(unpacked.parent, name)
        unpacked.rename(result / unpacked.name)


DOWNLOADS = {
    name: [("a download", functools.partial(_published, name))]
    for name in ("fashion_mnist", "cifar10", "cifar100")
}
DOWNLOADS["fashion_mnist"].append((f"Debian's package {DEBIAN_PACKAGE}", _debian_fashion_mnist))
