"""Hypothesis' profiles: the tests' examples are the same in every run, and `scripts/fuzz` has fresh ones.

A test states how many examples it wants, and never `derandomize`: that would keep `scripts/fuzz` at the same ones.
"""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# Neither a deadline nor a slow strategy says anything on a machine that is busy with other things.
_ALWAYS = {"deadline": None, "database": None, "suppress_health_check": [HealthCheck.too_slow]}

settings.register_profile("fixed", derandomize=True, **_ALWAYS)
settings.register_profile("fresh", derandomize=False, print_blob=True, **_ALWAYS)  # by --hypothesis-seed
settings.load_profile("fixed")
