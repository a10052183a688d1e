"""Arrays in an `.npz` file: a zip archive of `.npy` files, which `np.savez` stores as they are, so read in place.

Called in the daemon, once. The data of a member that is not compressed lies in one piece, at the place that its local
header tells; readers see it as any other array in a file.
"""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING

from prefetchd.data.arrays.npy import ArrayFile, opened, read_header
from prefetchd.data.files import identity, read_exactly
from prefetchd.errors import ManifestError, one_line

if TYPE_CHECKING:
    import zipfile

_LOCAL_HEADER = struct.Struct("<4s22xHH")  # the signature; the lengths of the name and of the extra field
_SIGNATURE = b"PK\x03\x04"
_STORED = 0
_ENCRYPTED = 1


def open_npz_members(path: str, x_name: str | None, y_name: str | None) -> tuple[ArrayFile, ArrayFile | None]:
    """Return the members x and y of the `.npz` file at `path`; y is `None` if there is none.

    Args:
        path: the file.
        x_name: name of x; by default `x`, or `arr_0` (which `np.savez` calls the first), or the only member.
        y_name: name of y; by default `y` beside `x`, and `arr_1` beside `arr_0`, if there is one.

    Raises:
        ManifestError: if it cannot be read, a member is missing or compressed, or it cannot be told which is meant.
    """
    import zipfile  # here, since few data sets need it and every reader would carry it

    name = one_line(path)
    path = os.path.abspath(os.path.expanduser(path))
    with opened(path, name) as fd:
        found = identity(os.fstat(fd))
        try:
            with open(fd, "rb", closefd=False) as file, zipfile.ZipFile(file) as archive:
                members = {
                    info.filename.removesuffix(".npy"): info
                    for info in archive.infolist()
                    if info.filename.endswith(".npy")
                }
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
            raise ManifestError(
                f"cannot read {name} as an .npz file: {error}; was it cut short? write it again with np.savez"
            ) from None
        x_name = x_name or _default_x(name, list(members))
        x = _member(fd, path, name, found, members, x_name)
        if y_name is None:
            usual = {"x": "y", "arr_0": "arr_1"}.get(x_name)
            y_name = usual if usual in members else None
        return x, None if y_name is None else _member(fd, path, name, found, members, y_name)


def _default_x(name: str, members: list[str]) -> str:
    for usual in ("x", "arr_0"):
        if usual in members:
            return usual
    if len(members) != 1:
        raise ManifestError(
            f"cannot tell which array of {name} is x: it holds {_listed(members)}; name it with x_column, "
            "and the labels with y_column"
        )
    return members[0]


def _listed(members: list[str]) -> str:
    return ", ".join(map(one_line, members[:20])) + (", ..." if len(members) > 20 else "") or "no .npy member"


def _member(
    fd: int, path: str, name: str, found: list[int], members: dict[str, zipfile.ZipInfo], wanted: str
) -> ArrayFile:
    if wanted not in members:
        raise ManifestError(
            f"cannot find {one_line(wanted)} in {name}: it holds {_listed(list(members))}; "
            "name the arrays with x_column and y_column"
        )
    info, title = members[wanted], f"{name}[{one_line(wanted)}]"
    if info.compress_type != _STORED or info.flag_bits & _ENCRYPTED:
        raise ManifestError(
            f"cannot serve {title}: it is compressed, so that no row can be read by itself; convert it: "
            "np.savez(new_path, **np.load(path))"
        )
    signature, name_bytes, extra_bytes = _LOCAL_HEADER.unpack(
        read_exactly(fd, info.header_offset, _LOCAL_HEADER.size, title)
    )
    start = info.header_offset + _LOCAL_HEADER.size + name_bytes + extra_bytes
    if signature != _SIGNATURE or start + info.file_size > found[2]:
        raise ManifestError(f"cannot serve {title}: the archive is damaged there; write it again with np.savez")
    dtype, shape, offset_bytes = read_header(fd, title, start, start + info.file_size)
    return ArrayFile(path, title, tuple(found), dtype, shape, offset_bytes)
