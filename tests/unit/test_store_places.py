"""What names an object on disk: buckets of one name at several endpoints, or in several accounts, share nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from prefetchd.data.stores import places
from prefetchd.data.stores.keep import entry_name
from prefetchd.data.stores.places import disk_name

SECRET = "hidden-secret-1"
SET = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ENDPOINT")


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in (*SET, "GOOGLE_SERVICE_ACCOUNT", "AZURITE_BLOB_STORAGE_URL"):
        monkeypatch.delenv(name, raising=False)
    places.set_up({})
    yield
    places.set_up({})


@pytest.mark.parametrize(
    ("url", "options"),
    [
        ("s3://b/k", {"endpoint": "http://one:9000"}),
        ("s3://b/k", {"aws_endpoint_url": "http://one:9000"}),
        ("s3a://b/k", {"endpoint": "http://one:9000"}),
        ("gs://b/k", {"google_base_url": "http://one:9000"}),
        ("az://b/k", {"account_name": "one"}),
        ("az://b/k", {"azure_storage_account_name": "one"}),
        ("abfs://b/k", {"azure_storage_use_emulator": "true"}),
    ],
)
def test_a_place_that_an_option_sets_is_in_the_name(url: str, options: dict[str, str]) -> None:
    usual = disk_name(url), entry_name(url, (), 0, 0)
    places.set_up({**options, "secret_access_key": SECRET})
    here = disk_name(url), entry_name(url, (), 0, 0)
    places.set_up({key: f"{value}2" for key, value in options.items()})
    other = disk_name(url), entry_name(url, (), 0, 0)
    assert len({*usual, *here, *other}) == 6
    assert SECRET not in here[0]


@pytest.mark.parametrize("name", SET)
def test_a_place_that_a_variable_sets_is_in_the_name(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    url = "s3://b/k" if name.startswith("AWS") else "az://b/k"
    names = []
    for value in ("", "http://one:9000", "http://two:9000"):
        monkeypatch.setenv(name, value)
        places.set_up({})
        names.append(disk_name(url))
    assert len(set(names)) == 3
    assert disk_name("https://h/k") == "https://h/k"


def test_what_says_nothing_of_the_place_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_METADATA_ENDPOINT", "AWS_SECRET_ACCESS_KEY", "AZURE_IDENTITY_ENDPOINT", "S3_SECRET", "ENDPOINT"):
        monkeypatch.setenv(name, SECRET)
    places.set_up({"secret_access_key": SECRET, "region": "eu-1", "azure_endpoint": "http://of-azure", "profile": "me"})
    assert disk_name("s3://b/k") == "s3://b/k"
    assert disk_name("az://b/k") != "az://b/k"
    assert disk_name("https://me:word@h/k?id=1&sig=2") == "https://h/k?id=1"


def test_an_option_goes_before_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    places.set_up({"endpoint": "http://one"})
    alone = disk_name("s3://b/k")
    monkeypatch.setenv("AWS_ENDPOINT", "http://two")
    places.set_up({"endpoint": "http://one"})
    assert disk_name("s3://b/k") == alone


@pytest.mark.parametrize("is_inline", [False, True])
def test_the_endpoint_of_a_key_file_is_in_the_name(tmp_path: Path, is_inline: bool) -> None:
    names = {disk_name("gs://b/k")}
    for number in range(2):
        key = json.dumps({"gcs_base_url": f"http://host{number}", "private_key": SECRET})
        (tmp_path / "key.json").write_text(key)
        places.set_up({"service_account_key": key} if is_inline else {"service_account": str(tmp_path / "key.json")})
        names.add(disk_name("gs://b/k"))
    assert len(names) == 3
    assert not any(SECRET in name for name in names)
    (tmp_path / "key.json").write_text("[]")
    places.set_up({"service_account": str(tmp_path / "key.json")})
    assert disk_name("gs://b/k") == "gs://b/k"
