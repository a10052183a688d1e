"""The version of prefetchd: its one source, for the package, its build and its messages."""

__version__ = "0.2.0"
