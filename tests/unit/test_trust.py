"""The files by which daemon and agent know each other."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from prefetchd.errors import ConfigError
from prefetchd.ipc.trust import check_files
from prefetchd.remote.link import why


def test_a_file_that_is_no_certificate_is_refused_at_the_start(tmp_path: Path) -> None:
    """The bridge to the agents would end over it again and again."""
    (tmp_path / "ca.pem").write_text("a comment\n-----BEGIN CERTIFICATE-----\nMIIC\n-----END CERTIFICATE-----\n")
    (tmp_path / "token").write_text("0123456789abcdef")
    check_files({"tls_ca": str(tmp_path / "ca.pem"), "tls_cert": None})
    with pytest.raises(ConfigError, match=r"cannot use tls_ca='.*/token': it is not in PEM format"):
        check_files({"tls_ca": str(tmp_path / "token")})


def test_a_certificate_that_the_other_side_asks_for_is_named_by_its_option() -> None:
    error = ssl.SSLError(1, "[SSL: TLSV13_ALERT_CERTIFICATE_REQUIRED]")
    error.reason = "TLSV13_ALERT_CERTIFICATE_REQUIRED"
    assert why(error) == "it asks for a certificate of this side; give tls_cert"
