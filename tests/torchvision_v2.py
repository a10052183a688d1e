"""torchvision's transforms v2 for tests that compare with them; the test is skipped where they are not installed."""

from __future__ import annotations

import contextlib
import importlib.util
from typing import Any

import pytest

_COMPILED = ("nms", "qnms")  # what importing torchvision looks for, and its transforms never call
_declared: list[Any] = []  # a torch library lives as long as its object


def transforms_v2() -> Any:
    """Return the module `torchvision.transforms.v2`, or skip the test.

    torchvision's compiled operators do not load beside a torch of another build (CUDA beside CPU), and then nothing of
    it can be imported, although the transforms are plain torch. So the operators that the import wants are declared.
    """
    for name in ("torch", "torchvision"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")
    import torch

    with contextlib.suppress(ImportError, RuntimeError):
        from torchvision.transforms import v2

        return v2
    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[attr-defined,unused-ignore]
    _declared.append(library)
    for operator in _COMPILED:
        with contextlib.suppress(RuntimeError):  # it is there
            library.define(f"{operator}(Tensor boxes, Tensor scores, float threshold) -> Tensor")
    from torchvision.transforms import v2

    return v2
