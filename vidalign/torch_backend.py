"""Lets a torchvision that was built for CUDA be imported alongside a CPU build of torch.

Registered in the entry-point group ``torch.backends``, which torch calls at the end of ``import torch`` in every process:
command line, Ray workers and vLLM's engine processes alike. transformers needs torchvision for its video processors, and
package indexes serve a CUDA build of it, whose import fails on "operator torchvision::nms does not exist" when torch is a
CPU build. Declaring the two missing schemas is enough, because nothing here calls them. Where torch has CUDA, or
torchvision is a CPU build, this does nothing. Without Triton, which CPU builds do not need, torch warns of it; that is not shown.
"""

from __future__ import annotations

import importlib.util
import logging
import pathlib
import re

_library = None  # torch drops the schemas when the Library object dies


def declare_torchvision_operators() -> None:
    """Declare torchvision's `nms` and `qnms` if its compiled operators cannot load here."""
    global _library
    import torch

    if importlib.util.find_spec("triton") is None:
        logging.getLogger("torch._library.triton").setLevel(logging.ERROR)
    if _library is not None or torch.version.cuda is not None or torch.version.hip is not None:
        return
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None or not _is_cuda_build(pathlib.Path(spec.origin).parent):
        return
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _library = library


def _is_cuda_build(package: pathlib.Path) -> bool:
    """Read torchvision/version.py without importing torchvision: CUDA builds carry a local version such as +cu130."""
    text = (package / "version.py").read_text(encoding="utf-8")
    return re.search(r"^__version__ = ['\"][^'\"]*\+cu\d", text, flags=re.MULTILINE) is not None
