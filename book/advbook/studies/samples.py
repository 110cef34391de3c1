"""A few images of a study, what an attack adds to each, and what each method sees in it.

The samples table has one row an image and method (of the first seed):

====================================================  ==============================================
``method``, ``seed``, ``file_name``, ``label``
``image``                                             PNG of the clean image, uint8
``perturbation``                                      PNG, uint8: 127.5 + 127.5·δ/``scale``
``scale``                                             the change of a white pixel: ε under L∞, the
                                                      image's largest change under L2
``predicted_class``, ``predicted_probability``        of the clean image
``adversarial_class``, ``adversarial_probability``    of the image with δ, before it was rounded
====================================================  ==============================================
"""

import struct
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from advbook.studies.current import SAMPLES, study_tables
from advbook.studies.inputs import images_of
from advbook.studies.places import tables_folder
from advlib.parquet import read_table, write_parquet
from advlib.predictions import environment

COLUMNS = ["method", "seed", "file_name", "label", "image", "perturbation", "scale"]
COLUMNS += ["predicted_class", "predicted_probability"]
COLUMNS += ["adversarial_class", "adversarial_probability"]
ATTACK = "pgd40_last"  # the last iterate of one start: each image is attacked to the end
NETWORK = ("checkpoint_hash", "settings")  # the facts of each network
COARSE = 8  # px: waves as long as this or longer are coarse
LARGE_SIDE = 64  # px; of larger images there are fewer
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def make_samples(study) -> Path:
    """Attack a few of the study's images on every method's network of the first seed.

    The attack is the study's PGD-40 in float32, from the start that `evaluate_attack` draws for the
    image. Its last iterate is kept, whether or not it is misclassified. Returns the path of
    ``runs/<study>/samples.parquet``; the same networks on the same machine give the same bytes.
    Raises FileNotFoundError or RuntimeError as `advbook.studies.runs.load_run`, before anything is
    attacked.
    """
    import torch

    from advbook.studies.evaluate import image_facts
    from advbook.studies.runs import load_run
    from advlib.attacks.pgd import classify, pgd_attack
    from advlib.attacks.worst_case import image_noise
    from advlib.networks.device import autocast, default_device

    device = default_device()
    seed, threat = study.seeds[0], study.threat(ATTACK)
    found = {method: load_run(study, method, seed) for method in study.methods}
    images = images_of(study, study.evaluation_split)
    k = images.num_classes
    chosen = sample_positions(images.file_names, images.labels.numpy(), images[0][0].shape[-1])
    x, y, names = zip(*(images[i] for i in chosen), strict=True)
    x, y = torch.stack(x).to(device), torch.tensor(y, device=device)
    noise = image_noise(x, torch.arange(len(x)), names, threat, 0, 0)
    pixels = [encode_png(np.rint(255 * image.cpu().numpy())) for image in x]
    tables = []
    for method, (model, _) in found.items():
        model = model.to(device).eval()
        with autocast(device, torch.float32):
            x_adv = pgd_attack(model, x, y, threat, num_classes=k, noise=noise)
        before = [values.cpu().numpy() for values in classify(model, x, k, len(x))]
        after = [values.cpu().numpy() for values in classify(model, x_adv, k, len(x))]
        delta = (x_adv - x).cpu().numpy()
        scale = np.full(len(x), threat.eps)
        if threat.norm == "L2":
            scale = np.abs(delta).max(axis=(1, 2, 3))
        magnified = [127.5 + 127.5 * d / (s or 1) for d, s in zip(delta, scale, strict=True)]
        perturbations = [encode_png(np.rint(values)) for values in magnified]
        values = (names, y.cpu().numpy(), pixels, perturbations, scale, *before, *after)
        table = pd.DataFrame(dict(zip(COLUMNS[2:], values, strict=True)))
        tables.append(table.assign(method=method, seed=seed)[COLUMNS])
    facts = {
        "study": study.study,
        "seed": seed,
        "attack": ATTACK,
        "threat": threat.to_dict(),
        "n_images": len(names),
        "networks": {m: {k: run[k] for k in NETWORK} for m, (_, run) in found.items()},
        "versions": environment()["versions"],
        **image_facts(study, images, attack_seed=0, dtype="float32"),
    }
    return write_parquet(pd.concat(tables, ignore_index=True), study.runs / SAMPLES, facts)


def read_samples(study, source: str) -> pd.DataFrame:
    """The samples table of a study, "fresh" or "committed", with the columns above.

    Raises FileNotFoundError or ValueError as `advbook.studies.current.study_tables`.
    """
    folder = tables_folder(study, source)
    study_tables(study, folder, "samples")
    return read_table(folder / SAMPLES)[COLUMNS]


def sample_positions(file_names, labels, side: int) -> list[int]:
    """Positions of the images that are shown, class by class: decided by their names alone.

    Three of each class, at most 30 in all, or 12 if their `side` is above `LARGE_SIDE` px; where
    there are more classes than that, one image of each of so many classes. A hash of the file name
    ranks them, so that neither order nor looks nor any network has a say.
    """
    from advlib.data.batches import stream_seed

    limit = 12 if side > LARGE_SIDE else 30
    each = max(1, min(3, limit // len(np.unique(labels))))
    ranked = sorted(range(len(labels)), key=lambda i: stream_seed("samples", file_names[i]))
    labels = pd.Series(labels).loc[ranked]
    chosen = labels.groupby(labels).head(each).head(limit)
    return chosen.sort_values(kind="stable").index.tolist()


def encode_png(pixels: np.ndarray) -> bytes:
    """A PNG of an image (C, H, W) with values in [0, 255]: grey with one channel, RGB with three.

    Rows are not filtered, so the bytes depend on zlib alone and `decode_png` is a few lines: the
    book is also built where there is no image library.
    """
    c, h, w = pixels.shape
    colour = {1: 0, 3: 2}[c]
    rows = pixels.astype(np.uint8).transpose(1, 2, 0).reshape(h, w * c)
    rows = np.pad(rows, ((0, 0), (1, 0)))  # before each row the number of its filter: none
    header = struct.pack(">IIBBBBB", w, h, 8, colour, 0, 0, 0)
    png = PNG_SIGNATURE
    for kind, data in (
        (b"IHDR", header),
        (b"IDAT", zlib.compress(rows.tobytes(), 9)),
        (b"IEND", b""),
    ):
        png += struct.pack(">I", len(data)) + kind + data
        png += struct.pack(">I", zlib.crc32(kind + data))
    return png


def decode_png(png: bytes) -> np.ndarray:
    """The uint8 image (C, H, W) of a PNG that `encode_png` made."""
    chunks, at = {}, len(PNG_SIGNATURE)
    while at < len(png):
        (length,) = struct.unpack(">I", png[at : at + 4])
        chunks[png[at + 4 : at + 8]] = png[at + 8 : at + 8 + length]
        at += 12 + length
    w, h, _, colour, *_ = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    rows = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(h, -1)[:, 1:]
    return rows.reshape(h, w, {0: 1, 2: 3}[colour]).transpose(2, 0, 1)


def coarse_share(perturbation: bytes) -> float:
    """How much of a perturbation's energy lies in waves of `COARSE` px or longer, in [0, 1].

    The squared Fourier amplitudes of all channels at 1 / `COARSE` cycles a pixel or less, over
    those of all frequencies; the mean change of the image is left out of both. nan without energy.
    """
    delta = decode_png(perturbation) / 127.5 - 1
    energy = (np.abs(np.fft.fft2(delta)) ** 2).sum(0)
    energy[0, 0] = 0
    return energy[_coarse(energy.shape)].sum() / energy.sum() if energy.sum() > 1e-9 else np.nan


def coarse_share_of_noise(png: bytes) -> float:
    """The expected `coarse_share` of independent noise on an image of the size of this one."""
    coarse = _coarse(decode_png(png).shape[1:])
    return (coarse.sum() - 1) / (coarse.size - 1)


def _coarse(shape: tuple) -> np.ndarray:
    """Which entries of a two-dimensional Fourier transform are waves of `COARSE` px or longer."""
    vertical, horizontal = (np.fft.fftfreq(n) for n in shape)
    return np.hypot(vertical[:, None], horizontal[None]) <= 1 / COARSE


def mean_over_images(shares: pd.DataFrame) -> pd.DataFrame:
    """Each method's mean share with its 95 % interval over images, by Student's t.

    From one row per image, with columns method and share, to method, value, low and high.
    """
    found = shares.groupby("method", sort=False).share.agg(["mean", "sem", "count"])
    half = stdtrit(found["count"] - 1, 0.975) * found["sem"]
    columns = {"value": found["mean"], "low": found["mean"] - half, "high": found["mean"] + half}
    return pd.DataFrame(columns).reset_index()
