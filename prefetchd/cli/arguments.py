"""What commands share: the options of a source, the name of a daemon, and one question to that daemon."""

from __future__ import annotations

import argparse
import difflib
import os
import re
import sys
from collections.abc import Container, Iterable
from typing import Any, Literal, NoReturn, TypeAlias, get_args, get_origin

from prefetchd.cli.spelling import as_flags
from prefetchd.client.admin import ask_daemon
from prefetchd.config.convert import daemon_name
from prefetchd.config.datasets import make_configs, read_config_file, split_sources
from prefetchd.config.options import OPTION_TYPES, OPTIONS, Config, flag_of
from prefetchd.config.other_loaders import ELSEWHERE
from prefetchd.errors import ConfigError
from prefetchd.ipc.run_directory import choose_name

_UNKNOWN = re.compile(r"unrecognized arguments: --(?:no-)?([\w-]+)")
_CHOICE = re.compile(r"argument COMMAND: invalid choice: '([\w-]+)' \(choose from (.*)\)")


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, like every other failure. Only `--help` prints the usage."""

    def parse_known_args(self, *args: Any, **kwargs: Any) -> tuple[Any, list[str]]:
        """Parse; a command refuses what it does not know itself, so that the error names its own help."""
        found, unknown = super().parse_known_args(*args, **kwargs)
        if unknown and " " in self.prog:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return found, unknown

    def _print_message(self, message: str, file: Any = None) -> None:
        """Print a help or a version, which may fail; argparse itself would ignore that."""
        if file is sys.stdout:
            print(message, end="", flush=True)
        else:
            super()._print_message(message, file)

    def error(self, message: str) -> NoReturn:
        """End the process with status 2."""
        self.exit(2, f"{self.prog}: {message}{_meant(message)}; see {self.prog} --help\n")


def _meant(message: str) -> str:
    """Return what to write for an unknown flag or command in a message of argparse; empty if nothing is like it."""
    if (chosen := _CHOICE.match(message)) is not None:
        near = difflib.get_close_matches(chosen[1], re.findall(r"[\w-]+", chosen[2]), 1)
        return f"; did you mean {near[0]}" if near else ""
    unknown = _UNKNOWN.match(message)
    if unknown is None:
        return ""
    if (name := unknown[1].replace("-", "_")) in ELSEWHERE:
        return f"; it is another loader's, here use {as_flags(ELSEWHERE[name])}"
    flags = [flag_of(name) for name in OPTIONS]
    if unknown[1] in flags:
        return ", which is an option of other commands"
    near = difflib.get_close_matches(unknown[1], flags, 1)
    return f"; did you mean --{near[0]}" if near else ""


Subparsers: TypeAlias = "argparse._SubParsersAction[Parser]"


def add_name(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that name a daemon, and `--debug`."""
    parser.add_argument("positional_name", nargs="?", metavar="NAME", help="the daemon (default, or PREFETCHD_NAME)")
    parser.add_argument("--name", help="the same, as an option")
    add_debug(parser)


def add_debug(parser: argparse.ArgumentParser) -> None:
    """Add `--debug`."""
    parser.add_argument("--debug", action="store_true", help="show the traceback of a failure")


def add_pid(parser: argparse.ArgumentParser) -> None:
    """Add `--pid`, in place of a name."""
    parser.add_argument(
        "--pid", type=int, metavar="PID", help="the daemon by its process, as `prefetchd list` shows it"
    )


def check_range(arguments: argparse.Namespace, option: str, low: float, high: float, unit: str = "") -> None:
    """Raise `ConfigError` if the number that was given for `option` is not from `low` to `high`."""
    value = getattr(arguments, option)
    if not low <= value <= high:
        flag = option.replace("_", "-")
        raise ConfigError(f"cannot use --{flag} {value:g}: it must be from {low} to {high}{unit}")


def name_of(arguments: argparse.Namespace) -> str:
    """Return the name of the daemon that the arguments name.

    Raises:
        ConfigError: if they give two names, or an empty one, such as that of an unset variable of a shell.
    """
    given = [name for name in (arguments.positional_name, arguments.name) if name is not None]
    if len(set(given)) > 1:
        raise ConfigError(f"cannot use two names of daemons, {given[0]!r} and {given[1]!r}; give one of the two")
    return choose_name(daemon_name(given[0]) if given else None)


def daemon_of(arguments: argparse.Namespace) -> str | int:
    """Return the name, or with `--pid` the pid, of the daemon that the arguments name.

    Raises:
        ConfigError: if they give both.
    """
    if arguments.pid is None:
        return name_of(arguments)
    if arguments.positional_name is not None or arguments.name is not None:
        raise ConfigError(f"cannot use --pid {arguments.pid} with a daemon's name; give one of the two")
    pid: int = arguments.pid
    return pid


def ask(arguments: argparse.Namespace, question: Any) -> Any:
    """Send one question to the daemon that the arguments name; return its answer."""
    return ask_daemon(daemon_of(arguments), question)


EPILOG = "Sizes are written 512MiB, 1.5GB or 25% (of the machine's memory)."


def add_source_options(
    parser: argparse.ArgumentParser, datasets: Iterable[str] = (), *, without: Container[str] = ()
) -> None:
    """Add the sources, `--config`, every option of `Config`, those of each of `datasets`, and `--debug`.

    The command itself adds the options in `without`.
    """
    parser.add_argument(
        "sources",
        nargs="*",
        metavar="[NAME=]MANIFEST",
        help="a list file (a path and a label per line, .csv, .tsv, .jsonl), a directory with a folder per class, "
        "tar shards, Parquet or Arrow files (one, a directory of them, or a quoted pattern such as "
        "'s-{000..099}.tar'), annotations (COCO's .json, a YOLO folder), or "
        "arrays (.npy, .npz, a directory of .npy shards); several, each with a name, share the readers, the ring "
        "and the budget: train=train.txt val=val.txt",
    )
    parser.add_argument(
        "--config",
        default=argparse.SUPPRESS,
        metavar="FILE",
        help="TOML file with these options (source = 'train.txt', batch-size = 64); the command line wins",
    )
    for name in OPTIONS:
        if name != "source" and name not in without:
            _add_option(parser, name)
    for dataset in datasets:
        for name in OPTIONS:
            if name != "source":
                _add_option(parser, name, dataset)
    add_debug(parser)


def _add_option(parser: argparse.ArgumentParser, name: str, dataset: str = "") -> None:
    """Add the option `name`, as its field describes it. Values stay text, for `make_config`.

    The option of a single data set is `--DATASET.OPTION`; `--help` explains the form and lists none of them.
    """
    field, kind = OPTIONS[name], OPTION_TYPES[name]
    more: dict[str, Any] = {"metavar": field.metadata["metavar"]}
    if kind is bool:
        more = {"action": argparse.BooleanOptionalAction}
    elif get_origin(kind) is Literal:
        more = {"choices": get_args(kind)}
    elif field.metadata["flag"] is not None:
        more["action"] = "append"
    prefix = f"{dataset}." if dataset else ""
    parser.add_argument(
        f"--{prefix}{flag_of(name)}",
        dest=prefix + name,
        default=argparse.SUPPRESS,
        help=argparse.SUPPRESS if dataset else field.metadata["help"].replace("%", "%%"),
        **more,
    )


def names_manifest(arguments: argparse.Namespace) -> bool:
    """Return whether the arguments say what data to serve; else a running daemon is meant."""
    return bool(arguments.sources) or "config" in arguments or "mix" in arguments


def configs_of(arguments: argparse.Namespace) -> dict[str, Config]:
    """Return the configurations to serve, by data set. Options of the command line win over those of the file."""
    common: dict[str, Any] = {}
    by_dataset: dict[str, dict[str, Any]] = {
        name: {"source": source} for name, source in split_sources(arguments.sources).items()
    }
    for key, value in vars(arguments).items():
        dataset, _, option = key.rpartition(".")
        if option in OPTIONS:
            (by_dataset.setdefault(dataset, {}) if dataset else common)[option] = value
    file_common, file_tables = read_config_file(arguments.config) if "config" in arguments else ({}, {})
    for key in (key for options in (file_common, *file_tables.values()) for key in options):
        if key not in OPTIONS and key in arguments and key not in ("sources", "run", "whole_parser"):
            flag = key.replace("_", "-")
            raise ConfigError(f"cannot use {flag} in {arguments.config}: it is no option of the data; give --{flag}")
    file_common.setdefault("name", choose_name())
    every = (common, file_common, *by_dataset.values(), *file_tables.values())
    if any(options.get("transform") or options.get("target_transform") for options in every):
        file_common.setdefault("python_path", [os.getcwd()])
    return make_configs(common, by_dataset, file_common=file_common, file_by_dataset=file_tables)


def config_of(arguments: argparse.Namespace, command: str) -> Config:
    """Return the configuration of a command that takes one data set.

    Raises:
        ConfigError: if the arguments name several.
    """
    configs = configs_of(arguments)
    if len(configs) > 1:
        raise ConfigError(f"cannot {command} {len(configs)} data sets at once; name one of {', '.join(configs)}")
    return next(iter(configs.values()))
