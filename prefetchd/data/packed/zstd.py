"""Shards compressed with zstd, decompressed whole. The one place that imports zstandard."""

from __future__ import annotations

from typing import Any, BinaryIO

from prefetchd.errors import ConfigError, ManifestError

# A frame names its window, which the decoder takes. No shard needs more than its own size.
_LEAST_WINDOW_BYTES = 1 << 20
LIBRARY_BYTES = 4 << 20


def load_zstandard() -> Any:
    """Return the module `zstandard`.

    Raises:
        ConfigError: if it is not installed.
    """
    try:
        import zstandard
    except ImportError as error:
        raise ConfigError(
            f"cannot read shards compressed with zstd: zstandard cannot be imported ({error}); "
            "pip install 'prefetchd[zstd]'"
        ) from None
    return zstandard


def decompress(file: BinaryIO, n_bytes: int, name: str) -> bytearray:
    """Return the `n_bytes` that a file decompresses to, from its start; takes about twice as much memory.

    Raises:
        ManifestError: if it is no such file.
    """
    zstandard = load_zstandard()
    content = bytearray(n_bytes)
    window = max(_LEAST_WINDOW_BYTES, 1 << max(0, n_bytes - 1).bit_length())
    decoder = zstandard.ZstdDecompressor(max_window_size=window)
    what = ""
    try:
        file.seek(0)
        with decoder.stream_reader(file, closefd=False) as stream, memoryview(content) as view:
            n_read = 0
            while n_read < n_bytes and (n_new := stream.readinto(view[n_read:])):
                n_read += n_new
            if n_read < n_bytes or stream.read(1):
                what = f"it holds {'more' if n_read == n_bytes else 'less'} than the {n_bytes} bytes that are listed"
    except zstandard.ZstdError as error:
        what = str(error)
    if what:
        raise ManifestError(f"cannot decompress {name}: {what}; download or write it again")
    return content
