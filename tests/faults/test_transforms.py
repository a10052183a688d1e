"""Functions of users that go wrong while they serve: what each policy delivers, what is logged, and that it repeats."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import prefetchd
from tests.conftest import DaemonProcess, wait_until
from tests.faults.conftest import ask_status

Serve = Callable[..., DaemonProcess]

# The label tells the function which sample it has: 100 and the sample's number.
MODULE = """
import os, sys, time
import numpy as np

def fail(label, rng):
    number = int(label) - 100
{cases}
    return label

def sometimes(image, rng):
    if rng.random() < 0.2:
        raise ValueError("bad luck")
    return image
"""


@pytest.fixture
def users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Write the module `wrong`, whose function does something to each of some samples, into the working directory."""
    monkeypatch.chdir(tmp_path)

    def write(what: str | dict[int, str]) -> Path:
        does = {7: what} if isinstance(what, str) else what
        cases = "\n".join(f"    if number == {number}:\n        {code}" for number, code in does.items())
        (tmp_path / "wrong.py").write_text(MODULE.format(cases=cases))
        return tmp_path

    return write


def ids_of(**options: object) -> list[list[int]]:
    with prefetchd.batches(**options) as loader:
        return [batch.sample_ids.tolist() for batch in loader]


ARGUMENTS = ("--batch-size", 5, "--image-size", 16, "--target-transform", "wrong:fail")
# What the function does to a sample, and what is said of that.
FAULTS = {
    7: ("raise ValueError('not this one')", r"wrong:fail raised ValueError: not this one \(wrong.py line"),
    11: ("sys.exit(0)", "raised SystemExit: 0"),
    12: ("raise KeyboardInterrupt", "raised KeyboardInterrupt"),
    18: ("return np.zeros(3)", r"returned an array of \(3,\) float64, and for others \(\) int64"),
    23: ("return None", "returned an array of .. object"),
    26: ("os._exit(0)", r"ends the reader that decodes it \(exit status 0\)"),
    34: ("os.kill(os.getpid(), 11)", "killed by SIGSEGV"),
}


@pytest.mark.parametrize("readers", [1, 3])
def test_sample_that_a_function_cannot_take_is_a_bad_sample(
    serve: Serve, users: Callable[..., Path], forty: Path, readers: int
) -> None:
    users({number: what for number, (what, _) in FAULTS.items()})
    daemon = serve(forty, *ARGUMENTS, "--num-workers", readers, "--on-error", "skip")
    good = [[number for number in range(first, first + 5) if number not in FAULTS] for first in range(0, 40, 5)]
    assert ids_of(epochs=2) == 2 * good
    for number, (_, words) in FAULTS.items():
        said = [line for line in daemon.log.splitlines() if f"bad sample {number}:" in line]
        assert len(said) == 1, daemon.log
        assert f"line {number + 1}: " in said[0]
        assert re.search(words, said[0]), said[0]
    assert ask_status()["bad_samples"] == len(FAULTS)
    assert daemon.log.count("raise ValueError('not this one')") == 1  # in the one traceback of that sample
    wait_until(lambda: len(daemon.reader_pids()) == readers, "all readers stand")


def test_raise_says_function_exception_and_place(users: Callable[..., Path], forty: Path) -> None:
    folder = users("raise KeyError('cat')")
    options = {"batch_size": 5, "image_size": 16, "num_workers": 1, "python_path": [folder]}
    with prefetchd.batches(forty, target_transform="wrong:fail", **options) as loader:
        batches = iter(loader)
        assert next(batches).sample_ids.tolist() == [*range(5)]
        with pytest.raises(prefetchd.SampleError, match=r"line 8: .*wrong:fail raised KeyError: 'cat' \(wrong.py line"):
            next(batches)


# The dry run at the start may take longer than the readers, which have their libraries.
PATIENT_DRY_RUN = """
import dataclasses, sys
from prefetchd.data.images import dry_run as module
dry_run = module.dry_run
module.dry_run = lambda config, *handle: dry_run(dataclasses.replace(config, reader_timeout=60.0), *handle)
from prefetchd.cli.main import main
sys.argv[:] = sys.argv[3:]
sys.exit(main())
"""


def test_function_that_hangs_is_the_environments_fault(serve: Serve, users: Callable[..., Path], forty: Path) -> None:
    """A reader that hangs is replaced, and its stack logged; a sample is never skipped for it."""
    users("time.sleep(1000)")
    options = ("--num-workers", 1, "--on-error", "skip", "--reader-timeout", "1")
    daemon = serve(forty, *ARGUMENTS, *options, wrapper=(sys.executable, "-c", PATIENT_DRY_RUN))
    with prefetchd.batches() as loader:
        batches = iter(loader)
        assert next(batches).sample_ids.tolist() == [*range(5)]
        with pytest.raises(prefetchd.SampleError, match=r"line 8: .*reader_timeout=1 s"):
            next(batches)
    assert 'wrong.py", line' in daemon.log
    assert ask_status()["bad_samples"] == 0


@pytest.mark.parametrize(
    "what",
    [
        "pid = os.fork(); pid or os._exit(0); os.waitpid(pid, 0)",
        "os.fork()",  # the child returns too, and goes on as if it were the reader
    ],
)
def test_child_that_a_function_forks_answers_for_nobody(
    serve: Serve, users: Callable[..., Path], forty: Path, what: str
) -> None:
    users(what)
    daemon = serve(forty, *ARGUMENTS, "--num-workers", 1)
    assert ids_of(epochs=2) == 2 * [[*range(n, n + 5)] for n in range(0, 40, 5)]
    status = ask_status()
    assert (status["reader_crashes"], status["bad_samples"]) == (0, 0), daemon.log


@pytest.mark.parametrize("policy", ["skip", "substitute"])
def test_what_fails_by_chance_fails_the_same_way_in_every_run(
    serve: Serve, users: Callable[..., Path], forty: Path, policy: str
) -> None:
    """A verdict holds for its epoch only, so what came before does not decide what is delivered."""
    folder = users("pass")
    options = {
        "batch_size": 5, "image_size": 16, "on_error": policy, "transform": "wrong:sometimes", "python_path": [folder]
    }  # fmt: skip
    with prefetchd.batches(forty, num_workers=1, epochs=3, **options) as loader:
        first = [batch.sample_ids.tolist() for batch in loader]
    with prefetchd.batches(forty, num_workers=3, **options) as loader:
        again = []
        for _ in range(3):
            again += [batch.sample_ids.tolist() for batch in loader]
    assert first == again
    assert first[:8] != first[8:16]
    if policy == "skip":
        lost = {sample for sample in range(40) if sample not in {i for ids in first[:8] for i in ids}}
        assert lost
        assert lost & {i for ids in first[8:] for i in ids}  # bad in one epoch, good in another
