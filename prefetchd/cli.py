"""The command line: `prefetchd serve | status | stop`. Parses, calls, and turns every failure into one clear line."""

from __future__ import annotations

import argparse
import json
import logging
import os
import select
import signal
import socket
import sys
from collections.abc import Sequence
from typing import Any, Literal, NoReturn, get_args, get_origin

from prefetchd import __version__
from prefetchd import config as configuration
from prefetchd.errors import DaemonNotFound, PrefetchdError

log = logging.getLogger("prefetchd")

_STOP_S = 10.0


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit status: 0, 1 for a failure, 2 for words that make no sense."""
    _open_standard_descriptors()
    parser = _parser()
    arguments = parser.parse_args(argv)
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="prefetchd: %(message)s")
    try:
        status: int = arguments.run(arguments)
    except PrefetchdError as error:
        if getattr(arguments, "debug", False):
            raise
        print(f"prefetchd: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        sys.stderr.close()  # whoever read our output has had enough
        return 1
    return status


def _open_standard_descriptors() -> None:
    """Put /dev/null where 0, 1 or 2 are closed: a socket that came to be 2 would be written to as stderr."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.dup2(os.open(os.devnull, os.O_RDWR), fd)
            os.set_inheritable(fd, True)
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115 - for the life of the process


# --- the parser


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, as every other failure does; the usage is for `--help`."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="prefetchd", description="A shared-memory prefetching loader daemon for training data.")
    parser.add_argument("--version", action="version", version=f"prefetchd {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    serve = commands.add_parser(
        "serve",
        help="decode a data set ahead of the trainers that attach",
        description="Serve the samples of a manifest to every trainer of this user that calls prefetchd.batches().",
        epilog="Sizes are written 512MiB, 1.5GB or 25% (of the machine's memory).",
    )
    _add_serve_options(serve)
    serve.set_defaults(run=_serve)
    status = commands.add_parser("status", help="show what a daemon does", description="Show what a daemon does.")
    _add_name(status)
    status.add_argument("--json", action="store_true", help="print everything, as JSON")
    status.set_defaults(run=_status)
    stop = commands.add_parser("stop", help="end a daemon", description="End a daemon and wait until it is gone.")
    _add_name(stop)
    stop.set_defaults(run=_stop)
    private = commands.add_parser("_private")
    private.add_argument("socket_fd", type=int)
    private.add_argument("parent_pidfd", type=int)
    private.set_defaults(run=_private)
    commands._choices_actions = [action for action in commands._choices_actions if not action.dest.startswith("_")]
    return parser


def _add_name(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("positional_name", nargs="?", metavar="NAME", help="the daemon (default, or PREFETCHD_NAME)")
    parser.add_argument("--name", help="the same, as an option")
    parser.add_argument("--debug", action="store_true", help="show the traceback of a failure")


def _add_serve_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source",
        nargs="?",
        default=argparse.SUPPRESS,
        metavar="MANIFEST",
        help="a list file (`path label` a line, .csv, .tsv) or a directory with a folder per class",
    )
    parser.add_argument(
        "--config",
        default=argparse.SUPPRESS,
        metavar="FILE",
        help="TOML file with these options (source = 'train.txt', batch-size = 64); the command line wins",
    )
    for name in configuration.OPTIONS:
        if name != "source":
            _add_option(parser, name)
    parser.add_argument("--debug", action="store_true", help="show the traceback of a failure")


def _add_option(parser: argparse.ArgumentParser, name: str) -> None:
    """Add the configuration's option `name`, as its field describes it; values stay text, for `make_config`."""
    field, kind = configuration.OPTIONS[name], configuration.OPTION_TYPES[name]
    more: dict[str, Any] = {"metavar": field.metadata["metavar"]}
    if kind is bool:
        more = {"action": argparse.BooleanOptionalAction}
    elif get_origin(kind) is Literal:
        more = {"choices": get_args(kind)}
    flag = "--" + name.replace("_", "-")
    parser.add_argument(flag, dest=name, default=argparse.SUPPRESS, help=field.metadata["help"], **more)


# --- the commands


def _serve(arguments: argparse.Namespace) -> int:
    options = {key: value for key, value in vars(arguments).items() if key in configuration.OPTIONS}
    if "config" in arguments:
        options = {**configuration.read_config_file(arguments.config), **options}
    options.setdefault("name", os.environ.get("PREFETCHD_NAME") or "default")
    if options.get("transform") or options.get("target_transform"):
        options.setdefault("python_path", [os.getcwd()])
    config = configuration.make_config(**options)
    log.setLevel(logging.INFO)

    from prefetchd.liveness import RunLock, lock_owner
    from prefetchd.loop import EventLoop
    from prefetchd.names import daemon_paths

    paths = daemon_paths(config.name, create=True)
    loop = EventLoop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # before the lock: it is never left behind
        loop.on_signal(number, loop.stop)
    lock = RunLock.acquire(paths)
    if lock is None:
        owner = lock_owner(paths.lock)
        raise DaemonNotFound(
            f"cannot serve as {config.name!r}: a daemon of that name is running (pid {owner}); "
            f"stop it with: prefetchd stop {config.name}, or choose another --name"
        )
    try:
        from prefetchd.daemon import Daemon

        attach = "attach with prefetchd.batches(" + (f"daemon={config.name!r})" if config.name != "default" else ")")
        files = (os.fspath(paths.socket), os.fspath(paths.lock))
        daemon = Daemon(config, loop, files_to_remove=files, attach_hint=attach)
        paths.socket.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        listener.bind(os.fspath(paths.socket))
        listener.listen(128)
        listener.setblocking(False)
        daemon.listen(listener)
        daemon.run()
        log.info("stopped")
    finally:
        lock.release()
    return 0


def _private(arguments: argparse.Namespace) -> int:
    """Be the private daemon of the process that holds the other end of `socket_fd`."""
    from prefetchd import control, messages
    from prefetchd.loop import EventLoop

    sock = socket.socket(fileno=arguments.socket_fd)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        data, fds = control.receive(sock)
        control.close_all(fds)
        configure = messages.decode_to_daemon(data)
        assert isinstance(configure, messages.Configure)
        config = configuration.make_config(**configure.options)
        from prefetchd.daemon import Daemon

        loop = EventLoop()
        loop.on_signal(signal.SIGTERM, loop.stop)
        daemon = Daemon(config, loop)
        daemon.serve_parent(sock, arguments.parent_pidfd)
    except control.ConnectionEnded:
        return 1
    except PrefetchdError as error:
        try:
            control.send(sock, messages.encode(messages.Fatal(type(error).__name__, str(error))))
        except control.ConnectionEnded:
            pass
        return 1
    try:
        daemon.run()
    except PrefetchdError:
        return 1  # the consumer was told
    return 0


def _ask(arguments: argparse.Namespace, question: Any) -> tuple[str, Any]:
    """Send one question to the daemon that the arguments name; return its name and the answer."""
    from prefetchd import control, launch, messages
    from prefetchd.errors import error_from_name

    name = arguments.positional_name or arguments.name or os.environ.get("PREFETCHD_NAME") or "default"
    sock = launch.connect(name, timeout_s=0)
    sock.settimeout(_STOP_S)
    try:
        control.send(sock, messages.encode(question))
        data, fds = control.receive(sock)
        control.close_all(fds)
        answer = messages.decode_to_consumer(data)
    except (TimeoutError, BlockingIOError):
        raise PrefetchdError(
            f"cannot reach the daemon {name!r}: it has not answered for {_STOP_S:g} s; is it stopped?"
        ) from None
    except control.ConnectionEnded:
        raise DaemonNotFound(f"cannot reach the daemon {name!r}: it ended just now; see its log") from None
    finally:
        sock.close()
    if isinstance(answer, messages.Fatal):
        raise error_from_name(answer.error, answer.text)
    return name, answer


def _status(arguments: argparse.Namespace) -> int:
    from prefetchd import messages

    _, answer = _ask(arguments, messages.AskStatus(messages.PROTOCOL))
    report = answer.report
    if arguments.json:
        print(json.dumps(report, indent=2))
    else:
        from prefetchd.report import describe

        print(describe(report))
    return 0


def _stop(arguments: argparse.Namespace) -> int:
    from prefetchd import messages

    name, answer = _ask(arguments, messages.AskStop(messages.PROTOCOL))
    try:
        pidfd = os.pidfd_open(answer.pid)
    except ProcessLookupError:
        pidfd = -1  # gone already
    if pidfd >= 0 and not select.select([pidfd], [], [], _STOP_S)[0]:
        raise PrefetchdError(
            f"cannot stop the daemon {name!r}: pid {answer.pid} has not ended for {_STOP_S:g} s; "
            f"see its log, then: kill -9 {answer.pid}"
        )
    print(f"stopped the daemon {name!r} (pid {answer.pid})")
    return 0
