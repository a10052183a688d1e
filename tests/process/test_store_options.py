"""Credentials and options of stores, from the option, the file and profiles; and that they stay secret."""

from __future__ import annotations

import itertools
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import prefetchd
from prefetchd.errors import ConfigError, ManifestError
from tests.process.commands import run_command
from tests.process.test_stores import assert_equal, batches
from tests.records import jpeg, write_tar
from tests.servers.s3 import S3Server
from tests.servers.web import WebFault, WebServer

pytest.importorskip("obstore")
pytest.importorskip("moto.server")

SECRET = "hidden-secret-1"
KEYS = {"access_key_id": "AKIATESTTESTTESTTEST", "secret_access_key": SECRET}
IMAGES = 8


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("served")
    bucket = home / "data"
    (bucket / "train" / "a").mkdir(parents=True)
    for number in range(IMAGES):
        (bucket / "train" / "a" / f"{number}.jpg").write_bytes(jpeg(number))
    (bucket / "list.txt").write_text("".join(f"train/a/{number}.jpg {number}\n" for number in range(IMAGES)))
    write_tar(bucket / "a.tar", [(f"{number}.jpg", jpeg(number)) for number in range(IMAGES)])
    return home


@pytest.fixture(scope="module")
def moto(home: Path) -> Iterator[S3Server]:
    with S3Server() as server:
        server.fill("data", home / "data")
        server.fill("open-data", home / "data", is_public=True)
        server.fill("odd", home / "none")
        server.put("odd", "a//b.jpg", jpeg(0))
        yield server


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """No credentials but those that a test gives."""
    for name in os.environ:
        if name.startswith(("AWS_", "AZURE_", "GOOGLE_")):
            monkeypatch.delenv(name)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, "/dev/null")


def at(server: S3Server | WebServer, **more: Any) -> dict[str, Any]:
    return {"endpoint": server.url, "region": "us-east-1", **more}


def test_options_files_and_profiles_give_the_same_batches(
    home: Path, moto: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = batches(str(home / "data" / "list.txt"))
    assert_equal(batches("s3://data/list.txt", store_options=at(moto, **KEYS)), expected)
    assert_equal(batches("s3://open-data/list.txt", store_options=at(moto, anonymous=True)), expected)
    profiles = tmp_path / "credentials"
    profiles.write_text(f"[team]\naws_access_key_id = AKIATESTTESTTESTTEST\naws_secret_access_key = {SECRET}\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(profiles))
    pytest.importorskip("boto3")
    assert_equal(batches("s3://data/list.txt", store_options=at(moto, profile="team")), expected)


def test_commands_take_them(home: Path, moto: S3Server, tmp_path: Path) -> None:
    given = [f"--store-option={key}={value}" for key, value in at(moto, **KEYS).items()]
    index = tmp_path / "a.idx"
    assert run_command("index", "s3://data/a.tar", "-o", index, *given).returncode == 0
    assert index.stat().st_size
    done = run_command("index", "s3://data/train/", "-o", index, *given)
    assert "neither .tar files nor a folder" in done.stderr, done.stderr
    done = run_command("verify", "s3://data/list.txt", "--json", *given)
    assert json.loads(done.stdout)["verified"] == IMAGES, done.stderr
    done = run_command("preview", "s3://data/train/", "-o", tmp_path / "p.png", "--image-size", 16, *given)
    assert done.returncode == 0, done.stderr
    toml = tmp_path / "p.toml"
    toml.write_text("[store]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in at(moto, **KEYS).items()))
    done = run_command("verify", "s3://data/a.tar", "--label-columns", 0, "--config", toml)
    assert done.returncode == 0, done.stderr


REFUSALS: dict[str, tuple[str, dict[str, Any], str]] = {
    "anonymous": ("s3://data/list.txt", {"anonymous": True}, "the store forbids to read it"),
    "anonymous listing": ("s3://data/train/", {"anonymous": True}, "the store forbids to read it"),
    "no such bucket": ("s3://none/list.txt", KEYS, "there is no such bucket; check its name"),
    "no such prefix": ("s3://data/none/", KEYS, "no object of this name, and none below it"),
    "a key with an empty part": ("s3://odd/", KEYS, 'it has "a//b.jpg", and no key with an empty part can be taken'),
    "unknown option": ("s3://data/list.txt", {**KEYS, "foo": SECRET}, "cannot use the store option foo"),
    "no switch": ("s3://data/list.txt", {"anonymous": SECRET}, "anonymous: it must be true or false"),
    "no profile": ("s3://data/list.txt", {"profile": "nobody"}, "cannot use the profile 'nobody' of AWS"),
    "no account": ("az://data/list.txt", {}, "set AZURE_STORAGE_ACCOUNT_NAME"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_is_wrong_is_said_in_a_line(case: str, moto: S3Server) -> None:
    source, given, words = REFUSALS[case]
    given = given if source.startswith("az") else at(moto, **given)
    with pytest.raises((ConfigError, ManifestError)) as caught:
        batches(source, store_options=given)
    assert words in str(caught.value)
    assert SECRET not in str(caught.value)


ANSWERS = {
    "InvalidAccessKeyId": (403, "the store does not know the access key"),
    "SignatureDoesNotMatch": (403, "the secret key does not belong to the access key"),
    "ExpiredToken": (400, "the session token has expired; renew"),
    "PermanentRedirect": (301, "the bucket is in another region; set AWS_REGION"),
    "AccessDenied": (403, "the store forbids to read it"),
}


@pytest.mark.parametrize("name", ANSWERS)
@pytest.mark.parametrize("source", ["s3://data/list.txt", "s3://data/a.tar", "s3://data/train/"])
def test_answers_about_credentials_are_said_in_a_line(name: str, source: str, home: Path) -> None:
    code, words = ANSWERS[name]
    with WebServer(home) as server:
        server.set_faults(WebFault("status", code=code, name=name, method=""))
        with pytest.raises(ManifestError) as caught:
            batches(source, store_options=at(server, **KEYS))
        assert server.requests().total < 8
    assert words in str(caught.value) or "status code: 403" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_token_that_expires_is_no_fault_of_a_sample(home: Path) -> None:
    with (
        WebServer(home) as server,
        prefetchd.batches(
            "s3://data/list.txt",
            batch_size=4,
            image_size=16,
            on_error="skip",
            num_workers=1,
            timeout=60,
            store_options=at(server, **KEYS),
        ) as loader,
    ):
        server.set_faults(WebFault("status", code=400, name="ExpiredToken"))
        with pytest.raises(prefetchd.SampleError, match="the session token has expired"):
            list(itertools.chain.from_iterable(itertools.repeat(loader, 200)))


def test_secrets_stay_with_the_daemon(serve: Any, moto: S3Server, tmp_path: Path) -> None:
    """Neither its log, nor what is told of it has one, wherever it was given."""
    toml = tmp_path / "p.toml"
    toml.write_text("[store]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in at(moto, **KEYS).items()))
    quick = ("--image-size", 16, "--batch-size", 4, "--num-workers", 1, "--on-error", "skip")
    daemon = serve("s3://data/list.txt", "--config", toml, *quick, name="secrets")
    texts = []
    with prefetchd.batches(daemon="secrets", timeout=60) as loader:
        list(loader)
        texts += [repr(loader), json.dumps(loader.state_dict()), json.dumps(loader.status()), repr(vars(loader))]
        for words in (("status", "secrets"), ("status", "secrets", "--json"), ("list",)):
            done = run_command(*words)
            texts += [done.stdout, done.stderr]
        texts.append(Path(f"/proc/{daemon.pid}/cmdline").read_text())
        os.kill(daemon.pid, signal.SIGKILL)
        with pytest.raises(prefetchd.DaemonLost) as caught:
            list(itertools.chain.from_iterable(itertools.repeat(loader, 100)))
        texts.append(str(caught.value))
    texts.append(daemon.log)
    assert len("".join(texts)) > 1000
    assert not [text for text in texts if SECRET in text]
