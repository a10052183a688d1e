"""What daemon and agent take from each other, and how they notice that nobody is there."""

from __future__ import annotations

import os
import queue
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest

from prefetchd.config.options import OPTIONS
from prefetchd.config.validate import make_config
from prefetchd.errors import ConfigError
from prefetchd.ipc.bridge_messages import Setup
from prefetchd.remote import wire
from prefetchd.remote.arrival import check_files, make_own
from prefetchd.remote.control import Settings
from prefetchd.remote.dialer import Dialer, Dialled
from prefetchd.remote.joining import Own, file_states, join
from prefetchd.remote.link import LinkEnded, tune
from prefetchd.remote.ray_placer import reason_of
from prefetchd.remote.tls import tls_context

SETUP = Setup([], b"x" * 32, None, None, None, 60.0)


def settings(**changes: Any) -> Settings:
    given: dict[str, Any] = {
        "token": b"x" * 32, "tls_cert": None, "tls_key": None, "tls_ca": None, "cache": None, "cache_size": "auto",
        "allow_code": False, "python_path": ["/agents/own"], "versions": {}, "probe": {},
    }  # fmt: skip
    return Settings(**{**given, **changes})


# --- what an agent takes from the wire


def test_agent_takes_no_folder_store_or_module_path_from_the_wire(tmp_path: Path):
    sent = make_config(
        source="s3://bucket/list.txt", keep=str(tmp_path / "theirs"), keep_size="1GiB", cache=str(tmp_path / "theirs"),
        store_options={"endpoint": "http://198.51.100.1"}, python_path=[str(tmp_path)], image_size=40,
    ).to_wire()  # fmt: skip
    own = make_own(sent, settings(cache="/agents/cache", cache_size="2GiB"))
    assert own.image_size == (40, 40)
    assert own.keep is None
    assert own.keep_size == OPTIONS["keep_size"].default
    assert not own.store_options.values_by_key()
    assert (own.cache, own.cache_size) == ("/agents/cache", "2GiB")
    assert own.python_path == ("/agents/own",)


@pytest.mark.parametrize("name", ["transform", "target_transform"])
def test_agent_imports_no_function_on_the_say_of_the_wire(name: str):
    sent = make_config(source="a.txt", **{name: "os:getcwd"}).to_wire()
    with pytest.raises(ConfigError, match=f"cannot serve {name}.*--allow-code"):
        make_own(sent, settings())
    assert getattr(make_own(sent, settings(allow_code=True)), name) == "os:getcwd"


def test_key_with_a_password_is_refused_and_nobody_is_asked(tmp_path: Path):
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed")
    words = "req -newkey rsa:2048 -passout pass:secret -x509 -keyout a.key -out a.crt -days 2 -subj /CN=a"
    subprocess.run([openssl, *words.split()], cwd=tmp_path, check=True, capture_output=True)
    with pytest.raises(ConfigError, match="without a password"):
        tls_context(str(tmp_path / "a.crt"), str(tmp_path / "a.key"), None, is_agent=True)


# --- nobody there


@pytest.mark.parametrize("host", ["cpu..example", "x" * 70])
def test_name_that_no_machine_can_have_cannot_be_reached(host: str):
    with pytest.raises(LinkEnded, match="is no name of a machine"):
        join(f"{host}:7777", SETUP, None, Own({}, {}), [])


def test_agent_is_asked_again_whatever_went_wrong():
    results: queue.SimpleQueue[Dialled] = queue.SimpleQueue()
    ours, theirs = socket.socketpair()
    tries: list[str] = []

    def reach(address: str) -> tuple[socket.socket, wire.Joined]:
        tries.append(address)
        if len(tries) == 1:
            raise ValueError("of no kind that is expected")
        return ours, wire.Joined(1, [], [])

    with ours, theirs:
        dialer = Dialer("cpu1:7777", reach, results, lambda: None)
        try:
            assert "ValueError: of no kind" in results.get(timeout=20).reason
            assert results.get(timeout=20).sock is ours
        finally:
            dialer.stop()


@pytest.mark.parametrize("is_left_out", [True, False])
def test_agent_that_is_asked_no_more_between_two_tries_is_reported_once_more(is_left_out: bool):
    """Left out, or placed anew at another address."""
    results: queue.SimpleQueue[Dialled] = queue.SimpleQueue()

    def reach(address: str) -> tuple[socket.socket, wire.Joined]:
        raise LinkEnded("it cannot be reached")

    dialer = Dialer("cpu1:7777", reach, results, lambda: None)
    assert results.get(timeout=20).reason == "it cannot be reached"
    dialer.stop(is_left_out=is_left_out)
    while results.get(timeout=20).reason != "it is asked no more":
        pass
    assert dialer.is_stopped


def test_connection_ends_when_the_machine_of_the_peer_is_gone():
    """The kernel asks an idle connection, within half a minute in all, and not after its default of two hours."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as sock:
        tune(sock)
        idle, interval, times = (
            sock.getsockopt(socket.IPPROTO_TCP, name)
            for name in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
        )
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert 0 < idle + interval * times <= 30


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (AssertionError(), "AssertionError"),
        (ConnectionError("\n"), "ConnectionError"),
        (RuntimeError("gone\nand a long trace"), "RuntimeError: gone"),
    ],
)
def test_what_ray_raises_is_one_line_also_if_it_says_nothing(error: Exception, reason: str):
    assert reason_of(error) == reason


# --- files of the data


def test_agent_compares_files_that_are_there(tmp_path: Path):
    path = tmp_path / "caf\udce9.jpg"
    path.write_bytes(b"12345")
    state = path.stat()
    same = wire.FileState(os.fsencode(path), 5, int(state.st_mtime))
    os.utime(path, (state.st_atime, same.modified_s))  # as from an archive that keeps whole seconds
    check_files([same, wire.FileState(b"/nowhere/a.jpg", 5, 5), wire.FileState(b"a\0b", 5, 5)])
    for other in (wire.FileState(same.path, 6, same.modified_s), wire.FileState(same.path, 5, same.modified_s + 1)):
        with pytest.raises(ConfigError, match=r"caf\\udce9.jpg is another file on the agent's machine"):
            check_files([same, other])


def test_daemon_reports_files_as_they_are_now(tmp_path: Path):
    path = tmp_path / "a.jpg"
    path.write_bytes(b"12345")
    paths = [os.fsencode(path), os.fsencode(tmp_path / "gone.jpg")]
    assert [each.n_bytes for each in file_states(paths)] == [5]
    path.write_bytes(b"123456")
    assert [each.n_bytes for each in file_states(paths)] == [6]
