"""Changing a running daemon: `prefetchd.set_options`, and what `prefetchd set` does with its words.

The daemon checks what it is asked for and answers with its plan; a change that it refuses changes nothing. Each call is
a connection of its own, so a daemon or a caller that dies meanwhile leaves nothing behind.
"""

from __future__ import annotations

from collections.abc import Mapping

from prefetchd.asking import ask_daemon
from prefetchd.errors import ConfigError
from prefetchd.ipc.run_directory import choose_name


def set_options(
    daemon: str | None = None, *, memory_budget: str | int | None = None, num_workers: int | str | None = None
) -> str:
    """Change the memory budget or the number of readers of a running daemon, as `prefetchd set` does.

    Consumers notice nothing, and what they hold stays valid: a smaller ring gives up its free slots at once and the
    others as they come back. Batches are the same.

    Args:
        daemon: the daemon's name; `PREFETCHD_NAME` or `default` if not given.
        memory_budget: `auto`, or bytes such as `512MiB` or `25%`; as it is if not given.
        num_workers: reader processes, or `"auto"`; as they are if not given.

    Returns:
        The plan that is in force from now on, in words for people.

    Raises:
        ConfigError: for a value that is wrong, or if nothing was given.
        BudgetError: if the budget cannot work, with the smallest one that can; then nothing has changed.
        DaemonNotFound: if no such daemon runs.

    Example:
        >>> prefetchd.set_options("default", memory_budget="1GiB", num_workers=4)  # doctest: +SKIP
    """
    options = {"memory_budget": memory_budget, "num_workers": num_workers}
    given = {name: str(value) for name, value in options.items() if value is not None}
    if not given:
        raise ConfigError("cannot set nothing: no option was given; give memory_budget=, num_workers= or both")
    return change_options(choose_name(daemon), given)


def change_options(name: str, options: Mapping[str, str]) -> str:
    """Change `options` (values as text) of the daemon `name`; return its new plan in words; raises as `set_options`."""
    from prefetchd.ipc import messages

    answer: messages.OptionsChanged = ask_daemon(name, messages.ChangeOptions(messages.PROTOCOL, dict(options)))
    return answer.text
