"""What names an object on disk, for `keep` and for the cache: its URL, with what else says which store that is.

A bucket of one name may be at several endpoints, and a container of one name in several accounts. They are other
objects, and their ETags may be the same. So endpoint and account are in the name, where options or variables set them.
No secret is, and nothing that changes from run to run.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from prefetchd.data.stores.options import cloud_of, own_key
from prefetchd.data.stores.urls import lasting

# What of a cloud's options and variables says where a bucket is, without their first word (`aws_`).
_PLACES = {
    "s3": frozenset(("endpoint", "endpoint_url", "endpoint_url_s3", "bucket", "bucket_name")),
    "gs": frozenset(("base_url", "bucket", "bucket_name")),
    "az": frozenset(
        (
            "account_name", "endpoint", "container_name", "use_emulator", "use_fabric_endpoint",
            "storage_account_name", "storage_endpoint", "storage_use_emulator",
        )
    ),
}  # fmt: skip
_VARIABLES = {"az": ("AZURITE_BLOB_STORAGE_URL",)}  # that have another first word
_KEY_FILES = ("service_account", "service_account_path")
_given: Mapping[str, str] = {}


def set_up(given: Mapping[str, str]) -> None:
    """Take the options for stores; before the first name."""
    global _given
    _given = given
    _place_of.cache_clear()


def disk_name(url: str) -> str:
    """Return what names an object on disk, without secrets; the same in each run with the same stores."""
    place = _place_of(cloud_of(url))
    return f"{place} {lasting(url)}" if place else lasting(url)


@functools.cache
def _place_of(cloud: str) -> str:
    """Return what is set of where a cloud's buckets are; empty where it is the cloud's usual place."""
    wanted = _PLACES.get(cloud)
    if wanted is None:
        return ""
    given = {own_key(cloud, key.lower(), is_variable=True): value for key, value in os.environ.items()}
    given |= {own_key(cloud, key): value for key, value in _given.items()}  # an option goes before a variable
    told = {key: value for key, value in given.items() if key in wanted}
    told |= {name: os.environ[name] for name in _VARIABLES.get(cloud, ()) if name in os.environ}
    if cloud == "gs" and (base := _base_url(given)):
        told["gcs_base_url"] = base
    return json.dumps(told, sort_keys=True) if told else ""


def _base_url(given: Mapping[str, str]) -> str:
    """Return the endpoint that a key file of Google's may hold; empty for none."""
    for key in (*_KEY_FILES, "service_account_key"):
        with suppress(KeyError, OSError, ValueError, AttributeError):
            text = given[key] if key not in _KEY_FILES else Path(given[key]).read_text()
            if base := json.loads(text).get("gcs_base_url"):
                return str(base)
    return ""
