"""What must always hold in a world, and what loops may end with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefetchd.errors import PrefetchdError

if TYPE_CHECKING:
    from prefetchd.daemon.server import Daemon
    from tests.simulation.programs import Trainer
    from tests.simulation.world import World


class Watch:
    def __init__(self, world: World) -> None:
        self._world = world

    def look(self, daemon: Daemon) -> None: ...
    def daemon_died(self) -> None: ...
    def finish(self) -> None: ...
    def check_idle(self, daemon: Daemon) -> None: ...


def allowed_error(world: World, trainer: Trainer, error: PrefetchdError, *, is_peek: bool) -> bool:
    return False
