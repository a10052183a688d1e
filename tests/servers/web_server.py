"""The program behind `web.WebServer`: `python -m tests.servers.web_server FOLDER`. Prints its port, serves until EOF.

One thread and one event loop: a delay before the first byte costs nothing, so hundreds of requests may wait at once.
Objects are read as they are asked for, so that a test may replace a file while it is served.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fnmatch
import json
import os
import re
import signal
import socket
import struct
import sys
import time
import urllib.parse
from collections import Counter
from email.utils import formatdate
from typing import Any, NamedTuple
from xml.sax.saxutils import escape

REASONS = {200: "OK", 206: "Partial Content", 304: "Not Modified", 403: "Forbidden", 404: "Not Found"}
LISTED = 1000
USER = "Basic dXNlcjp3b3Jk"  # user:word
RANGE = re.compile(r"bytes=(\d*)-(\d*)$")


class Request(NamedTuple):
    method: str
    path: str  # decoded, without the query
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes


class Server:
    """The folder, the faults, and what was asked."""

    def __init__(self, folder: str, delay_s: float) -> None:
        self.folder = folder
        self.delay_s = delay_s
        self.faults: list[dict[str, Any]] = []
        self.by_path: Counter[str] = Counter()
        self.waiting = self.most_at_once = self.sent_bytes = 0

    def fault_for(self, request: Request) -> dict[str, Any] | None:
        """Return the first fault that is due, and count it."""
        for fault in self.faults:
            if fault["method"] not in ("", request.method) or not fnmatch.fnmatchcase(request.path, fault["path"]):
                continue
            fault["seen"] = fault.get("seen", 0) + 1
            if (fault["seen"] - 1) % fault["every"] or fault["times"] == 0:
                continue
            if fault["times"] is not None:
                fault["times"] -= 1
            return fault
        return None

    def control(self, request: Request) -> Any:
        """Do what a test asks for."""
        what = request.path.removeprefix("/-/")
        content = json.loads(request.body) if request.body else None
        if what == "faults":
            self.faults = content
        elif what == "delay":
            self.delay_s = content
        elif what == "forget":
            self.by_path.clear()
            self.most_at_once, self.sent_bytes = self.waiting, 0
        elif what == "requests":
            return {"by_path": self.by_path, "most_at_once": self.most_at_once, "sent_bytes": self.sent_bytes}
        return {}

    def listing(self, bucket: str, query: dict[str, str]) -> bytes:
        """Return ListObjectsV2's answer; a continuation token is the last key before it."""
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        after = query.get("continuation-token") or query.get("start-after", "")
        root = os.path.join(self.folder, bucket)
        keys = []
        for folder, _, names in os.walk(root):
            keys += [os.path.relpath(os.path.join(folder, name), root) for name in names]
        found: dict[str, bool] = {}  # whether it is a common prefix
        for key in sorted(keys):
            if key.startswith(prefix):
                end = key.find(delimiter, len(prefix)) if delimiter else -1
                found.setdefault(key if end < 0 else key[: end + len(delimiter)], end >= 0)
        most = min(LISTED, int(query.get("max-keys", LISTED)))
        rest = [each for each in found if each > after]
        page = rest[:most]
        parts = [f"<Name>{escape(bucket)}</Name><Prefix>{escape(prefix)}</Prefix><KeyCount>{len(page)}</KeyCount>"]
        parts.append(f"<MaxKeys>{most}</MaxKeys><IsTruncated>{str(len(rest) > most).lower()}</IsTruncated>")
        if len(rest) > most:
            parts.append(f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>")
        for each in page:
            if found[each]:
                parts.append(f"<CommonPrefixes><Prefix>{escape(each)}</Prefix></CommonPrefixes>")
                continue
            stat = os.stat(os.path.join(root, each))
            when = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(stat.st_mtime))
            parts.append(
                f"<Contents><Key>{escape(each)}</Key><LastModified>{when}</LastModified>"
                f"<ETag>{escape(etag_of(stat))}</ETag><Size>{stat.st_size}</Size>"
                "<StorageClass>STANDARD</StorageClass></Contents>"
            )
        namespace = "http://s3.amazonaws.com/doc/2006-03-01/"
        text = f'<?xml version="1.0"?><ListBucketResult xmlns="{namespace}">{"".join(parts)}</ListBucketResult>'
        return text.encode()


def etag_of(stat: os.stat_result) -> str:
    return f'"{stat.st_size:x}-{stat.st_mtime_ns:x}"'


def head_of(code: int, n_bytes: int, headers: dict[str, str]) -> bytes:
    lines = [f"HTTP/1.1 {code} {REASONS.get(code, 'Error')}"]
    lines += [f"{key}: {value}" for key, value in headers.items()]
    return ("\r\n".join(lines) + f"\r\nContent-Length: {n_bytes}\r\n\r\n").encode("latin-1")


class Connection(asyncio.Protocol):
    """One connection: requests are answered one after another."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._received = bytearray()
        self._is_busy = False
        self._socket = -1
        self._transport: Any = None

    def connection_made(self, transport: Any) -> None:
        connected = transport.get_extra_info("socket")
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        self._socket, self._transport = connected.fileno(), transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        self._next()

    def _next(self) -> None:
        end = self._received.find(b"\r\n\r\n")
        if self._is_busy or end < 0:
            return
        first, *lines = self._received[:end].decode("latin-1").split("\r\n")
        headers = {}
        for line in lines:
            key, _, value = line.partition(":")
            headers[key.strip().lower()] = value.strip()
        stop = end + 4 + int(headers.get("content-length", 0))
        if len(self._received) < stop:
            return
        body = bytes(self._received[end + 4 : stop])
        del self._received[:stop]
        method, target, _ = first.split(" ")
        target = "/" + target.partition("://")[2].partition("/")[2] if "://" in target.partition("?")[0] else target
        path, _, query = target.partition("?")
        pairs = dict(urllib.parse.parse_qsl(query, keep_blank_values=True))
        self._is_busy = True
        self._take(Request(method, urllib.parse.unquote(path), pairs, headers, body))

    def _take(self, request: Request) -> None:
        server = self._server
        if request.path.startswith("/-/"):
            self._send(200, json.dumps(server.control(request)).encode(), {}, request)
            return
        server.by_path[f"{request.method} {request.path}"] += 1
        server.waiting += 1
        server.most_at_once = max(server.most_at_once, server.waiting)
        fault = server.fault_for(request)
        delay_s = server.delay_s + (fault["delay_s"] if fault and fault["kind"] != "trickle" else 0)
        if delay_s:
            asyncio.get_running_loop().call_later(delay_s, self._answer, request, fault)
        else:
            self._answer(request, fault)

    def _answer(self, request: Request, fault: dict[str, Any] | None) -> None:
        kind = fault["kind"] if fault else ""
        if kind == "hang":
            return  # until the client ends the connection
        self._server.waiting -= 1
        if kind == "user" and request.headers.get("authorization") != USER:
            self._error(401, "Unauthorized", request)
        elif fault is not None and kind == "status":
            headers = {} if fault["retry_after_s"] is None else {"Retry-After": str(fault["retry_after_s"])}
            self._error(fault["code"], fault["name"], request, headers)
        elif fault is not None and kind in ("reset", "close") and fault["after_bytes"] < 0:
            self._end(kind)
        elif "list-type" in request.query:
            bucket = request.path.strip("/")
            if os.path.isdir(os.path.join(self._server.folder, bucket)):
                body = self._server.listing(bucket, request.query)
                self._send(200, body, {"Content-Type": "application/xml"}, request)
            else:
                self._error(404, "NoSuchBucket", request)
        elif request.method in ("GET", "HEAD"):
            self._object(request, fault)
        else:
            self._error(405, "MethodNotAllowed", request)

    def _object(self, request: Request, fault: dict[str, Any] | None) -> None:
        kind = fault["kind"] if fault else ""
        try:
            fd = os.open(os.path.join(self._server.folder, request.path.lstrip("/")), os.O_RDONLY)
        except OSError:
            self._error(404, "NoSuchKey", request)
            return
        try:
            stat = os.fstat(fd)
            size, etag = stat.st_size, '"another"' if kind == "etag" else etag_of(stat)
            etag = f"W/{etag}" if kind == "weak" else etag
            wanted = request.headers.get("if-match") if kind != "unconditional" else None
            if not os.path.isfile(f"/proc/self/fd/{fd}"):
                self._error(404, "NoSuchKey", request)
                return
            if wanted not in (None, "*", etag) or (wanted and kind == "weak"):
                self._error(412, "PreconditionFailed", request)
                return
            if request.headers.get("if-none-match") in ("*", etag):
                self._send(304, b"", {"ETag": etag}, request)
                return
            start, end, code = 0, size, 200
            match = RANGE.match(request.headers.get("range", "")) if kind != "whole" else None
            if match and match[0] != "bytes=-":
                if match[1]:
                    start, end = int(match[1]), min(size, int(match[2]) + 1) if match[2] else size
                else:
                    start = max(0, size - int(match[2]))
                if start >= size:
                    self._error(416, "InvalidRange", request, {"Content-Range": f"bytes */{size}"})
                    return
                code = 206
            if fault is not None and kind == "short":
                end = max(start, end - fault["missing_bytes"])
            if kind == "shifted":
                start, end = start + 1, min(size, end + 1)
            headers = {"Accept-Ranges": "bytes"}
            if kind != "no_identity":
                headers["Last-Modified"] = formatdate(stat.st_mtime, usegmt=True)
            if kind not in ("no_etag", "no_identity"):
                headers["ETag"] = etag
            if code == 206:
                headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
            if request.method == "HEAD":
                self._send(code, b"", headers, request, n_bytes=end - start)
                return
            if fault is None:
                self._send_file(code, fd, start, end - start, headers)
            else:
                self._send(code, os.pread(fd, end - start, start), headers, request, fault=fault)
        finally:
            os.close(fd)

    def _send_file(self, code: int, fd: int, start: int, n_bytes: int, headers: dict[str, str]) -> None:
        """Send a part of a file by the kernel, as far as the socket takes it: the server is to cost little."""
        self._transport.write(head_of(code, n_bytes, headers))
        sent = 0
        if not self._transport.get_write_buffer_size():
            with contextlib.suppress(OSError):  # it takes no more now, or the client is gone
                while sent < n_bytes:
                    sent += os.sendfile(self._socket, fd, start + sent, n_bytes - sent)
        if sent < n_bytes:
            self._transport.write(os.pread(fd, n_bytes - sent, start + sent))
        self._server.sent_bytes += n_bytes
        self._done()

    def _error(self, code: int, name: str, request: Request, headers: dict[str, str] | None = None) -> None:
        text = f'<?xml version="1.0"?><Error><Code>{name}</Code><Message>on demand</Message></Error>' if name else ""
        self._send(code, text.encode(), {"Content-Type": "application/xml", **(headers or {})}, request)

    def _send(
        self,
        code: int,
        body: bytes,
        headers: dict[str, str],
        request: Request,
        *,
        n_bytes: int | None = None,
        fault: dict[str, Any] | None = None,
    ) -> None:
        head = head_of(code, len(body) if n_bytes is None else n_bytes, headers)
        if request.method == "HEAD":
            body = b""
        kind = fault["kind"] if fault else ""
        if fault is not None and kind in ("reset", "close"):
            self._transport.write(head + body[: fault["after_bytes"]])
            # What was written must be on its way first: a reset throws away what waits.
            asyncio.get_running_loop().call_later(0.02, self._end, kind)
            return
        self._server.sent_bytes += len(body)
        if fault is not None and kind == "trickle":
            self._transport.write(head)
            self._trickle(body, 0, fault["delay_s"])
            return
        self._transport.write(head)
        self._transport.write(body)
        self._done()

    def _trickle(self, body: bytes, at: int, delay_s: float) -> None:
        if self._transport.is_closing():
            return
        if at == len(body):
            self._done()
            return
        self._transport.write(body[at : at + 1])
        asyncio.get_running_loop().call_later(delay_s, self._trickle, body, at + 1, delay_s)

    def _done(self) -> None:
        self._is_busy = False
        self._next()

    def _end(self, kind: str) -> None:
        if kind == "reset":
            linger = struct.pack("ii", 1, 0)
            self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self._transport.abort()
        else:
            self._transport.close()


async def serve(folder: str, delay_s: float) -> None:
    loop = asyncio.get_running_loop()
    server = Server(folder, delay_s)
    listener = await loop.create_server(lambda: Connection(server), "127.0.0.1", 0, backlog=1024)
    ended = asyncio.Event()
    await loop.connect_read_pipe(lambda: UntilEnd(ended), sys.stdin)
    print(listener.sockets[0].getsockname()[1], flush=True)
    await ended.wait()
    os._exit(0)  # open connections need no farewell


class UntilEnd(asyncio.Protocol):
    """Sets an event when the standard input ends."""

    def __init__(self, ended: asyncio.Event) -> None:
        self._ended = ended

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self._ended.set()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--delay-s", type=float, default=0.0)
    arguments = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the test: this ends with its standard input
    asyncio.run(serve(arguments.folder, arguments.delay_s))


if __name__ == "__main__":
    main()
