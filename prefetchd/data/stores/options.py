"""How the store of a URL is made: the arguments of the library, from `store_options` and the usual variables."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Mapping
from typing import Any

from prefetchd.data.stores.urls import is_web, shown
from prefetchd.errors import ConfigError

# By the scheme: how the library's keys for it begin, what it is called, and what its users set.
_CLOUDS = {
    "s3": (("aws_", "s3_"), "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"),
    "gs": (("google_", "gcs_"), "GOOGLE_APPLICATION_CREDENTIALS"),
    "az": (("azure_",), "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY, or a token"),
}
_SCHEMES = {"s3a": "s3", "gcs": "gs", "azure": "az", "abfs": "az", "abfss": "az", "adl": "az"}
_FIRST_WORDS = tuple(word for words, _ in _CLOUDS.values() for word in words)
# Options of the library's connections, for every store.
_CLIENT = frozenset(
    (
        "allow_http", "allow_invalid_certificates", "connect_timeout", "http1_only", "http2_only", "pool_idle_timeout",
        "pool_max_idle_per_host", "proxy_url", "proxy_ca_certificate", "proxy_excludes", "randomize_addresses",
        "user_agent",
    )
)  # fmt: skip
# Those that are set by `reader_timeout`, or mean nothing here. The library ends in a panic on them.
_OTHERS = frozenset(
    (
        "default_content_type", "default_headers", "http2_keep_alive_interval", "http2_keep_alive_timeout",
        "http2_keep_alive_while_idle", "http2_max_frame_size", "read_timeout", "timeout",
    )
)  # fmt: skip
_SWITCHES = frozenset(
    ("allow_http", "allow_invalid_certificates", "http1_only", "http2_only", "randomize_addresses")
)  # fmt: skip
_QUOTED = re.compile(r'"[^"]*"')
_ENDPOINTS = frozenset(("base_url", "endpoint", "endpoint_url", "endpoint_url_s3", "storage_endpoint"))
_ADDRESS = re.compile(r"https?://[^\s/]", re.IGNORECASE)
# Of S3, what goes into headers as it is.
_KEYS = ("access_key_id", "secret_access_key", "session_token", "token", "region", "default_region")
_OURS = frozenset(("anonymous", "profile", "root_certificate"))


def cloud_of(url: str) -> str:
    """Return `s3`, `gs` or `az`, or the scheme of another URL."""
    scheme = url.partition("://")[0].lower()
    return _SCHEMES.get(scheme, scheme)


def credentials_hint(url: str) -> str:
    """Return what gives the credentials of a URL's store."""
    variables = _CLOUDS.get(cloud_of(url), ((), ""))[1]
    return f'set {variables}, or give store_options="anonymous=true" for what is public' if variables else ""


def own_key(cloud: str, key: str, *, is_variable: bool = False) -> str:
    """Return the key of an option, or of a variable in small letters, without its first word (`aws_`).

    It is empty where that is another cloud's, or the variable nobody's.
    """
    words = _CLOUDS.get(cloud, ((), ""))[0]
    for word in words:
        if key.startswith(word):
            return key.removeprefix(word)
    return "" if is_variable or key.startswith(_FIRST_WORDS) else key


def arguments_of(url: str, given: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what of the options is for the store of a URL, and what is for its connections.

    Raises:
        ConfigError: if a value cannot be used; it is not shown.
    """
    cloud = cloud_of(url)
    store: dict[str, Any] = {}
    client: dict[str, Any] = {"allow_http": True}
    for key, value in given.items():
        if key in _CLIENT:
            client[key] = _switch(key, value) if key in _SWITCHES else value
        elif key == "root_certificate":
            client[key] = _read(key, value)
        elif key == "anonymous":
            store["skip_signature"] = _switch(key, value)
        elif key in _OTHERS and not is_web(url):
            raise _unknown(key, cloud)
        elif key not in _OURS and own_key(cloud, key):
            store[key] = value
    if cloud == "s3":
        _check_keys(store)
    if not is_web(url):
        _check_endpoints(cloud, store)
    return ({} if is_web(url) else store), client


def _check_keys(store: Mapping[str, str]) -> None:
    """Raise `ConfigError` for a key that no header can hold, which the library would end in a panic on."""
    for key, value in store.items():
        if key.removeprefix("aws_").removeprefix("s3_") in _KEYS and not str(value).isprintable():
            raise ConfigError(f"cannot use the store option {key}: its value has a line break; leave that out")
    for key in _KEYS:
        if not os.environ.get(name := f"AWS_{key.upper()}", "").isprintable():
            raise ConfigError(f"cannot use the variable {name}: its value has a line break; set it without")


def _check_endpoints(cloud: str, store: Mapping[str, str]) -> None:
    """Raise `ConfigError` for an endpoint without `http://`, which the library would end in a panic on."""
    given = {f"the store option {key}": value for key, value in store.items() if own_key(cloud, key) in _ENDPOINTS}
    given = given or {
        f"the variable {name}": value
        for name, value in os.environ.items()
        if own_key(cloud, name.lower(), is_variable=True) in _ENDPOINTS
    }
    for what, value in given.items():
        if not value.isprintable():
            raise ConfigError(f"cannot use {what}: its value has a line break; leave that out")
        if not _ADDRESS.match(value):
            why = "it does not begin with http:// or https://" if value else "it is empty"
            raise ConfigError(f"cannot use {what}: {why}; give an address such as http://host:9000, or leave it out")


def _unknown(key: str, cloud: str) -> ConfigError:
    return ConfigError(f"cannot use the store option {key}: {cloud}:// has none of that name; see docs/stores.md")


def _switch(key: str, value: str) -> bool:
    if value.lower() not in ("true", "false", "1", "0", "yes", "no"):
        raise ConfigError(f"cannot use the store option {key}: it must be true or false")
    return value.lower() in ("true", "1", "yes")


def _read(key: str, path: str) -> bytes:
    try:
        with open(os.path.expanduser(path), "rb") as file:
            return file.read()
    except OSError as error:
        raise ConfigError(f"cannot use the store option {key}: {error.strerror}; give the path of a PEM file") from None


def wanted_profile(url: str, given: Mapping[str, str]) -> str | None:
    """Return the profile whose credentials boto3 is to find for a URL; empty for its default one, `None` for none.

    Keys that are given, or stand in the environment, need no profile. Where neither is, and there are files of
    profiles, the default one is taken, as by all of that cloud's programs.
    """
    if cloud_of(url) != "s3" or any(key.endswith(("access_key_id", "skip_signature", "anonymous")) for key in given):
        return None
    named = given.get("profile") or os.environ.get("AWS_PROFILE")
    if named:
        return named
    if "AWS_ACCESS_KEY_ID" in os.environ or "AWS_WEB_IDENTITY_TOKEN_FILE" in os.environ:
        return None
    if importlib.util.find_spec("boto3") is None:
        return None
    for variable, usual in (("AWS_SHARED_CREDENTIALS_FILE", "credentials"), ("AWS_CONFIG_FILE", "config")):
        path = os.path.expanduser(os.environ.get(variable, f"~/.aws/{usual}"))
        if os.path.isfile(path):
            return ""
    return None


def explain(error: Exception, url: str) -> ConfigError:
    """Return the error for a store that cannot be made: the library's words, without the values that it quotes."""
    import obstore.exceptions as known

    said = str(error).split("\n\nDebug")[0]
    if isinstance(error, known.UnknownConfigurationKeyError):
        key = said.split("'")[1] if "'" in said else "?"
        return _unknown(key, cloud_of(url))
    if "Account must be specified" in said:
        return ConfigError(
            f"cannot read {shown(url)}: the account is not known; set AZURE_STORAGE_ACCOUNT_NAME, or give "
            'store_options="account_name=..."'
        )
    said = _QUOTED.sub('"..."', said)[:200]
    return ConfigError(f"cannot read {shown(url)}: {said}; check the URL and store_options")
