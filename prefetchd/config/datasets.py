"""From a command line and a TOML file to the configuration of each data set of a daemon. Pure but for that file.

A source written `name=path` is a named data set; so is each table of the TOML file. The options beside them hold for
all data sets, unless a data set has its own. The command line wins over the file.

Called by `prefetchd.batches(config=...)` and by the commands with `--config`.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prefetchd.config.options import DAEMON_OPTIONS, PATH_OPTIONS, Config
from prefetchd.config.order_options import is_weight_file
from prefetchd.config.validate import make_config
from prefetchd.errors import ConfigError


def read_config_file(path: str) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Return the options in the TOML file at `path`, and those of each data set that has a table there, by its name.

    Keys are written `batch-size` or `batch_size`. A relative path (`source`, `root`, `labels`, `offsets`) starts from
    the file's own folder. The tables `fields`, `where` and `mix` are the options of that name, as in a data set's
    table.

    Raises:
        ConfigError: if the file cannot be read or is not TOML.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(_MOST_BYTES + 1)
        if len(data) > _MOST_BYTES:
            raise ConfigError(
                f"cannot read the configuration {path}: it has more than {_MOST_BYTES >> 20} MiB; see that it is the "
                "TOML file"
            )
        table = tomllib.loads(data.decode())
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}: {error.strerror}; check its path") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the configuration {path}: {error}; correct the TOML") from None
    except RecursionError:
        raise ConfigError(f"cannot read the configuration {path}: it is nested too deeply; correct the TOML") from None
    tables = {
        key: _from_toml(path, value)
        for key, value in table.items()
        if isinstance(value, dict) and key not in _TABLE_OPTIONS and not _is_store(key, value)
    }
    return _from_toml(path, {key: value for key, value in table.items() if key not in tables}), tables


def _is_store(key: str, value: object) -> bool:
    """Return whether a table is that of `store_options`, and not a data set called store."""
    if key.replace("-", "_") == "store_options":
        return True
    return key == "store" and isinstance(value, dict) and not value.keys() & {"source", "mix"}


def _from_toml(path: str, table: dict[str, Any]) -> dict[str, Any]:
    options = {key.replace("-", "_"): value for key, value in table.items()}
    for key in (*PATH_OPTIONS, "weights"):
        value = options.get(key)
        if not isinstance(value, str) or "://" in value or (key == "weights" and not is_weight_file(value)):
            continue
        options[key] = str(Path(path).parent / Path(value).expanduser())
    if _is_store("store", options.get("store")):
        options["store_options"] = options.pop("store")
    if "mix" in options:
        from prefetchd.config.mix import beside

        options["mix"] = beside(str(Path(path).parent), options["mix"])
    return options


MAX_DATASETS = 64
_MOST_BYTES = 16 << 20  # of a TOML file
_TABLE_OPTIONS = ("fields", "where", "mix")
_NAME = r"[A-Za-z0-9_-]{1,64}"
_NAMED = re.compile(r"([^/=]*)=(.*)", re.DOTALL)

Options = Mapping[str, Any]


def split_sources(words: Sequence[str]) -> dict[str, str]:
    """Return the sources by the names of their data sets; a single one without a name has the name "".

    `train=train.txt` is a data set called train. A file whose own name is like that is written `./train=train.txt`.

    Raises:
        ConfigError: if there are several, and not each has a name of its own; or for a name that cannot be one.
    """
    sources: dict[str, str] = {}
    for word in words:
        match = _NAMED.fullmatch(word)
        named = match is not None and not os.path.exists(word)
        name, source = match.groups() if match is not None and named else ("", word)
        if named and not (re.fullmatch(_NAME, name) and source):
            raise ConfigError(
                f"cannot take {word!r} for NAME=PATH: "
                + (_wrong_name(name) if source else "there is no path")
                + f"; a file of that name is written ./{word}"
            )
        if len(words) > 1 and not name:
            raise ConfigError(
                f"cannot serve {len(words)} data sets: {word!r} has no name; write each as NAME=PATH, "
                "such as train=train.txt val=val.txt"
            )
        if name in sources:
            raise ConfigError(f"cannot serve two data sets of the name {name!r}; give each a name of its own")
        sources[name] = source
    return sources


def make_configs(
    common: Options,
    by_dataset: Mapping[str, Options],
    *,
    file_common: Options,
    file_by_dataset: Mapping[str, Options],
) -> dict[str, Config]:
    """Return the configuration of each data set, by its name; the name is "" where there is just one without any.

    Args:
        common: options of the command line that hold for every data set.
        by_dataset: options of the command line for single data sets, their `source` among them.
        file_common: the options at the top of the TOML file.
        file_by_dataset: its tables.

    Raises:
        ConfigError: for a wrong option, or if it is not clear what is to be served.
    """
    names = list(dict.fromkeys((*file_by_dataset, *by_dataset)))
    if not names:
        return {"": make_config(**{**file_common, **common})}
    if "source" in common or (len(names) > 1 and "" in names):
        source = common.get("source") or by_dataset.get("", {}).get("source", "")
        raise ConfigError(
            f"cannot serve {source!r} beside the data sets {', '.join(filter(None, names))}: "
            "it has no name; write it as NAME=PATH"
        )
    if len(names) > MAX_DATASETS:
        raise ConfigError(f"cannot serve {len(names)} data sets: {MAX_DATASETS} at most; start another daemon")
    if names != [""]:
        file_common = {key: value for key, value in file_common.items() if key not in ("source", "mix")}
    configs = {}
    for name in names:
        own = {**file_by_dataset.get(name, {}), **common, **by_dataset.get(name, {})}
        _check_table(name, {**file_by_dataset.get(name, {}), **by_dataset.get(name, {})})
        configs[name] = make_config(**{**file_common, **own})
    return configs


def _wrong_name(name: str) -> str:
    return f"the name {name!r} must be 1 to 64 letters, digits, '-' or '_'"


def _check_table(name: str, options: Options) -> None:
    if name and not re.fullmatch(_NAME, name):
        raise ConfigError(f"cannot serve a data set of that name: {_wrong_name(name)}")
    for option in DAEMON_OPTIONS:
        if name and option in options:
            raise ConfigError(f"cannot set {option} for the data set {name!r} alone: it is the daemon's; give it once")
    if name and not options.get("source") and not options.get("mix"):
        raise ConfigError(f"cannot serve the data set {name!r}: it has no source; give {name}=PATH")
