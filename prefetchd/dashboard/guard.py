"""Who may ask the dashboard what: an ASGI layer around the whole application.

    request -> only GET -> a Host that is ours -> not from another site's page -> this user, or the token -> application

A page of another site can make a browser send requests here, and a name server can make a name of that site mean this
machine (DNS rebinding). So the Host header must be an address or a name that this machine is known by, and browsers say
themselves (`Sec-Fetch-Site`) whether another site asks. Without a token only processes of this user may ask, as the
kernel tells whose a connection on this machine is. Every answer forbids scripts, styles and images of others.
"""

from __future__ import annotations

import functools
import hashlib
import hmac
import ipaddress
import os
import urllib.parse
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.responses import PlainTextResponse, RedirectResponse, Response

from prefetchd.dashboard.peer_user import peer_user

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_SECURE = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}
_OPEN_TO_ALL = "/static/"  # the page that asks for the token needs its style
_COOKIE_S = 30 * 24 * 3600


@dataclass(frozen=True)
class Guard:
    """Answers what must not reach the application `app`.

    Args:
        app: the application.
        hosts: names, in lower case, that the Host header may have besides addresses.
        port: on which it listens; part of the cookie's name, as browsers share cookies between ports.
        token: what must be shown; `None` where only this user's processes may ask.
        ask_token: returns the page that asks for it, given whether one was shown that is wrong.
        user_of: returns the user id of the process at the other end of a connection, given both ends' addresses.
    """

    app: ASGIApp
    hosts: Collection[str]
    port: int
    token: str | None
    ask_token: Callable[[bool], Response]
    user_of: Callable[[tuple[str, int], tuple[str, int]], int | None] = field(default=peer_user)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer it."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        answer = self._refusal(scope) or self.app
        await answer(scope, receive, functools.partial(_send_securely, send))

    def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        if scope["method"] not in ("GET", "HEAD"):
            return PlainTextResponse("the dashboard only shows: GET is its one method\n", 405, {"allow": "GET, HEAD"})
        if not self._is_ours(headers.getlist("host")):
            return PlainTextResponse(
                "cannot answer for this host name: the dashboard knows its machine by other names; open it by an "
                "address, or start it with --allow-host NAME\n",
                403,
            )
        if not _is_wanted(headers):
            return PlainTextResponse("cannot answer a page of another site; open the dashboard itself\n", 403)
        if scope["path"].startswith(_OPEN_TO_ALL):
            return None
        return self._refuse_stranger(scope) if self.token is None else self._refuse_without_token(scope, headers)

    def _is_ours(self, hosts: list[str]) -> bool:
        """Return whether the one Host is an address or a name of this machine; the port may be a tunnel's."""
        if len(hosts) != 1:
            return False
        try:
            name = urllib.parse.urlsplit(f"//{hosts[0]}").hostname or ""
        except ValueError:
            return False
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name in self.hosts
        return True

    def _refuse_stranger(self, scope: Scope) -> Response | None:
        client, server = scope.get("client"), scope.get("server")
        user = self.user_of(tuple(client), tuple(server)) if client and server else None
        if user in (os.getuid(), 0):
            return None
        return PlainTextResponse(
            "cannot show this to you: it is another user's dashboard; its owner can start it with --token-file\n", 403
        )

    def _refuse_without_token(self, scope: Scope, headers: Headers) -> Response | None:
        assert self.token is not None
        shown = urllib.parse.parse_qs(scope["query_string"].decode("latin-1"), keep_blank_values=True).get("token")
        if shown is not None:
            if not _same(shown[-1].strip(), self.token):
                return self.ask_token(True)
            # Out of the address, so that it is in no history, and no link that is passed on.
            kept = [
                pair for pair in urllib.parse.parse_qsl(scope["query_string"].decode("latin-1")) if pair[0] != "token"
            ]
            query = urllib.parse.urlencode(kept)
            path = "/" + urllib.parse.quote(scope["path"].lstrip("/"))
            response = RedirectResponse(path + (f"?{query}" if query else ""), 303)
            response.set_cookie(
                self._cookie_name, self._cookie, max_age=_COOKIE_S, httponly=True, samesite="strict", path="/"
            )
            return response
        bearer = headers.get("authorization", "").removeprefix("Bearer ").strip()
        cookie = cookie_parser(headers.get("cookie", "")).get(self._cookie_name, "")
        if _same(bearer, self.token) or _same(cookie, self._cookie):
            return None
        return self.ask_token(bool(bearer))

    @property
    def _cookie_name(self) -> str:
        return f"prefetchd-{self.port}"

    @property
    def _cookie(self) -> str:
        """What the browser keeps: it proves the token, and does not tell it."""
        assert self.token is not None
        return hashlib.blake2b(b"dashboard cookie", key=self.token.encode()[:64], digest_size=32).hexdigest()


def _is_wanted(headers: Headers) -> bool:
    """Return whether the dashboard itself asks, or a person who follows a link; programs send no such header."""
    if headers.get("sec-fetch-site", "none") in ("none", "same-origin"):
        return True
    return headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"


def _same(shown: str, secret: str) -> bool:
    return hmac.compare_digest(shown.encode("utf-8", "replace"), secret.encode())


async def _send_securely(send: Send, message: Message) -> None:
    """Send a message of an answer, its start with the headers that forbid browsers what the page never does."""
    if message["type"] == "http.response.start":
        headers = MutableHeaders(scope=message)
        for name, value in _SECURE.items():
            headers[name] = value
        headers.setdefault("cache-control", "no-store")
    await send(message)
