"""Copies run beside the step, arrive before they are read, and hold slots and memory exactly as long as they must."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import prefetchd
from tests.conftest import wait_until

torch = pytest.importorskip("torch", reason="needs prefetchd[torch]")

import prefetchd.torch  # noqa: E402
from prefetchd.torch.device_copies import Cuda, DeviceCopies  # noqa: E402

QUICK: dict[str, Any] = {"batch_size": 4, "image_size": 64, "num_workers": 1}


@pytest.fixture(params=["registered", "buffers"])
def copies(request, cuda, photographs, monkeypatch) -> Iterator[tuple[prefetchd.Loader, DeviceCopies, Any]]:
    """A loader of arrays, what copies its batches, and a context whose work delays those copies."""
    if request.param == "buffers":
        monkeypatch.setattr(Cuda, "page_lock", lambda *_: False)
    device = Cuda(cuda)
    with prefetchd.batches(photographs, **QUICK) as loader:
        made = DeviceCopies(device, lambda: loader.maps, lambda tensors: tensors)
        yield loader, made, device.beside
        made.close()


def start(copies: DeviceCopies, batch: prefetchd.Batch) -> Any:
    return copies.start(batch.root, batch.place.rows, batch._layout)


def test_copy_is_done_while_the_step_still_runs(copies, busy):
    loader, device, _ = copies
    items = iter(loader)
    device.hand_over(start(device, next(items)))  # what is made once: streams, registration, buffers
    torch.cuda.synchronize()
    batch = next(items)
    busy(1.0)
    step = torch.cuda.Event()
    step.record()
    began_s = time.perf_counter()
    arriving = start(device, batch)
    device.hand_over(arriving)
    assert time.perf_counter() - began_s < 0.5, "the processor waits for nothing"
    wait_until(arriving.event.query, "the copy is done")
    assert not step.query(), "the step had ended before the copy"
    torch.cuda.synchronize()
    assert np.array_equal(arriving.tensors[0].cpu().numpy(), batch.x)


def test_step_waits_for_a_copy_that_is_late(copies, busy):
    loader, device, beside = copies
    batch = next(iter(loader))
    with beside():
        busy(0.3)
    arriving = start(device, batch)
    assert not arriving.event.query()
    device.hand_over(arriving)
    total = arriving.tensors[0].long().sum()  # on the caller's stream, queued before the copy has begun
    assert int(total) == int(batch.x.astype(np.int64).sum())


def test_slot_is_held_until_the_event_after_its_copy(cuda, photographs, busy):
    device = Cuda(cuda)
    with prefetchd.batches(photographs, **QUICK) as loader:
        made = DeviceCopies(device, lambda: loader.maps, lambda tensors: tensors)
        items = iter(loader)
        batch = next(items)
        with device.beside():
            busy(0.5)
        arriving = start(made, batch)
        registered = bool(made._locked)
        del batch
        items.close()
        held = loader._connection._leases
        assert held.n_held == (1 if registered else 0)  # a copy through a buffer has left the slot already
        made.hand_over(arriving)
        assert held.n_held == (1 if registered else 0), "hand_over does not wait"
        made.make_room(0)
        assert arriving.event.query()
        assert held.n_held == 0
        made.close()


def test_memory_that_the_step_still_reads_is_not_given_to_the_next_copy(copies, busy, cuda):
    """Without `record_stream` the allocator gives it to the copies' stream as soon as Python drops the tensor."""
    loader, device, beside = copies
    batch = next(iter(loader))
    arriving = start(device, batch)
    device.hand_over(arriving)
    x = arriving.tensors[0]
    address, shape = x.data_ptr(), x.shape
    busy(0.5)
    total = x.long().sum()  # reads x when the wait is over
    del arriving, x
    with beside():
        others = [torch.full(shape, 255, dtype=torch.uint8, device=cuda) for _ in range(8)]
    assert address not in [other.data_ptr() for other in others]
    assert int(total) == int(batch.x.astype(np.int64).sum())


def test_closing_in_mid_copy_waits_for_it(cuda, photographs, busy):
    with prefetchd.torch.batches(photographs, device=cuda, **QUICK) as loader:
        items = iter(loader)
        next(items)
        with loader._copies._cuda.beside():
            busy(0.3)
        last = next(items)
    assert not loader._copies._reading
    assert not loader._copies._locked
    assert int(last.x.long().sum()) > 0


def test_loop_on_a_stream_of_its_own(cuda, photographs, busy):
    """`hand_over` is for the stream that is current when the loop takes the batch."""
    with (
        prefetchd.batches(photographs, **QUICK) as arrays,
        prefetchd.torch.batches(photographs, device=cuda, **QUICK) as loader,
        torch.cuda.stream(torch.cuda.Stream(cuda)),
    ):
        sums = []
        for x, _ in loader:
            with loader._copies._cuda.beside():
                busy(0.02)
            sums.append(x.long().sum())
        assert [int(each) for each in sums] == [int(batch.x.astype(np.int64).sum()) for batch in arrays]
