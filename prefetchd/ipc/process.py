"""Processes: how a child is started, the state and the memory of one, from /proc, and how it ended, in words.

`boot` is the child's side of a start: of a daemon, the fork server or a dry run. A child must find the same prefetchd
as its parent, however that found it, and variables that are meant for the user's own program must not change it.
"""

from __future__ import annotations

import json
import os
import sys

from prefetchd.errors import PrefetchdError
from prefetchd.ipc import boot, system

_PAGE_BYTES = os.sysconf("SC_PAGESIZE")
# They make an interpreter interactive, turn its warnings into errors, or print what it does.
_NOT_INHERITED = (
    "PYTHONINSPECT",
    "PYTHONWARNINGS",
    "PYTHONDEVMODE",
    "PYTHONVERBOSE",
    "PYTHONPROFILEIMPORTTIME",
    "PYTHONTRACEMALLOC",
    "PYTHONDEBUG",
)


def child_command(module: str, *arguments: object, stderr_fd: int = -1) -> list[str]:
    """Return the command line that runs `main` of `module` in a child.

    Args:
        module: its whole name.
        arguments: passed on as text.
        stderr_fd: a descriptor that becomes standard error once the module is loaded; -1 for none.

    Raises:
        PrefetchdError: if it is unknown where the interpreter is.
    """
    if not sys.executable:
        raise PrefetchdError(
            "cannot start a process: this program does not say where its Python interpreter is; set sys.executable to "
            'its path, or start prefetchd serve and attach with daemon="default"'
        )
    script = os.path.abspath(boot.__file__)
    return [sys.executable, "-P", script, module, str(stderr_fd), *map(str, arguments)]


def child_environment(**more: str) -> dict[str, str]:
    """Return the environment of a child: this process's, where it finds modules, and `more`."""
    inherited = {name: value for name, value in os.environ.items() if name not in _NOT_INHERITED}
    return {**inherited, boot.PATH_VARIABLE: json.dumps(module_folders()), **more}


def module_folders() -> list[str]:
    """Return the folders of `sys.path` as absolute paths, each once."""
    folders: dict[str, None] = {}
    for folder in sys.path:
        try:
            folders[os.path.abspath(folder)] = None
        except OSError:  # a relative one, and the working directory is gone
            continue
    return list(folders)


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


def private_bytes(pid: int | str) -> int:
    """Return Pss_Anon + SwapPss of a process in bytes; 0 if it is gone."""
    return memory_bytes(pid, "smaps_rollup", "Pss_Anon", "SwapPss")


def resident_bytes(pid: int) -> int:
    """Return all anonymous and swapped-out bytes of a process, those that it shares with a parent in full; 0 if gone.

    Never less than `private_bytes`, and a fifteenth of its price.
    """
    return memory_bytes(pid, "status", "RssAnon", "VmSwap")


def open_own_statm() -> int:
    """Return a descriptor for `anonymous_bytes`, which the caller owns."""
    return os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)


def anonymous_bytes(statm_fd: int) -> int:
    """Return the anonymous resident bytes of this process (2 us; `smaps_rollup` would walk every page)."""
    _, resident, shared, _ = os.pread(statm_fd, 128, 0).split(b" ", 3)
    return (int(resident) - int(shared)) * _PAGE_BYTES


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
