"""`prefetchd.torch`: tensors over slots, copies to a device, ranks, states; as PyTorch's users expect them."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import warnings
from typing import Any

import numpy as np
import pytest

import prefetchd
from prefetchd.ring.queues import MAX_GRANTS_AHEAD
from tests.conftest import wait_until
from tests.model_device import ModelDevice
from tests.pages import steps_of

torch = pytest.importorskip("torch", reason="needs prefetchd[torch]")

import prefetchd.torch  # noqa: E402
from prefetchd.torch import TensorLoader  # noqa: E402

QUICK: dict[str, Any] = {"batch_size": 4, "image_size": 16, "num_workers": 1}


# --- on the processor


def test_tensors_share_the_slot_and_hold_it(serve, photographs):
    daemon = serve(photographs, "--batch-size", "4", "--image-size", "16", "--num-workers", "1")
    with prefetchd.batches() as arrays, prefetchd.torch.batches() as loader:
        truth = next(iter(arrays)).x.copy()
        items = iter(loader)
        x, y = next(items)
        assert x.shape == (4, 3, 16, 16)
        assert y.dtype == torch.int64
        assert not x.is_contiguous()
        assert x.is_contiguous(memory_format=torch.channels_last)
        assert np.array_equal(x.permute(0, 2, 3, 1).numpy(), truth)
        corner = x[0, :, :2, :2]  # a view of a view: the lease is its
        del x, y
        del arrays
        items.close()
        gc.collect()
        assert daemon.status()["ring"]["leased"] == 1
        assert np.array_equal(corner.permute(1, 2, 0).numpy(), truth[0, :2, :2])
        del corner
        wait_until(lambda: not daemon.status()["ring"]["leased"], "the slot went back with the last view")


def test_in_place_operations_stay_here(serve, photographs):
    serve(photographs, "--batch-size", "4", "--image-size", "16", "--dtype", "float32", "--num-workers", "1")
    with prefetchd.batches() as arrays, prefetchd.torch.batches(writable=False) as loader:
        for (x, _), batch in zip(loader, arrays, strict=True):
            before = batch.x.copy()
            assert np.array_equal(x.permute(0, 2, 3, 1).numpy(), before)
            x.sub_(1000.0)
            assert np.array_equal(batch.x, before)


@pytest.mark.parametrize(("layout", "shape"), [("nchw", (4, 3, 16, 16)), ("nhwc", (4, 16, 16, 3))])
def test_layout_said_expressly(photographs, layout, shape):
    with prefetchd.torch.batches(photographs, layout=layout, **QUICK) as loader:
        x, _ = next(iter(loader))
        assert x.shape == shape
        assert x.is_contiguous()


@pytest.mark.parametrize(
    ("options", "x"),
    [
        ({}, "(4, 3, 16, 16) uint8"),
        ({"layout": "nchw"}, "(4, 3, 16, 16) uint8"),
        ({"layout": "nhwc", "dtype": "float32"}, "(4, 16, 16, 3) float32"),
        ({"views": 2}, "(4, 2, 3, 16, 16) uint8"),
        ({"normalize": "device", "dtype": "bfloat16", "scale": 1 / 255}, "(4, 3, 16, 16) bfloat16"),
    ],
)
def test_repr_has_the_shape_and_dtype_of_what_the_loop_gets(photographs, options, x):
    with prefetchd.torch.batches(photographs, **QUICK, **options) as loader:
        assert f"; arrays: x {x}, y (4,) int64; " in repr(loader)
        batch = loader.peek()
        assert f"{tuple(batch.x.shape)} {str(batch.x.dtype).removeprefix('torch.')}" == x
        assert x in loader._repr_html_()


def test_rows_of_arrays_keep_their_shape(tmp_path):
    """Rows of three dimensions are no images."""
    np.save(tmp_path / "x.npy", np.arange(8 * 2 * 3 * 4, dtype=np.float64).reshape(8, 2, 3, 4))
    with prefetchd.torch.batches(tmp_path / "x.npy", batch_size=8, num_workers=1) as loader:
        (batch,) = loader
        assert torch.equal(batch.x, torch.arange(192, dtype=torch.float64).reshape(8, 2, 3, 4))
        with pytest.raises(prefetchd.ConfigError, match="cannot normalize on the device"):
            prefetchd.torch.batches(tmp_path / "x.npy", batch_size=8, dtype="float32", normalize="device")


@pytest.mark.parametrize(("layout", "dtype"), [(None, "float32"), ("nchw", "float16"), ("nhwc", "float32")])
def test_device_normalizes_as_readers_do(photographs, layout, dtype):
    values = {"dtype": dtype, "scale": 1 / 255, "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.25), "layout": layout}
    with (
        prefetchd.torch.batches(photographs, **values, **QUICK) as readers,
        prefetchd.torch.batches(photographs, normalize="device", **values, **QUICK) as device,
    ):
        assert device.config["dtype"] == "uint8"
        for (theirs, _), (ours, _) in zip(readers, device, strict=True):
            assert ours.dtype == theirs.dtype
            assert ours.stride() == theirs.stride()
            torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("dtype", ["bfloat16", torch.bfloat16])
def test_device_makes_bfloat16_which_readers_do_not(photographs, dtype):
    values = {"scale": 1 / 255, "mean": 0.5, "std": 0.25}
    with (
        prefetchd.torch.batches(photographs, dtype="float32", **values, **QUICK) as readers,
        prefetchd.torch.batches(photographs, dtype=dtype, normalize="device", **values, **QUICK) as device,
    ):
        for (theirs, _), (ours, _) in zip(readers, device, strict=True):
            torch.testing.assert_close(ours, theirs.bfloat16())
    with pytest.raises(prefetchd.ConfigError, match="bfloat16"):
        prefetchd.torch.batches(photographs, dtype=dtype, **QUICK)


def test_device_that_is_not_there_is_refused_in_one_line(photographs):
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    for device, says in (
        ("cuda", "finds no CUDA device"),
        ("cuda:1", "finds no CUDA device"),
        ("gpu", "device='gpu'"),
        ("mps", "cannot deliver to mps: PyTorch .* cannot use such a device here"),
    ):
        with pytest.raises(prefetchd.ConfigError, match=says) as caught:
            prefetchd.torch.batches(photographs, device=device)
        assert "\n" not in str(caught.value)


# --- what PyTorch's users expect of a loader


def test_length_epochs_and_state_are_those_of_the_loader(photographs):
    options = {"shuffle": True, **QUICK}
    with prefetchd.torch.batches(photographs, **options) as loader:
        assert len(loader) == 13
        epochs = [torch.cat([y for _, y in loader]) for _ in range(2)]
        assert not torch.equal(*epochs)
        loader.set_epoch(0)
        items = iter(loader)
        seen = [next(items) for _ in range(5)]
        assert torch.equal(torch.cat([y for _, y in seen]), epochs[0][:20])
        assert [batch.index for batch in seen] == [0, 1, 2, 3, 4]
        state = loader.state_dict()
        del seen
    with prefetchd.torch.batches(photographs, **options) as loader:
        loader.load_state_dict(state)
        assert torch.equal(torch.cat([y for _, y in loader]), epochs[0][20:])


def test_in_a_dataloader_without_workers(photographs):
    """Not needed, but what a library may do with an `IterableDataset`."""
    with prefetchd.torch.batches(photographs, **QUICK) as loader:
        wrapped = torch.utils.data.DataLoader(loader, batch_size=None)
        assert len(wrapped) == 13
        assert torch.equal(torch.cat([y for _, y in wrapped]), torch.arange(50))


def test_workers_that_take_a_share_deliver_everything_once(photographs):
    """The class of docs/coming-from/pytorch.md, with 13 batches for two workers."""
    (step,) = [step for step in steps_of("coming-from/pytorch.md") if "get_worker_info" in step.text]
    names = {"prefetchd": prefetchd}
    exec(step.text.replace("range(1)", "range(0)").replace('"train.txt"', repr(str(photographs))), names)
    photos: Any = names["photos"]
    orders = []
    for epoch in range(2):
        photos.epoch = epoch
        loader = torch.utils.data.DataLoader(photos, batch_size=None, num_workers=2)
        orders.append([y.tolist() for _, y in loader])
        assert sorted(label for y in orders[-1] for label in y) == list(range(50))
    assert orders[0] != orders[1]


def test_share_of_torchruns_variables_is_taken_and_said(photographs, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.warns(RuntimeWarning, match="share of rank 1 of 2") as caught:
        loader = prefetchd.torch.batches(photographs, **QUICK)
    assert caught[0].filename == __file__
    with loader:
        assert [batch.index for batch in loader] == [1, 3, 5, 7, 9, 11, 0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with prefetchd.torch.batches(photographs, rank="env", **QUICK) as loader:
            assert len(loader) == 7
        with prefetchd.torch.batches(photographs, rank=0, world_size=1, **QUICK) as loader:
            assert len(loader) == 13


TORCHRUN = """
import sys, torch.distributed, prefetchd.torch
torch.distributed.init_process_group("gloo")
rank = torch.distributed.get_rank()
import os
del os.environ["RANK"], os.environ["WORLD_SIZE"]  # the process group alone tells
with prefetchd.torch.batches(sys.argv[1], rank="env", batch_size=8, image_size=16, num_workers=1) as loader:
    mine = [batch.index for batch in loader]
everyone = [None, None]
torch.distributed.all_gather_object(everyone, mine)
if rank == 0:
    print(everyone)
torch.distributed.destroy_process_group()
"""


def test_under_torchrun_with_a_process_group(photographs, tmp_path):
    script = tmp_path / "train.py"
    script.write_text(TORCHRUN)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", script]
    result = subprocess.run([*command, photographs], capture_output=True, text=True, timeout=100)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "[[0, 2, 4, 6], [1, 3, 5, 0]]\n"


# --- copies to a device


def on_model(device: ModelDevice, *arguments: Any, **options: Any) -> TensorLoader:
    loader = prefetchd.batches(*arguments, **options)
    return TensorLoader(loader, torch.device("cpu"), lambda x: x, device)  # type: ignore[arg-type]


@pytest.mark.parametrize("locks", [True, False])
def test_copies_are_whole_however_late_they_are(photographs, locks):
    """Also in the smallest ring, whose slots are filled again as soon as they may be; and each slot is locked once."""
    device = ModelDevice(locks=locks)
    options = {"batch_size": 4, "image_size": 256, "num_workers": 1, "shuffle": True, "memory_budget": "96MiB"}
    with prefetchd.batches(photographs, **options) as arrays, on_model(device, photographs, **options) as loader:
        for _ in range(3):
            n_batches = 0
            for ours, theirs in zip(loader, arrays, strict=True):
                assert np.array_equal(ours.x.numpy(), theirs.x)
                assert np.array_equal(ours.y.numpy(), theirs.y)
                assert np.array_equal(ours.sample_ids, theirs.sample_ids)
                assert (ours.epoch, ours.index) == (theirs.epoch, theirs.index)
                n_batches += 1
            assert n_batches == len(loader) == 13
        if locks:
            assert 3 <= len(device.locked) == device.n_locked <= len(loader._loader.maps)
        else:
            assert device.n_locked == 1  # it is tried once
        assert bool(device.buffers) == (not locks)
    assert not device.locked


def test_slot_is_held_until_the_copy_is_done_and_no_longer(serve, photographs):
    daemon = serve(photographs, "--batch-size", "4", "--image-size", "16", "--num-workers", "1")

    def held() -> int:  # what was granted ahead is leased too, but not held here
        return loader._loader._connection._leases.n_held

    with on_model(ModelDevice()) as loader:
        items = iter(loader)
        kept = [next(items)]
        for batch in items:
            assert held() <= 2  # the copy under way, and the one before, which nobody has looked at again yet
            kept.append(batch)
        assert torch.equal(torch.cat([y for _, y in kept]), torch.arange(50))
        assert not held()
        items = iter(loader)
        next(items)
        wait_until(lambda: loader._loader.is_ready, "the next batch was granted ahead")
        next(items)
        assert held() == 1
        items.close()
        wait_until(lambda: not daemon.status()["ring"]["leased"], "nothing is held though thirteen batches are kept")


def test_state_counts_what_the_loop_was_given_and_not_what_was_copied_ahead(serve, photographs):
    serve(photographs, "--batch-size", "4", "--image-size", "16", "--num-workers", "1", "--shuffle")
    with prefetchd.batches() as arrays:
        whole = [batch.sample_ids.tolist() for _ in range(2) for batch in arrays]
    for cut in (0, 1, 6, 12, 13, 14):
        with on_model(ModelDevice(), epochs=2) as loader:
            items = iter(loader)
            seen = [next(items).sample_ids.tolist() for _ in range(cut)]
            state = loader.state_dict()
            del items
        with on_model(ModelDevice(), epochs=2) as loader:
            loader.load_state_dict(state)
            assert loader.state_dict() == state
            assert seen + [batch.sample_ids.tolist() for batch in loader] == whole


def test_error_of_the_next_batch_waits_for_the_one_before(photographs, tmp_path):
    lines = photographs.read_text().splitlines()[:12]
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    lines[9] = f"{tmp_path}/broken.jpg 9"
    (tmp_path / "train.txt").write_text("\n".join(lines))
    with on_model(ModelDevice(), tmp_path / "train.txt", root=photographs.parent, **QUICK) as loader:
        items, seen = iter(loader), []
        with pytest.raises(prefetchd.SampleError):
            seen.extend(batch.index for batch in items)
        assert seen == [0, 1]
        assert loader.state_dict()["next_batch"] == 2


def test_slots_that_the_daemon_gives_up_are_unlocked(photographs):
    """A loader that opens another session has other maps; the old ones are let go of at the next batch."""
    device = ModelDevice()
    with on_model(device, photographs, reconnect=True, epochs=None, **QUICK) as loader:
        items = iter(loader)
        first = next(items)
        old = set(device.locked)
        killed = loader._loader._info.pid
        os.kill(killed, signal.SIGKILL)
        # As many as may have been granted before, and then some.
        seen = [first.index, *(next(items).index for _ in range(MAX_GRANTS_AHEAD + 10))]
        assert seen == [number % 13 for number in range(MAX_GRANTS_AHEAD + 11)]
        assert old
        assert loader._loader._info.pid != killed
        assert len(device.locked) <= len(loader._loader.maps)


def test_single_batches_are_tensors_of_their_own_and_the_loop_goes_on(photographs):
    with prefetchd.torch.batches(photographs, batch_size=4, image_size=16, num_workers=1) as loader:
        loop = iter(loader)
        first = next(loop)
        peeked, far = loader.peek(), loader.batch_at(3, 12)
        assert (peeked.epoch, peeked.index, far.epoch, far.index) == (0, 1, 3, 12)
        assert peeked.x.shape == first.x.shape
        peeked.x.add_(1)
        second = next(loop)
        assert torch.equal(second.y, peeked.y)
        assert torch.equal(second.x + 1, peeked.x)
        assert [batch.index for batch in loop] == list(range(2, 13))


def test_peek_is_of_the_users_loop_while_copies_run_ahead(photographs):
    with on_model(ModelDevice(), photographs, batch_size=4, image_size=16, num_workers=1) as loader:
        for batch in loader:
            assert loader.peek().index == (batch.index + 1) % 13


def test_older_iterator_of_tensors_raises_when_it_is_asked_again(photographs):
    with prefetchd.torch.batches(photographs, batch_size=4, image_size=16, num_workers=1) as loader:
        older = iter(loader)
        next(older)
        newer = iter(loader)
        with pytest.raises(prefetchd.PrefetchdError, match=r"a newer iter\(\)"):
            next(older)
        assert next(newer).index == 0


def test_mean_of_another_range_without_scale_warns_on_the_device_too(photographs):
    options = {"batch_size": 4, "image_size": 16, "num_workers": 1, "dtype": "float32", "mean": 0.5}
    with pytest.warns(RuntimeWarning, match="pass scale=1/255"):
        prefetchd.torch.batches(photographs, normalize="device", **options).close()
