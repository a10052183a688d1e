"""The servers of the tests do what they say: objects, ranges, listings, faults and delays; and they leave nothing."""

from __future__ import annotations

import concurrent.futures
import http.client
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers import azure, nginx
from tests.servers.web import WebFault, WebServer

CONTENT = bytes(range(256)) * 8


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the bucket `b` of three objects."""
    bucket = tmp_path / "served" / "b"
    (bucket / "deep").mkdir(parents=True)
    for name in ("a.bin", "b.bin", "deep/c.bin"):
        (bucket / name).write_bytes(CONTENT)
    return bucket.parent


@pytest.fixture
def server(folder: Path) -> Iterator[WebServer]:
    with WebServer(folder) as started:
        yield started


def get(url: str, **headers: str) -> tuple[int, bytes, dict[str, str]]:
    request = urllib.request.Request(url, headers={key.replace("_", "-"): value for key, value in headers.items()})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.read(), dict(answer.headers)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read(), dict(error.headers)


def test_the_web_server_has_ranges_and_etags(server: WebServer) -> None:
    url = f"{server.url}/b/a.bin"
    code, body, headers = get(url)
    assert (code, body) == (200, CONTENT)
    assert get(url, Range="bytes=3-9")[:2] == (206, CONTENT[3:10])
    assert get(url, Range="bytes=2040-9999")[2]["Content-Range"] == "bytes 2040-2047/2048"
    assert get(url, Range="bytes=-4")[1] == CONTENT[-4:]
    assert get(url, Range="bytes=2048-")[0] == 416
    assert get(url, If_Match=headers["ETag"])[0] == 200
    assert get(url, If_Match='"other"')[0] == 412
    assert get(f"{server.url}/b/no.bin")[0] == 404
    requests = server.requests()
    assert requests.of("GET /b/a.bin") == 7
    assert requests.total == 8


def test_the_web_server_lists_as_s3(server: WebServer) -> None:
    boto3 = pytest.importorskip("boto3")
    client = boto3.client(
        "s3", endpoint_url=server.url, region_name="us-east-1", aws_access_key_id="k", aws_secret_access_key="s"
    )
    try:
        pages = client.get_paginator("list_objects_v2").paginate(Bucket="b", PaginationConfig={"PageSize": 2})
        assert [each["Key"] for page in pages for each in page["Contents"]] == ["a.bin", "b.bin", "deep/c.bin"]
        top = client.list_objects_v2(Bucket="b", Delimiter="/")
        assert [each["Prefix"] for each in top["CommonPrefixes"]] == ["deep/"]
        assert client.get_object(Bucket="b", Key="deep/c.bin", Range="bytes=0-1")["Body"].read() == CONTENT[:2]
    finally:
        client.close()


def test_faults_are_of_their_requests_and_then_over(server: WebServer) -> None:
    url = f"{server.url}/b/a.bin"
    server.set_faults(WebFault("status", path="/b/a.*", times=2, name="SlowDown", retry_after_s=1))
    code, body, headers = get(url)
    assert (code, headers["Retry-After"]) == (503, "1")
    assert b"SlowDown" in body
    assert get(f"{server.url}/b/b.bin")[0] == 200
    assert get(url)[0] == 503
    assert get(url)[0] == 200
    server.set_faults(WebFault("short", missing_bytes=5))
    assert get(url, Range="bytes=0-9")[1] == CONTENT[:5]
    server.set_faults(WebFault("whole"))
    assert get(url, Range="bytes=0-9")[:2] == (200, CONTENT)
    server.set_faults(WebFault("shifted"))
    assert get(url, Range="bytes=0-9")[1] == CONTENT[1:11]
    server.set_faults(WebFault("etag"))
    assert get(url)[2]["ETag"] == '"another"'
    server.set_faults(WebFault("trickle", delay_s=0.001))
    assert get(url, Range="bytes=0-9")[1] == CONTENT[:10]


@pytest.mark.parametrize(
    ("fault", "raised"),
    [
        (WebFault("reset", after_bytes=100), ConnectionResetError),
        (WebFault("close", after_bytes=100), http.client.IncompleteRead),
        (WebFault("reset", after_bytes=-1), (urllib.error.URLError, ConnectionResetError)),
    ],
)
def test_connections_end_in_mid_body(server: WebServer, fault: WebFault, raised: type[Exception]) -> None:
    server.set_faults(fault)
    with pytest.raises(raised):
        get(f"{server.url}/b/a.bin")


def test_many_requests_wait_for_the_first_byte_together(server: WebServer) -> None:
    server.set_delay(0.5)
    with concurrent.futures.ThreadPoolExecutor(80) as threads:
        found = list(threads.map(get, [f"{server.url}/b/a.bin"] * 80))
    assert [each[1] for each in found] == [CONTENT] * 80
    assert server.requests().most_at_once >= 64


def test_a_request_may_never_be_answered(server: WebServer) -> None:
    server.set_faults(WebFault("hang", times=1))
    with socket.create_connection(("127.0.0.1", server.port), 0.2) as asking:
        asking.sendall(b"GET /b/a.bin HTTP/1.1\r\nHost: b\r\n\r\n")
        with pytest.raises(TimeoutError):
            asking.recv(1)


def test_the_s3_server_checks_if_match_and_who_asks(folder: Path) -> None:
    pytest.importorskip("moto.server")
    from tests.servers.s3 import S3Server

    with S3Server() as server:
        server.fill("private", folder / "b")
        server.fill("public", folder / "b", is_public=True)
        client = server.client()
        try:
            found = client.get_object(Bucket="private", Key="deep/c.bin", Range="bytes=1-2")
            assert found["Body"].read() == CONTENT[1:3]
            server.put("private", "deep/c.bin", b"new")
            with pytest.raises(client.exceptions.ClientError, match="PreconditionFailed"):
                client.get_object(Bucket="private", Key="deep/c.bin", IfMatch=found["ETag"])
        finally:
            client.close()
        assert get(f"{server.url}/public/a.bin")[1] == CONTENT
        assert get(f"{server.url}/private/a.bin")[0] == 403


@pytest.mark.skipif(bool(nginx.MISSING), reason=nginx.MISSING)
def test_nginx_serves_ranges_over_tls(folder: Path) -> None:
    with nginx.Nginx(folder) as server:
        context = ssl.create_default_context(cafile=str(server.ca_path))
        request = urllib.request.Request(f"{server.url}/b/a.bin", headers={"Range": "bytes=3-9"})
        with urllib.request.urlopen(request, timeout=10, context=context) as answer:
            assert (answer.status, answer.read()) == (206, CONTENT[3:10])
        with pytest.raises(urllib.error.URLError, match="certificate"):
            urllib.request.urlopen(request, timeout=10)
        deadline_s = time.monotonic() + 10
        while not server.requests() and time.monotonic() < deadline_s:
            time.sleep(0.01)
        assert "/b/a.bin" in server.requests()[0]
        home = server.ca_path.parent
    assert not home.exists()


@pytest.mark.skipif(bool(azure.MISSING), reason=azure.MISSING)
def test_azurite_has_ranges_and_etags(folder: Path) -> None:
    obstore = pytest.importorskip("obstore")
    from obstore.store import AzureStore

    with azure.Azurite() as server:
        server.fill("container", folder / "b")
        store = AzureStore(
            "container",
            account_name=azure.ACCOUNT,
            account_key=azure.KEY,
            endpoint=server.url,
            client_options={"allow_http": True},
        )
        assert bytes(obstore.get_range(store, "deep/c.bin", start=1, end=3)) == CONTENT[1:3]
        with pytest.raises(obstore.exceptions.PreconditionError):
            obstore.get(store, "a.bin", options={"if_match": '"other"'})
