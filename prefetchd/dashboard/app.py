"""The application: pages, their scripts and styles, and what the pages ask for. Each answer is made of plain values.

    /  /batch/DATASET/EPOCH/BATCH  /data/DATASET     pages, the same for everybody: their scripts fill them in
    /api/...                                         JSON; a failure is {"error": "cannot X: Y; do Z"}
    /static/...                                      scripts, styles and icons of this package

Nothing that comes from data, such as a path or a label, is ever part of HTML: pages show it by `textContent` alone.
"""

from __future__ import annotations

import contextlib
import importlib.resources
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.convertors import Convertor, register_url_convertor
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from prefetchd.client.admin import bad_samples
from prefetchd.dashboard.batches import Batches
from prefetchd.dashboard.data import DataBrowser
from prefetchd.dashboard.findings import FindingsFiles
from prefetchd.dashboard.guard import Guard
from prefetchd.dashboard.index import Index
from prefetchd.dashboard.inspector import Inspector
from prefetchd.dashboard.live import live_page
from prefetchd.dashboard.query import number, text
from prefetchd.dashboard.watch import Watched, Watcher
from prefetchd.errors import ConfigError, PrefetchdError

if TYPE_CHECKING:
    from collections.abc import Collection

    from starlette.requests import Request
    from starlette.types import ASGIApp

_KINDS = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml", "html": "text/html"}
_STATIC = importlib.resources.files("prefetchd.dashboard") / "static"


def static_file(name: str, status: int = 200) -> Response | None:
    """Return a file of the package; `None` if there is none of that name."""
    kind = _KINDS.get(name.rpartition(".")[2])
    if kind is None or not name.replace(".", "").replace("-", "").isalnum():
        return None
    try:
        content = (_STATIC / name).read_bytes()
    except OSError:
        return None
    return Response(content, status, {"cache-control": "no-cache"}, f"{kind}; charset=utf-8")


def page(name: str, status: int = 200) -> Response:
    """Return a page of the package."""
    found = static_file(name, status)
    assert found is not None, name
    return found


class _Place(Convertor[int]):
    """A number of an epoch or a batch; of more digits than that there is no page."""

    regex = "[0-9]{1,16}"

    def convert(self, value: str) -> int:
        return int(value)

    def to_string(self, value: int) -> str:
        return str(value)


register_url_convertor("place", _Place())


class Api:
    """Answers what the pages ask for.

    Args:
        watcher: the daemons; owned.
        findings: what verifications have found.

    Attributes:
        inspector: answers what the pages of batches ask.
        data: answers what the page of data asks.
    """

    def __init__(self, watcher: Watcher, findings: FindingsFiles | None = None) -> None:
        self._watcher = watcher
        self._index = Index()
        self.inspector = Inspector(self.daemon, Batches(), self._index)
        self.data = DataBrowser(self.inspector.served, self._index, findings or FindingsFiles({}))

    def close(self) -> None:
        """End what it owns."""
        self._watcher.close()
        self._index.close()

    def live(self, request: Request) -> Any:
        """Return what the live page shows."""
        key = request.query_params.get("daemon")

        def show(watched: list[Watched]) -> Any:
            found = [each for each in watched if key is None or each.key == key]
            return live_page(watched, found[0] if found else None, self._watcher.clock())

        return self._watcher.look(show)

    def bad(self, request: Request) -> Any:
        """Return some bad samples of a data set, from number `first` of them on."""
        found = bad_samples(self.daemon(request), text(request, "dataset", ""), number(request, "first", 0))
        return {
            "n_bad": found.n_bad,
            "n_remembered": found.n_remembered,
            "samples": [
                {"sample_id": sample_id, "where": where, "reason": reason} for sample_id, where, reason in found.samples
            ],
        }

    def daemon(self, request: Request) -> str | int:
        """Return the name or pid of the daemon that a request names.

        Raises:
            ConfigError: if there is none.
        """
        key = request.query_params.get("daemon", "")
        found = self._watcher.daemon_of(key)
        if found is None:
            raise ConfigError(
                f"cannot show the daemon {key!r}: none of that name is running; start it, or choose another"
            )
        return found


def make_app(api: Api, hosts: Collection[str], port: int, token: str | None) -> ASGIApp:
    """Return the whole application, behind its guard.

    Args:
        api: what the pages ask; it ends with the server.
        hosts: names, besides addresses, that browsers may call this machine.
        port: on which it listens.
        token: that must be shown; `None` where only this user may ask.
    """

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        try:
            yield
        finally:
            await run_in_threadpool(api.close)

    routes = [
        Route("/", _shows("live.html")),
        Route("/batch", _shows("batch.html")),
        Route("/batch/{dataset}/{epoch:place}/{batch:place}", _shows("batch.html")),
        Route("/data", _shows("data.html")),
        Route("/data/{dataset}", _shows("data.html")),
        Route("/static/{name}", _static),
        Route("/api/live", _answers(api.live)),
        Route("/api/bad", _answers(api.bad)),
        Route("/api/batch", _answers(api.inspector.batch)),
        Route("/api/picture", _answers(api.inspector.picture)),
        Route("/api/thumbnail", _answers(api.inspector.thumbnail)),
        Route("/api/places", _answers(api.inspector.places)),
        Route("/api/search", _answers(api.inspector.search)),
        Route("/api/data", _answers(api.data.data)),
    ]
    app = Starlette(routes=routes, lifespan=lifespan, exception_handlers={404: _not_found})
    return Guard(app, hosts, port, token, lambda is_wrong: page("token-wrong.html" if is_wrong else "token.html", 401))


def _shows(name: str) -> Callable[[Request], Any]:
    async def show(_: Request) -> Response:
        return page(name)

    return show


async def _static(request: Request) -> Response:
    return static_file(request.path_params["name"]) or page("not-found.html", 404)


async def _not_found(_: Request, __: Exception) -> Response:
    return page("not-found.html", 404)


def _answers(ask: Callable[[Request], Any]) -> Callable[[Request], Any]:
    """Return a handler that asks in a thread, and answers with JSON or the reason why not."""

    async def answer(request: Request) -> Response:
        try:
            found = await run_in_threadpool(ask, request)
        except PrefetchdError as error:
            return JSONResponse({"error": str(error)}, 409)
        except OSError as error:  # such as without a free descriptor
            return JSONResponse({"error": f"cannot answer: {error.strerror or error}; try again"}, 503)
        return found if isinstance(found, Response) else JSONResponse(found)

    return answer
