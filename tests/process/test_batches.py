"""`prefetchd.batches`: the loader as a training loop uses it, attached and private."""

from __future__ import annotations

import copy
import logging
import os
import pickle
import queue
import signal
import sys
import threading
import warnings
from pathlib import Path

import cv2
import numpy as np
import psutil
import pytest

import prefetchd
from tests.conftest import end_thread, wait_until
from tests.process.commands import ended, finish, run_script, start_script

QUICK = ("--batch-size", "4", "--image-size", "16", "--num-workers", "1")
OPTIONS = {"batch_size": 4, "image_size": 16, "num_workers": 1}
BUDGET = {"memory_budget": "128MiB"}


def private(manifest: Path, **options: object) -> prefetchd.Loader:
    return prefetchd.batches(manifest, **{**OPTIONS, **BUDGET, **options})


def ids_by_epoch(loader: prefetchd.Loader) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for batch in loader:
        found.setdefault(batch.epoch, []).extend(batch.sample_ids.tolist())
    return found


# --- attached


def test_attached_loop_sees_every_batch_of_an_epoch_in_order(module_daemon):
    loader = prefetchd.batches()
    rows, labels = [], []
    for number, batch in enumerate(loader):
        x, y = batch
        assert (batch.epoch, batch.index, batch.repeated) == (0, number, False)
        assert x.shape == (len(y), 16, 16, 3)
        assert (x.dtype, y.dtype, batch.sample_ids.dtype) == (np.uint8, np.int64, np.int64)
        assert batch.x is x
        assert batch.y is y
        np.testing.assert_array_equal(batch.sample_ids, y)
        rows.append(len(y))
        labels += y.tolist()
    assert len(loader) == len(rows) == 13
    assert rows == [4] * 12 + [2]
    assert labels == list(range(50))
    assert loader.n_samples == 50
    loader.close()


def test_every_pass_is_a_new_epoch_and_a_peek_uses_one_up(module_daemon):
    with prefetchd.batches() as loader:
        assert {batch.epoch for batch in loader} == {0}
        assert {batch.epoch for batch in loader} == {1}
        peeked = next(iter(loader))
        assert (peeked.epoch, peeked.index) == (2, 0)
        assert {batch.epoch for batch in loader} == {3}


@pytest.fixture
def shuffled(serve_module, photographs):
    """The name of a daemon that shuffles."""
    return serve_module(photographs, *QUICK, "--shuffle", "--seed", "5", name="shuffled").name


def test_epochs_says_how_many_epochs_one_loop_runs_over(shuffled):
    with prefetchd.batches(daemon=shuffled, epochs=3) as loader:
        epochs = ids_by_epoch(loader)
        assert list(epochs) == [0, 1, 2]
        assert all(sorted(ids) == list(range(50)) for ids in epochs.values())
        assert next(iter(loader)).epoch == 3
    with prefetchd.batches(daemon=shuffled, epochs=None) as endless:
        assert [batch.epoch for _, batch in zip(range(13 * 4 + 1), endless, strict=False)][-1] == 4
    with prefetchd.batches(daemon=shuffled, epochs=np.int64(2)) as loader:
        assert list(ids_by_epoch(loader)) == [0, 1]


@pytest.mark.parametrize(
    ("source", "options", "words"),
    [
        (None, {"epochs": 0}, "epochs=0"),
        (None, {"epochs": True}, "epochs=True"),
        (None, {"epochs": 2.0}, r"epochs=2\.0"),
        (None, {"epochs": 2**31}, r"epochs=2147483648: it must be a whole number from 1 to 2\*\*31 - 1"),
        (None, {"dataset": 3}, "dataset=3.*name"),
        (None, {"daemon": b"x"}, "daemon=b'x'.*name"),
        ({"a.jpg", "b.jpg"}, {}, r"this set: it has no order; give sorted"),
        (3, {}, r"an object of the type int: give the name of a file or folder"),
        ("", {}, "it is empty"),
        ("x.npy", {"labels": [1, 2]}, r"use labels of the type list: it must be a path; .*, batches\(\(x, y\)\), or"),
        ("x.npy", {"offsets": np.arange(3)}, "use offsets of the type ndarray.*numpy.save"),
        ("x.npy", {"root": 3}, "use root of the type int: it must be a path; give its name as text"),
        ("x.npy", {"cache": True}, "use cache of the type bool"),
        ("x.npy", {"index": ""}, "use index='': it is empty"),
        ("x.npy", {"config": {"seed": 1}}, "config of the type dict.*give options as keywords"),
    ],
)
def test_argument_that_is_no_such_thing_is_refused_in_one_line(source, options, words):
    with pytest.raises(prefetchd.ConfigError, match=words) as raised:
        prefetchd.batches(source, **options)
    assert str(raised.value).isprintable()


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_loader_is_neither_copied_nor_pickled_and_says_what_to_do(module_daemon, copied):
    """A copy would end with the loader it was made from."""
    with prefetchd.batches() as loader:
        with pytest.raises(prefetchd.ConfigError, match=r"cannot copy or pickle a loader.*call prefetchd\.batches"):
            copied(loader)
        assert next(iter(loader)).index == 0


def test_a_new_iter_ends_the_earlier_one_which_says_so(module_daemon):
    with prefetchd.batches() as loader:
        first = iter(loader)
        next(first)
        second = iter(loader)
        assert next(second).epoch == 1
        with pytest.raises(prefetchd.PrefetchdError, match=r"a newer iter\(\)"):
            next(first)


def test_break_and_close_leave_what_was_delivered_and_refuse_more(module_daemon):
    loader = prefetchd.batches()
    batch = next(iter(loader))
    before = batch.x.copy()
    loader.close()
    loader.close()
    np.testing.assert_array_equal(batch.x, before)
    with pytest.raises(prefetchd.PrefetchdError, match="closed"):
        next(iter(loader))
    assert "closed" in repr(loader)


def test_two_consumers_see_the_same_epoch_each(shuffled):
    with prefetchd.batches(daemon=shuffled) as one, prefetchd.batches(daemon=shuffled) as other:
        for mine, theirs in zip(one, other, strict=True):
            np.testing.assert_array_equal(mine.sample_ids, theirs.sample_ids)
            np.testing.assert_array_equal(mine.x, theirs.x)


def test_a_name_picks_the_daemon_and_so_does_the_environment(serve, photographs, monkeypatch):
    serve(photographs, *QUICK, name="val")
    with prefetchd.batches(daemon="val") as loader:
        assert "'val'" in repr(loader)
    with pytest.raises(prefetchd.DaemonNotFound, match="'default'"):
        prefetchd.batches(timeout=0)
    monkeypatch.setenv("PREFETCHD_NAME", "val")
    with prefetchd.batches() as loader:
        assert "'val'" in repr(loader)


def test_without_a_daemon_batches_says_what_to_start():
    with pytest.raises(prefetchd.DaemonNotFound, match=r"none is running after 0\.1 s.*prefetchd serve"):
        prefetchd.batches(timeout=0.1)


def test_wrong_name_is_told_the_names_of_daemons_that_run(serve, photographs):
    serve(photographs, *QUICK)
    with pytest.raises(prefetchd.DaemonNotFound, match=r"'trian': none is running .*; those that run are 'default'\)"):
        prefetchd.batches(daemon="trian", timeout=0)


def test_batches_waits_for_a_daemon_and_says_what_it_waits_for(serve, photographs, caplog):
    loaders: queue.SimpleQueue[object] = queue.SimpleQueue()
    with caplog.at_level(logging.WARNING, "prefetchd"):
        thread = threading.Thread(target=lambda: loaders.put(prefetchd.batches(timeout=60)))
        thread.start()
        wait_until(lambda: "waiting for the daemon 'default': none is running" in caplog.text, "the warning")
        serve(photographs, *QUICK, ready=False)
        end_thread(thread, 60)
    loader = loaders.get_nowait()
    assert isinstance(loader, prefetchd.Loader)
    assert sum(len(y) for _, y in loader) == 50
    loader.close()


def test_option_that_contradicts_the_daemon_is_refused_and_one_that_agrees_is_not(module_daemon, photographs):
    with pytest.raises(prefetchd.ConfigError, match=r"batch_size=9.*batch_size=4"):
        prefetchd.batches(batch_size=9)
    with pytest.raises(prefetchd.ConfigError, match="image_size"):
        prefetchd.batches(image_size=(16, 17))
    with prefetchd.batches(batch_size=4, image_size=16, color="rgb") as loader:
        assert loader.config["batch_size"] == 4
    with pytest.raises(prefetchd.ConfigError, match="one or the other"):
        prefetchd.batches(photographs, daemon="default")


# --- the order and the pixels


def test_shuffle_gives_each_sample_once_an_epoch_in_an_order_that_seed_and_epoch_decide(photographs):
    with private(photographs, shuffle=True, seed=3, epochs=2) as loader:
        first = ids_by_epoch(loader)
    with private(photographs, shuffle=True, seed=3, epochs=2, num_workers=2) as loader:
        again = ids_by_epoch(loader)
    with private(photographs, shuffle=True, seed=4) as loader:
        other = ids_by_epoch(loader)
    assert all(sorted(ids) == list(range(50)) for ids in (*first.values(), *other.values()))
    assert first[0] != list(range(50))
    assert first[0] != first[1]
    assert first == again
    assert first[0] != other[0]


def generator(manifest: Path, batch_size: int, size: tuple[int, int]):
    """What people write by hand: BGR uint8 batches, read, resized and stacked."""
    lines = [line.rpartition(" ") for line in manifest.read_text().splitlines()]
    for start in range(0, len(lines), batch_size):
        part = lines[start : start + batch_size]
        images = [cv2.resize(cv2.imread(str(manifest.parent / path)), size[::-1]) for path, _, _ in part]
        yield np.stack(images), np.array([int(label) for _, _, label in part])


def test_uint8_bgr_batches_equal_the_hand_written_generator_byte_for_byte(photographs):
    options = {"batch_size": 8, "image_size": (40, 56), "color": "bgr", "shrink_on_load": False}
    with private(photographs, **options) as loader:
        for (x, y), (pixels, labels) in zip(loader, generator(photographs, 8, (40, 56)), strict=True):
            np.testing.assert_array_equal(x, pixels)
            np.testing.assert_array_equal(y, labels)


def test_float32_batches_equal_the_hand_written_generator_within_rounding(photographs):
    options = {"batch_size": 8, "image_size": (40, 56), "color": "bgr", "shrink_on_load": False}
    with private(photographs, **options, dtype="float32", scale=1 / 255) as loader:
        for (x, y), (pixels, labels) in zip(loader, generator(photographs, 8, (40, 56)), strict=True):
            assert x.dtype == np.float32
            np.testing.assert_allclose(x, pixels / 255, rtol=2e-7, atol=1e-7)
            np.testing.assert_array_equal(y, labels)


def test_number_of_workers_never_changes_a_byte(photographs):
    def everything(num_workers: int) -> bytes:
        with private(photographs, num_workers=num_workers, shuffle=True, memory_budget="192MiB") as loader:
            return b"".join(x.tobytes() + y.tobytes() for x, y in loader)

    one = everything(1)
    assert one == everything(2) == everything(4)


# --- private daemons

SCRIPT = """
import sys
import time
import prefetchd
loader = prefetchd.batches({manifest!r}, batch_size=4, image_size=16, num_workers=1, memory_budget="128MiB")
"""


def script(manifest: Path, rest: str) -> str:
    return SCRIPT.format(manifest=str(manifest)) + rest


def test_plain_script_without_a_main_guard_gets_its_batches_and_leaves_nothing(photographs, tmp_path):
    result = run_script(
        tmp_path / "train.py",
        script(photographs, "for x, y in loader: print(*y)\n"),
        *("-X", "dev", "-W", "error"),
    )
    assert result.returncode == 0, result.stderr
    assert [int(word) for word in result.stdout.split()] == list(range(50))
    assert result.stderr == ""


def test_modules_of_the_user_shadow_nothing_in_the_daemon(photographs, tmp_path, monkeypatch):
    for name in ("struct", "socket", "selectors", "numpy", "cv2", "prefetchd"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('shadowed')\n")
    monkeypatch.chdir(tmp_path)
    with private(photographs) as loader:
        assert sum(len(y) for _, y in loader) == 50


def test_loader_goes_on_when_the_thread_that_started_it_has_ended(photographs):
    loaders: queue.SimpleQueue[prefetchd.Loader] = queue.SimpleQueue()
    thread = threading.Thread(target=lambda: loaders.put(private(photographs)))
    thread.start()
    end_thread(thread)
    loader = loaders.get_nowait()
    for _ in range(3):
        assert sum(len(y) for _, y in loader) == 50
    loader.close()


def test_loop_runs_in_a_thread(photographs):
    counted: list[int] = []

    def train() -> None:
        with private(photographs) as loader:
            counted.append(sum(len(y) for _, y in loader))

    thread = threading.Thread(target=train)
    thread.start()
    end_thread(thread, 60)
    assert counted == [50]


def test_private_daemon_ends_with_a_dropped_loader(photographs):
    before = set(psutil.Process().children(recursive=True))
    loader = private(photographs)
    started = set(psutil.Process().children(recursive=True)) - before
    assert started
    x, _ = next(iter(loader))
    held = x.copy()
    del loader
    wait_until(lambda: ended(started), "the end of the private daemon")
    np.testing.assert_array_equal(x, held)


def test_private_daemon_ends_when_its_parent_is_killed(photographs, tmp_path):
    parent = start_script(
        tmp_path / "train.py", script(photographs, "next(iter(loader)); print('on', flush=True); input()")
    )
    assert parent.stdout is not None
    assert parent.stdout.readline() == "on\n"
    family = psutil.Process(parent.pid).children(recursive=True)
    assert family
    parent.kill()
    wait_until(lambda: ended(family), "the end of the private daemon")
    finish(parent)


def test_private_daemon_survives_ctrl_c(photographs, tmp_path):
    notebook = start_script(
        tmp_path / "notebook.py",
        script(
            photographs,
            """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs the tests in the background ignores it
batches = iter(loader)
seen = len(next(batches).y)
try:
    print("on", flush=True)
    while True:  # the signal may be another thread's, and then ends no call that blocks
        time.sleep(0.01)
except KeyboardInterrupt:
    seen += sum(len(y) for _, y in batches)
    seen += sum(len(y) for _, y in loader)
    print(seen)
""",
        ),
        session=True,
    )
    assert notebook.stdout is not None
    assert notebook.stdout.readline() == "on\n"
    os.killpg(notebook.pid, signal.SIGINT)
    result = finish(notebook)
    assert (result.returncode, result.stdout) == (0, "100\n"), result.stderr


def test_error_of_a_private_daemon_reaches_the_caller(tmp_path):
    manifest = tmp_path / "empty.txt"
    manifest.write_text("")
    with pytest.raises(prefetchd.ManifestError, match=r"empty\.txt"):
        prefetchd.batches(manifest)


def test_budget_too_small_for_a_private_daemon_raises_with_the_smallest(photographs):
    with pytest.raises(prefetchd.BudgetError, match=r'memory_budget="\d+MiB"'):
        prefetchd.batches(photographs, memory_budget="8MiB")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"epochs": 0}, "epochs"),
        ({"epochs": 1.5}, "epochs"),
        ({"timeout": None}, "timeout"),
        ({"hold_timeout": -1}, "hold_timeout"),
        ({"on_hold": "keep"}, "on_hold"),
    ],
)
def test_wrong_argument_of_the_loader_is_refused_before_anything_starts(photographs, options, words):
    """A wrong argument is a line about it, not a lost daemon."""
    with pytest.raises(prefetchd.ConfigError, match=words):
        prefetchd.batches(photographs, **options)


def test_configuration_file_of_a_named_daemon_also_attaches_to_it(serve, photographs, tmp_path):
    """One file serves both sides: the daemon reads its source from it, the loader what to expect."""
    path = tmp_path / "val.toml"
    path.write_text(f'source = "{photographs}"\nbatch-size = 5\nimage-size = 16\n')
    serve("--config", path, name="val")
    with prefetchd.batches(config=path, daemon="val") as loader:
        assert next(iter(loader)).x.shape == (5, 16, 16, 3)
    path.write_text('name = "val"\nbatch-size = 5\n')
    with prefetchd.batches(config=path) as loader:
        assert loader.config["name"] == "val"


def test_manifest_in_a_folder_whose_name_is_not_utf8_is_served(photographs, tmp_path):
    """Paths are bytes to the file system, and to us."""
    import os
    import shutil

    folder = os.fsencode(tmp_path) + b"/\xff"
    shutil.copytree(os.fsencode(photographs.parent), folder)
    with prefetchd.batches(folder + b"/manifest.txt", batch_size=50, image_size=16) as loader:
        assert sorted(next(iter(loader)).y.tolist()) == list(range(50))


def test_mean_and_std_of_another_range_without_scale_warn_at_the_users_line(photographs):
    options = {"batch_size": 8, "image_size": 16, "num_workers": 1, "dtype": "float32", "mean": 0.5, "std": 0.25}
    with pytest.warns(RuntimeWarning, match="pass scale=1/255") as caught:
        prefetchd.batches(photographs, **options).close()
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prefetchd.batches(photographs, scale=1 / 255, **options).close()


def test_loader_is_shown_by_its_name_or_that_of_the_script(module_daemon):
    with prefetchd.batches(name="validation") as loader:
        assert [consumer["name"] for consumer in loader.status()["consumers"]] == ["validation"]
    with prefetchd.batches() as loader:
        assert [consumer["name"] for consumer in loader.status()["consumers"]] == [Path(sys.argv[0]).name]


def test_unknown_option_is_refused_with_what_was_meant(photographs):
    for name, meant in (("batchsize", "did you mean 'batch_size'"), ("epoch", "did you mean 'epochs'")):
        with pytest.raises(prefetchd.ConfigError, match=meant):
            prefetchd.batches(photographs, **{name: 4})
    with pytest.raises(prefetchd.ConfigError, match="memory_budget="):
        prefetchd.batches(photographs, prefetch_factor=4)
