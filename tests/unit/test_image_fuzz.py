"""Damaged images are served with the pixels that OpenCV gives, or are bad samples; what it refuses is never served."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefetchd.config.validate import make_config
from prefetchd.data.faults import UndecodableImage
from prefetchd.data.images.decode import decode_image, identify, silence_decoders
from prefetchd.data.images.exact import Wanted
from prefetchd.data.images.working_memory import claimed_bytes
from tests.images import write_kinds
from tests.tiffs import DEFLATE, encode_tiff

# Of JPEG, PNG and WebP we refuse what is cut short, where OpenCV fills the rest with grey.
SUFFIXES = ("jp2", "j2k", "pgm", "ppm", "pbm", "pam", "pfm", "hdr", "ras", "bmp", "gif", "tiff")
MOST_BYTES = 32 << 20
HEADER_BYTES = 100


class Kinds(dict[str, bytes]):
    """Files by name; Hypothesis shows it with each failure, so its text is short."""

    def __repr__(self) -> str:
        return "Kinds"


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> Kinds:
    silence_decoders()
    found = write_kinds(tmp_path_factory.mktemp("kinds"), (24, 31))
    return Kinds({name: path.read_bytes() for name, path in found.items() if name.endswith(SUFFIXES)})


def ours(data: bytes) -> np.ndarray | None:
    try:
        return decode_image(data, identify(data), color="bgr", reduction=1)
    except UndecodableImage:
        return None


def theirs(data: bytes) -> np.ndarray | None:
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:
        return None
    return image if image is None or image.ndim == 3 else cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)


def claims_little(data: bytes) -> bool:
    try:
        return claimed_bytes(identify(data), shrink_on_load=False) <= MOST_BYTES
    except UndecodableImage:
        return True


@settings(max_examples=400)
@given(
    choice=st.integers(0, 1 << 16),
    changes=st.lists(st.tuples(st.integers(0, HEADER_BYTES), st.integers(0, 255)), max_size=4),
    kept=st.none() | st.floats(0, 1),
)
def test_a_damaged_image_has_the_pixels_of_opencv_or_none(
    kinds: Kinds, choice: int, changes: list[tuple[int, int]], kept: float | None
) -> None:
    name = sorted(kinds)[choice % len(kinds)]
    damaged = bytearray(kinds[name])
    for at, value in changes:
        damaged[min(at, len(damaged) - 1)] = value
    data = bytes(damaged[: None if kept is None else round(kept * len(damaged))])
    if not claims_little(data):
        return
    mine, wanted = ours(data), theirs(data)
    if mine is None:
        assert wanted is None or data != kinds[name], name  # a header may be too odd for us and not for OpenCV
    else:
        assert wanted is not None, (name, data[:HEADER_BYTES])
        assert np.array_equal(mine, wanted), (name, data[:HEADER_BYTES])


@settings(max_examples=400)
@given(
    dtype=st.sampled_from(["uint8", "uint16", "float32"]),
    big=st.booleans(),
    planar=st.booleans(),
    tile=st.sampled_from([None, (16, 16)]),
    compression=st.sampled_from([1, DEFLATE]),
    changes=st.lists(st.tuples(st.integers(0, 500), st.integers(0, 255)), max_size=4),
    kept=st.none() | st.floats(0, 1),
)
def test_a_damaged_tiff_has_its_shape_or_is_a_bad_sample(
    dtype: str,
    big: bool,
    planar: bool,
    tile: tuple[int, int] | None,
    compression: int,
    changes: list[tuple[int, int]],
    kept: float | None,
) -> None:
    pixels = np.arange(20 * 24 * 5).reshape(20, 24, 5).astype(dtype)
    good = encode_tiff(pixels, big=big, planar=planar, tile=tile, compression=compression)
    damaged = bytearray(good)
    for at, value in changes:  # from the end, where the directory is
        damaged[-1 - min(at, len(damaged) - 1)] = value
    data = damaged[: None if kept is None else round(kept * len(damaged))]
    want = Wanted.of(make_config(source="m", channels=5, dtype=dtype))
    try:
        header = identify(data)
        want.check(header)
        if want.claimed_bytes(header, shrink_on_load=False) > MOST_BYTES:
            return
        image = want.decode(memoryview(data), header)
    except UndecodableImage:
        assert data != good
        return
    assert image.shape == want.shape(*header.oriented_size)
    assert image.dtype == dtype
    if data == good:
        assert np.array_equal(image, pixels)
