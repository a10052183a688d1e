"""The dashboard's index worker: answers, and another one where it ends or hangs."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from prefetchd.config.validate import make_config
from prefetchd.dashboard.index import Index
from prefetchd.data.images.source import ImageSource
from prefetchd.data.registry import open_source
from prefetchd.errors import PrefetchdError
from tests.conftest import wait_until
from tests.dashboard import alive
from tests.unit.test_dashboard_batches import listed, served

__all__ = ["listed"]
ROOT = Path(__file__).parents[2]


def digest_of(path: Path) -> str:
    source = open_source(make_config(source=str(path)))
    assert isinstance(source, ImageSource)
    digest = source.facts.digest
    source.records.close()  # type: ignore[attr-defined]
    return digest


def test_worker_answers_ends_with_a_crash_and_starts_again(listed):
    digest = digest_of(listed)
    one = served(str(listed), digest)
    index = Index()
    try:
        assert index.ask(one, "where", sample_ids=[9_999])[0].endswith("9999.png")
        assert index.ask(one, "thumbnail", sample_id=0, most_px=32)[:4] == b"\x89PNG"
        with pytest.raises(PrefetchdError, match="No such file"):
            index.ask(one, "thumbnail", sample_id=1, most_px=32)
        with pytest.raises(PrefetchdError, match="cannot answer"):
            index.ask(one, "__init__")
        worker = index._process
        assert worker is not None
        worker.send_signal(signal.SIGSTOP)
        killing = threading.Timer(0.3, worker.kill)
        killing.start()
        with pytest.raises(PrefetchdError, match=r"its process ended \(killed by SIGKILL\)"):
            index.ask(one, "thumbnail", sample_id=2, most_px=32)
        killing.join()
        with pytest.raises(PrefetchdError, match="it ends the process that decodes it"):
            index.ask(one, "thumbnail", sample_id=2, most_px=32)
        assert index.ask(one, "where", sample_ids=[0])
        worker = index._process
        assert worker is not None
        worker.kill()
        worker.wait()
        assert index.ask(one, "where", sample_ids=[1]), "another one is started"
    finally:
        index.close()
    with pytest.raises(PrefetchdError, match="is ending"):
        index.ask(one, "where", sample_ids=[0])


def test_worker_outlives_the_thread_that_started_it(listed):
    one, index = served(str(listed), digest_of(listed)), Index()
    try:
        thread = threading.Thread(target=index.ask, args=(one, "where"), kwargs={"sample_ids": [0]})
        thread.start()
        thread.join()
        worker = index._process
        assert index.ask(one, "where", sample_ids=[1])
        assert index._process is worker
    finally:
        index.close()


def test_worker_ends_with_its_parent_however_that_ends(listed, tmp_path):
    code = f"""
import os
from prefetchd.dashboard.index import Index
from tests.unit.test_dashboard_batches import served
index = Index()
index.ask(served({str(listed)!r}, {digest_of(listed)!r}), "where", sample_ids=[0])
print(index._process.pid, flush=True)
os.kill(os.getpid(), {int(signal.SIGKILL)})
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    pid = int(result.stdout)
    wait_until(lambda: not alive(pid), "the worker has ended")


def test_worker_that_takes_too_long_is_ended(listed):
    digest = digest_of(listed)
    index = Index(answer_s=0.0)
    try:
        with pytest.raises(PrefetchdError, match="took longer than 0 s"):
            index.ask(served(str(listed), digest), "where", sample_ids=[0])
        assert index._process is None
    finally:
        index.close()
