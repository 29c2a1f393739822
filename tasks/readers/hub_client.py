"""Network requests to the hub: the commit of a branch, and ranges of files, block by block.

    file = io.BufferedReader(HubFile(pin_commit("tau/scrolls", "main"), "qasper.zip"))
    zipfile.ZipFile(file).open("qasper/validation.jsonl").readline()  # fetches the directory and the first blocks

Requests go through the client of huggingface_hub, which knows endpoint, token and proxies. Blocks that were read are
kept in its assets cache, under the commit: `assets/masformer/datasets--OWNER--NAME/COMMIT/FILE@BLOCK_BYTES/NUMBER`,
each after its SHA-256; a damaged one is fetched again. A mirror cannot send more than was asked for, or for longer.

`HfFileSystem` with fsspec's `blockcache` (huggingface_hub 2.4, fsspec 2026.9) cannot replace `HubFile`: it asks the hub
before it opens a file, also offline; it returns wrong rows behind a proxy that sends whole files for parts; a kill
loses what was fetched; a damaged block goes unnoticed; and a refusal (HTTP 403) ends in a `TypeError`.
"""

from __future__ import annotations

import io
import json
import os
import re
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar
from urllib.parse import quote

from tasks.base import DataError
from tasks.readers.kept import keep, read_kept
from tasks.readers.rows import one_line

HUB_DEADLINE_SECONDS = 10.0
RETRY_SECONDS = (0.5, 2.0)
BLOCK_BYTES = 256 * 1024
MAX_BLOCKS_A_REQUEST = 16
MAX_FILE_BYTES = 1 << 50
# The largest data sets list some hundred thousand files.
MAX_LISTING_BYTES = 64 << 20
_MAX_ERROR_BYTES = 64 << 10
_COMMIT = re.compile("[0-9a-f]{40}")
# They describe how a body came, not the bytes that are kept of it.
_OF_TRANSFER = {"content-encoding", "content-length", "transfer-encoding"}

T = TypeVar("T")


@dataclass(frozen=True)
class Commit:
    """A commit of a data set, all 40 digits, with the paths of its files; no digits for a revision that is unknown.

    `unreachable` says why the hub cannot be asked for more, or is None.
    """

    repo: str
    sha: str
    files: tuple[str, ...] = ()
    unreachable: str | None = None


def pin_commit(repo: str, revision: str, unreachable: str | None = None) -> Commit:
    """Return the commit of a revision, by the hub or, where it cannot be asked, by an earlier run.

    Args:
        revision: Branch, tag or commit; one that is unknown gives a commit without digits.
        unreachable: Why the hub is not asked, if that is known.

    Raises:
        DataError: There is no such data set, or no access.
    """
    from huggingface_hub import constants, errors, utils

    if constants.HF_HUB_OFFLINE:
        unreachable = "HF_HUB_OFFLINE is set"
    if unreachable is None:
        url = f"{constants.ENDPOINT}/api/datasets/{repo}/revision/{quote(revision, safe='')}"
        try:
            utils.validate_repo_id(repo)  # type: ignore[attr-defined]
            _, body = _within(HUB_DEADLINE_SECONDS, lambda: _get(url, {}, MAX_LISTING_BYTES))
            commit = _commit(repo, json.loads(body))
        except errors.HFValidationError as error:
            raise DataError(f"{repo} is no name of a data set: {one_line(error)}") from error
        except errors.RevisionNotFoundError:
            return Commit(repo, "")
        except Exception as error:  # the transport's exceptions depend on the version of huggingface_hub
            if status_of(error) == 404:
                raise DataError(f"the hub has no data set {repo} ({constants.ENDPOINT}); {without_hub()}") from error
            if final := refusal(repo, error):
                raise final from error
            unreachable = f"the hub at {constants.ENDPOINT} cannot be reached ({one_line(error)})"
        else:
            keep_listing(revision, commit)
            return commit
    known = kept_listing(repo, revision) or Commit(repo, revision if is_commit(revision) else "")
    return replace(known, unreachable=unreachable)


def _commit(repo: str, answer: Any) -> Commit:
    """Return what an answer of the hub says. Raises `ValueError` if it is none."""
    with suppress(TypeError, KeyError, AttributeError):
        sha, files = answer["sha"], tuple(file["rfilename"] for file in answer.get("siblings") or ())
        if is_commit(sha) and all(isinstance(file, str) for file in files):
            return Commit(repo, sha, files)
    raise ValueError(f"the answer names no commit of 40 hexadecimal digits and files: {str(answer)[:60]}")


def is_commit(text: object) -> bool:
    """Return whether a value is a commit in full; it names a folder of the cache."""
    return isinstance(text, str) and _COMMIT.fullmatch(text) is not None


def _get(url: str, headers: Mapping[str, str], max_bytes: int, *, is_part: bool = False) -> tuple[int, bytes]:
    """Return the status and the body of an answer, of which no more than `max_bytes` are read.

    Args:
        is_part: Take the bytes of a part of a file as they come; an answer that is compressed all the same is refused.
            Of a whole file that comes instead (HTTP 200), the beginning is returned.
    """
    from huggingface_hub import get_session, hf_raise_for_status, utils

    headers = {**utils.build_hf_headers(), "Accept-Encoding": "identity", **headers}  # type: ignore[attr-defined]
    with get_session().stream("GET", url, headers=headers, timeout=HUB_DEADLINE_SECONDS) as response:
        is_error = response.status_code >= 400
        if is_part and not is_error and response.headers.get("Content-Encoding", "identity") != "identity":
            raise OSError(f"it came compressed ({response.headers['Content-Encoding'][:20]}) and was asked for plain")
        body = bytearray()
        for chunk in response.iter_raw() if is_part else response.iter_bytes():
            body += chunk
            if len(body) > max_bytes or (is_error and len(body) > _MAX_ERROR_BYTES):
                break
        # What is wrong may stand in the body, which a stream does not keep.
        plain = {name: value for name, value in response.headers.items() if name.lower() not in _OF_TRANSFER}
        hf_raise_for_status(
            type(response)(response.status_code, headers=plain, content=bytes(body), request=response.request)
        )
    if len(body) > max_bytes and not (is_part and response.status_code == 200):
        raise OSError(f"more came than the {max_bytes:,} bytes that were asked for")
    return response.status_code, bytes(body)


def _within(seconds: float, ask: Callable[[], T]) -> T:
    """Return what `ask` returns, or raise what it raises, or `TimeoutError` if it takes longer.

    A thread, because a time limit on a request covers no name resolution, no list of dead addresses, and no answer
    that comes byte by byte.
    """
    from huggingface_hub import constants

    # Else huggingface_hub first asks for a list of agents, to name itself by; that has no limit of bytes.
    constants.HF_HUB_DISABLE_TELEMETRY = True
    future: Future[T] = Future()

    def work() -> None:
        try:
            future.set_result(ask())
        except Exception as error:
            future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    if not wait([future], seconds).done:
        raise TimeoutError(f"no answer within {seconds:.0f} s")
    return future.result()


def status_of(error: Exception | None) -> int | None:
    """Return the HTTP status of the hub's answer, or None if there was no answer."""
    return getattr(getattr(error, "response", None), "status_code", None)


def refusal(repo: str, error: Exception) -> DataError | None:
    """Return the message for an answer that no retry changes, or None for any other failure."""
    status = status_of(error)
    if status in (401, 403):
        return DataError(f"the hub refuses {repo} (HTTP {status}): gated, private or gone; {without_hub()}")
    if status is not None and 400 <= status < 500 and status not in (404, 408, 429):
        return DataError(f"the hub refuses the request for {repo} ({one_line(error)}); {without_hub()}")
    return None


def not_found(repo: str, what: str, unreachable: str | None) -> DataError:
    """Return the message for a revision or a file that the hub, or the cache where it is unreachable, does not have."""
    if unreachable is None:
        return DataError(f"{repo} on the hub has no {what}; {without_hub()}")
    return DataError(f"{repo} {what} is not in the cache, and {unreachable}; {without_hub()}")


def without_hub() -> str:
    """Return the remedies that need no hub."""
    from tasks import TASKS  # imported late: the table of tasks imports this module

    names = ", ".join(name for name, task in TASKS.items() if not task.needs_hub and not task.needs_data)
    return f"give a local copy with --data FILE, or choose a task that needs no hub: {names}"


class HubFile(io.RawIOBase):
    """A file of a hub data set at one commit, open for reading; fetches the blocks that are read and keeps them.

    The further a reader goes on in one place, the longer the range of one request, but never longer than what was read
    before that place, so that at most about half of the bytes fetched are not needed.

    Every failure is a `DataError`, also through the readers of Parquet and zip files above it.
    """

    def __init__(self, commit: Commit, path: str) -> None:
        """Open nothing yet. Where the hub is unreachable, only kept blocks can be read."""
        from huggingface_hub import hf_hub_url

        repo, sha = commit.repo, commit.sha
        if not is_commit(sha):  # kept blocks never belong to another content
            raise DataError(f"{repo}: '{sha[:60]}' is no commit of 40 hexadecimal digits; {without_hub()}")
        self.name = PurePosixPath(path).name
        self._what = f"{path} of {repo}"
        self._commit = commit
        self._url = hf_hub_url(repo, path, repo_type="dataset", revision=sha)
        self._folder = assets_folder(repo, sha) / f"{quote(path, safe='')}@{BLOCK_BYTES}"
        self._position = 0
        self._last: tuple[int, bytes] = (-1, b"")

    @property
    def kept_size(self) -> int | None:
        """Return the size in bytes if anything of the file was read before."""
        text = read_kept(self._folder / "size") or b""
        return int(text) if text.isdigit() and len(text) < 20 else None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position}.get(whence)
        self._position = (self._size if start is None else start) + offset
        if self._position < 0:
            raise OSError(f"{self._what}: seek before its beginning")  # zipfile expects it of a file that is no zip
        return self._position

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        if self._position >= self._size:
            return 0
        index, skip = divmod(self._position, BLOCK_BYTES)
        data = self._block(index)[skip : skip + len(view)]
        view[: len(data)] = data
        self._position += len(data)
        return len(data)

    @cached_property
    def _size(self) -> int:
        size = self.kept_size
        if size is None:
            size = self._with_retries(self._ask_size, HUB_DEADLINE_SECONDS)
            keep(self._folder / "size", str(size).encode())
        return size

    def _block(self, index: int) -> bytes:
        if self._last[0] != index:
            data = read_kept(self._folder / str(index)) or b""
            if len(data) != min(BLOCK_BYTES, self._size - index * BLOCK_BYTES):
                data = self._fetch_from(index)
            self._last = (index, data)
        return self._last[1]

    def _fetch_from(self, index: int) -> bytes:
        """Fetch and keep a run of blocks that begins with `index`, and return that block."""
        num_before = 0
        while num_before < MAX_BLOCKS_A_REQUEST and (self._folder / str(index - num_before - 1)).exists():
            num_before += 1
        end = index + 1
        while end < index + num_before and end * BLOCK_BYTES < self._size and not (self._folder / str(end)).exists():
            end += 1
        start, stop = index * BLOCK_BYTES, min(end * BLOCK_BYTES, self._size)
        # One deadline for all that comes, whatever its pieces are.
        data = self._with_retries(lambda: self._ask_range(start, stop), (end - index) * HUB_DEADLINE_SECONDS)
        blocks = [data[i : i + BLOCK_BYTES] for i in range(0, len(data), BLOCK_BYTES)]
        for number, block in enumerate(blocks, start=index):
            keep(self._folder / str(number), block)
        return blocks[0]

    def _ask_size(self) -> int:
        from huggingface_hub import get_hf_file_metadata

        size = get_hf_file_metadata(self._url, timeout=HUB_DEADLINE_SECONDS).size
        if size is None or not 0 <= size <= MAX_FILE_BYTES:
            raise OSError(f"the hub says that the size of the file is {size}")
        return size

    def _ask_range(self, start: int, stop: int) -> bytes:
        status, data = _get(self._url, {"Range": f"bytes={start}-{stop - 1}"}, stop - start, is_part=True)
        if status != 206 and (start, stop) != (0, self._size):
            raise DataError(
                f"{self._what}: the hub, or a proxy before it, sends no parts of files (HTTP {status}); leave --limit "
                "out to fetch the file whole"
            )
        if len(data) != stop - start:
            raise OSError(f"{len(data)} bytes came instead of {stop - start}")
        return data

    def _with_retries(self, fetch: Callable[[], T], seconds: float) -> T:
        """Return the result of `fetch`, called again after failures that may pass; raises `DataError` after others."""
        if self._commit.unreachable:
            raise DataError(
                f"the cache holds less of {self._what} than this run needs, and {self._commit.unreachable}; "
                f"connect and run it once, lower --limit, or {without_hub()}"
            )
        for pause in (*RETRY_SECONDS, None):
            try:
                return _within(seconds, fetch)
            except DataError:
                raise
            except Exception as error:  # the transport's exceptions depend on the version of huggingface_hub
                if final := refusal(self._commit.repo, error):
                    raise final from error
                if pause is None:
                    raise DataError(
                        f"fetching {self._what} from the hub broke off ({one_line(error)}); run it again, what was "
                        "read is kept"
                    ) from error
            time.sleep(pause)
        raise AssertionError("the last attempt returns or raises")


# Files kept between runs


def assets_folder(repo: str, subfolder: str) -> Path:
    """Return the folder of a data set in huggingface_hub's cache for libraries; it need not exist."""
    from huggingface_hub import constants

    return Path(constants.HF_ASSETS_CACHE) / "masformer" / f"datasets--{repo.replace('/', '--')}" / subfolder


def keep_listing(revision: str, commit: Commit) -> None:
    """Save the commit of a branch and its files, for runs without the hub."""
    keep(_listing_file(commit.repo, revision), json.dumps({"commit": commit.sha, "files": commit.files}).encode())


def kept_listing(repo: str, revision: str) -> Commit | None:
    """Return the last known commit of a branch and its files; None if there is none."""
    try:
        listing = json.loads(read_kept(_listing_file(repo, revision)) or b"null")
        return _commit(repo, {"sha": listing["commit"], "siblings": [{"rfilename": one} for one in listing["files"]]})
    except (ValueError, TypeError, KeyError, RecursionError):  # none, or of an earlier version
        return None


def _listing_file(repo: str, revision: str) -> Path:
    return assets_folder(repo, "revisions") / f"{quote(revision, safe='')}.json"
