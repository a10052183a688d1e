"""The daemon's log as JSON, an object a line, for those who collect logs: `prefetchd serve --log-format json`."""

from __future__ import annotations

import datetime
import json
import logging


class JsonFormatter(logging.Formatter):
    """One object a record: `time` (ISO 8601, UTC), `level`, `daemon`, `pid`, `message`, and `detail` if there is any.

    A record's first line is its message; what follows, such as the traceback of a user's function, is its detail.
    """

    def __init__(self, daemon: str) -> None:
        super().__init__()
        self._daemon = daemon

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        message, _, detail = record.getMessage().partition("\n")
        if record.exc_info:
            detail = "\n".join(filter(None, (detail, self.formatException(record.exc_info))))
        when = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        entry = {
            "time": when.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "daemon": self._daemon,
            "pid": record.process,
            "message": message,
        }
        if detail:
            entry["detail"] = detail
        return json.dumps(entry, ensure_ascii=False)
