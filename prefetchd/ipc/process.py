"""What the kernel says of a process: its state, in one letter and in words, and the memory that it takes."""

from __future__ import annotations


def process_state(pid: int) -> str:
    """Return the kernel's one-letter state of a process (`T` is stopped), or `""` if there is none."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b") ")[2][:1].decode()
    except OSError:
        return ""


def memory_bytes(pid: int | str, file: str, *names: str) -> int:
    """Return the sum in bytes of the lines `names` of a process's `/proc/PID/FILE`; 0 if it is gone."""
    try:
        with open(f"/proc/{pid}/{file}") as lines:
            return sum(int(line.split()[1]) * 1024 for line in lines if line.partition(":")[0] in names)
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
