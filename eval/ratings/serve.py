"""A server for one page, on this machine alone: it gives the sheet and appends the ratings that come back.

The address has a secret, so that other users of the machine and other pages of the browser cannot rate; requests under
another host name, as after DNS rebinding, are refused.
"""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from eval.errors import UserError
from eval.ratings.page import render_sheet
from eval.ratings.sheet import Answer, Sheet, SheetFile

_MAX_BODY = 1 << 16


class RatingServer(ThreadingHTTPServer):
    """Serves a sheet to one rater.

    Args:
        port: 0 takes a free one.

    Raises:
        UserError: The port is taken.
    """

    def __init__(self, sheet: Sheet, file: SheetFile, rater: str, *, with_references: bool, port: int = 0) -> None:
        self.sheet, self.file, self.rater, self.with_references = sheet, file, rater, with_references
        self.cards = sheet.cards(rater)
        # Browsers open connections that they may never use, so each has a thread; ratings are written one by one.
        self.writing = threading.Lock()
        self.key = secrets.token_urlsafe(16)
        try:
            super().__init__(("127.0.0.1", port), _Handler)
        except OSError as error:
            raise UserError(f"port {port}: {error.strerror or error}; give another --port, or none") from error

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/{self.key}/"

    def card(self, content: Any) -> tuple[list[Answer], dict[str, int]]:
        """Return the answers of the card that a request rates, and the ratings.

        Raises:
            ValueError: There is no such card or scale, or a rating is none.
        """
        if not isinstance(content, dict) or content.keys() != {"screen", "card", "ratings"}:
            raise ValueError("not a rating")
        screen, card, ratings = content["screen"], content["card"], content["ratings"]
        if not (_is_index(screen, self.cards) and _is_index(card, self.cards[screen]) and isinstance(ratings, dict)):
            raise ValueError("no such answer")
        scales = {scale.name: scale for scale in self.sheet.scales}
        for name, value in ratings.items():
            if name not in scales or type(value) is not int or not scales[name].low <= value <= scales[name].high:
                raise ValueError("no such rating")
        return self.cards[screen][card], ratings


def _is_index(value: Any, items: list[Any]) -> bool:
    return type(value) is int and 0 <= value < len(items)


class _Handler(BaseHTTPRequestHandler):
    server: RatingServer
    timeout = 30

    def do_GET(self) -> None:
        if self._is_refused("/"):
            return
        page, policy = render_sheet(
            self.server.sheet, self.server.file, self.server.rater, with_references=self.server.with_references
        )
        headers = {"Content-Type": "text/html; charset=utf-8", "Content-Security-Policy": policy}
        self._reply(HTTPStatus.OK, page, headers)

    def do_POST(self) -> None:
        if self._is_refused("/rate"):
            return
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > _MAX_BODY:
            self._reply(HTTPStatus.BAD_REQUEST, "too long")
            return
        try:
            answers, ratings = self.server.card(json.loads(self.rfile.read(int(length))))
            with self.server.writing:
                self.server.file.rate(answers, self.server.rater, ratings)
        except UserError as error:
            self._reply(HTTPStatus.INSUFFICIENT_STORAGE, str(error))
        except (ValueError, RecursionError) as error:
            self._reply(HTTPStatus.BAD_REQUEST, str(error))
        else:
            self._reply(HTTPStatus.NO_CONTENT, "")

    def _is_refused(self, path: str) -> bool:
        known = self.headers.get("Host") in {f"{name}:{self.server.server_port}" for name in ("127.0.0.1", "localhost")}
        if known and secrets.compare_digest(self.path.encode(), f"/{self.server.key}{path}".encode()):
            return False
        self._reply(HTTPStatus.NOT_FOUND, "not here")
        return True

    def _reply(self, status: HTTPStatus, text: str, headers: Mapping[str, str] = {}) -> None:
        body = text.encode(errors="replace")
        self.send_response(status)
        fixed = {
            "Content-Length": str(len(body)),
            "Cache-Control": "no-store",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",
        }
        for name, value in {"Content-Type": "text/plain; charset=utf-8", **fixed, **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def version_string(self) -> str:
        return "ratings"

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: requests are no news."""
