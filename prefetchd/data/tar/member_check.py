"""Whether a member is where an index says: its header is read with it, and compared.

An index that is wrong, or of another archive, would give another sample's bytes. Of members that were found by a walk
over the headers nothing is compared again. In the daemon (`check_of`) and in readers.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from prefetchd.data.faults import UnreadableFile
from prefetchd.data.tar.headers import BLOCK_BYTES, Member, TarHeaders
from prefetchd.errors import ManifestError

if TYPE_CHECKING:
    from prefetchd.data.files import FileBuffer
    from prefetchd.data.numbered_files import NumberedFiles
    from prefetchd.data.source import ReserveMemory

UNCHECKED, SIZE_ALONE = 0, 1
_NAME_BYTES = 99  # of a header's name that are sure to be the name's


def blocks_of(member: Member) -> int:
    """Return how many blocks of headers stand before a member's data."""
    return (member.data_at - member.header_at) // BLOCK_BYTES


def check_of(member: Member) -> int:
    """Return what the header of a member that an index lists is to be compared with, as a number of 63 bits."""
    if not member.name.isascii():  # some programs write such a name in another way in the header itself
        return SIZE_ALONE
    return _digest(member.name)


def _digest(name: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(name[:_NAME_BYTES], digest_size=8).digest(), "little") >> 1 | 2


def read_member(
    files: NumberedFiles,
    place: tuple[int, int, int],
    blocks: int,
    check: int,
    buffer: FileBuffer,
    reserve: ReserveMemory,
    what: str = "the member",
) -> memoryview:
    """Return the bytes of a member, in `buffer` until the next read.

    Args:
        files: the shards.
        place: number of the shard, where the data starts, its bytes.
        blocks: of headers before the data.
        check: of `check_of`, or `UNCHECKED`.
        buffer, reserve: as in `NumberedFiles.read`.
        what: it is called so in faults.

    Raises:
        ManifestError: if another member, or none, is there; and as `NumberedFiles.read` does.
        SampleFault: as `NumberedFiles.read` does.
    """
    shard, data_at, n_bytes = place
    if check == UNCHECKED:
        return files.read(shard, data_at, n_bytes, buffer, reserve, what)
    if n_bytes <= 0:
        raise UnreadableFile(f"{what} is empty (0 bytes)")
    head = blocks * BLOCK_BYTES
    view = files.read(shard, data_at - head, head + n_bytes, buffer, reserve, what)
    if not _fits(bytes(view[:head]), n_bytes, check):
        raise ManifestError(
            f"cannot go on with {files.path(shard)}: its index says that a member of {n_bytes} bytes is at byte "
            f"{data_at}, and another one, or none, is there; write the index again, or remove it"
        )
    return view[head:]


def _fits(headers: bytes, n_bytes: int, check: int) -> bool:
    try:
        found = TarHeaders(lambda offset, n: headers[offset : offset + n], len(headers), "").member(0)
    except ManifestError:
        return False
    if found is None or found.kind != b"0" or found.n_bytes != n_bytes or found.data_at != len(headers):
        return False
    return check == SIZE_ALONE or check == _digest(found.name)
