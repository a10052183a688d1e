"""The manifest changes while it is served: every consumer is told, and no batch is half old and half new."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import pytest

import prefetchd
from tests.conftest import wait_until

N_SAMPLES = 4000
OLD, NEW = 1_000_000, 9_000_000  # labels of one width: an edit in place moves nothing


def text(photographs: Path, first_label: int) -> bytes:
    lines = [line.rsplit(None, 1)[0] for line in photographs.read_text().splitlines()]
    paths = [photographs.parent / line for line in lines]
    return b"".join(b"%s %d\n" % (os.fsencode(paths[i % len(paths)]), first_label + i) for i in range(N_SAMPLES))


def change(manifest: Path, new: bytes, how: str) -> None:
    if how == "replace":
        other = manifest.with_suffix(".new")
        other.write_bytes(new)
        os.replace(other, manifest)
    elif how == "edit":
        with manifest.open("r+b") as file:
            file.write(new)
    elif how == "append":
        with manifest.open("ab") as file:
            file.write(new)
    elif how == "truncate":
        os.truncate(manifest, 100)
    else:
        manifest.unlink()


def check_all_old(loop: Iterable[prefetchd.Batch]) -> None:
    for batch in loop:
        assert (batch.y == batch.sample_ids + OLD).all()


@pytest.mark.parametrize("how", ["replace", "edit", "append", "truncate", "remove"])
def test_a_change_ends_the_loop_with_the_reason_and_never_gives_new_data(tmp_path, photographs, how):
    """Batches that were ready are delivered as they are, with the old labels; then comes `ManifestError`."""
    manifest = tmp_path / "list.txt"
    manifest.write_bytes(text(photographs, OLD))
    with prefetchd.batches(
        manifest, batch_size=8, image_size=16, num_workers=2, memory_budget="128MiB", shuffle=True
    ) as loader:
        loop = iter(loader)
        next(loop)
        change(manifest, text(photographs, NEW), how)
        with pytest.raises(prefetchd.ManifestError, match="while in use"):
            check_all_old(loop)


def test_a_changed_manifest_ends_a_daemon_that_is_at_work_for_all_its_consumers(tmp_path, photographs, serve):
    """Two loops of one daemon are both told; a daemon started again serves the new content."""
    manifest = tmp_path / "list.txt"
    manifest.write_bytes(text(photographs, OLD))
    options = ("--batch-size", "8", "--image-size", "16", "--num-workers", "1", "--memory-budget", "128MiB")
    first = serve(manifest, *options, name="first")
    loops = [iter(prefetchd.batches(daemon="first")) for _ in range(2)]
    for loop in loops:
        next(loop)
    change(manifest, text(photographs, NEW), "replace")
    for loop in loops:
        with pytest.raises(prefetchd.ManifestError, match="while in use"):
            check_all_old(loop)
    wait_until(lambda: first.process.poll() is not None, "the end of the daemon")
    assert "while in use" in first.log
    serve(manifest, *options, name="second")
    with prefetchd.batches(daemon="second") as loader:
        assert next(iter(loader)).y[0] == NEW
