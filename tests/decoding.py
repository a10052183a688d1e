"""What tests of decoding share: files of all kinds, bad ones, and a decode."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from prefetchd.config.options import Color
from prefetchd.data.files import FileBuffer, read_file
from prefetchd.data.images.decode import (
    decode_image,
    identify,
    silence_decoders,
)
from tests.images import write_bad, write_kinds


@pytest.fixture(scope="module", name="kinds")
def kinds_of_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_kinds(tmp_path_factory.mktemp("kinds"))


@pytest.fixture(scope="module", name="bad")
def bad_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_bad(tmp_path_factory.mktemp("bad"))


@pytest.fixture(autouse=True)
def quiet() -> None:
    silence_decoders()


def load(path: Path, color: Color = "bgr", reduction: int = 1) -> np.ndarray:
    data = read_file(path, FileBuffer())
    return decode_image(data, identify(data), color=color, reduction=reduction)
