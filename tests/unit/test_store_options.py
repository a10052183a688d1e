"""The options of stores: what may be given, which store gets which, and that no text shows a value."""

from __future__ import annotations

import dataclasses
import pprint
import sys
from collections import OrderedDict
from pathlib import Path

import pytest

from prefetchd.cli.measure.plan_choice import command_line
from prefetchd.config.datasets import read_config_file
from prefetchd.config.store_options import StoreOptions, canonical
from prefetchd.config.validate import check_agrees, check_options, make_config
from prefetchd.data.registry import open_source
from prefetchd.data.stores import client
from prefetchd.data.stores.faults import fault_of_store
from prefetchd.data.stores.names import listing
from prefetchd.data.stores.options import arguments_of, cloud_of, credentials_hint, wanted_profile
from prefetchd.errors import ConfigError, ManifestError

SECRET = "hidden-secret-1"
GIVEN = {"endpoint": "http://host:9000", "secret_access_key": SECRET}


def test_a_mapping_and_texts_give_the_same() -> None:
    made = canonical(GIVEN)
    assert made == canonical(["secret-access-key=" + SECRET, "ENDPOINT=http://host:9000"])
    assert made.values_by_key() == GIVEN
    assert canonical("anonymous=true") == canonical({"anonymous": True})
    assert canonical(None) == canonical({}) == StoreOptions()
    assert canonical({"timeout": 3}).values_by_key() == {"timeout": "3"}


@pytest.mark.parametrize(
    "wrong",
    [
        [SECRET],
        {SECRET + "!": 1},
        {"key": [SECRET]},
        {"key": None},
        7,
        ["a=1", "A=" + SECRET],
        {"": SECRET},
    ],
)
def test_what_cannot_be_an_option_is_refused_without_its_value(wrong: object) -> None:
    with pytest.raises(ConfigError, match=r"cannot use (the )?store.option") as caught:
        canonical(wrong)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("source", ["s3://bucket/list.txt", "s3://bucket/a.tar", "s3://bucket/x.npy"])
def test_without_obstore_a_url_is_refused_in_one_line(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(ConfigError, match=r"cannot read objects by URL: .*pip install 'prefetchd\[stores\]'"):
        open_source(make_config(source=source))


def test_nothing_shows_a_value() -> None:
    config = make_config(source="s3://b/l.txt", store_options=GIVEN)
    texts = [repr(config), str(config), pprint.pformat(config), f"{config.store_options}", repr(config.store_options)]
    texts += [
        config.digest(),
        str(config.content()),
        repr(dataclasses.replace(config)),
        f"{config.store_options!r:>80}",
    ]
    with pytest.raises(ConfigError) as caught:
        check_agrees(config, {"store_options": ["secret_access_key=another-" + SECRET]})
    texts.append(str(caught.value))
    assert not [text for text in texts if SECRET in text]
    assert config.digest() == make_config(source="s3://b/l.txt").digest()
    assert make_config(**config.to_wire()) == config
    assert repr(config.store_options) == "{'endpoint': ..., 'secret_access_key': ...}"


def test_the_command_that_tune_prints_names_keys_alone() -> None:
    class Chosen:
        n_readers, budget_bytes = 2, 1 << 20

    text = command_line(make_config(source="s3://b/l.txt", store_options=GIVEN), Chosen())  # type: ignore[arg-type]
    assert "--store-option=secret_access_key=..." in text
    assert SECRET not in text


def test_a_table_of_the_configuration_has_them(tmp_path: Path) -> None:
    path = tmp_path / "p.toml"
    path.write_text('source = "s3://b/l.txt"\n[store]\nendpoint = "http://host:9000"\nallow-http = true\n')
    options, tables = read_config_file(str(path))
    assert not tables
    made = check_options(options)["store_options"]
    assert made.values_by_key() == {"endpoint": "http://host:9000", "allow_http": "true"}
    path.write_text('[store]\nsource = "a.txt"\n')
    assert read_config_file(str(path))[1] == {"store": {"source": str(tmp_path / "a.txt")}}


def test_each_store_gets_its_own() -> None:
    given = {"aws_region": "x", "azure_account": "a", "google_key": "k", "region": "y", "anonymous": "yes"}
    assert arguments_of("s3://b", given)[0] == {"aws_region": "x", "region": "y", "skip_signature": True}
    assert arguments_of("gcs://b", given)[0] == {"google_key": "k", "region": "y", "skip_signature": True}
    assert arguments_of("abfss://c@a.host", given)[0] == {"azure_account": "a", "region": "y", "skip_signature": True}
    assert arguments_of("https://h", {**given, "http1_only": "true"}) == ({}, {"allow_http": True, "http1_only": True})
    with pytest.raises(ConfigError, match="anonymous: it must be true or false"):
        arguments_of("s3://b", {"anonymous": "perhaps"})
    with pytest.raises(ConfigError, match="root_certificate: No such file"):
        arguments_of("s3://b", {"root_certificate": "/none/ca.pem"})
    assert cloud_of("S3A://b") == "s3"
    assert "AWS_PROFILE" in credentials_hint("s3://b/k")
    assert not credentials_hint("https://h/k")


def test_a_key_with_a_line_break_is_refused_without_its_value(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("token", "aws_session_token", "secret_access_key", "region", "default_region"):
        with pytest.raises(ConfigError, match=f"the store option {name}: its value has a line break") as caught:
            arguments_of("s3://b/k", {name: SECRET + "\n"})
        assert SECRET not in str(caught.value)
    arguments_of("az://c/k", {"token": SECRET + "\n"})
    monkeypatch.setenv("AWS_SESSION_TOKEN", SECRET + "\r\n")
    with pytest.raises(ConfigError, match="the variable AWS_SESSION_TOKEN: its value has a line break") as caught:
        arguments_of("s3://b/k", {})
    assert SECRET not in str(caught.value)
    arguments_of("https://h/k", {})


def test_an_endpoint_without_http_is_refused_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    for url, name, value in (
        ("s3://b", "endpoint", f"user:{SECRET}@host:9000"),
        ("s3://b", "aws_endpoint_url", "//host"),
        ("gs://b", "base_url", "host:1"),
        ("az://b", "azure_storage_endpoint", " http://host"),
    ):
        with pytest.raises(ConfigError, match=f"the store option {name}: it does not begin with http://") as caught:
            arguments_of(url, {name: value})
        assert SECRET not in str(caught.value)
    with pytest.raises(ConfigError, match="the store option endpoint: its value has a line break"):
        arguments_of("s3://b", {"endpoint": "http://host:9000\n"})
    arguments_of("https://h", {"endpoint": "host:9000"})
    monkeypatch.setenv("AWS_ENDPOINT_URL", "")
    with pytest.raises(ConfigError, match="the variable AWS_ENDPOINT_URL: it is empty"):
        arguments_of("s3://b", {})
    arguments_of("s3://b", GIVEN)  # which goes before
    with pytest.raises(ConfigError, match="the store option timeout: s3:// has none of that name"):
        arguments_of("s3://b", {"timeout": "3s"})


@pytest.mark.parametrize("url", [f"s3://AKIA:{SECRET}@b", f"s3a://AKIA:{SECRET}", "s3://host:9000"])
def test_keys_in_the_url_of_a_bucket_are_refused(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("obstore")
    monkeypatch.setattr(client, "_stores", OrderedDict())
    with pytest.raises(ConfigError, match="has neither keys nor a port") as caught:
        client.store_of(url)
    assert SECRET not in str(caught.value)


def test_a_redirect_to_nowhere_is_a_region_for_buckets_alone() -> None:
    known = pytest.importorskip("obstore.exceptions")
    error = known.GenericError("Received redirect without LOCATION, this normally indicates an incorrectly ...")
    assert "in another region" in str(fault_of_store(error, "s3://b/k"))
    assert str(fault_of_store(error, "https://h/k")) == "the server redirects, and does not say where to"


@pytest.mark.parametrize("name", ["keep", "cache", "bucket_file"])
def test_what_is_written_to_is_no_url(name: str) -> None:
    with pytest.raises(ConfigError, match=f"cannot use {name}='s3://b/x': it is written to"):
        make_config(source="list.txt", image_size=["8x8", "8x16"], **{name: "s3://b/x"})


def test_an_endpoint_on_which_the_library_panics_is_said_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("obstore")
    given = {"endpoint": f"http://user:{SECRET}@a host", "anonymous": "true", "region": "us-east-1"}
    monkeypatch.setattr(client, "_given", given)
    monkeypatch.setattr(client, "_stores", OrderedDict())
    for ask in (lambda: client.head("s3://b/k"), lambda: next(listing("s3://b/"))):
        with pytest.raises(ManifestError, match=r"InvalidUri.*check the endpoint and the credentials") as caught:
            ask()
        assert SECRET not in str(caught.value)
    monkeypatch.setattr(client, "_given", {"imdsv1_fallback": SECRET})
    with pytest.raises(ConfigError, match=r'cannot read s3://c: .*failed to parse "\.\.\." as boolean'):
        client.store_of("s3://c")


@pytest.mark.parametrize("root", ["https://h/images?sig=" + SECRET, "HTTPS://h/images#" + SECRET])
def test_a_root_with_a_query_is_refused(root: str) -> None:
    with pytest.raises(ConfigError, match=r"no path can be put behind its query") as caught:
        make_config(source="list.txt", root=root)
    assert SECRET not in str(caught.value)
    assert make_config(source="list.txt", root="s3://b/what?#").root == "s3://b/what?#"


def test_profiles_are_asked_for_where_there_are_no_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_WEB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    assert wanted_profile("s3://b", {}) is None
    assert wanted_profile("s3://b", {"profile": "team"}) == "team"
    assert wanted_profile("gs://b", {"profile": "team"}) is None
    assert wanted_profile("s3://b", {"profile": "team", "aws_access_key_id": "a"}) is None
    monkeypatch.setenv("AWS_PROFILE", "mine")
    assert wanted_profile("s3://b", {}) == "mine"
    assert wanted_profile("s3://b", {"anonymous": "true"}) is None
    monkeypatch.delenv("AWS_PROFILE")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    (tmp_path / "credentials").write_text("[default]\n")
    pytest.importorskip("boto3")
    assert wanted_profile("s3://b", {}) == ""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    assert wanted_profile("s3://b", {}) is None
