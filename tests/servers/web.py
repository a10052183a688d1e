"""A server of objects whose faults are set by request: what a test sees of it. `web_server` is the program.

It answers as a plain web server (`https://host/bucket/key` without TLS) and as S3 with path-style addresses (GET, HEAD,
ranges, If-Match, ListObjectsV2). It looks at no signature, so any keys do.
"""

from __future__ import annotations

import json
import sys
import urllib.request
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from tests.servers.process import ServerProcess

FaultKind = Literal[
    "status",
    "reset",
    "close",
    "short",
    "whole",
    "shifted",
    "trickle",
    "hang",
    "etag",
    "no_etag",
    "weak",
    "no_identity",
    "unconditional",
    "slow",
    "user",
]


@dataclass(frozen=True, slots=True)
class WebFault:
    """What the server does with requests of some paths.

    Attributes:
        kind: `status` answers with an error; `reset` and `close` end the connection after `after_bytes` of the body, by
            RST or in order; `short` serves `missing_bytes` fewer and says so in its headers; `whole` answers a range
            with the whole object; `shifted` serves another range, and says so; `trickle` sends a byte each `delay_s`;
            `hang` never answers; `etag` says another ETag, `no_etag` none, `weak` a weak one,
            which no If-Match matches, and `no_identity` no time either; `unconditional` heeds no If-Match; `slow` only
            waits; `user` forbids all but `user` with the password `word`.
        path: which, with * and ?: `/bucket/train/*.jpg`.
        times: how many requests; `None` for all.
        every: only each so many-th of them.
        method: of the request; empty for all.
        code: of `status`.
        name: of S3's error, such as SlowDown; empty for none.
        retry_after_s: seconds that `status` says to wait; `None` for no such header.
        after_bytes: see `kind`; -1 for no answer at all.
        missing_bytes: see `kind`.
        delay_s: before the first byte.
    """

    kind: FaultKind
    path: str = "*"
    times: int | None = None
    every: int = 1
    method: str = "GET"
    code: int = 503
    name: str = ""
    retry_after_s: int | None = None
    after_bytes: int = 0
    missing_bytes: int = 1
    delay_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Requests:
    """What was asked of the server since `forget`.

    Attributes:
        by_path: requests by method and path: `{"GET /bucket/a.jpg": 2}`.
        most_at_once: the most that waited for an answer together.
        sent_bytes: of all bodies.
    """

    by_path: dict[str, int]
    most_at_once: int
    sent_bytes: int

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self.by_path.values())

    def of(self, text: str) -> int:
        """Return how many have `text` in their method and path."""
        return sum(count for path, count in self.by_path.items() if text in path)


class WebServer(ServerProcess):
    """The server of `folder`, started.

    Args:
        folder: its folders are the buckets.
        delay_s: before the first byte of each answer, for any number of requests at once.
    """

    def __init__(self, folder: Path, *, delay_s: float = 0.0) -> None:
        super().__init__([sys.executable, "-m", "tests.servers.web_server", str(folder), "--delay-s", str(delay_s)])

    @property
    def url(self) -> str:
        """Where it is, without a slash at the end."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """What S3's clients take from the environment to use it."""
        return s3_environment(self.url)

    def set_faults(self, *faults: WebFault) -> None:
        """Replace all faults; of several for one path, the first that is due counts."""
        self._ask("faults", [asdict(fault) for fault in faults])

    def requests(self) -> Requests:
        """Return what was asked."""
        return Requests(**self._ask("requests"))

    def forget(self) -> None:
        """Count from zero again."""
        self._ask("forget", {})

    def set_delay(self, delay_s: float) -> None:
        """Wait so long before the first byte of each answer."""
        self._ask("delay", delay_s)

    def _ask(self, what: str, content: Any = None) -> Any:
        body = None if content is None else json.dumps(content).encode()
        with urllib.request.urlopen(f"{self.url}/-/{what}", body, timeout=30) as answer:
            return json.load(answer)


def s3_environment(url: str) -> dict[str, str]:
    """Return the environment in which S3's clients use the server at `url`, and no file of the user's."""
    return {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "AKIATESTTESTTESTTEST",
        "AWS_SECRET_ACCESS_KEY": "secret-of-the-tests",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ALLOW_HTTP": "true",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
    }
