"""`prefetchd dashboard` and `serve --dashboard-port` beside real daemons."""

from __future__ import annotations

import contextlib
import http.client
import os
import random
import re
import signal
import socket
import threading
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest

import prefetchd
from prefetchd.client.admin import bad_samples
from prefetchd.errors import ConfigError
from tests.agents import running_agent, token_file
from tests.conftest import wait_until
from tests.dashboard import ask, dashboard, get, wait_for_report
from tests.process.commands import refused

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

QUICK = ("--batch-size", "4", "--image-size", "16", "--num-workers", "1")


@pytest.fixture
def many_bad(tmp_path, photographs):
    """A list of one good image and 300 that are not there."""
    good = photographs.parent / photographs.read_text().splitlines()[0].rsplit(" ", 1)[0]
    path = tmp_path / "bad.txt"
    path.write_text(f"{good} 0\n" + "".join(f"missing-{n}.jpg 0\n" for n in range(300)))
    return path


def test_page_follows_a_daemon_its_trainers_and_its_end(serve, photographs):
    daemon = serve(photographs, *QUICK, name="seen")
    with dashboard("seen") as address:
        shown = wait_for_report(address, "seen")
        assert shown["pid"] == daemon.pid
        assert shown["state"] == "running"
        assert shown["report"]["consumers"] == []
        assert "No trainer" in shown["report"]["verdict"]["text"]
        with prefetchd.batches(daemon="seen", epochs=None, name="mine.py") as loader:
            loop = iter(loader)
            next(loop)
            shown = {}

            def sees_it() -> bool:
                next(loop)
                shown.update(ask(address, "/api/live?daemon=seen")["shown"])
                return bool(shown["report"]["images_out"])

            wait_until(sees_it, "the dashboard sees the loop")
            (row,) = shown["report"]["consumers"]
            assert (row["name"], row["pid"], row["lag"]) == ("mine.py", os.getpid(), 0)
            assert shown["report"]["shares"] is not None
            loop.close()
        assert daemon.stop() == 0
        wait_until(lambda: ask(address, "/api/live?daemon=seen")["shown"]["state"] == "gone", "the daemon is gone")
        again = serve(photographs, *QUICK, name="seen")
        wait_until(lambda: ask(address, "/api/live?daemon=seen")["shown"]["state"] == "running", "it is back")
        assert ask(address, "/api/live?daemon=seen")["shown"]["pid"] == again.pid


def test_a_daemon_that_does_not_run_is_waited_for_and_the_others_are_named(serve, photographs):
    serve(photographs, *QUICK, name="train")
    said = "waiting for the daemon 'trian': none is running; those that run are 'train'\n"
    with dashboard("trian", then=said) as address:
        assert ask(address, "/api/live?daemon=trian")["shown"]["state"] == "awaited"
        serve(photographs, *QUICK, name="trian")
        wait_until(lambda: ask(address, "/api/live?daemon=trian")["shown"]["state"] == "running", "it has come")
    assert "cannot use --name a/b: it must be 1 to 64 letters" in refused("dashboard", "a/b")


def test_dashboard_leaves_no_trace_in_the_daemon(module_daemon):
    with dashboard() as address:
        wait_for_report(address)
        after = module_daemon.status()
    assert after["consumers"] == []
    assert after["delivered"] == 0


def test_bad_samples_are_listed_in_parts(serve, many_bad):
    daemon = serve(many_bad, *QUICK, "--on-error", "skip")
    with prefetchd.batches() as loader:
        assert sum(len(batch.y) for batch in loader) == 1
    first = bad_samples("default", "", 0)
    assert (first.n_bad, first.n_remembered) == (300, 300)
    found: list[tuple[int, str, str]] = []
    while len(found) < 300:
        part = bad_samples("default", "", len(found)).samples
        assert part
        found += part
    assert sorted(number for number, _, _ in found) == list(range(1, 301))
    assert all(f"missing-{number - 1}.jpg" in where and "ENOENT" in reason for number, where, reason in found)
    assert bad_samples("default", "", 300).samples == []
    with pytest.raises(ConfigError, match="no data set of that name"):
        bad_samples("default", "other", 0)
    with dashboard() as address:
        wait_for_report(address)
        answer = ask(address, "/api/bad?daemon=default&first=290")
        assert [sample["sample_id"] for sample in answer["samples"]] == [number for number, _, _ in found[290:]]
        for query, why in (("daemon=none", "none of that name"), ("daemon=default&first=-1", "whole number")):
            assert why in ask(address, f"/api/bad?{query}")["error"]
    assert daemon.status()["bad_samples"] == 300


def test_another_host_name_is_refused_and_a_token_needed(tmp_path):
    token_file = tmp_path / "token"
    with dashboard("--token-file", token_file) as address:
        assert get(address, "/api/live")[0] == 401
        token = token_file.read_text().strip()
        assert get(address, "/api/live", authorization=f"Bearer {token}")[0] == 200
        status, headers, _ = get(address, f"/?token={token}")
        assert (status, headers["location"]) == (303, "/")
        cookie = headers["set-cookie"].partition(";")[0]
        assert get(address, "/api/live", cookie=cookie)[0] == 200
        assert get(address, "/api/live", cookie=cookie, host="evil.example")[0] == 403
        assert get(address, "/api/live", authorization="Bearer wrong-wrong-wrong-wrong")[0] == 401


def test_silent_connections_keep_nobody_out():
    """Each is closed after some seconds; before that there may be too many of them."""
    with dashboard() as address, contextlib.ExitStack() as opened:
        place = urlsplit(address)
        for number in range(220):
            sock = opened.enter_context(socket.create_connection((place.hostname, place.port), timeout=10))
            sock.sendall(b"" if number % 2 else b"GET / HTTP/1.1\r\nHost:")
        sock.settimeout(60)
        with contextlib.suppress(ConnectionResetError):
            assert sock.recv(1) == b"", "the last one is closed"
        assert get(address, "/api/live")[0] == 200


def test_what_cannot_be_served_is_one_line(tmp_path, photographs):
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
        assert f"port {port}: Address already in use; choose" in refused("dashboard", "--port", port)
        assert "Address already in use" in refused("serve", photographs, *QUICK, "--dashboard-port", port)
    assert "other machines could see your data; give --token-file" in refused("dashboard", "--host", "0.0.0.0")
    assert "from 1 to 65535" in refused("dashboard", "--port", "70000")
    assert "chmod 600" in refused("dashboard", "--token-file", photographs)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_dashboard_of_serve_ends_with_its_daemon(serve, photographs, number):
    port = free_port()
    daemon = serve(photographs, *QUICK, "--dashboard-port", port, name="both")
    address = re.search(r"dashboard: (http://127\.0\.0\.1:\d+/)", daemon.log)
    assert address is not None

    def answers() -> bool:
        with contextlib.suppress(OSError, http.client.HTTPException):
            return ask(address[1], "/api/live?daemon=both")["shown"]["pid"] == daemon.pid
        return False

    wait_until(answers, "the dashboard answers")
    (beside,) = [child for child in psutil.Process(daemon.pid).children() if "dashboard" in " ".join(child.cmdline())]
    daemon.process.send_signal(number)
    daemon.process.wait(20)
    wait_until(lambda: not beside.is_running(), "the dashboard has ended")


def test_dashboard_of_serve_takes_a_token_and_findings(serve, photographs, tmp_path):
    secret, findings, port = tmp_path / "token", tmp_path / "found.json", free_port()
    daemon = serve(
        photographs, *QUICK, "--dashboard-port", port, "--dashboard-host", "0.0.0.0", "--dashboard-token-file", secret,
        "--dashboard-findings", findings, name="shown",
    )  # fmt: skip
    address = f"http://127.0.0.1:{port}/"

    def data() -> tuple[int, bytes]:
        with contextlib.suppress(OSError, http.client.HTTPException):
            status, _, body = get(address, "/api/data?daemon=shown", authorization=f"Bearer {token}")
            return status, body
        return 0, b""

    wait_until(secret.exists, "the token is made")
    token = secret.read_text().strip()
    wait_until(lambda: data()[0] == 200, "the dashboard answers")
    assert get(address, "/api/data?daemon=shown")[0] == 401
    assert str(findings) in data()[1].decode(), "it looks for them there"
    assert f"(the token is in {secret})" in daemon.log
    assert token not in daemon.log
    assert token not in str([child.cmdline() for child in psutil.Process(daemon.pid).children()])


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--dashboard-token-file", "t"), "cannot use --dashboard-token-file without a dashboard; give --dashboard-p"),
        (("--dashboard-findings", "f"), "cannot use --dashboard-findings without a dashboard"),
        (("--dashboard-port", 0, "--dashboard-host", "0.0.0.0"), "cannot use --dashboard-host 0.0.0.0 without a token"),
        (
            ("--dashboard-port", 0, "--dashboard-findings", "f", "--dashboard-findings", "g"),
            "cannot use --dashboard-findings g: a data set has one file",
        ),
    ],
)
def test_dashboard_of_serve_that_cannot_be_is_one_line(photographs, words, why):
    assert why in refused("serve", photographs, *QUICK, *words)


def free_port() -> int:
    """A port that is free now, and none that the kernel gives to a socket that asks for any."""
    while True:
        number = random.randrange(20_000, 30_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", number)):
            return number


def test_dashboard_ends_in_order_while_an_answer_is_being_made(serve, photographs):
    serve(photographs, *QUICK)
    with dashboard() as address:
        wait_for_report(address)
        assert get(address, "/api/thumbnail?daemon=default&sample=0")[0] == 200
        (mine,) = [each for each in psutil.Process().children(recursive=True) if "index_worker" in str(each.cmdline())]
        mine.suspend()

        def ask_in_vain() -> None:
            with contextlib.suppress(OSError, http.client.HTTPException):
                get(address, "/api/thumbnail?daemon=default&sample=1")

        asking = threading.Thread(target=ask_in_vain)
        asking.start()
        asking.join(0.5)
        assert asking.is_alive()
    asking.join()
    wait_until(lambda: not psutil.pid_exists(mine.pid), "the worker has ended")


def test_agents_are_shown_with_what_they_do_and_missing_ones_with_a_reason(serve, photographs, tmp_path):
    with running_agent(tmp_path) as agent, socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
        nobody.close()
        agents = f"{agent.address},127.0.0.1:{port}"
        serve(photographs, *QUICK, "--agents", agents, "--token-file", token_file(tmp_path), name="far")
        with dashboard("far") as address:
            seen: dict[str, Any] = {}

            def both() -> bool:
                report = wait_for_report(address, "far")["report"]
                seen.update({row["state"] == "missing": row for row in report["agents"]})
                return len(seen) == 2

            wait_until(both, "one agent has joined, and one is missing")
            assert seen[False]["readers"] >= 1
            assert str(port) in seen[True]["name"]
            assert seen[True]["missing"]
            found = ask(address, "/api/batch?daemon=far&epoch=2&batch=1")
            assert found["paths_why"] == ""
            assert found["n_rows"] == 4
