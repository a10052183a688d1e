"""The fork server has loaded what readers need, so that they share its memory."""

from __future__ import annotations

from pathlib import Path

import prefetchd
from prefetchd.daemon.memory.plan import READER_BYTES
from tests.faults.conftest import ask_status


def test_readers_share_what_the_fork_server_has_loaded(serve, photographs):
    """Each that loaded OpenCV and the pipeline itself would take 10 MiB more, beyond its share of the budget."""
    daemon = serve(photographs, "--batch-size", 4, "--image-size", 16, "--num-workers", 2)
    with prefetchd.batches() as loader:
        assert len(list(loader)) == 13
        (fork_server,) = [one for one in daemon.descendants() if one.ppid() == daemon.pid]
        assert "cv2" in Path(f"/proc/{fork_server.pid}/maps").read_text()
        assert max(reader["memory_bytes"] for reader in ask_status()["readers"]) < 1.25 * READER_BYTES
