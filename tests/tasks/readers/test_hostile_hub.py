"""A mirror that sends too much, for too long, compressed or under odd names; and a cache that was damaged."""

from __future__ import annotations

import gzip
import io
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from tasks import DataError
from tasks.readers import hub_client
from tasks.readers.hub_client import Commit, HubFile, keep_listing, kept_listing, pin_commit
from tests.helpers.hub_standin import hub_standin

COMMIT = "0123456789" * 4
CONTENT = os.urandom(600_000)
BOMB = gzip.compress(bytes(8 << 20))


class Mirror(BaseHTTPRequestHandler):
    """Answers as its class says: `head` and `get` write a whole answer."""

    protocol_version = "HTTP/1.1"
    sent = 0
    head: Callable[[Mirror], None]
    get: Callable[[Mirror], None]

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        type(self).head(self)

    def do_GET(self) -> None:
        with suppress(OSError):
            type(self).get(self)

    def start(self, status: int, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def write(self, data: bytes) -> None:
        self.wfile.write(data)
        self.wfile.flush()
        type(self).sent += len(data)


def say_size(mirror: Mirror, size: str = "600000") -> None:
    mirror.start(200, ETag='"a"', X_Repo_Commit=COMMIT, Content_Length=size, X_Linked_Size=size)


def send_part(mirror: Mirror) -> None:
    first, _, last = mirror.headers["Range"].removeprefix("bytes=").partition("-")
    part = CONTENT[int(first) : int(last) + 1]
    mirror.start(206, Content_Length=str(len(part)))
    mirror.write(part)


def send_without_end(mirror: Mirror, status: int = 206) -> None:
    mirror.start(status, Connection="close")
    mirror.close_connection = True
    for _ in range(2000):
        mirror.write(bytes(1 << 20))


def send_compressed(mirror: Mirror) -> None:
    mirror.start(206, Content_Length=str(len(BOMB)), Content_Encoding="gzip")
    mirror.write(BOMB)


def drip(mirror: Mirror) -> None:
    mirror.start(206, Content_Length="262144")
    for _ in range(40):
        mirror.write(b"x")
        time.sleep(0.1)


@contextmanager
def mirror(
    monkeypatch: pytest.MonkeyPatch,
    cache: Path,
    get: Callable[[Mirror], None],
    head: Callable[[Mirror], None] = say_size,
) -> Iterator[type[Mirror]]:
    handler = type("Handler", (Mirror,), {"get": get, "head": head, "sent": 0})
    with hub_standin({}, handler=handler) as hub:
        monkeypatch.setattr("huggingface_hub.constants.HF_ASSETS_CACHE", str(cache))
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.endpoint)
        monkeypatch.setattr("huggingface_hub.hf_hub_url", lambda *args, **more: f"{hub.endpoint}/x")
        monkeypatch.setattr(hub_client, "HUB_DEADLINE_SECONDS", 2.0)
        monkeypatch.setattr(hub_client, "RETRY_SECONDS", ())
        yield handler


def read(size: int = 100) -> bytes:
    return io.BufferedReader(HubFile(Commit("o/n", COMMIT), "f.zip"), 65536).read(size)


@pytest.mark.parametrize(
    ("get", "told"),
    [
        (send_without_end, "broke off (more came than the 262,144 bytes that were asked for)"),
        (lambda mirror: send_without_end(mirror, 200), "sends no parts of files (HTTP 200)"),
        (lambda mirror: send_without_end(mirror, 500), "broke off ("),
        (lambda mirror: send_without_end(mirror, 400), "the hub refuses the request for o/n"),
        (send_compressed, "broke off (it came compressed (gzip) and was asked for plain)"),
        (drip, "broke off (no answer within 2 s)"),
        (lambda mirror: mirror.start(206, Content_Length="0"), "broke off (0 bytes came instead of 262144)"),
        (lambda mirror: mirror.start(302, Location="file:///etc/passwd", Content_Length="0"), "broke off ("),
    ],
    ids=["endless", "endless whole", "endless 500", "endless 400", "compressed", "drip", "nothing", "redirect"],
)
def test_no_more_is_read_than_was_asked_for_and_not_for_longer(
    get: Callable[[Mirror], None], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with mirror(monkeypatch, tmp_path, get) as handler:
        with pytest.raises(DataError) as caught:
            read()
        assert told in str(caught.value)
        assert len(str(caught.value).splitlines()) == 1
        # What is on its way in the buffers of both sides, and no gigabytes.
        assert handler.sent < 64 << 20


@pytest.mark.parametrize("size", ["-5", str(10**18), "x"])
def test_odd_sizes_are_refused(size: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        mirror(monkeypatch, tmp_path, send_part, lambda one: say_size(one, size)),
        pytest.raises(DataError, match="broke off"),
    ):
        read()


def answer(content: bytes) -> Callable[[Mirror], None]:
    def get(mirror: Mirror) -> None:
        mirror.start(200, Content_Length=str(len(content)), Content_Type="application/json")
        mirror.write(content)

    return get


@pytest.mark.parametrize(
    "content",
    [
        json.dumps({"sha": "../../../../evil", "siblings": []}).encode(),
        json.dumps({"sha": COMMIT.upper().replace("0", "A"), "siblings": []}).encode(),
        json.dumps({"sha": COMMIT, "siblings": [{"rfilename": 3}]}).encode(),
        json.dumps({"sha": COMMIT, "siblings": 3}).encode(),
        b"[]",
        b"null",
        b"{",
        b"[" * 60_000,
    ],
)
def test_a_commit_is_40_hexadecimal_digits(content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with mirror(monkeypatch, tmp_path, answer(content)):
        found = pin_commit("o/n", "main")
    assert found.sha == ""
    assert "cannot be reached (" in str(found.unreachable)
    with pytest.raises(DataError, match="no commit of 40 hexadecimal digits"):
        HubFile(Commit("o/n", "../../../../evil"), "f.zip")


def test_a_listing_without_end_is_not_read_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_client, "MAX_LISTING_BYTES", 1 << 20)
    with mirror(monkeypatch, tmp_path, lambda one: send_without_end(one, 200)) as handler:
        assert "more came than the 1,048,576 bytes" in str(pin_commit("o/n", "main").unreachable)
        assert handler.sent < 64 << 20
    with mirror(monkeypatch, tmp_path, lambda one: send_without_end(one, 404)) as handler:
        with pytest.raises(DataError, match=r"^the hub has no data set o/n "):
            pin_commit("o/n", "main")
        assert handler.sent < 64 << 20
    with mirror(monkeypatch, tmp_path, answer(json.dumps({"sha": COMMIT, "siblings": [{"rfilename": "a"}]}).encode())):
        assert pin_commit("o/n", "main") == Commit("o/n", COMMIT, ("a",))


def test_a_damaged_cache_is_fetched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with mirror(monkeypatch, tmp_path, send_part) as handler:
        assert read() == CONTENT[:100]
        (block,) = tmp_path.rglob("f.zip@*/0")
        size = block.with_name("size")
        whole = {file: file.read_bytes() for file in (block, size)}
        before = handler.sent
        assert read() == CONTENT[:100]
        assert handler.sent == before, "read from the cache"
        for file, content in whole.items():
            flipped = content[:40] + bytes([content[40] ^ 1]) + content[41:] if file == block else b"\x01" + content[1:]
            for damaged in (bytes(len(content)), bytes(262_144), b"", b"-7", b"600000", content[:-1], flipped):
                file.write_bytes(damaged)
                assert read() == CONTENT[:100]
                assert file.read_bytes() == content
        assert handler.sent > before
        assert sorted(file.name for file in block.parent.iterdir()) == ["0", "size"], "nothing is left over"


def test_a_damaged_listing_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_ASSETS_CACHE", str(tmp_path))
    commit = Commit("o/n", COMMIT, ("a", "b"))
    keep_listing("main", commit)
    assert kept_listing("o/n", "main") == commit
    (file,) = tmp_path.rglob("main.json")
    for content in (b"", b"{", b"[]", b"{}", b'{"commit": 1, "files": 2}', bytes(50), file.read_bytes()[:-2]):
        file.write_bytes(content)
        assert kept_listing("o/n", "main") is None


@pytest.mark.parametrize("mask", [0o022, 0o002, 0o077])
def test_files_of_the_cache_follow_the_umask(mask: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = os.umask(mask)
    try:
        with mirror(monkeypatch, tmp_path, send_part):
            read()
        keep_listing("main", Commit("o/n", COMMIT))
    finally:
        os.umask(before)
    modes = {file.stat().st_mode & 0o777 for file in tmp_path.rglob("*") if file.is_file()}
    assert modes == {0o666 & ~mask}
