"""The daemon: one process, one event loop, that decides what is filled and who may hold what."""
