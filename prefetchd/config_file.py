"""The configuration as a TOML file: the options of all data sets, and a table for each one's own.

Read by `prefetchd.batches(config=...)` and by the commands' `--config`. What the options mean is for `config` to say;
here they only get the names and the paths that they have there.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from prefetchd.config import PATH_OPTIONS
from prefetchd.errors import ConfigError


def read_config_file(path: str) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Return the options in the TOML file at `path`, and those of each data set that has a table there, by its name.

    Keys are written `batch-size` or `batch_size`. A relative path (`source`, `root`, `labels`, `offsets`) starts from
    the file's own folder.

    Raises:
        ConfigError: if the file cannot be read or is not TOML.
    """
    try:
        with open(path, "rb") as file:
            table = tomllib.load(file)
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}: {error.strerror}; check --config") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the configuration {path}: {error}; mend the TOML") from None
    except RecursionError:
        raise ConfigError(f"cannot read the configuration {path}: it is nested too deeply; mend the TOML") from None
    tables = {key: _from_toml(path, value) for key, value in table.items() if isinstance(value, dict)}
    return _from_toml(path, {key: value for key, value in table.items() if key not in tables}), tables


def _from_toml(path: str, table: dict[str, Any]) -> dict[str, Any]:
    options = {key.replace("-", "_"): value for key, value in table.items()}
    for key in PATH_OPTIONS:
        if isinstance(options.get(key), str):
            options[key] = str(Path(path).parent / Path(options[key]).expanduser())
    return options
