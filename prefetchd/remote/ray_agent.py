"""The agent on a node of a Ray cluster: an actor that starts one and ends with it. Runs in Ray's workers.

Ray places and supervises the actor; rows do not pass through Ray. The agent ends when the actor's process does.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence

from prefetchd.ipc.process import child_command, child_environment

_START_S = 60.0


class NodeAgent:
    """Starts an agent on this node, which listens on the node's address in the cluster.

    Args:
        token: the daemon's.
        n_readers: readers of the agent.
        allow_code: whether it imports users' functions, from `python_path`.
        python_path: folders.
    """

    def __init__(self, token: bytes, n_readers: int, allow_code: bool, python_path: Sequence[str]) -> None:
        import ray

        # In memory and by the process's number: no file is left when Ray kills the actor.
        self._token_fd = os.memfd_create("prefetchd-token", os.MFD_CLOEXEC)
        os.fchmod(self._token_fd, 0o600)
        os.write(self._token_fd, token)
        host = ray.util.get_node_ip_address()
        words: list[object] = [
            "agent", "--listen", f"[{host}]:0" if ":" in host else f"{host}:0", "--token-file",
            f"/proc/{os.getpid()}/fd/{self._token_fd}", "--num-workers", n_readers, "--with-parent",
        ]  # fmt: skip
        if allow_code:
            words += ["--allow-code", "--python-path", os.pathsep.join(python_path) or os.getcwd()]
        self._process = subprocess.Popen(
            child_command("prefetchd.cli.main", *words),
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, env=child_environment(),
        )  # fmt: skip

    def runs(self) -> bool:
        """Return True: the actor has been placed, and has its cores."""
        return True

    def where(self) -> tuple[str, str]:
        """Return the agent's address once it listens, and the number of the node; asked once.

        Raises:
            RuntimeError: if the agent ended before.
        """
        import ray

        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the agent ended with status {self._process.wait(_START_S)}; see the worker's log")
        host, port = line.split()
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}", str(ray.get_runtime_context().get_node_id())

    def wait(self) -> int:
        """Return the agent's exit status once it has ended."""
        return self._process.wait()
