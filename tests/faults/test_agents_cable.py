"""An agent behind a network whose cable is pulled: a namespace, and a veth that is set down."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import prefetchd
from tests.agents import token_file
from tests.conftest import wait_until
from tests.faults.conftest import BATCH, SIZE, Content, content_of

SPACE, OUTSIDE, INSIDE = f"prefetchd-{os.getpid()}", f"pfo{os.getpid()}", f"pfi{os.getpid()}"
HERE, THERE = "10.211.8.1", "10.211.8.2"


def run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)


@pytest.fixture
def network(nothing_left: None) -> Iterator[None]:
    """A namespace at the other end of a cable."""
    if shutil.which("ip") is None:
        pytest.skip("ip is not installed")
    try:
        run("ip", "netns", "add", SPACE)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"this user may make no network namespace ({error.stderr.decode().strip()})")
    try:
        try:
            run("ip", "link", "add", OUTSIDE, "type", "veth", "peer", "name", INSIDE, "netns", SPACE)
            run("ip", "addr", "add", f"{HERE}/24", "dev", OUTSIDE)
            run("ip", "link", "set", OUTSIDE, "up")
            run("ip", "-n", SPACE, "addr", "add", f"{THERE}/24", "dev", INSIDE)
            run("ip", "-n", SPACE, "link", "set", INSIDE, "up")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"there are no such networks here ({error.stderr.decode().strip()})")
        yield
    finally:
        subprocess.run(("ip", "netns", "delete", SPACE), capture_output=True)
        subprocess.run(("ip", "link", "delete", OUTSIDE), capture_output=True)


@pytest.mark.timeout(300)
def test_loop_goes_on_while_the_cable_is_out(
    network: None, tmp_path: Path, forty: Path, forty_content: Content
) -> None:
    command = [
        "ip", "netns", "exec", SPACE, sys.executable, "-m", "prefetchd", "agent", "--listen", f"{THERE}:0",
        "--token-file", str(token_file(tmp_path)), "--num-workers", "1",
    ]  # fmt: skip
    agent = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert agent.stdout is not None
        address = ":".join(agent.stdout.readline().split())
        options: dict[str, Any] = {
            "num_workers": 1, "batch_size": BATCH, "image_size": SIZE, "color": "bgr", "shrink_on_load": False,
            "agents": address, "token_file": token_file(tmp_path),
        }  # fmt: skip
        with prefetchd.batches(forty, epochs=None, **options) as loader:
            batches, n_seen = iter(loader), 0

            def see(n_batches: int) -> None:
                nonlocal n_seen
                for _ in range(n_batches):
                    epoch, index = divmod(n_seen, len(forty_content))
                    assert content_of([next(batches)]) == [(epoch, *forty_content[index][1:])]
                    n_seen += 1

            def samples() -> int:
                return sum(agent["samples"] for agent in loader.status()["agents"])

            def see_some_from_elsewhere() -> None:
                wait_until(lambda: loader.status()["agents"], "the agent has joined", 90)
                before, end_s = samples(), time.monotonic() + 60
                while samples() <= before:
                    assert time.monotonic() < end_s, "the agent makes nothing"
                    see(20)

            see_some_from_elsewhere()
            run("ip", "link", "set", OUTSIDE, "down")
            see(200)
            run("ip", "link", "set", OUTSIDE, "up")
            see_some_from_elsewhere()
    finally:
        agent.terminate()
        agent.communicate(timeout=20)
