"""What the kernel says of another process: its state, in one letter and in words."""

from __future__ import annotations


def process_state(pid: int) -> str:
    """Return the kernel's one-letter state of a process (`T` is stopped), or `""` if there is none."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b") ")[2][:1].decode()
    except OSError:
        return ""


def describe_process(pid: int) -> str:
    """Describe why a process may not answer, and what helps: `pid 7 is stopped; continue it with ...`."""
    state = process_state(pid)
    if state in ("T", "t"):
        return f"pid {pid} is stopped (SIGSTOP, or a debugger); continue it with: kill -CONT {pid}"
    if state in ("", "Z", "X"):
        return f"pid {pid} has ended"
    if state == "D":
        return f"pid {pid} waits in the kernel (state D), such as for a disk or for memory"
    return f"pid {pid} is alive (state {state}); see its log"
