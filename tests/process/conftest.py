"""Fixtures of the tests that run processes of prefetchd."""

from tests.servers.fixtures import moto, store, web

__all__ = ["moto", "store", "web"]
