"""The files of TLS, and what they make of a socket. Both ends of a connection between daemon and agent use it."""

from __future__ import annotations

import ssl
from typing import Any

from prefetchd.errors import ConfigError
from prefetchd.remote.link import why


def tls_context(tls_cert: str | None, tls_key: str | None, tls_ca: str | None, *, is_agent: bool) -> Any:
    """Return what makes a socket one of TLS; `None` without any of the files.

    The daemon checks the agent's certificate, and its host's name, by `tls_ca`. An agent with `tls_ca` asks the daemon
    for a certificate too.

    Raises:
        ConfigError: if a file cannot be used.
    """
    if not (tls_cert or tls_key or tls_ca):
        return None
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if is_agent else ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if tls_ca:
            context.load_verify_locations(tls_ca)
            context.verify_mode = ssl.CERT_REQUIRED
        elif not is_agent:
            context.load_default_certs()
        if tls_cert:
            context.load_cert_chain(tls_cert, tls_key, password="")  # else the library asks for one, and waits
        elif is_agent:
            given = "tls_ca" if tls_ca else "tls_key"
            raise ConfigError(f"cannot use {given} without tls_cert: an agent with TLS has a certificate; give it too")
    except OSError as error:
        names = ", ".join(
            f"{name}={value!r}"
            for name, value in (("tls_cert", tls_cert), ("tls_key", tls_key), ("tls_ca", tls_ca))
            if value
        )
        raise ConfigError(
            f"cannot use {names}: {why(error)}; give files in PEM format that can be read, and a key without a password"
        ) from None
    return context
