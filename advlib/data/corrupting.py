"""Images corrupted by the library of ImageNet-C's functions, in processes of their own.

The processes import this module and little else: no torch.
"""

import functools
import multiprocessing
import os
import signal
import threading
import types
from collections.abc import Callable

import numpy as np

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


def corrupt(pixels: np.ndarray, corruption: str, severity: int, seeds: list[int]) -> np.ndarray:
    """Corrupt images uint8 (N, C, H, W), each by random numbers of its own."""
    from PIL import Image

    function = getattr(library(), corruption)
    result = np.empty_like(pixels)
    for i, seed in enumerate(seeds):
        # Most functions draw from NumPy's global generator; two have one of their own.
        np.random.seed(seed)
        own = {"seed": seed} if corruption in ("impulse_noise", "glass_blur") else {}
        image, back = _fit(pixels[i].transpose(1, 2, 0))
        changed = np.uint8(function(Image.fromarray(image), severity, **own))
        result[i] = back(changed).transpose(2, 0, 1)
    return result


def enlargement(height: int, width: int) -> int:
    return -(-SIDE // min(height, width))


def _fit(image: np.ndarray) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
    """An image (H, W, C) as the library takes it, RGB of 32 px or more, and the way back."""
    height, width, channels = image.shape
    kept = slice(1, 2) if channels == 1 else slice(None)  # of three equal ones, the green
    rgb = np.repeat(image, 3 // channels, axis=2)
    if min(height, width) < SIDE // 2:
        factor = enlargement(height, width)
        inside = slice(factor // 2, None, factor)
        return (
            rgb.repeat(factor, 0).repeat(factor, 1),
            lambda changed: changed[inside, inside, kept],
        )
    before = [max(0, SIDE - side) // 2 for side in (height, width)]
    after = [max(0, SIDE - side + 1) // 2 for side in (height, width)]
    if any(after):
        rgb = np.pad(rgb, (*zip(before, after, strict=True), (0, 0)), mode="reflect")
    top, left = before
    return (
        np.ascontiguousarray(rgb),
        lambda changed: changed[top : top + height, left : left + width, kept],
    )
