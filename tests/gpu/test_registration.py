"""Slots are page-locked where they are, once each, or batches go through page-locked buffers; nothing else differs."""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
from typing import Any

import numpy as np
import pytest

import prefetchd

torch = pytest.importorskip("torch", reason="needs prefetchd[torch]")

import prefetchd.torch  # noqa: E402
from prefetchd.torch.device_copies import Cuda, _writable_alias  # noqa: E402

QUICK: dict[str, Any] = {"batch_size": 4, "image_size": 64, "num_workers": 1}
READ_ONLY_REGISTRATION = 113  # CU_DEVICE_ATTRIBUTE_READ_ONLY_HOST_REGISTER_SUPPORTED


def registers_read_only(device: Any) -> bool:
    """What the driver itself says, without PyTorch and without the code under test."""
    driver, value, handle = ctypes.CDLL("libcuda.so.1"), ctypes.c_int(), ctypes.c_int()
    assert driver.cuDeviceGet(ctypes.byref(handle), device.index) == 0
    assert driver.cuDeviceGetAttribute(ctypes.byref(value), READ_ONLY_REGISTRATION, handle) == 0
    return bool(value.value)


def page_locked(address: int, n_bytes: int) -> bool:
    buffer = (ctypes.c_uint8 * n_bytes).from_address(address)
    return bool(torch.frombuffer(memoryview(buffer), dtype=torch.uint8).is_pinned())


@pytest.fixture
def read_only_map() -> Any:
    """The address of 1 MiB of a sealed kind of memory that this process may only read, as a slot's map is."""
    fd = os.memfd_create("prefetchd-test")
    os.ftruncate(fd, 1 << 20)
    with mmap.mmap(fd, 1 << 20, mmap.MAP_SHARED, mmap.PROT_READ) as memory:
        os.close(fd)
        array = np.frombuffer(memory, np.uint8)
        yield array.ctypes.data
        del array


def test_read_only_map_is_registered_where_the_driver_says_that_it_can(cuda, read_only_map):
    device = Cuda(cuda)
    assert not page_locked(read_only_map, 1 << 20)
    assert device.page_lock(read_only_map, 1 << 20) == registers_read_only(cuda)
    if registers_read_only(cuda):
        assert page_locked(read_only_map, 1 << 20)
        device.unlock(read_only_map)
        assert not page_locked(read_only_map, 1 << 20)


def test_registration_that_fails_is_no_error_of_the_users_next_kernel(cuda):
    assert not Cuda(cuda).page_lock(0x1000, 4096)  # nothing is mapped there
    assert int(torch.arange(10, device=cuda).sum()) == 45
    torch.cuda.synchronize()


def test_each_slot_is_registered_once_and_let_go_of_at_the_end(cuda, photographs, monkeypatch):
    if not registers_read_only(cuda):
        pytest.skip("the driver registers no read-only memory")
    calls = []
    lock = Cuda.page_lock
    monkeypatch.setattr(Cuda, "page_lock", lambda self, *words: calls.append(words) or lock(self, *words))
    with prefetchd.torch.batches(photographs, device=cuda, epochs=3, **QUICK) as loader:
        for _ in loader:
            pass
        locked = loader._copies._locked
        assert 2 <= len(locked) == len(calls) == len({address for address, _ in calls})
        assert all(page_locked(each.address, len(each.memory)) for each in locked.values())
        held = list(locked.values())
    assert not locked
    assert not any(page_locked(each.address, len(each.memory)) for each in held)


@pytest.mark.parametrize("registers", [True, False])
def test_batches_are_those_of_the_processor(cuda, photographs, monkeypatch, registers):
    """Also in the smallest ring, whose slots are filled again as soon as they may be; and without registration."""
    if not registers:
        monkeypatch.setattr(Cuda, "page_lock", lambda *_: False)
    options = {"batch_size": 4, "image_size": 256, "num_workers": 1, "shuffle": True, "memory_budget": "96MiB"}
    with (
        prefetchd.batches(photographs, **options) as arrays,
        prefetchd.torch.batches(photographs, device=cuda, layout="nhwc", **options) as loader,
    ):
        for _ in range(3):
            kept = [(batch.x, batch.y, batch.sample_ids) for batch in loader]  # more than the ring has slots
            for (x, y, ids), theirs in zip(kept, arrays, strict=True):
                assert x.device == y.device == cuda
                assert np.array_equal(x.cpu().numpy(), theirs.x)
                assert np.array_equal(y.cpu().numpy(), theirs.y)
                assert np.array_equal(ids, theirs.sample_ids)
        if not registers:
            assert not loader._copies._locked


def test_buffers_of_the_fall_back_are_page_locked(cuda):
    assert Cuda(cuda).page_locked_copy(torch.arange(10)).is_pinned()


def test_what_was_copied_outlives_a_killed_daemon(cuda, serve, photographs):
    daemon = serve(photographs, "--batch-size", "4", "--image-size", "64", "--num-workers", "1")
    with prefetchd.batches() as arrays:
        truth = next(iter(arrays)).x.copy()
    with prefetchd.torch.batches(device=cuda, layout="nhwc") as loader:
        items = iter(loader)
        first = next(items)
        os.kill(daemon.pid, signal.SIGKILL)
        with pytest.raises(prefetchd.DaemonLost):
            for _ in items:
                pass
        assert np.array_equal(first.x.cpu().numpy(), truth)


def test_another_device_than_the_present_one(cuda, photographs):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    last = torch.device("cuda", torch.cuda.device_count() - 1)
    with prefetchd.torch.batches(photographs, device=last, **QUICK) as loader:
        assert {batch.x.device for batch in loader} == {last}
    assert torch.cuda.current_device() == cuda.index


def test_alias_of_a_slot_is_its_very_memory(cuda, photographs):
    """What is copied is the slot, not a copy of it that the processor would have to make."""
    with prefetchd.batches(photographs, **QUICK) as loader:
        root = next(iter(loader)).root
        assert _writable_alias(root).ctypes.data == root.ctypes.data
