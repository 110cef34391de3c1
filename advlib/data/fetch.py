"""Finding a data set on disk, or fetching it once; every file is checked before it is used."""

import contextlib
import functools
import gzip
import hashlib
import http.client
import os
import pickle
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
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
APT_TIMEOUT = 300  # seconds for one apt-get command, 40 MB in all

# SHA-256 of each file's content after gzip. The published MD5 sums (github.com/zalandoresearch/
# fashion-mnist) are of the .gz files, whose header holds a name and a time that Debian's package
# leaves out. With both put back, Debian's files have exactly the published sums, so these values
# stand for the published ones, whichever way the same content is packed.
FASHION_MNIST_SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}

# By set: the folder that torchvision makes for it, names of which one at least must lie in a
# folder for it to count, and where a user finds the data.
LAYOUTS = {
    "fashion_mnist": (
        "FashionMNIST/raw",
        [name + ending for name in FASHION_MNIST_SHA256 for ending in (".gz", "")],
        "the four files *-ubyte.gz of github.com/zalandoresearch/fashion-mnist",
    ),
    "cifar10": (
        "cifar-10-batches-py",
        ["data_batch_1", "test_batch", "train", "test"],
        "cifar-10-batches-py (https://www.cs.toronto.edu/~kriz/cifar.html), or "
        "train/<class>/* and test/<class>/*",
    ),
    "cifar100": (
        "cifar-100-python",
        ["train", "test"],
        "cifar-100-python (https://www.cs.toronto.edu/~kriz/cifar.html), or "
        "train/<class>/* and test/<class>/*",
    ),
    "imagenet": (
        "",
        ["train", "val"],
        "train/<wnid>/*.JPEG and val/<wnid>/*.JPEG (ILSVRC2012, from https://image-net.org)",
    ),
    "folder": ("", ["train", "test", "val"], "train/<class>/* and test/<class>/*"),
}


class DataError(RuntimeError):
    """A data set is missing, incomplete or damaged; the message says where and how to mend it."""


def locate(name: str, data_dir: str | Path | None = None) -> tuple[Path, str]:
    """The folder that holds a data set: the first source that has it.

    The order: `data_dir`; ``$ADVLIB_DATA/<name>/`` (or torchvision's folder in $ADVLIB_DATA); an
    earlier fetch in ``data/<name>/``; Debian's package where installed; a download by torchvision;
    a download of Debian's package. ImageNet and `folder` are never downloaded.

    Parameters
    ----------
    name : {"fashion_mnist", "cifar10", "cifar100", "imagenet", "folder"}
    data_dir : optional
        The folder that a study names: the set's own, or the one above it. Nothing else is tried
        if it is given.

    Returns
    -------
    (Path, str)
        The folder, and the source in words.

    Raises
    ------
    DataError
        With each source tried and its reason.
    """
    _, _, wanted = LAYOUTS[name]
    if data_dir is not None:
        base = _folder(data_dir, f"data_dir of {name}")
        found = _first(name, _inside(name, base) + _inside(name, base / name))
        if found is None:
            remedy = "" if name == "folder" else ", or leave data_dir out to look elsewhere"
            raise DataError(f"data_dir {base} holds no {name}: put {wanted} there{remedy}.")
        return found, "the folder named by data_dir"
    if name == "folder":
        raise DataError(f"data set 'folder' needs data_dir, the folder that holds {wanted}.")
    tried = ["ADVLIB_DATA: not set"]
    if os.environ.get("ADVLIB_DATA"):
        base = _folder(os.environ["ADVLIB_DATA"], "ADVLIB_DATA")
        found = _first(name, _inside(name, base / name) + _inside(name, base)[:-1])
        if found is not None:
            return found, "ADVLIB_DATA"
        tried = [f"ADVLIB_DATA: {base / name} does not hold it"]
    found = _first(name, _inside(name, DATA / name))
    if found is not None:
        return found, "an earlier fetch"
    tried.append(f"earlier fetch: {DATA / name} does not hold it")
    if name == "fashion_mnist":
        if _first(name, [DEBIAN_FOLDER]) is not None:
            return DEBIAN_FOLDER, f"Debian's package {DEBIAN_PACKAGE}, installed"
        tried.append(f"installed Debian package: {DEBIAN_FOLDER} does not hold it")
    for source, fetch in DOWNLOADS.get(name, []):
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


def counts(entry: os.DirEntry) -> bool:
    """Whether a file or folder is part of a data set: not hidden, and no folder of previews.

    Raises `DataError` for a name that is not UTF-8.
    """
    try:
        entry.name.encode()
    except UnicodeEncodeError:
        shown = os.fsencode(entry.path).decode("utf-8", "backslashreplace")
        raise DataError(
            f"the name of {shown} is not UTF-8: rename it, as convmv does for whole folders."
        ) from None
    previews = ("__MACOSX", "@eaDir")  # of macOS, of Synology
    return not entry.name.startswith(".") and entry.name not in previews


def identity(folder: str | Path) -> tuple[int, int]:
    """What tells a real folder, by whatever path or link it is reached."""
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def walk(folder: str | Path, seen: dict[tuple[int, int], str]) -> Iterator[str]:
    """The paths of all files below a folder that count, sorted; links are followed.

    `seen` holds the path of each real folder that was met. It is filled.

    Raises
    ------
    DataError
        For a folder that is met twice (a link to one above itself, or a folder of two classes), one
        that cannot be read, and a name that is not UTF-8.
    """
    folder = str(folder)
    try:
        first = seen.setdefault(identity(folder), folder)
        if first is not folder:
            raise DataError(
                f"{folder} is the same folder as {first}, by a link: each image counts once, so "
                "remove the link."
            )
        with os.scandir(folder) as entries:
            found = sorted((e.name, e.is_dir()) for e in entries if counts(e))
    except OSError as error:
        raise DataError(
            f"{folder} cannot be read ({error.strerror}): allow it, or move the folder away."
        ) from error
    paths = {is_folder: [] for is_folder in (False, True)}
    for name, is_folder in found:
        paths[is_folder].append(os.path.join(folder, name))
    yield from paths[False]
    for path in paths[True]:
        yield from walk(path, seen)


def read_fashion_mnist(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 1, H, W) uint8 and labels (N,) int64 of "train" or "test", checksums verified."""
    prefix = "train" if split == "train" else "t10k"
    images, labels = (
        _checked(folder, f"{prefix}-{kind}-ubyte") for kind in ("images-idx3", "labels-idx1")
    )
    # IDX: two zero bytes, type 8 (uint8), number of dimensions, then each size as big-endian int32.
    sizes = np.frombuffer(images, ">i4", count=3, offset=4)
    pixels = np.frombuffer(images, np.uint8, offset=16).reshape(sizes[0], 1, sizes[1], sizes[2])
    return pixels.copy(), np.frombuffer(labels, np.uint8, offset=8).astype(np.int64)


def read_cifar(name: str, folder: Path, split: str) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Images (N, 3, 32, 32) uint8, labels (N,) int64 and original names, in the files' order."""
    dataset = _cifar_files(name)
    for file, md5 in [*dataset.train_list, *dataset.test_list]:
        check_md5(folder / file, md5)  # before anything is unpickled
    listed = dataset.train_list if split == "train" else dataset.test_list
    parts = [pickle.loads((folder / file).read_bytes(), encoding="latin1") for file, _ in listed]
    labels = [label for part in parts for label in part.get("labels", part.get("fine_labels"))]
    names = [file_name for part in parts for file_name in part["filenames"]]
    pixels = np.concatenate([part["data"] for part in parts]).reshape(-1, 3, 32, 32)
    return pixels, np.asarray(labels, np.int64), names


def check_md5(path: Path, expected: str) -> None:
    """Raise `DataError` unless the file is there and has this MD5."""
    if not path.is_file():
        raise DataError(f"{path} is missing (expected MD5 {expected}). {_remedy(path.parent)}")
    with open(path, "rb") as file:
        actual = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if actual != expected:
        raise DataError(
            f"{path} is damaged: its MD5 is {actual}, expected {expected}. {_remedy(path.parent)}"
        )


def _checked(folder: Path, name: str) -> bytes:
    """The content of a Fashion-MNIST file, gzipped or not, if its checksum holds."""
    expected = FASHION_MNIST_SHA256[name]
    remedy = _remedy(folder)
    path = next((p for p in (folder / f"{name}.gz", folder / name) if p.exists()), None)
    if path is None:
        raise DataError(
            f"{folder / name}.gz is missing (expected SHA-256 after gzip: {expected}). {remedy}"
        )
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"{path} cannot be read ({error}); expected SHA-256 after gzip: {expected}. {remedy}"
        ) from error
    actual = hashlib.sha256(content).hexdigest()
    if actual != expected:
        raise DataError(
            f"{path} is damaged: the SHA-256 of its content is {actual}, expected {expected}. "
            f"{remedy}"
        )
    return content


def _remedy(folder: Path) -> str:
    again = f", or delete {folder}: it is then fetched again" if folder.is_relative_to(DATA) else ""
    return f"Put the original file there{again}."


def _inside(name: str, base: Path) -> list[Path]:
    """Where in `base` the set may lie: torchvision's folder, then `base` itself."""
    torchvision_folder = LAYOUTS[name][0]
    return ([base / torchvision_folder] if torchvision_folder else []) + [base]


def _first(name: str, folders: list[Path]) -> Path | None:
    markers = LAYOUTS[name][1]
    return next((f for f in folders if any((f / marker).exists() for marker in markers)), None)


def _folder(path: str | Path, what: str) -> Path:
    path = Path(path).expanduser().absolute()
    try:
        next(path.iterdir(), None)
    except OSError as error:
        reason = error.strerror or error
        raise DataError(
            f"{what} names {path}, which cannot be read as a folder: {reason}. "
            "Create it, or correct the path."
        ) from error
    return path


def _keep(name: str, fetch) -> Path:
    """Fetch into a temporary folder beside ``data/<name>``, check, and rename it there."""
    try:
        DATA.mkdir(parents=True, exist_ok=True)
        for old in DATA.glob(".fetch-*"):  # left by a fetch that was killed
            if time.time() - old.stat().st_mtime > 86400:
                shutil.rmtree(old, ignore_errors=True)
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
    found = _first(name, _inside(name, DATA / name))
    if found is None:
        raise DataError(f"{DATA / name} is in the way, and is not the data set: delete it")
    return found


def _torchvision_fashion_mnist(work: Path, result: Path) -> None:
    from advlib.data.vision import torchvision

    dataset = torchvision.datasets.FashionMNIST
    with _impatient(dataset.mirrors[0]):
        dataset(work, download=True)
    _take_fashion_mnist(work / "FashionMNIST" / "raw", result)


def _torchvision_cifar(name: str, work: Path, result: Path) -> None:
    dataset = _cifar_files(name)  # checks the archive's MD5 itself
    with _impatient(dataset.url):
        dataset(work, download=True)
    (work / dataset.base_folder).rename(result / dataset.base_folder)


def _cifar_files(name: str):
    """torchvision's class of the set, which lists its files with their checksums."""
    from advlib.data.vision import torchvision

    return {"cifar10": torchvision.datasets.CIFAR10, "cifar100": torchvision.datasets.CIFAR100}[
        name
    ]


def _debian_fashion_mnist(work: Path, result: Path) -> None:
    """apt-get download with package lists of its own: needs neither root nor an earlier update."""
    for tool in ("apt-get", "dpkg"):
        if shutil.which(tool) is None:
            raise DataError(f"there is no {tool} on this machine")
    (work / "lists" / "partial").mkdir(parents=True)
    (work / "cache" / "archives" / "partial").mkdir(parents=True)
    settings = {
        "Dir::State::lists": work / "lists",
        "Dir::Cache": work / "cache",
        "APT::Sandbox::User": "root",  # its usual one may not write into our folder
        "Acquire::Languages": "none",
        "Acquire::Retries": 0,
        "Acquire::EnableSrvRecords": "false",
        "Acquire::http::Timeout": NETWORK_TIMEOUT,
        "Acquire::https::Timeout": NETWORK_TIMEOUT,
    }
    options = [part for key, value in settings.items() for part in ("-o", f"{key}={value}")]
    # An update can fail for a source that we do not need, so only the download's outcome counts.
    update = _command(["apt-get", "update", *options], work)
    download = _command(["apt-get", "download", DEBIAN_PACKAGE, *options], work)
    package = next(work.glob("*.deb"), None)
    if download.returncode or package is None:
        messages = (update.stderr + download.stderr).strip().splitlines()
        raise DataError(" / ".join(line.strip() for line in messages[:1] + messages[-1:]))
    unpack = _command(["dpkg", "-x", package.name, "unpacked"], work)
    if unpack.returncode:
        raise DataError(f"dpkg could not unpack {package.name}: {unpack.stderr.strip()}")
    _take_fashion_mnist(work / "unpacked" / DEBIAN_FOLDER.relative_to("/"), result)


DOWNLOADS = {
    "fashion_mnist": [
        ("torchvision's download", _torchvision_fashion_mnist),
        (f"Debian's package {DEBIAN_PACKAGE}", _debian_fashion_mnist),
    ],
    "cifar10": [("torchvision's download", functools.partial(_torchvision_cifar, "cifar10"))],
    "cifar100": [("torchvision's download", functools.partial(_torchvision_cifar, "cifar100"))],
}


def _take_fashion_mnist(source: Path, result: Path) -> None:
    for name in FASHION_MNIST_SHA256:
        _checked(source, name)
        (source / f"{name}.gz").rename(result / f"{name}.gz")


def _command(arguments: list[str], folder: Path) -> subprocess.CompletedProcess:
    try:
        return subprocess.run(
            arguments,
            cwd=folder,
            # English messages; a name server that does not answer is given up after 3 s.
            env={**os.environ, "LC_ALL": "C", "RES_OPTIONS": "timeout:3 attempts:1"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=APT_TIMEOUT,
        )
    except subprocess.TimeoutExpired as error:
        raise DataError(f"{arguments[0]} {arguments[1]} took over {APT_TIMEOUT} s") from error


@contextlib.contextmanager
def _impatient(url: str) -> Iterator[None]:
    """A download that gives up at once without a network, and when the server falls silent.

    torchvision sets no time limit, and looking up a host name can hang for long: so the server is
    first asked in a thread that need not end.
    """
    answer: list[Exception | None] = []

    def ask():
        try:
            request = urllib.request.Request(url, method="HEAD")
            urllib.request.urlopen(request, timeout=NETWORK_TIMEOUT).close()
        except urllib.error.HTTPError as error:  # refused, but there
            error.close()
            answer.append(None)
        except Exception as error:
            answer.append(error)
        else:
            answer.append(None)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(NETWORK_TIMEOUT + 2)
    if not answer:
        raise DataError(f"no answer from {url} within {NETWORK_TIMEOUT} s")
    if answer[0] is not None:
        raise DataError(f"{url}: {answer[0]}")
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(NETWORK_TIMEOUT)
    try:
        yield
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{url}: {' '.join(str(error).split())}") from error
    finally:
        socket.setdefaulttimeout(before)
