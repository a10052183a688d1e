"""The commands of the command line. Each `add` declares a command to the parser, and its `run` does the work.

The parser needs them all, so they import heavy modules only when they run. A new command is a module here and its
`add` in `COMMANDS`.
"""

from __future__ import annotations

from prefetchd.cli.commands import (
    agent,
    bench,
    cache,
    completion,
    daemons,
    dashboard,
    doctor,
    index,
    preview,
    serve,
    tune,
    verify,
)

# In the order of `prefetchd --help`.
COMMANDS = (
    serve.add,
    agent.add,
    daemons.add_list,
    daemons.add_status,
    daemons.add_top,
    dashboard.add,
    daemons.add_set,
    cache.add,
    daemons.add_stop,
    index.add,
    verify.add,
    preview.add,
    tune.add,
    bench.add,
    doctor.add,
    completion.add,
)
