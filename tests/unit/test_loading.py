"""Modules are loaded without the collector, which then works again as before."""

from __future__ import annotations

import contextlib
import gc

import pytest

from prefetchd.ipc.loading import LoadingModules


@pytest.mark.parametrize("in_child", [False, True])
def test_collector_rests_in_the_block_alone_also_when_it_raises(in_child: bool) -> None:
    gc.unfreeze()
    before = gc.get_freeze_count()
    try:
        with contextlib.suppress(ImportError), LoadingModules(in_child=in_child):
            assert not gc.isenabled()
            raise ImportError
        assert gc.isenabled()
        assert (gc.get_freeze_count() > before) is in_child
    finally:
        gc.unfreeze()


def test_collector_of_a_program_that_does_without_stays_off() -> None:
    gc.disable()
    try:
        with LoadingModules():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
