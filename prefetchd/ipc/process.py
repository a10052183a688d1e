"""Facts about a process: its state and its memory, from /proc."""

from __future__ import annotations

from prefetchd.ipc import system


def process_state(pid: int) -> str:
    """Return the kernel's one-letter state of a process (`T` is stopped), or `""` if there is none."""
    try:
        return system.read_file(f"/proc/{pid}/stat").rpartition(b") ")[2][:1].decode()
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
        lines = system.read_file(f"/proc/{pid}/{file}").splitlines()
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
