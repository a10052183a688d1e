"""Writes the members of shards to an index file, for `prefetchd index`; `kept_index` has the format."""

from __future__ import annotations

import contextlib
import os
import tempfile
import zlib
from typing import TYPE_CHECKING

import msgspec

from prefetchd.data.stores.urls import shown
from prefetchd.data.tar.kept_index import MAGIC, TAIL, KeptMember, KeptShard
from prefetchd.data.tar.segments import is_kept
from prefetchd.errors import ConfigError, one_line

if TYPE_CHECKING:
    from prefetchd.data.tar.open_shard import OpenShard

_BLOCK_MEMBERS = 1 << 16


class IndexFile:
    """Writes an index to `path`, which has its name only when it is complete. For a `with` block.

    Raises:
        ConfigError: if it cannot be written there.
    """

    def __init__(self, path: str) -> None:
        self._path = os.path.abspath(os.path.expanduser(path))
        self._shards: list[KeptShard] = []
        self._at = len(MAGIC)
        self.n_members = self.n_bytes = 0
        try:
            fd, self._temporary = tempfile.mkstemp(prefix=".prefetchd-", dir=os.path.dirname(self._path))
        except OSError as error:
            raise self._cannot(error) from None
        self._file = os.fdopen(fd, "wb")
        self._write(MAGIC, 0)

    def _cannot(self, error: OSError) -> ConfigError:
        return ConfigError(f"cannot write {one_line(self._path)}: {error.strerror}; check the folder and its space")

    def _write(self, content: bytes, moved: int) -> None:
        try:
            self._file.write(content)
        except OSError as error:
            raise self._cannot(error) from None
        self._at += moved

    def add(self, shard: OpenShard) -> None:
        """Append a shard, and go through its members."""
        blocks: list[tuple[int, int]] = []
        kept: list[KeptMember] = []

        def flush() -> None:
            block = zlib.compress(msgspec.msgpack.encode(kept), 6)
            blocks.append((self._at, len(block)))
            self._write(block, len(block))
            kept.clear()

        for member in shard.members:
            content = shard.members.read(member.data_at, member.n_bytes) if is_kept(member) else None
            kept.append(KeptMember(*member, content))
            self.n_members += 1
            if len(kept) == _BLOCK_MEMBERS:
                flush()
        if kept:
            flush()
        path = shown(shard.path)  # without a password
        self._shards.append(KeptShard(path, shard.state, shard.n_bytes, shard.members.has_end_mark, blocks))

    def __enter__(self) -> IndexFile:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is not None:
                return
            footer = zlib.compress(msgspec.msgpack.encode(self._shards), 6)
            self._write(footer + TAIL.pack(len(footer), MAGIC), 0)
            self._file.flush()
            self.n_bytes = self._file.tell()
            os.fsync(self._file.fileno())
            umask = os.umask(0)
            os.umask(umask)
            os.chmod(self._temporary, 0o666 & ~umask)
            os.replace(self._temporary, self._path)
        except OSError as error:
            raise self._cannot(error) from None
        finally:
            with contextlib.suppress(OSError):  # it writes what a full disk has not taken, and fails again
                self._file.close()
            if os.path.exists(self._temporary):
                os.unlink(self._temporary)
