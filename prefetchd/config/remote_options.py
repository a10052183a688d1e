"""`RemoteOptions`: the options that have other machines decode too. `Config` has them beside its own. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

from prefetchd.config.convert import wrong
from prefetchd.config.option import option
from prefetchd.config.order_options import OrderOptions
from prefetchd.errors import ConfigError

_ADDRESS = re.compile(r"(\[[0-9a-fA-F:.%\w]+\]|[^\s\[\]:@/]+):([0-9]{1,5})")
_MOST_AGENTS = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteOptions(OrderOptions):
    """Which agents make batches beside the readers of this machine; see `docs/many-machines.md`.

    None of them is content: batches are the same, on however many machines they are made.
    """

    agents: tuple[str, ...] = option(
        (),
        "decode on other machines too, by the agents at these addresses: cpu1:7777,cpu2:7777 (none)",
        metavar="HOST:PORT[,...]",
        content=False,
        later=True,
    )
    ray: str | None = option(
        None,
        "decode on the nodes of a Ray cluster too: auto, or its address; needs the extra ray (none)",
        metavar="auto|ADDRESS",
        content=False,
        later=True,
    )
    remote_workers: int = option(
        0,
        "ray: reader processes on other nodes in all; 0 or auto: add nodes while loops wait for batches",
        metavar="N|auto",
        content=False,
        later=True,
        limits=(0, 65536),
    )
    token_file: str | None = option(
        None, "agents: file with the token that they have too (none)", metavar="FILE", content=False, later=True
    )
    tls_ca: str | None = option(
        None,
        "agents: speak TLS, and accept certificates of this authority, in PEM format (no TLS)",
        metavar="FILE",
        content=False,
        later=True,
    )
    tls_cert: str | None = option(
        None, "agents: certificate to show to them, where they ask for one (none)", metavar="FILE", content=False,
        later=True,
    )  # fmt: skip
    tls_key: str | None = option(
        None, "agents: key of tls_cert (in the same file)", metavar="FILE", content=False, later=True
    )


def canonical_agents(value: object) -> tuple[str, ...]:
    """Return the addresses of agents, each once: from `"a:1,b:2"`, or a sequence of such texts."""
    if isinstance(value, str):
        value = value.split(",")
    if not isinstance(value, list | tuple) or not all(isinstance(each, str) for each in value):
        raise wrong("agents", value, "addresses such as 'cpu1:7777,cpu2:7777', or a list of them")
    found: dict[str, None] = {}
    for text in (each.strip() for each in value):
        match = _ADDRESS.fullmatch(text)
        if match is None or not 1 <= int(match[2]) <= 65535:
            raise wrong("agents", text, "HOST:PORT, such as cpu1:7777; an IPv6 address stands in brackets, [::1]:7777")
        found[text] = None
    if len(found) > _MOST_AGENTS:
        raise wrong("agents", f"{len(found)} addresses", f"{_MOST_AGENTS} addresses at most")
    return tuple(found)


def ray_address(value: object) -> str | None:
    """Return the address of a Ray cluster, or "auto"."""
    if value is not None and not (isinstance(value, str) and value.strip()):
        raise wrong("ray", value, "auto, or the address of a cluster such as head:6379")
    return value


def check_remote(config: RemoteOptions) -> None:
    """Raise `ConfigError` for options of agents that do not go together."""
    if config.agents and config.token_file is None:
        raise ConfigError(
            "cannot use agents without token_file: daemon and agents know each other by a token; write one to a file "
            "on each machine: python3 -c 'import secrets; print(secrets.token_hex(32))'"
        )
    if config.remote_workers and config.ray is None:
        raise ConfigError("cannot use remote_workers without ray; give the cluster's address, or leave it out")
    if config.ray is not None and (config.tls_ca is not None or config.tls_cert is not None):
        raise ConfigError(
            "cannot use TLS with ray, whose agents have no certificates; leave tls_ca and tls_cert out, or start "
            'agents yourself and give agents="HOST:PORT"'
        )
    if config.tls_key is not None and config.tls_cert is None:
        raise ConfigError("cannot use tls_key without tls_cert; give the certificate too")
    for name in ("token_file", "tls_ca", "tls_cert"):
        if getattr(config, name) is not None and not config.agents:
            raise ConfigError(f"cannot use {name} without agents; give their addresses, or leave it out")
