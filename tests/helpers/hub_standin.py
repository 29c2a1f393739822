"""A stand-in for the hub on 127.0.0.1: the part of its HTTP interface that loading data sets and models needs.

    with hub_standin({"datasets/ccdv/arxiv-summarization": {"document/test-00000-of-00001.parquet": data}}) as hub:
        subprocess.run([...], env={**os.environ, **hub.environment(home=tmp_path)})
    assert hub.fetched == ["document/test-00000-of-00001.parquet"]

Repositories are named `datasets/OWNER/NAME` or `models/OWNER/NAME`; a branch other than `main` follows an @
(`datasets/OWNER/NAME@refs/convert/parquet`). The endpoint is read when huggingface_hub is imported, so the code under
test runs in a process of its own.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit


@dataclass
class HubStandIn:
    """A running stand-in.

    Attributes:
        endpoint: What `HF_ENDPOINT` takes.
        repos: Files by path, by `KIND/OWNER/NAME@BRANCH`.
        statuses: HTTP status with which every request about `KIND/OWNER/NAME` is refused.
        requests: `METHOD PATH` of every request, in order.
        fetched: Paths inside the repositories of the files whose content was sent, in order.
        sent: Bytes of content that were sent, by path inside the repository.
        file_status: HTTP status with which every request for a file is refused, as for a gated repository.
        sends_parts: False answers a request for a part of a file with the whole, as some proxies do.
        cut_after: Connections break once this many bytes of the files' content were sent; None never does that.
    """

    endpoint: str
    repos: dict[str, Mapping[str, bytes]]
    statuses: Mapping[str, int]
    requests: list[str] = field(default_factory=list)
    fetched: list[str] = field(default_factory=list)
    sent: Counter[str] = field(default_factory=Counter)
    file_status: int | None = None
    sends_parts: bool = True
    cut_after: int | None = None

    def environment(self, home: Path) -> dict[str, str]:
        """Return the variables that make huggingface_hub use this stand-in and keep its cache in `home`."""
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_HUB_CACHE": str(home / "hub"),
            "HF_HUB_OFFLINE": "0",
            "HF_TOKEN": "",
            "NO_PROXY": "127.0.0.1",
        }

    def commit(self, repo: str) -> str:
        """Return the commit of `KIND/OWNER/NAME@BRANCH` (`main` where no branch is given)."""
        name = repo if "@" in repo else f"{repo}@main"
        digest = hashlib.sha1(repo.split("@")[0].encode())
        for path, content in sorted(self.repos[name].items()):
            digest.update(path.encode() + content)
        return digest.hexdigest()


@contextmanager
def hub_standin(
    repos: Mapping[str, Mapping[str, bytes]],
    statuses: Mapping[str, int] | None = None,
    handler: type[BaseHTTPRequestHandler] | None = None,
) -> Iterator[HubStandIn]:
    """Serve the repositories until the block ends; `statuses` maps a repository to the HTTP error it answers with."""
    branches = {name if "@" in name else f"{name}@main": files for name, files in repos.items()}
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler or HubHandler)
    server.daemon_threads = True
    host, port = server.server_address[:2]
    hub = HubStandIn(f"http://{host!s}:{port}", branches, statuses or {})
    server.hub = hub  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


class HubHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> HubStandIn:
        return self.server.hub  # type: ignore[attr-defined, no-any-return]

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.hub.requests.append(f"{self.command} {self.path}")
        url = urlsplit(self.path)
        # Branch names hold slashes and come quoted, so unquote after splitting.
        parts = [unquote(part) for part in url.path.strip("/").split("/")]
        if parts[:1] == ["api"]:
            self._api(parts[1:], parse_qs(url.query), body)
        else:
            if parts[0] != "datasets":
                parts.insert(0, "models")
            self._file(parts)

    def _branch(self, repo: str, revision: str) -> str | None:
        """Return the key of the branch, or answer with an error and return None."""
        if status := self.hub.statuses.get(repo):
            code = {401: "RepoNotFound", 403: "GatedRepo", 404: "RepoNotFound"}.get(status, "")
            self._send(status, b'{"error": "refused"}', {"X-Error-Code": code})
            return None
        branches = [name for name in self.hub.repos if name.split("@")[0] == repo]
        for name in branches:
            if revision in (name.split("@")[1], self.hub.commit(name)):
                return name
        code = "RevisionNotFound" if branches else "RepoNotFound"
        self._send(404, b'{"error": "not found"}', {"X-Error-Code": code})
        return None

    def _api(self, parts: list[str], query: Mapping[str, list[str]], body: bytes) -> None:
        repo, rest = "/".join(parts[:3]), parts[3:]
        branch = self._branch(repo, rest[1] if len(rest) > 1 else "main")
        if branch is None:
            return
        files = self.hub.repos[branch]
        if not rest or rest[0] == "revision":
            siblings = [{"rfilename": path} for path in files]
            info = {"id": "/".join(parts[1:3]), "sha": self.hub.commit(branch), "siblings": siblings, "tags": []}
            self._send_json({**info, "private": False, "gated": False, "disabled": False, "downloads": 0, "likes": 0})
        elif rest[0] == "tree":
            folder = "/".join(rest[2:])
            inside = {path: content for path, content in files.items() if not folder or path.startswith(folder + "/")}
            if folder and not inside:
                self._send(404, b'{"error": "no such folder"}', {"X-Error-Code": "EntryNotFound"})
                return
            recursive = query.get("recursive", ["false"])[0].lower() in ("true", "1")
            self._send_json(_tree(inside, folder, recursive))
        elif rest[0] == "paths-info":
            form = json.loads(body) if body.startswith(b"{") else parse_qs(body.decode())
            self._send_json([entry for entry in _tree(files, "", True) if entry["path"] in form.get("paths", [])])
        else:
            self._send(404, b'{"error": "no such endpoint"}', {})

    def _file(self, parts: list[str]) -> None:
        if len(parts) < 6 or parts[3] != "resolve":
            self._send(404, b"", {})
            return
        branch = self._branch("/".join(parts[:3]), parts[4])
        if branch is None:
            return
        path = "/".join(parts[5:])
        commit = {"X-Repo-Commit": self.hub.commit(branch)}
        content = self.hub.repos[branch].get(path)
        if content is None:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound", **commit})
            return
        if self.hub.file_status is not None:
            self._send(self.hub.file_status, b"", {"X-Error-Code": "GatedRepo"})
            return
        headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "Accept-Ranges": "bytes", **commit}
        asked = self.headers.get("Range")
        if asked and asked.startswith("bytes=") and self.hub.sends_parts:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start, end = int(first), min(int(last) + 1 if last else len(content), len(content))
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(content)}"
            self._send_file(path, 206, content[start:end], headers)
        else:
            self._send_file(path, 200, content, headers)

    def _send_file(self, path: str, status: int, content: bytes, headers: Mapping[str, str]) -> None:
        left = len(content)
        if self.command == "GET":
            self.hub.fetched.append(path)
            if self.hub.cut_after is not None:
                left = min(left, max(0, self.hub.cut_after - self.hub.sent.total()))
            self.hub.sent[path] += left
        self._send(status, content[:left], {**headers, "Content-Length": str(len(content))})
        if left < len(content):
            self.close_connection = True

    def _send_json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, content: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _tree(files: Mapping[str, bytes], folder: str, recursive: bool) -> list[dict[str, object]]:
    entries: dict[str, dict[str, object]] = {}
    for path, content in files.items():
        below = path[len(folder) + 1 :] if folder else path
        if "/" in below and not recursive:
            child = path[: len(path) - len(below)] + below.split("/")[0]
            entries[child] = {"type": "directory", "oid": hashlib.sha1(child.encode()).hexdigest(), "path": child}
            entries[child]["size"] = 0
        else:
            oid = hashlib.sha1(content).hexdigest()
            entries[path] = {"type": "file", "oid": oid, "size": len(content), "path": path}
    return list(entries.values())
