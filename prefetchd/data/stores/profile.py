"""Credentials that boto3 finds, such as those of a profile: asked for in a process of its own, which ends at once.

So a reader pays no memory for boto3, and each of its ways works: profiles, roles that a profile assumes, single
sign-on, programs that a profile names. The process prints JSON to a pipe, and never to a log:

    child process prefetchd.data.stores.profile PROFILE
"""

from __future__ import annotations

import datetime
import importlib
import json
import resource
import subprocess
import sys
from typing import Any

from prefetchd.errors import ConfigError
from prefetchd.ipc.process import child_command, child_environment

_TIMEOUT_S = 60.0
_LEAST_S = 30.0
_USUAL = datetime.timedelta(minutes=30)  # how long credentials are used of which no end is known
_AHEAD = datetime.timedelta(minutes=5)


class ProfileCredentials:
    """A credential provider of the store's library. Raises `ConfigError` if there are no credentials.

    Attributes:
        config: the region of the profile, if it has one.
    """

    def __init__(self, profile: str) -> None:
        self._profile = profile
        self._first: dict[str, Any] | None = self._ask()
        region = self._first.pop("region")
        self.config: dict[str, str] = {} if region is None else {"region": region}

    def __call__(self) -> dict[str, Any]:
        """Return credentials, and until when to use them."""
        found, self._first = self._first or self._ask(), None
        found.pop("region", None)
        now = datetime.datetime.now(datetime.UTC)
        until = found.pop("expires_at")
        ends = now + _USUAL
        if until is not None:
            ends = max(now + datetime.timedelta(seconds=_LEAST_S), datetime.datetime.fromisoformat(until) - _AHEAD)
        return {**found, "expires_at": ends}

    def _ask(self) -> dict[str, Any]:
        command = child_command("prefetchd.data.stores.profile", self._profile)
        what = f"the profile {self._profile!r}" if self._profile else "the default profile"
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                env=child_environment(),
                timeout=_TIMEOUT_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            raise ConfigError(f"cannot use {what} of AWS: boto3 did not answer; check the profile") from None
        answer = json.loads(done.stdout) if done.returncode == 0 and done.stdout else {"error": "it failed"}
        if "error" in answer:
            raise ConfigError(f"cannot use {what} of AWS: {answer['error']}")
        return dict(answer)


def main(argv: list[str]) -> None:
    """Print the credentials of the profile that `argv` names."""
    # A reader's limit on its own memory is not this process's.
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))
    sys.stdout.write(json.dumps(_find(argv[0] if argv else "")))
    sys.stdout.flush()


def _find(profile: str) -> dict[str, Any]:
    try:
        boto3 = importlib.import_module("boto3")
    except ImportError:
        return {"error": "boto3 is not installed; pip install boto3, or set AWS_ACCESS_KEY_ID and its secret"}
    try:
        session = boto3.Session(profile_name=profile or None)
        credentials = session.get_credentials()
        if credentials is None:
            return {"error": 'it has no credentials; complete it, or give store_options="anonymous=true"'}
        keys = credentials.get_frozen_credentials()
    except Exception as error:  # botocore's have no class of their own that all share; none shows a secret
        return {"error": f"{' '.join(str(error).split())[:200]}; check ~/.aws/config, or sign in again"}
    until = getattr(credentials, "_expiry_time", None)
    return {
        "access_key_id": keys.access_key,
        "secret_access_key": keys.secret_key,
        "token": keys.token,
        "region": session.region_name,
        "expires_at": None if until is None else until.isoformat(),
    }
