"""The device of these tests, and what keeps it busy for a known time."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import pytest

WHY = "needs a CUDA device: torch.cuda.is_available() is false"


@pytest.fixture(scope="session")
def cuda() -> Any:
    """The present CUDA device, its runtime started: what it opens is no leak of the test that comes first."""
    if importlib.util.find_spec("torch") is None:
        pytest.skip("needs prefetchd[torch]")
    import torch

    if not torch.cuda.is_available():
        pytest.skip(WHY)
    device = torch.device("cuda", torch.cuda.current_device())
    torch.ones(1, device=device).cpu()
    torch.ones(1).pin_memory()
    return device


@pytest.fixture(scope="session")
def busy(cuda: Any) -> Callable[[float], None]:
    """Keep the present stream busy for about so many seconds, without the processor: `busy(0.2)`."""
    import torch

    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    n_cycles = 50_000_000
    for _ in range(2):  # the clock rises with work
        begin.record()
        torch.cuda._sleep(n_cycles)
        end.record()
        end.synchronize()
    cycles_per_s = n_cycles / (begin.elapsed_time(end) / 1e3)
    return lambda seconds: torch.cuda._sleep(int(seconds * cycles_per_s))
