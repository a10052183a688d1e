"""Servers of objects for tests and measurements: S3 (moto), one with faults on demand, nginx over TLS, and Azure.

Each runs in a process of its own and serves a folder, whose first level are the buckets. `close` ends it, and so does
the end of the process that started it: nothing of it is left behind.
"""
