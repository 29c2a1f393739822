"""A server of pages for this machine alone, as `eval.rate` and `eval.view` need one.

The address has a secret, so that other users of the machine and other pages of the browser can neither read nor change
anything; requests under another host name, as after DNS rebinding, are refused.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from eval.errors import UserError

_MAX_BODY = 1 << 16
TEXT = "text/plain; charset=utf-8"
HTML = "text/html; charset=utf-8"


class LoopbackServer(ThreadingHTTPServer):
    """Serves what its handler gives. Browsers open connections that they may never use, so each has a thread.

    Args:
        handler: Answers requests.
        port: 0 takes a free one.

    Raises:
        UserError: The port is taken.
    """

    def __init__(self, handler: type[LoopbackHandler], port: int = 0) -> None:
        self.key = secrets.token_urlsafe(16)
        try:
            super().__init__(("127.0.0.1", port), handler)
        except OSError as error:
            raise UserError(f"port {port}: {error.strerror or error}; give another --port, or none") from error

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/{self.key}/"


class LoopbackHandler(BaseHTTPRequestHandler):
    """Answers requests that know the secret."""

    server: LoopbackServer
    timeout = 30

    def known_path(self) -> str | None:
        """Return what the request asks for behind the secret; None, with a reply sent, where it may not ask."""
        hosts = {f"{name}:{self.server.server_port}" for name in ("127.0.0.1", "localhost")}
        start = f"/{self.server.key}/"
        given = self.path[: len(start)]
        if self.headers.get("Host") in hosts and secrets.compare_digest(given.encode(), start.encode()):
            return self.path[len(start) :]
        self.not_here()
        return None

    def body(self) -> bytes | None:
        """Return what was sent; None, with a reply sent, where it is too long or of unknown length."""
        length = self.headers.get("Content-Length", "")
        if length.isdecimal() and int(length) <= _MAX_BODY:
            return self.rfile.read(int(length))
        self.reply(HTTPStatus.BAD_REQUEST, "too long")
        return None

    def not_here(self) -> None:
        """Reply that there is no such thing."""
        self.reply(HTTPStatus.NOT_FOUND, "not here")

    def reply(
        self, status: HTTPStatus, content: str | bytes, kind: str = TEXT, headers: Mapping[str, str] = {}
    ) -> None:
        """Send a reply.

        Args:
            status: Status.
            content: What is sent.
            kind: Its media type.
            headers: Further headers.
        """
        body = content if isinstance(content, bytes) else content.encode(errors="replace")
        self.send_response(status)
        fixed = {
            "Content-Type": kind,
            "Content-Length": str(len(body)),
            "Cache-Control": "no-store",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",
        }
        for name, value in {**fixed, **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def version_string(self) -> str:
        return "masformer"

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: requests are no news."""
