"""A data set that has arrived at an agent: its index in memory, its options made the agent's own, its cache opened.

Nothing is imported because the wire says so: a data set with users' functions is refused unless the agent was started
with `--allow-code`, and their code must be the daemon's to the byte.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from prefetchd.config.mix import part_configs
from prefetchd.config.options import Config
from prefetchd.config.validate import make_config
from prefetchd.data.files import write_all
from prefetchd.data.images.source import ImageSource
from prefetchd.data.mix.source import MixedSource
from prefetchd.data.registry import attach_index
from prefetchd.data.source import Source
from prefetchd.errors import ConfigError, PrefetchdError
from prefetchd.ipc.descriptors import memfd, memfd_bytes, seal
from prefetchd.ipc.process import child_command, child_environment
from prefetchd.ipc.reader_messages import OpenDataset
from prefetchd.remote.control import Settings
from prefetchd.remote.travel import chunk_layout, without_own
from prefetchd.remote.wire import FileState, RemoteDataset
from prefetchd.ring.layout import BatchLayout, layout_from_wire

log = logging.getLogger("prefetchd")

_CODE_S = 120.0
_FUNCTIONS = ("transform", "target_transform")


@dataclass(frozen=True, slots=True)
class Arrived:
    """A data set at an agent.

    Attributes:
        opened: what readers get, with the descriptors `fds`, owned.
        layouts: of a chunk, as readers fill it, one or several.
        digest, versions: as they are here.
        shared_bytes: what it holds in memory for all readers.
        reader_bytes: what it takes in each reader.
    """

    opened: OpenDataset
    fds: list[int]
    layouts: tuple[BatchLayout, ...]
    digest: str
    versions: dict[str, str]
    shared_bytes: int
    reader_bytes: int


class Index:
    """The descriptors of a data set, which arrive in pieces; owned until `arrive` takes them."""

    def __init__(self, remote: RemoteDataset) -> None:
        self.remote = remote
        self.fds = [memfd("prefetchd-arrived") for _ in remote.fd_bytes]
        self._at = 0
        self._left_bytes = remote.fd_bytes[0] if remote.fd_bytes else 0
        self._skip_empty()

    @property
    def is_whole(self) -> bool:
        """Whether everything has arrived."""
        return self._at == len(self.fds)

    def add(self, piece: bytes | bytearray) -> None:
        """Take in the next piece.

        Raises:
            ConfigError: if it is longer than what was announced, or empty.
        """
        if not 0 < len(piece) <= self._left_bytes:
            raise ConfigError("cannot take in an index: it is not what was announced")
        write_all(self.fds[self._at], piece)
        self._left_bytes -= len(piece)
        self._skip_empty()

    def _skip_empty(self) -> None:
        while not self.is_whole and not self._left_bytes:
            seal(self.fds[self._at])
            self._at += 1
            self._left_bytes = 0 if self.is_whole else self.remote.fd_bytes[self._at]


def make_own(options: dict[str, Any], settings: Settings) -> Config:
    """Return the options of a data set as they are on this machine, whose own are not those that came.

    Raises:
        ConfigError: if they are none, or need users' functions that this agent does not import.
    """
    config = make_config(**without_own(options))
    wanted = [name for name in _FUNCTIONS if getattr(config, name) is not None]
    if wanted and not settings.allow_code:
        raise ConfigError(
            f"cannot serve {wanted[0]}: this agent imports no users' functions; start it with: prefetchd agent "
            "--allow-code"
        )
    return dataclasses.replace(
        config, cache=settings.cache, cache_size=settings.cache_size, python_path=tuple(settings.python_path)
    )


def arrive(number: int, index: Index, settings: Settings) -> Arrived:
    """Return a data set whose index is whole, ready for readers.

    Raises:
        PrefetchdError: if it cannot be served here.
    """
    remote = index.remote
    check_files(remote.files)
    config = make_own(remote.config, settings)
    at = len(index.fds) - bool(remote.order)
    fds, order_fds = index.fds[:at], index.fds[at:]
    # This process looks the digest up and opens caches; it imports no function and decodes nothing.
    plain = dataclasses.replace(config, transform=None, target_transform=None)
    source = attach_index(plain, remote.source, [os.dup(fd) for fd in fds])
    handle = remote.source
    if config.cache is not None:
        try:
            handle, fds = _with_caches(plain, source, handle, fds)
        except ConfigError as error:  # such as random crops of the whole file: the daemon knows of no cache here
            log.info("a data set is served without the cache: %s", error)
            config = dataclasses.replace(config, cache=None, cache_size="auto")
    layouts = tuple(chunk_layout(layout_from_wire(each), remote.chunk_rows) for each in remote.layouts)
    wires = [layout.to_wire() for layout in layouts]
    opened = OpenDataset(number, config.to_wire(), handle, wires[0], remote.order, wires, across_hosts=True)
    shared_bytes = sum(map(memfd_bytes, index.fds))
    versions = {**remote.versions, **_versions(config, settings)}
    return Arrived(
        opened, [*fds, *order_fds], layouts, source.facts.digest, versions, shared_bytes, remote.reader_bytes
    )  # fmt: skip


def check_files(files: Sequence[FileState]) -> None:
    """Raise `ConfigError` if a file is another one here; one that is not here is reported when it is read."""
    for there in files:
        try:
            here = os.stat(there.path)
        except (OSError, ValueError):
            continue
        if (here.st_size, int(here.st_mtime)) != (there.n_bytes, there.modified_s):
            what = "size" if here.st_size != there.n_bytes else "time of modification"
            raise ConfigError(
                f"cannot serve this daemon: {os.fsdecode(there.path)} is another file on the agent's machine (its "
                f"{what} is not the same); mount the same file system on both, or copy the data with its times "
                "(rsync -t)"
            )


def _with_caches(
    config: Config, source: Source, handle: dict[str, Any], fds: Sequence[int]
) -> tuple[dict[str, Any], list[int]]:
    """Return a handle, and its descriptors, with a cache of this machine for each source of images."""
    if isinstance(source, MixedSource):
        parts, every, at = [], [], 0
        for own, part, (part_handle, n_fds) in zip(part_configs(config), source.parts, handle["parts"], strict=True):
            part_handle, part_fds = _with_caches(own, part, part_handle, fds[at : at + n_fds])
            parts.append([part_handle, len(part_fds)])
            every += part_fds
            at += n_fds
        return {**handle, "parts": parts}, [*every, *fds[at:]]
    assert isinstance(source, ImageSource)
    cache, cache_fds = source.open_cache().handle()
    return {**handle, "cache": cache, "n_cache_fds": len(cache_fds)}, [*fds, *cache_fds]


def _versions(config: Config, settings: Settings) -> dict[str, str]:
    """Return what decides bytes here: the decoder, and the code of users' functions."""
    is_decoded = config.encoded_bytes is None
    versions = {"decoder": f"opencv {settings.versions['opencv']}"} if is_decoded else {}
    specs = [name for name in _FUNCTIONS if getattr(config, name) is not None]
    if specs:
        versions.update(_code(config, specs))
    return versions


def _code(config: Config, names: Sequence[str]) -> dict[str, str]:
    """Return the digests of functions' code, which a process of its own imports."""
    words = [f"{name}={getattr(config, name)}" for name in names]
    try:
        done = subprocess.run(
            child_command("prefetchd.remote.arrival", json.dumps(config.python_path), *words),
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_CODE_S, env=child_environment(),
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise ConfigError(f"cannot use {' and '.join(words)}: importing takes longer than {_CODE_S:g} s") from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise ConfigError(f"cannot use {' and '.join(words)} on this machine: {last}")
    found: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(argv: list[str]) -> int:
    """Print the digests of the functions' code: FOLDERS, then OPTION=MODULE:NAME of each."""
    from prefetchd.data.images.user_functions import code_digest, import_function

    found = {}
    try:
        for word in argv[1:]:
            option, _, spec = word.partition("=")
            import_function(option, spec, tuple(json.loads(argv[0])))
            found[f"{option}_code"] = code_digest(spec)
    except PrefetchdError as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps(found), flush=True)
    return 0
