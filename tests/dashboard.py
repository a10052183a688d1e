"""The dashboard as users start it, for tests: a process and its address."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from tests.conftest import wait_until


@contextlib.contextmanager
def dashboard(*arguments: object, then: str = "") -> Iterator[str]:
    """Run `prefetchd dashboard ARGUMENTS` on a free port; yield its address, without a token.

    After its address it says the line `then`, if that is given.
    """
    command = [sys.executable, "-m", "prefetchd", "dashboard", "--port", "0", *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stderr is not None
        line = process.stdout.readline()
        found = re.match(r"dashboard: (http://\S+?)(?:\?token=\S+)? \(", line)
        assert found, (line, process.stderr.read() if process.poll() is not None else "")
        assert not then or process.stdout.readline() == then
        yield found[1]
        process.terminate()
        _, errors = process.communicate(timeout=20)
        assert process.returncode == 0, errors
        assert errors == "", errors
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def get(address: str, path: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    """Ask for `path`; return status, headers in lower case, and the body. Redirects are not followed."""
    where = urlsplit(address)
    assert where.hostname is not None
    connection = http.client.HTTPConnection(where.hostname, where.port, timeout=30)
    try:
        connection.request("GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def ask(address: str, path: str) -> Any:
    """Ask for JSON."""
    status, _, body = get(address, path)
    assert status in (200, 409, 503), (status, body)
    return json.loads(body)


def wait_for_report(address: str, name: str = "default") -> Any:
    """Wait until the live page has rates of a daemon; return what it shows."""
    found: list[Any] = []

    def look() -> bool:
        found[:] = [ask(address, f"/api/live?daemon={name}")["shown"]]
        return bool(found[0] and found[0]["report"] and found[0]["report"]["images_in"] is not None)

    wait_until(look, "the dashboard has two reports")
    return found[0]


def alive(pid: int) -> bool:
    """Whether the process runs."""
    return os.path.exists(f"/proc/{pid}")
