"""prefetchd with one reader of the daemon's and one of an agent, which is on this machine too."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator

from loaders import Data, Epochs, ours

TITLE = "prefetchd, an agent"
PACKAGES = ours.PACKAGES
DETAIL = "a reader of the daemon's and one of `prefetchd agent`; JPEGs shrink on load"


@contextlib.contextmanager
def epochs(data: Data) -> Iterator[Epochs]:
    token = data.folder / "token"
    token.touch(0o600)
    token.write_text("0123456789abcdef" * 4)
    words = ["agent", "--listen", "127.0.0.1:0", "--token-file", token, "--num-workers", data.workers - 1]
    command = [sys.executable, "-m", "prefetchd", *map(str, words)]
    agent = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert agent.stdout is not None
        address = ":".join(agent.stdout.readline().split())
        here = Data(data.manifest, data.paths, data.labels, data.batch_size, 1, data.folder)
        with ours.epochs(here, agents=address, token_file=token) as next_epoch:
            yield next_epoch
    finally:
        agent.terminate()
        agent.communicate()
