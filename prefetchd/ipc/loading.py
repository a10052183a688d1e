"""Loading modules without looking for garbage among them.

What a module makes lives as long as the process. Python's collector goes through it over and over while hundreds of
modules are loaded, which takes a sixth of a start. Imports nothing heavy.
"""

from __future__ import annotations

import gc
from types import TracebackType


class LoadingModules:
    """A `with` block that loads modules: garbage collection is off in it, and on again after it if it was on before.

    Args:
        in_child: also exempt what lives at the end of the block from later collections. For processes of our own, whose
            forked children then share more pages.
    """

    __slots__ = ("_in_child", "_was_enabled")

    def __init__(self, *, in_child: bool = False) -> None:
        self._in_child = in_child
        self._was_enabled = False

    def __enter__(self) -> None:
        self._was_enabled = gc.isenabled()
        gc.disable()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._in_child:
            gc.freeze()
        if self._was_enabled:
            gc.enable()
