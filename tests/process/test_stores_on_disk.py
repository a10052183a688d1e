"""What is on disk of objects, where two endpoints have buckets of one name, and objects with the same ETag in them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.process.test_stores import assert_equal, batches
from tests.records import jpeg
from tests.servers.web import WebServer


@pytest.mark.parametrize("kept", ["keep", "cache"])
def test_two_endpoints_share_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: str) -> None:
    images = [jpeg(seed) for seed in (1, 2)]
    longest = max(map(len, images))
    for number, image in enumerate(images):
        bucket = tmp_path / str(number) / "b"
        bucket.mkdir(parents=True)
        (bucket / "list.txt").write_text("0.jpg\n")
        (bucket / "0.jpg").write_bytes(image.ljust(longest, b"\0"))
        os.utime(bucket / "0.jpg", (1e9, 1e9))  # so both servers say the same ETag
    with WebServer(tmp_path / "0") as one, WebServer(tmp_path / "1") as two:
        for name, value in one.environment.items():
            monkeypatch.setenv(name, value)
        for run, server in enumerate((one, two, one, two)):
            server.forget()
            options = {"store_options": {"endpoint": server.url}, kept: tmp_path / kept}
            expected = batches(str(tmp_path / str(run % 2) / "b" / "list.txt"))
            assert_equal(batches("s3://b/list.txt", **options), expected)
            assert run < 2 or server.requests().sent_bytes < 2 * longest  # but for the look at the start, from the disk
