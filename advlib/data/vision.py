"""One way to import torchvision, also beside a CPU build of torch.

torchvision's wheels on the package index are built for the CUDA build of torch. Beside a CPU build
their compiled operators do not load, and the import itself then stops at "operator
torchvision::nms does not exist". This project uses none of those operators, so where the compiled
ones are absent the two schemas that the import asks for are declared first.
"""

import importlib.util
from pathlib import Path

import torch

_folder = Path(importlib.util.find_spec("torchvision").submodule_search_locations[0])
try:
    torch.ops.load_library(next(_folder.glob("_C*")))
except (OSError, StopIteration):
    # Kept in a global: the schemas are gone as soon as this object is.
    _schemas = torch.library.Library("torchvision", "DEF")
    for _name in ("nms", "qnms"):
        _schemas.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import torchvision  # noqa: E402
import torchvision.transforms.v2  # noqa: E402

__all__ = ["torchvision"]
