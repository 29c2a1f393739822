"""A server of a folder of runs, on this machine alone. What it shows is in files; what it makes, commands make."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from eval.errors import UserError
from eval.records.disk import inside, read_whole
from eval.records.run_folder import comparison_page
from eval.records.typed import to_json
from eval.reporting.loopback import HTML, TEXT, LoopbackHandler, LoopbackServer
from eval.viewing.page import render_view
from eval.viewing.progress import read_ahead, read_progress
from eval.viewing.runs import ANSWERS, RUNNING, RunRow, find_pages, find_runs, read_row

_KINDS = {".html": HTML, ".md": TEXT}
_JSON = "application/json"
# A page of a folder may be anybody's. It runs in an origin of its own, so that it can neither read nor ask this server.
_FILE_POLICY = (
    "sandbox allow-scripts allow-downloads; default-src 'none'; script-src 'unsafe-inline'; "
    "style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
)


class ViewServer(LoopbackServer):
    """Serves a folder of runs.

    Args:
        root: The folder.
        port: 0 takes a free one.

    Raises:
        UserError: There is no such folder, or the port is taken.
    """

    def __init__(self, root: Path, port: int = 0) -> None:
        if not root.is_dir():
            raise UserError(f"{root} is not a folder; give one that holds run folders")
        self.root = root
        # What commands make is made one after the other.
        self.making = threading.Lock()
        super().__init__(_Handler, port)

    def list_runs(self) -> dict[str, Any]:
        """Return the runs, the newest first, and the pages beside them."""
        rows = [read_row(self.root, name) for name in find_runs(self.root)]
        rows.sort(key=lambda row: row.started, reverse=True)
        runs = [{**to_json(row), "ahead": self._ahead(row)} for row in rows]
        return {"runs": runs, "pages": find_pages(self.root)}

    def _ahead(self, row: RunRow) -> Any:
        """Return how far a run of answers in progress is; None for others."""
        if (row.kind, row.state) != (ANSWERS, RUNNING):
            return None
        with suppress(UserError):  # its page says what is damaged
            return to_json(read_ahead(self.root / row.name))

    def run(self, name: str) -> Path:
        """Return the folder of a run.

        Raises:
            LookupError: There is none of this name.
        """
        return find_runs(self.root)[name]

    def file(self, name: str) -> tuple[bytes, str]:
        """Return a page of the folder, and its media type.

        Raises:
            UserError: A part of the name is a link, or leads out of the folder.
            OSError: It cannot be read.
            LookupError: It is no page.
        """
        kind = _KINDS[Path(name).suffix]
        return read_whole(inside(self.root, name)), kind

    def make(self, content: Any) -> str:
        """Make what a request names, and return its file as seen from the folder.

        Raises:
            ValueError: The request names nothing that can be made.
            UserError: The command cannot make it, and says why.
        """
        with self.making:
            match content:
                case {"what": "leaderboard"}:
                    run_command("leaderboard", str(self.root.absolute()))
                    return "leaderboard/leaderboard.html"
                case {"what": "compare", "runs": [str(one), str(other)]}:
                    runs = find_runs(self.root)
                    if one in runs and other in runs:
                        return self._compare(runs[one], runs[other])
        raise ValueError("give two runs of the list")

    def _compare(self, first: Path, second: Path) -> str:
        page = comparison_page(first, second)
        run_command("compare", *(str(one.absolute()) for one in (first, second)), "--html", str(page.absolute()))
        return page.relative_to(self.root).as_posix()


def run_command(*words: str) -> None:
    """Run a command as a process of its own.

    Raises:
        UserError: It ended with an error, whose line this is.
    """
    done = subprocess.run(
        [sys.executable, "-m", "masformer", *words], capture_output=True, stdin=subprocess.DEVNULL, check=False
    )
    if done.returncode:
        lines = [line for line in done.stderr.decode(errors="replace").splitlines() if line.strip()]
        raise UserError(lines[-1].removeprefix("error: ") if lines else f"{words[0]} ended with {done.returncode}")


class _Handler(LoopbackHandler):
    server: ViewServer

    def do_GET(self) -> None:
        path = self.known_path()
        if path is None:
            return
        asked = urlsplit(path)
        name = parse_qs(asked.query).get("run", [""])[0]
        pages: dict[str, Callable[[], None]] = {
            "": lambda: self._page("runs", self.server.list_runs()),
            "runs.json": lambda: self.reply(HTTPStatus.OK, json.dumps(self.server.list_runs()), _JSON),
            "run": lambda: self._page("run", self._progress(name)),
            "run.json": lambda: self.reply(HTTPStatus.OK, json.dumps(self._progress(name)), _JSON),
        }
        try:
            if asked.path.startswith("files/"):
                content, kind = self.server.file(unquote(asked.path.removeprefix("files/")))
                self.reply(HTTPStatus.OK, content, kind, {"Content-Security-Policy": _FILE_POLICY})
            else:
                pages[asked.path]()
        except (LookupError, OSError, UserError):
            self.not_here()

    def _page(self, kind: str, content: dict[str, Any]) -> None:
        page, policy = render_view(self.server.root, kind, content)
        self.reply(HTTPStatus.OK, page, HTML, {"Content-Security-Policy": policy})

    def _progress(self, name: str) -> dict[str, Any]:
        path = self.server.run(name)
        try:
            return {"name": name, "progress": to_json(read_progress(path)), "problem": ""}
        except UserError as error:
            return {"name": name, "progress": None, "problem": str(error)}

    def do_POST(self) -> None:
        path = self.known_path()
        if path is None:
            return
        # A page of a folder knows the address, and comes from an origin of its own.
        if path != "make" or self.headers.get("Origin") != f"http://{self.headers.get('Host')}":
            self.not_here()
            return
        body = self.body()
        if body is None:
            return
        try:
            made = self.server.make(json.loads(body))
        except UserError as error:
            self.reply(HTTPStatus.CONFLICT, str(error))
        except (ValueError, RecursionError) as error:
            self.reply(HTTPStatus.BAD_REQUEST, str(error))
        else:
            self.reply(HTTPStatus.OK, json.dumps({"file": made}), _JSON)
