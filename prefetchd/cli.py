"""The command line: `prefetchd serve | status | stop`. Parses, calls, and turns every failure into one clear line."""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import select
import signal
import socket
import sys
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NoReturn, get_args, get_origin

from prefetchd import __version__
from prefetchd import config as configuration
from prefetchd.config import Config
from prefetchd.dataset_options import make_configs, split_sources
from prefetchd.errors import DaemonNotFound, PrefetchdError

log = logging.getLogger("prefetchd")

_STOP_S = 10.0
_DATASET_OPTION = re.compile(r"--(?:no-)?([\w-]+)\.[a-z]")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit status: 0, 1 for a failure, 2 for words that make no sense."""
    _open_standard_descriptors()
    words = sys.argv[1:] if argv is None else argv
    parser = _parser(sorted({match[1] for match in map(_DATASET_OPTION.match, words) if match}))
    arguments = parser.parse_args(words)
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


def _parser(datasets: Iterable[str]) -> argparse.ArgumentParser:
    parser = _Parser(prog="prefetchd", description="A shared-memory prefetching loader daemon for training data.")
    parser.add_argument("--version", action="version", version=f"prefetchd {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    serve = commands.add_parser(
        "serve",
        help="decode a data set ahead of the trainers that attach",
        description="Serve the samples of a manifest to every trainer of this user that calls prefetchd.batches().",
        epilog="Sizes are written 512MiB, 1.5GB or 25% (of the machine's memory). With several data sets an option "
        "holds for all of them; --NAME.OPTION is for one: --val.batch-size 256 --no-val.shuffle.",
    )
    _add_serve_options(serve, datasets)
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


def _add_serve_options(parser: argparse.ArgumentParser, datasets: Iterable[str]) -> None:
    parser.add_argument(
        "sources",
        nargs="*",
        metavar="[NAME=]MANIFEST",
        help="a list file (`path label` a line, .csv, .tsv, .jsonl), a directory with a folder per class, tar shards "
        "or Parquet files (one, a directory of them, or a quoted pattern such as 's-{000..099}.tar'), or arrays (.npy, "
        ".npz, a directory of .npy shards); several, each with a name, share the readers, the ring and the budget: "
        "train=train.txt val=val.txt",
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
    for dataset in datasets:
        for name in configuration.OPTIONS:
            if name != "source":
                _add_option(parser, name, dataset)
    parser.add_argument("--debug", action="store_true", help="show the traceback of a failure")


def _add_option(parser: argparse.ArgumentParser, name: str, dataset: str = "") -> None:
    """Add the configuration's option `name`, as its field describes it; values stay text, for `make_config`.

    For one data set of several it is `--DATASET.OPTION`, which `--help` explains and does not list.
    """
    field, kind = configuration.OPTIONS[name], configuration.OPTION_TYPES[name]
    more: dict[str, Any] = {"metavar": field.metadata["metavar"]}
    if kind is bool:
        more = {"action": argparse.BooleanOptionalAction}
    elif get_origin(kind) is Literal:
        more = {"choices": get_args(kind)}
    prefix = f"{dataset}." if dataset else ""
    parser.add_argument(
        f"--{prefix}{name.replace('_', '-')}",
        dest=prefix + name,
        default=argparse.SUPPRESS,
        help=argparse.SUPPRESS if dataset else field.metadata["help"],
        **more,
    )


# --- the commands


def _serve(arguments: argparse.Namespace) -> int:
    configs = _serve_configs(arguments)
    name = next(iter(configs.values())).name
    log.setLevel(logging.INFO)

    from prefetchd.liveness import RunLock, lock_owner
    from prefetchd.loop import EventLoop
    from prefetchd.names import daemon_paths

    paths = daemon_paths(name, create=True)
    loop = EventLoop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # before the lock: it is never left behind
        loop.on_signal(number, loop.stop)
    lock = RunLock.acquire(paths)
    if lock is None:
        owner = lock_owner(paths.lock)
        raise DaemonNotFound(
            f"cannot serve as {name!r}: a daemon of that name is running (pid {owner}); "
            f"stop it with: prefetchd stop {name}, or choose another --name"
        )
    try:
        from prefetchd.daemon import Daemon

        named = [f"daemon={name!r}"] if name != "default" else []
        attach = f"attach with prefetchd.batches({', '.join(named + ['dataset=...'] * (len(configs) > 1))})"
        files = (os.fspath(paths.socket), os.fspath(paths.lock))
        daemon = Daemon(configs, loop, files_to_remove=files, attach_hint=attach)
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


def _serve_configs(arguments: argparse.Namespace) -> dict[str, Config]:
    """Return what to serve, by the names of the data sets: the command line's options over the file's."""
    common: dict[str, Any] = {}
    by_dataset: dict[str, dict[str, Any]] = {
        name: {"source": source} for name, source in split_sources(arguments.sources).items()
    }
    for key, value in vars(arguments).items():
        dataset, _, option = key.rpartition(".")
        if option in configuration.OPTIONS:
            (by_dataset.setdefault(dataset, {}) if dataset else common)[option] = value
    file_common, file_tables = configuration.read_config_file(arguments.config) if "config" in arguments else ({}, {})
    file_common.setdefault("name", os.environ.get("PREFETCHD_NAME") or "default")
    every = (common, file_common, *by_dataset.values(), *file_tables.values())
    if any(options.get("transform") or options.get("target_transform") for options in every):
        file_common.setdefault("python_path", [os.getcwd()])
    return make_configs(common, by_dataset, file_common=file_common, file_by_dataset=file_tables)


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
        configs = {name: configuration.make_config(**options) for name, options in configure.datasets.items()}
        from prefetchd.daemon import Daemon

        loop = EventLoop()
        loop.on_signal(signal.SIGTERM, loop.stop)
        daemon = Daemon(configs, loop)
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
