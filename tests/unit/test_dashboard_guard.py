"""Who may ask the dashboard: methods, host names, pages of other sites, users and tokens; what each answer forbids."""

from __future__ import annotations

import os
import socket
import stat
from typing import Any

import pytest

pytest.importorskip("httpx")
pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from prefetchd.dashboard.app import Api, make_app
from prefetchd.dashboard.guard import Guard
from prefetchd.dashboard.peer_user import peer_user
from prefetchd.dashboard.token_file import read_token
from prefetchd.dashboard.watch import Watcher
from prefetchd.errors import ConfigError

TOKEN = "a-secret-of-some-length"
ENDED: list[str] = []


class EndedApi(Api):
    """Notes its end."""

    def close(self) -> None:
        ENDED.append("ended")
        super().close()


def client(
    token: str | None = None, *, user: int | None = None, host: str = "localhost:8790", hosts: tuple[str, ...] = ()
) -> TestClient:
    """Return a client of the application whose peer is a process of `user`; of this user by default."""
    app: Any = make_app(EndedApi(Watcher(ask=list)), {"localhost", *hosts}, 8790, token)
    assert isinstance(app, Guard)
    asker = os.getuid() if user is None else user
    guard = Guard(app.app, app.hosts, app.port, app.token, app.ask_token, lambda *_: asker if asker >= 0 else None)
    return TestClient(guard, base_url=f"http://{host}", follow_redirects=False)


def test_pages_and_answers_forbid_what_the_page_never_does():
    for path in ("/", "/static/live.js", "/api/live", "/nowhere"):
        headers = client().get(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "script-src 'self';" in policy
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert "access-control-allow-origin" not in headers


@pytest.mark.parametrize("number", ["-1", "1.5", "x", "9" * 5000])
def test_address_of_a_batch_that_is_none_has_no_page(number: str):
    assert client().get("/batch/-/3/1041").status_code == 200
    assert client().get(f"/batch/-/{number}/1").status_code == 404
    assert client().get(f"/batch/-/1/{number}").status_code == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_only_get_is_answered(method: str):
    answer = client().request(method, "/api/live", headers={"origin": "http://localhost:8790"})
    assert answer.status_code == 405
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("host", ["localhost:8790", "LOCALHOST", "127.0.0.1:1", "[::1]:8790", "10.0.0.7:8790", "box:9"])
def test_names_and_addresses_of_this_machine_are_answered(host: str):
    assert client(hosts=("box",)).get("/", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example:8790", "", "a b", "["]
)
def test_another_host_name_is_refused(host: str):
    answer = client().get("/api/live", headers={"host": host})
    assert answer.status_code == 403
    assert "--allow-host" in answer.text


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"sec-fetch-site": "same-origin", "sec-fetch-mode": "cors", "sec-fetch-dest": "empty"}, 200),
        ({"sec-fetch-site": "none", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}, 200),
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}, 200),
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "iframe"}, 403),
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors", "sec-fetch-dest": "image"}, 403),
        ({"sec-fetch-site": "same-site", "sec-fetch-mode": "cors", "sec-fetch-dest": "empty"}, 403),
    ],
)
def test_what_a_page_of_another_site_asks_for_is_refused_but_a_link_is_followed(headers: dict[str, str], status: int):
    assert client().get("/api/live", headers=headers).status_code == status


def test_another_user_of_the_machine_is_refused_and_so_is_one_who_is_unknown():
    assert client().get("/api/live").status_code == 200
    assert client(user=0).get("/api/live").status_code == 200
    for user in (os.getuid() + 1, -1):
        answer = client(user=user).get("/")
        assert answer.status_code == 403
        assert "--token-file" in answer.text


def test_token_opens_the_page_and_is_out_of_the_address():
    browser = client(TOKEN, user=os.getuid() + 1)
    assert browser.get("/api/live").status_code == 401
    assert 'name="token"' in browser.get("/").text
    answer = browser.get(f"/data/x?daemon=a%26b&token={TOKEN}")
    assert answer.status_code == 303
    assert answer.headers["location"] == "/data/x?daemon=a%26b"
    cookie = answer.headers["set-cookie"]
    assert TOKEN not in cookie
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert browser.get("/api/live").status_code == 200
    assert browser.get("/").status_code == 200


def test_redirect_stays_on_this_machine():
    answer = client(TOKEN).get(f"http://localhost:8790//evil.example/?token={TOKEN}")
    assert answer.headers["location"] == "/evil.example/"


@pytest.mark.parametrize("shown", ["", "wrong", TOKEN[:-1], TOKEN + "x", "é", TOKEN.upper()])
def test_wrong_token_is_refused_however_it_is_shown(shown: str):
    browser = client(TOKEN)
    answer = browser.get("/", params={"token": shown})
    assert answer.status_code == 401
    assert "Wrong token" in answer.text
    assert "set-cookie" not in answer.headers
    assert browser.get("/api/live", headers={"authorization": f"Bearer {shown}".encode()}).status_code == 401
    assert browser.get("/api/live", headers={"cookie": f"prefetchd-8790={shown}".encode()}).status_code == 401


def test_programs_show_the_token_in_a_header():
    assert client(TOKEN).get("/api/live", headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200


def test_static_files_are_those_of_the_package_alone():
    browser = client()
    assert browser.get("/static/live.js").headers["content-type"].startswith("text/javascript")
    for name in ("nothing.js", "..%2fapp.py", "%2e%2e%2fguard.py", ".css", "live.py", "a%00.js"):
        assert browser.get(f"/static/{name}").status_code == 404, name


def test_a_web_socket_is_not_accepted():
    with pytest.raises(WebSocketDisconnect), client().websocket_connect("/"):
        pass


def test_server_ends_what_it_began():
    with client() as browser:
        assert browser.get("/").status_code == 200
    assert ENDED.pop() == "ended"


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_kernel_tells_whose_a_connection_is(address: str):
    try:
        listener = socket.create_server((address, 0), family=socket.AF_INET6 if ":" in address else socket.AF_INET)
    except OSError:
        pytest.skip("this machine has no such address")
    with listener, socket.create_connection(listener.getsockname()[:2]) as sock:
        ours, theirs = sock.getsockname()[:2], listener.getsockname()[:2]
        assert peer_user(ours, theirs) == os.getuid()
        assert peer_user(ours, (theirs[0], theirs[1] ^ 1)) is None
    assert peer_user(("not an address", 1), ("127.0.0.1", 2)) is None


def test_token_file_is_made_for_its_owner_alone_and_read_again(tmp_path):
    path = tmp_path / "token"
    token = read_token(str(path))
    assert len(token) >= 24
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_token(str(path)) == token


@pytest.mark.parametrize(
    "content", ["", "short", "two words that are long", "ünïcode-token-of-length", "x" * 20 + "\n\n" + "y"]
)
def test_token_that_is_none_is_refused(tmp_path, content):
    path = tmp_path / "token"
    path.write_text(content)
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="one word of at least"):
        read_token(str(path))


def test_token_file_that_others_may_read_is_refused(tmp_path):
    path = tmp_path / "token"
    path.write_text(TOKEN)
    path.chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        read_token(str(path))
    with pytest.raises(ConfigError, match="cannot make"):
        read_token(str(tmp_path / "no" / "token"))
    with pytest.raises(ConfigError, match="cannot"):
        read_token(str(tmp_path))
