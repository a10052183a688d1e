"""The entry of every child process: import the parent's prefetchd, then run `main` of one of its modules.

    python -P .../prefetchd/ipc/boot.py MODULE STDERR_FD [ARGUMENT ...]

`process.child_command` makes this command line. The parent may have found prefetchd through its `sys.path` alone, while
another version is installed, so the package is loaded from the folder of this file. The parent's folders go last in
`sys.path`: they hold what prefetchd needs, and no file in the working directory replaces a module of the standard
library. Until the module is loaded, standard error is a file of the parent, which quotes its last line if the child
ends early; then it becomes STDERR_FD (-1 leaves it). Before the package is loaded, nothing of it is imported.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import sys

PATH_VARIABLE = "PREFETCHD_SYS_PATH"


def main() -> int | None:
    """Load prefetchd and the module, and run its `main`; return the exit status."""
    name, stderr_fd, *arguments = sys.argv[1:]
    known = set(sys.path)
    sys.path += [folder for folder in json.loads(os.environ.get(PATH_VARIABLE, "[]")) if folder not in known]
    home = os.path.dirname(os.path.dirname(__file__))
    spec = importlib.util.spec_from_file_location("prefetchd", os.path.join(home, "__init__.py"))
    assert spec is not None
    assert spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    sys.modules["prefetchd"] = package
    spec.loader.exec_module(package)
    from prefetchd.ipc.loading import LoadingModules

    with LoadingModules():
        module = importlib.import_module(name)
    if int(stderr_fd) >= 0:
        os.dup2(int(stderr_fd), 2)
        os.close(int(stderr_fd))
    status: int | None = module.main(arguments)
    return status


if __name__ == "__main__":
    sys.exit(main())
