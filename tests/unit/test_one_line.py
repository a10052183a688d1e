"""Whatever is in a name or a message, an error is one printable line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prefetchd.config.validate import make_config
from prefetchd.data.manifest.records import Manifest
from prefetchd.errors import ConfigError, PrefetchdError, error_from_name, one_line


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Größe 猫 🙂.jpg", "Größe 猫 🙂.jpg"),
        ("a\nb\r.jpg", "a\\nb\\r.jpg"),
        ("\x1b[2J\x07\x7f.jpg", "\\x1b[2J\\x07\\x7f.jpg"),
        ("a\u2028b\u202ec", "a\\u2028b\\u202ec"),
        ("\udcff.jpg", "\\udcff.jpg"),
        ("at http://me:pass@word@host/a?sig=1: gone", "at http://host/a?...: gone"),
        ("ftp://me:word@host/a, s3a://AKIA:word@b/k@2", "ftp://host/a, s3a://b/k@2"),
        ("abfss://container@account.host/a:b@c", "abfss://container@account.host/a:b@c"),
        ("s3://b/a:b@c, az://c/k", "s3://b/a:b@c, az://c/k"),
    ],
)
def test_what_no_line_can_hold_is_escaped_and_the_rest_is_as_it_was(text: str, shown: str) -> None:
    assert one_line(text) == shown
    assert shown.isprintable()


@pytest.mark.parametrize("make", [PrefetchdError, ConfigError, lambda text: error_from_name("SampleError", text)])
def test_every_error_is_one_printable_line(make) -> None:
    assert str(make("cannot use a\nb\x1b[31m\udcff: it is odd; rename it")).isprintable()


def test_a_sample_is_said_on_one_line_whatever_its_path(tmp_path: Path) -> None:
    source = tmp_path / "list\n\x1b[31m.jsonl"
    source.write_text(json.dumps({"path": "a\nb\x1b[2J.jpg", "label": 1}) + "\n")
    with Manifest.open(make_config(source=str(source))) as manifest:
        sample = manifest.sample(0)
        assert sample.path.endswith("a\nb\x1b[2J.jpg")  # the path itself is as it is
        assert manifest.where(sample).isprintable()
        assert "a\\nb\\x1b[2J.jpg" in manifest.where(sample)
