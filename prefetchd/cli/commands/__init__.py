"""The commands of the command line, a module each: `add` declares its words to the parser, and `run` does it.

`cli` imports them all to build the parser, so they import what is heavy only as they run. A new command is a module
here and its name in `COMMANDS`.
"""

from __future__ import annotations

from prefetchd.cli.commands import bench, cache, completion, preview, serve, set, status, stop, top, tune, verify

# In the order of `prefetchd --help`.
COMMANDS = (serve, status, top, set, cache, stop, verify, preview, tune, bench, completion)
