"""Images corrupted by the library of ImageNet-C's functions, in processes without torch.

The library's severities were made for RGB images of 224 px, and it takes none below 32 px. Images
of 16 to 31 px are extended to 32 px by reflection and cut back afterwards. Smaller ones are
enlarged by repeating pixels, and one pixel of each square is kept. A grey image enters as three
equal channels and the green one is kept: an average would weaken noise.
"""

import functools
import multiprocessing
import os
import signal
import threading
import types
from pathlib import Path

import numpy as np

from advlib.files import replacing

SIDE = 32  # px, the smallest image that the library takes


def start_worker() -> None:
    import cv2

    cv2.setNumThreads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is for the parent to handle

    def end_with_parent():
        # A killed parent closes no queue: its processes would wait for work for ever.
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


@functools.cache
def library():
    """The module of the corruption functions."""
    import cv2
    from imagecorruptions import corruptions

    # `frost` reads one of six pictures from disk for every image, half of all the time at 32 px.
    corruptions.cv2 = types.SimpleNamespace(**vars(cv2) | {"imread": functools.cache(cv2.imread)})
    return corruptions


def corrupt_file(clean: Path, path: Path, corruption: str, severity: int, seeds) -> None:
    """Write the images of one .npy file, corrupted, to another, whole or not at all."""
    pixels = np.load(clean, mmap_mode="r")
    with replacing(path) as partial:
        result = np.lib.format.open_memmap(partial, "w+", np.uint8, pixels.shape)
        corrupt(pixels, corruption, severity, seeds, result)


def corrupt(pixels: np.ndarray, corruption: str, severity: int, seeds, result=None) -> np.ndarray:
    """Corrupt images uint8 (N, C, H, W), each by random numbers of its own seed (N,)."""
    from PIL import Image

    function = getattr(library(), corruption)
    result = np.empty_like(pixels) if result is None else result
    for i, seed in enumerate(map(int, seeds)):
        # Most functions draw from NumPy's global generator; two have one of their own.
        np.random.seed(seed)
        own = {"seed": seed} if corruption in ("impulse_noise", "glass_blur") else {}
        image, inside = _fit(pixels[i].transpose(1, 2, 0))
        changed = np.uint8(function(Image.fromarray(image), severity, **own))
        result[i] = changed[inside].transpose(2, 0, 1)
    return result


def _fit(image: np.ndarray) -> tuple[np.ndarray, tuple[slice, slice, slice]]:
    """An image (H, W, C) as the library takes it, RGB of 32 px or more, and where it lies there."""
    height, width, channels = image.shape
    kept = slice(1, 2) if channels == 1 else slice(None)  # of three equal ones, the green
    rgb = np.repeat(image, 3 // channels, axis=2)
    if min(height, width) < SIDE // 2:
        factor = -(-SIDE // min(height, width))
        inside = slice(factor // 2, None, factor)
        return rgb.repeat(factor, 0).repeat(factor, 1), (inside, inside, kept)
    top, left = (max(0, SIDE - side) // 2 for side in (height, width))
    after = (max(0, SIDE - side + 1) // 2 for side in (height, width))
    if min(height, width) < SIDE:
        rgb = np.pad(rgb, (*zip((top, left), after, strict=True), (0, 0)), mode="reflect")
    inside = slice(top, top + height), slice(left, left + width), kept
    return np.ascontiguousarray(rgb), inside
