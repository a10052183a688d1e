"""Images that are delivered as their files are: the very bytes, from any source, with bad samples found by header."""

from __future__ import annotations

import io
import tarfile

import numpy as np
import pytest

import prefetchd

QUICK = {"batch_size": 8, "num_workers": 2}


def files_of(loader: prefetchd.Loader) -> list[bytes]:
    found = []
    for batch in loader:
        x, y = batch
        assert x.bytes is batch["x"]["bytes"]
        assert len(x.bytes) == len(x.length) == len(y)
        for row, length in zip(x.bytes, x.length, strict=True):
            assert not row[length:].any()
            found.append(row[:length].tobytes())
    return found


@pytest.fixture
def files(photographs) -> list[bytes]:
    lines = photographs.read_text().splitlines()
    return [(photographs.parent / line.rpartition(" ")[0]).read_bytes() for line in lines]


def test_bytes_are_those_of_the_files_in_the_order_of_the_epoch(photographs, files):
    most = max(map(len, files))
    with (
        prefetchd.batches(photographs, encoded_bytes=most, shuffle=True, **QUICK) as loader,
        prefetchd.batches(photographs, image_size=16, shuffle=True, **QUICK) as pixels,
    ):
        for _ in range(2):
            order = np.concatenate([batch.sample_ids for batch in pixels])
            assert files_of(loader) == [files[number] for number in order]
        assert loader.layout.fields[0].shape == (most,)
        assert not loader.serves_images


def test_from_tar_shards_and_class_folders(files, tmp_path):
    with tarfile.open(tmp_path / "train.tar", "w") as tar:
        for number, content in enumerate(files):
            for suffix, data in (("jpg", content), ("cls", str(number).encode())):
                member = tarfile.TarInfo(f"{number:03d}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    (tmp_path / "folders" / "a").mkdir(parents=True)
    for number, content in enumerate(files):
        (tmp_path / "folders" / "a" / f"{number:03d}.jpg").write_bytes(content)
    for source in ("train.tar", "folders"):
        with prefetchd.batches(tmp_path / source, encoded_bytes=100_000, **QUICK) as loader:
            assert files_of(loader) == files


def test_a_file_that_is_too_large_or_no_image_is_a_bad_sample(photographs, files, tmp_path):
    most = max(map(len, files))
    (tmp_path / "text.jpg").write_text("no image")
    lines = photographs.read_text().splitlines()[:10]
    lines[3] = f"{tmp_path}/text.jpg 3"
    manifest = tmp_path / "train.txt"
    manifest.write_text("\n".join(lines))
    options = {"root": photographs.parent, "batch_size": 10, "num_workers": 1}
    with prefetchd.batches(manifest, encoded_bytes=most, on_error="skip", **options) as loader:
        assert files_of(loader) == files[:3] + files[4:10]
    fewest = min(map(len, files[:3]))
    with (
        prefetchd.batches(manifest, encoded_bytes=fewest, **options) as loader,
        pytest.raises(prefetchd.SampleError, match=rf"more than encoded_bytes={fewest}; give encoded_bytes="),
    ):
        next(iter(loader))


def test_decode_is_no_option_without_pytorch(photographs):
    with pytest.raises(prefetchd.ConfigError, match=r"which prefetchd\.torch\.batches decodes on a device") as caught:
        prefetchd.batches(photographs, decode="device")
    assert "\n" not in str(caught.value)
