"""Facts about a process: its state and its memory, from /proc, and how it ended, in words."""

from __future__ import annotations

import signal

RAISED_STATUS = 213  # of a reader that an exception of ours ended, such as for lack of memory


def process_state(pid: int) -> str:
    """Return the kernel's one-letter state of a process (`T` is stopped), or `""` if there is none."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b") ")[2][:1].decode()
    except OSError:
        return ""


def memory_bytes(pid: int | str, file: str, *fields: str) -> int:
    """Return the sum in bytes of some fields of `status` or `smaps_rollup` of a process; 0 if there is none.

    Args:
        pid: its pid, or `"self"`.
        file: the name of the file in /proc/PID, whose lines are `Field:  123 kB`.
        fields: the names of the fields, such as `RssAnon`.
    """
    starts = tuple(f"{field}:".encode() for field in fields)
    try:
        with open(f"/proc/{pid}/{file}", "rb") as lines:
            return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(starts))
    except OSError:
        return 0


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


def describe_exit(exit_code: int) -> str:
    """Describe how a process ended: `exit status 3`, `killed by SIGSEGV`."""
    if exit_code == RAISED_STATUS:
        return f"exit status {exit_code}, after an exception that the log has"
    if exit_code >= 0:
        return f"exit status {exit_code}"
    try:
        return f"killed by {signal.Signals(-exit_code).name}"
    except ValueError:
        return f"killed by signal {-exit_code}"
