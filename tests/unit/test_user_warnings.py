"""A warning names the line of the user's code, whoever called us on the way."""

from __future__ import annotations

import sysconfig
import threading
import warnings
from typing import Any

import pytest

from prefetchd.client.user_warnings import warn_user


def function_in(path: str, module: str, body: str) -> Any:
    """Return `f(what)` with that body, as if it were in the file `path`."""
    scope: dict[str, Any] = {"__name__": module, "warn_user": warn_user}
    exec(compile(f"def f(what):\n    {body}\n", path, "exec"), scope)
    return scope["f"]


OURS = function_in("/anywhere/prefetchd/loader.py", "prefetchd.client.loader", "warn_user(what)")
LIBRARY = f"{sysconfig.get_path('purelib')}/keras/trainer.py"


def test_called_by_the_user():
    with pytest.warns(RuntimeWarning, match="mind this") as caught:
        OURS("mind this")
    assert caught[0].filename == __file__


def test_called_by_a_library_that_the_user_called():
    fit = function_in(LIBRARY, "keras.trainer", "what('mind this')")
    with pytest.warns(RuntimeWarning, match="mind this") as caught:
        fit(OURS)
    assert caught[0].filename == __file__


def test_called_by_a_library_in_a_thread_of_its_own():
    """No frame is the user's: then the library's line is as near as it gets."""
    fit = function_in(LIBRARY, "keras.trainer", "what('mind this')")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        thread = threading.Thread(target=fit, args=(OURS,))
        thread.start()
        thread.join()
    assert [warning.filename for warning in caught] == [LIBRARY]
