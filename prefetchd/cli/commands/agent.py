"""`prefetchd agent`: decode for daemons on other machines."""

from __future__ import annotations

import argparse
import logging
import os

from prefetchd.cli.arguments import Subparsers, add_debug, check_range
from prefetchd.config.remote_options import canonical_agents
from prefetchd.errors import ConfigError

_DEFAULT_LISTEN = "127.0.0.1:7777"
_LOOPBACK = ("127.", "::1", "localhost")
log = logging.getLogger("prefetchd")


def add(commands: Subparsers, datasets: tuple[str, ...]) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "agent",
        help="decode for daemons on other machines",
        description="Decode for daemons on other machines, which name this one in --agents. Several may share it. It "
        "must have the same prefetchd and libraries, and see the data under the same paths.",
    )
    parser.add_argument(
        "--listen",
        default=_DEFAULT_LISTEN,
        metavar="HOST:PORT",
        help=f"address to listen on; 0.0.0.0:7777 for every network, port 0 for a free one ({_DEFAULT_LISTEN})",
    )
    parser.add_argument("--token-file", required=True, metavar="FILE", help="file with the token that daemons have too")
    parser.add_argument(
        "--num-workers", type=int, default=0, metavar="N", help="readers in all, divided among daemons (usable cores)"
    )
    parser.add_argument(
        "--memory-budget",
        default="auto",
        metavar="SIZE",
        help="most memory for all of it together (60%% of what is free)",
    )
    parser.add_argument("--cache", metavar="DIR", help="folder of this machine that decoded images are kept in (none)")
    parser.add_argument(
        "--cache-size", default="auto", metavar="SIZE", help="most bytes of it (all but 5%% of its disk)"
    )
    parser.add_argument(
        "--allow-code", action="store_true", help="import the functions that daemons name (transform); else refuse them"
    )
    parser.add_argument(
        "--python-path", metavar=f"DIR[{os.pathsep}DIR]", help="folders to find their modules in (working directory)"
    )
    parser.add_argument("--tls-cert", metavar="FILE", help="certificate of this agent, in PEM format: speak TLS (none)")
    parser.add_argument("--tls-key", metavar="FILE", help="its key (in the same file)")
    parser.add_argument("--tls-ca", metavar="FILE", help="authority of daemons' certificates: ask for one (none)")
    parser.add_argument("--with-parent", action="store_true", help="end with the process that started it")
    add_debug(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Serve until SIGTERM or Ctrl-C; return the exit status."""
    check_range(arguments, "num_workers", 0, 1024)
    host, port = _address(arguments.listen)
    log.setLevel(logging.INFO)

    from prefetchd.config.convert import size_limit
    from prefetchd.ipc import system
    from prefetchd.ipc.trust import read_token
    from prefetchd.remote.agent import Agent, AgentOptions, serve
    from prefetchd.remote.control import Settings
    from prefetchd.remote.probe import marks
    from prefetchd.remote.tls import tls_context

    if arguments.cache is None and arguments.cache_size != "auto":
        raise ConfigError('cannot use cache_size without a cache; give cache="DIR", or leave it out')
    token = read_token(arguments.token_file)
    tls_context(arguments.tls_cert, arguments.tls_key, arguments.tls_ca, is_agent=True)
    folders = arguments.python_path.split(os.pathsep) if arguments.python_path else [os.getcwd()]
    versions, probe = marks()
    settings = Settings(
        token=token,
        tls_cert=_absolute(arguments.tls_cert),
        tls_key=_absolute(arguments.tls_key),
        tls_ca=_absolute(arguments.tls_ca),
        cache=_absolute(arguments.cache),
        cache_size=size_limit("cache_size")(arguments.cache_size),
        allow_code=arguments.allow_code,
        python_path=[os.path.abspath(folder) for folder in folders],
        versions=versions,
        probe=probe,
    )
    options = AgentOptions(
        host=host,
        port=port,
        n_readers=arguments.num_workers or system.usable_cores(),
        memory_budget=arguments.memory_budget,
        settings=settings,
        with_parent=arguments.with_parent,
    )
    if not host.startswith(_LOOPBACK) and not arguments.tls_cert:
        log.warning(
            "listening on %s without TLS: pixels and paths can be read on the way; give --tls-cert where that network "
            "is not yours alone",
            host,
        )

    def announce(agent: Agent) -> None:
        log.info("%s", agent.describe())
        print(*agent.address, flush=True)  # for programs that gave port 0; nowhere if stdout is closed

    serve(options, announce)
    log.info("stopped")
    return 0


def _address(text: str) -> tuple[str, int]:
    """Return host and port of `--listen`."""
    if text.endswith(":0"):
        host = text[:-2]
        canonical_agents(f"{host}:1")
        return host.strip("[]"), 0
    try:
        (address,) = canonical_agents(text)
    except (ConfigError, ValueError):
        raise ConfigError(f"cannot listen on {text!r}: it must be HOST:PORT, such as {_DEFAULT_LISTEN}") from None
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _absolute(path: str | None) -> str | None:
    return None if path is None else os.path.abspath(os.path.expanduser(path))
