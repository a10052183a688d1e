"""Starting a child process of prefetchd (a daemon, the fork server, a dry run): its command line and environment.

`boot` is the child's side. A child must find the same prefetchd as its parent, however that found it, and variables
that are meant for the user's own program must not change it.
"""

from __future__ import annotations

import json
import os
import sys

from prefetchd.errors import PrefetchdError
from prefetchd.ipc import boot

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


def command(module: str, *arguments: object, stderr_fd: int = -1) -> list[str]:
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


def environment(**more: str) -> dict[str, str]:
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
