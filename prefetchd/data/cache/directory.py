"""The folders and files of a cache: made, listed, removed.

    DIR/CACHEDIR.TAG                        so that backups leave it out; made where no other file is in DIR
    DIR/sizes.bin                           sizes of images, for buckets
    DIR/<pipeline's digest>/pipeline.json   what made the rows; its modification time is the last use
    DIR/<pipeline's digest>/<run>-<n>.rows  pixels, one writer's
    DIR/<pipeline's digest>/<run>-<n>.index what is where in them

The daemon, readers and `prefetchd cache` call it. Files appear whole, or are appended to by the one process that made
them, so any party may die at any time. The daemon holds a shared lock on the folder it uses; only `remove` looks at it.
Only files with these names are removed, in a folder that has a `pipeline.json` of prefetchd's.

A cache's pixels go into batches unseen, so a folder of another user, or a link in it, is refused. Readers open regular
files of this user only: opening a pipe may never end, nor reading a link to a device.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefetchd.data.cache.segment import RECORD_BYTES
from prefetchd.errors import PrefetchdError


def open_regular(path: Path) -> int:
    """Return a descriptor for reading, the caller's, of this user's regular file at `path`.

    Raises:
        OSError: if there is none.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode) or not is_trusted(found):
        os.close(fd)
        raise OSError(errno.EINVAL, "not a regular file of this user", os.fspath(path))
    return fd


def is_trusted(found: os.stat_result) -> bool:
    """Return whether only this user, or the administrator, can have written a file or folder.

    The group may write to this user's: some systems make every folder so, for a group of that user alone. The files in
    this user's folder are as safe as the folder. In a sticky folder others cannot replace what is there.
    """
    if found.st_uid == os.geteuid():
        is_open = stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_IWOTH and not found.st_mode & stat.S_ISVTX
        return not is_open
    return found.st_uid == 0 and not found.st_mode & 0o022


def read_regular(path: Path, most_bytes: int) -> bytes:
    """Return the first `most_bytes` of a regular file; raises as `open_regular` does."""
    fd = open_regular(path)
    try:
        return os.pread(fd, most_bytes, 0)
    finally:
        os.close(fd)


_TAG = (
    "Signature: 8a477f597d28d172789f06886806bc55\n"  # of the Cache Directory Tagging Specification
    "# Decoded samples, kept by prefetchd; see `prefetchd cache --help`.\n"
)
_DESCRIPTION = "pipeline.json"
SIZES = "sizes.bin"  # of images, for buckets (`images.sizes`)
_MOST_DESCRIPTION_BYTES = 1 << 16
FULL = (errno.ENOSPC, errno.EDQUOT)  # the errors of a disk without free space
_MADE_BY = "prefetchd decoded-sample cache"
_FOLDER = re.compile(r"[0-9a-f]{16}")
_SEGMENT = r"[0-9a-f]{16}-[0-9]{1,5}"
_INDEX = re.compile(rf"({_SEGMENT})\.index")
_FILE = re.compile(rf"{_SEGMENT}\.(rows|index)|pipeline\.json(\.[0-9a-f]{{16}})?|state\.[0-9a-z_]+")


class CacheError(PrefetchdError):
    """A cache's folder cannot be used as one."""


@dataclass(frozen=True, slots=True)
class Kept:
    """One pipeline's folder, as it is found.

    Attributes:
        folder: where it is.
        pipeline: what made the rows.
        rows: how many there are, as far as the indexes say.
        n_bytes: sizes of all files.
        last_used_s: when a daemon last opened it, in seconds since 1970.
        in_use: whether a daemon has it open now.
    """

    folder: Path
    pipeline: dict[str, Any]
    rows: int
    n_bytes: int
    last_used_s: float
    in_use: bool


def open_folder(cache: Path, digest: str, pipeline: dict[str, Any]) -> tuple[Path, int | None]:
    """Make the folder of a pipeline, or find it; return it, and a descriptor that keeps it from `remove`.

    A complete one may be read-only. On a full disk there may be no folder and no descriptor: that a cache cannot be
    filled changes no batch.

    Raises:
        CacheError: if it cannot be made or read for any other reason, belongs to another user, or has a link in it.
    """
    folder = cache / digest
    try:
        cache.mkdir(mode=0o775, parents=True, exist_ok=True)  # without a umask others could write to it
        _check_trusted(cache, cache)
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        for path in (cache / "CACHEDIR.TAG", folder):
            _check_trusted(cache, path)
        for name in os.listdir(folder):
            _check_trusted(cache, folder / name)
        if not (cache / "CACHEDIR.TAG").exists() and not _has_others(cache):
            _write_whole(cache / "CACHEDIR.TAG", _TAG)
        description = folder / _DESCRIPTION
        if _is_missing_or_torn(description):
            _write_whole(description, json.dumps({"made_by": _MADE_BY, "pipeline": pipeline}, indent=2) + "\n")
        with contextlib.suppress(OSError):  # it may be read-only
            os.utime(description, follow_symlinks=False)
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        with contextlib.suppress(OSError):
            folder.rmdir()  # only an empty one, which `remove` would never find
        if error.errno in FULL:
            return folder, None
        raise CacheError(
            f"cannot use the cache {cache}: {error.strerror} ({error.filename or folder}); give a folder that can be "
            "written to, or one that was filled with these options"
        ) from None
    with contextlib.suppress(OSError):  # some file systems have no locks: then `remove` cannot know
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    return folder, fd


def _check_trusted(cache: Path, path: Path) -> None:
    """Raise `CacheError` if `path`, in the cache or the cache itself, is another user's, or a link in the cache."""
    try:
        found = os.stat(path, follow_symlinks=path == cache)  # the path that the user gave may lead over links
    except FileNotFoundError:
        return
    if stat.S_ISLNK(found.st_mode):
        raise CacheError(
            f"cannot use the cache {cache}: {path} is a symbolic link; remove it, or give a folder of your own"
        )
    if not is_trusted(found):
        raise CacheError(
            f"cannot use the cache {cache}: {path} belongs to the user {found.st_uid}, or others may write to it (its "
            f"mode is {stat.S_IMODE(found.st_mode):04o}), who could put other pixels into batches of the user "
            f"{os.geteuid()}; give a folder of your own to which others may not write"
        )


def _is_missing_or_torn(description: Path) -> bool:
    """Return whether a description must be written: a power cut may have left an empty one."""
    try:
        json.loads(read_regular(description, _MOST_DESCRIPTION_BYTES))
    except (FileNotFoundError, ValueError):
        return True
    except OSError:
        pass  # it is not prefetchd's to replace
    return False


def _write_whole(path: Path, text: str) -> None:
    """Write a file that appears with all of `text`, or not at all."""
    scratch = path.with_name(f"{path.name}.{os.urandom(8).hex()}")
    try:
        scratch.write_text(text)
        scratch.replace(path)
    except OSError:
        scratch.unlink(missing_ok=True)
        raise


def segment_names(folder: Path) -> list[str]:
    """Return the names of the segments in a pipeline's folder, sorted; none if it was cleared away."""
    try:
        found = [_INDEX.fullmatch(entry) for entry in os.listdir(folder)]
    except OSError:
        return []
    return sorted(match[1] for match in found if match)


def used_bytes(cache: Path) -> int:
    """Return the sizes of all files of a cache together, those of all its pipelines."""
    return sum(size for folder in _folders(cache) for _, size in _files(folder))


def describe(folder: Path) -> Kept | None:
    """Return what a pipeline's folder holds; `None` if it is not one of ours."""
    try:
        described = json.loads(read_regular(folder / _DESCRIPTION, _MOST_DESCRIPTION_BYTES))
        if described["made_by"] != _MADE_BY:
            return None
        files = _files(folder)
        return Kept(
            folder,
            dict(described["pipeline"]),
            sum(size // RECORD_BYTES for name, size in files if name.endswith(".index")),
            sum(size for _, size in files),
            (folder / _DESCRIPTION).stat().st_mtime,
            _is_in_use(folder),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def list_cache(cache: Path) -> list[Kept]:
    """Return what a cache holds, by pipeline, the last used first.

    Raises:
        CacheError: if it is no cache.
    """
    kept = [found for folder in _folders(cache) if (found := describe(folder)) is not None]
    if not kept and not _is_ours(cache):
        raise CacheError(f"cannot look into {cache}: it is no cache of prefetchd's; check the path")
    return sorted(kept, key=lambda found: -found.last_used_s)


def remove(kept: Kept) -> int:
    """Remove one pipeline's folder; return the bytes that this frees. A file that is not ours stays, and its folder.

    Raises:
        CacheError: if a daemon uses it, or its files may not be removed.
    """
    try:
        fd = os.open(kept.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return 0  # another process has cleared it meanwhile
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CacheError(f"cannot clear {kept.folder}: a daemon is using it; stop the daemon first") from None
        except OSError:
            pass
        freed = 0
        try:
            # The description goes last: without it, no one would know what is left to be prefetchd's.
            for name, size in sorted(_files(kept.folder)):
                if _FILE.fullmatch(name) and name != _DESCRIPTION:
                    (kept.folder / name).unlink(missing_ok=True)
                    freed += size
            (kept.folder / _DESCRIPTION).unlink(missing_ok=True)
        except OSError as error:
            raise CacheError(
                f"cannot clear {kept.folder}: {error.strerror} ({error.filename}); see to who may write there, and "
                "clear it again"
            ) from None
        with contextlib.suppress(OSError):
            kept.folder.rmdir()
        return freed
    finally:
        os.close(fd)


def remove_empty(cache: Path) -> None:
    """Remove the cache's own folder if nothing is left in it but the tag, and sizes of images."""
    if _is_ours(cache) and set(os.listdir(cache)) <= {"CACHEDIR.TAG", SIZES}:
        (cache / SIZES).unlink(missing_ok=True)
        (cache / "CACHEDIR.TAG").unlink()
        with contextlib.suppress(OSError):
            cache.rmdir()


def _has_others(cache: Path) -> bool:
    """Return whether there is a file or folder that is none of a cache's, which backups would leave out too."""
    own = ("CACHEDIR.TAG", SIZES)
    return any(not _FOLDER.fullmatch(name) and not name.startswith(own) for name in os.listdir(cache))


def _is_ours(cache: Path) -> bool:
    try:
        return read_regular(cache / "CACHEDIR.TAG", len(_TAG) + 1) == _TAG.encode()
    except OSError:
        return False


def _folders(cache: Path) -> Iterator[Path]:
    try:
        names = sorted(os.listdir(cache))
    except OSError:
        return
    for name in names:
        if _FOLDER.fullmatch(name) and not (cache / name).is_symlink():
            yield cache / name


def _files(folder: Path) -> list[tuple[str, int]]:
    """Names and sizes of the files; those that vanish meanwhile are left out."""
    found = []
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                if entry.is_file(follow_symlinks=False):
                    found.append((entry.name, entry.stat(follow_symlinks=False).st_size))
    return found


def _is_in_use(folder: Path) -> bool:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(fd)
    return False
