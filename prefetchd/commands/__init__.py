"""The commands of the command line, a module each: `add` declares its words to the parser, and `run` does it.

`cli` imports them all to build the parser, so they import what is heavy only as they run. A new command is a module
here and its name in `COMMANDS`.
"""

from __future__ import annotations

from prefetchd.commands import cache, completion, serve, set, status, stop

# In the order of `prefetchd --help`.
COMMANDS = (serve, status, set, cache, stop, completion)
