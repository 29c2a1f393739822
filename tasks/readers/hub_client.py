"""Network requests to the hub: the commit of a branch, and ranges of files, block by block.

    file = io.BufferedReader(HubFile("tau/scrolls", commit, "qasper.zip", unreachable=None))
    zipfile.ZipFile(file).open("qasper/validation.jsonl").readline()  # fetches the directory and the first blocks

Requests go through the client of huggingface_hub, which knows endpoint, token and proxies. Blocks that were read are
kept in its assets cache, under the commit: `assets/masformer/datasets--OWNER--NAME/COMMIT/FILE@BLOCK_BYTES/NUMBER`.

`HfFileSystem` with fsspec's `blockcache` (huggingface_hub 2.4, fsspec 2026.9) cannot replace `HubFile`: it asks the hub
before it opens a file, also offline; it returns wrong rows behind a proxy that sends whole files for parts; a kill
loses what was fetched; a damaged block goes unnoticed; and a refusal (HTTP 403) ends in a `TypeError`.
"""

from __future__ import annotations

import io
import json
import os
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

from tasks.base import DataError
from tasks.readers.rows import one_line

if TYPE_CHECKING:
    from huggingface_hub.hf_api import DatasetInfo

HUB_DEADLINE_SECONDS = 10.0
RETRY_SECONDS = (0.5, 2.0)
BLOCK_BYTES = 256 * 1024
MAX_BLOCKS_A_REQUEST = 16

T = TypeVar("T")


def ask_commit(repo: str, revision: str) -> DatasetInfo | Exception:
    """Return the hub's description of a branch, tag or commit, or why it does not answer within the deadline."""
    from huggingface_hub import HfApi

    outcome: list[DatasetInfo | Exception] = []

    def ask() -> None:
        try:
            outcome.append(HfApi().dataset_info(repo, revision=revision, timeout=HUB_DEADLINE_SECONDS))
        except Exception as error:  # the caller judges: HTTP status, or not reachable
            outcome.append(error)

    # A thread, because a time limit on the request covers neither name resolution nor a list of dead addresses.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(HUB_DEADLINE_SECONDS)
    return outcome[0] if outcome else TimeoutError(f"no answer within {HUB_DEADLINE_SECONDS:.0f} s")


def status_of(error: Exception | None) -> int | None:
    """Return the HTTP status of the hub's answer, or None if there was no answer."""
    return getattr(getattr(error, "response", None), "status_code", None)


def refusal(repo: str, error: Exception) -> DataError | None:
    """Return the message for an answer that no retry changes, or None for any other failure."""
    from huggingface_hub import constants
    from huggingface_hub.errors import HFValidationError

    status = status_of(error)
    if isinstance(error, HFValidationError):
        return DataError(f"{repo} is no name of a data set: {one_line(error)}")
    if status == 404:
        return DataError(f"the hub has no data set {repo} ({constants.ENDPOINT}); {without_hub()}")
    if status in (401, 403):
        return DataError(f"the hub refuses {repo} (HTTP {status}): gated, private or gone; {without_hub()}")
    if status is not None and 400 <= status < 500 and status not in (408, 429):
        return DataError(f"the hub refuses the request for {repo} ({one_line(error)}); {without_hub()}")
    return None


def without_hub() -> str:
    """Return the remedies that need no hub."""
    from tasks import TASKS  # imported late: the table of tasks imports this module

    names = ", ".join(name for name, task in TASKS.items() if not task.needs_hub and task.has_references)
    return f"give a local copy with --data FILE, or choose a task that needs no hub: {names}"


class HubFile(io.RawIOBase):
    """A file of a hub data set at one commit, open for reading; fetches the blocks that are read and keeps them.

    The further a reader goes on in one place, the longer the range of one request, but never longer than what was read
    before that place, so that at most about half of the bytes fetched are not needed.

    Every failure is a `DataError`, also through the readers of Parquet and zip files above it.
    """

    def __init__(self, repo: str, commit: str, path: str, unreachable: str | None) -> None:
        """Open nothing yet.

        Args:
            commit: All 40 digits, so that kept blocks never belong to another content.
            unreachable: Why only kept blocks can be read; None asks the hub for others.
        """
        from huggingface_hub import hf_hub_url

        self.name = PurePosixPath(path).name
        self._what = f"{path} of {repo}"
        self._repo = repo
        self._url = hf_hub_url(repo, path, repo_type="dataset", revision=commit)
        self._unreachable = unreachable
        self._folder = assets_folder(repo, commit) / f"{quote(path, safe='')}@{BLOCK_BYTES}"
        self._position = 0
        self._last: tuple[int, bytes] = (-1, b"")

    @property
    def has_blocks(self) -> bool:
        """Return whether anything of the file was read before."""
        return (self._folder / "size").exists()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

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
        if self.has_blocks:
            return int((self._folder / "size").read_text())
        size = self._with_retries(self._ask_size)
        write_atomically(self._folder / "size", str(size).encode())
        return size

    def _block(self, index: int) -> bytes:
        if self._last[0] != index:
            file = self._folder / str(index)
            data = file.read_bytes() if file.exists() else b""
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
        data = self._with_retries(lambda: self._ask_range(start, stop))
        blocks = [data[i : i + BLOCK_BYTES] for i in range(0, len(data), BLOCK_BYTES)]
        for number, block in enumerate(blocks, start=index):
            write_atomically(self._folder / str(number), block)
        return blocks[0]

    def _ask_size(self) -> int:
        from huggingface_hub import get_hf_file_metadata

        size = get_hf_file_metadata(self._url, timeout=HUB_DEADLINE_SECONDS).size
        if size is None:
            raise OSError("the hub does not say how long the file is")
        return size

    def _ask_range(self, start: int, stop: int) -> bytes:
        from huggingface_hub import get_session, hf_raise_for_status
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

        headers = {**build_hf_headers(), "Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
        with get_session().stream("GET", self._url, headers=headers, timeout=HUB_DEADLINE_SECONDS) as response:
            hf_raise_for_status(response)
            if response.status_code != 206 and (start, stop) != (0, self._size):
                raise DataError(
                    f"{self._what}: the hub, or a proxy before it, sends no parts of files (HTTP "
                    f"{response.status_code}); leave --limit out to fetch the file whole"
                )
            data = bytes(response.read())
        if len(data) != stop - start:
            raise OSError(f"{len(data)} bytes came instead of {stop - start}")
        return data

    def _with_retries(self, fetch: Callable[[], T]) -> T:
        """Return the result of `fetch`, called again after failures that may pass; raises `DataError` after others."""
        if self._unreachable:
            raise DataError(
                f"the cache holds less of {self._what} than this run needs, and {self._unreachable}; "
                f"connect and run it once, lower --limit, or {without_hub()}"
            )
        for wait in (*RETRY_SECONDS, None):
            try:
                return fetch()
            except DataError:
                raise
            except Exception as error:  # the transport's exceptions depend on the version of huggingface_hub
                # Not 404: the file was listed at this commit, so the data set is there.
                if status_of(error) != 404 and (final := refusal(self._repo, error)):
                    raise final from error
                if wait is None:
                    raise DataError(
                        f"fetching {self._what} from the hub broke off ({one_line(error)}); run it again, what was "
                        "read is kept"
                    ) from error
            time.sleep(wait)
        raise AssertionError("the last attempt returns or raises")


# Files kept between runs


def assets_folder(repo: str, subfolder: str) -> Path:
    """Return the folder of a data set in huggingface_hub's cache for libraries; it need not exist."""
    from huggingface_hub import constants

    return Path(constants.HF_ASSETS_CACHE) / "masformer" / f"datasets--{repo.replace('/', '--')}" / subfolder


def keep_listing(repo: str, revision: str, commit: str, files: Sequence[str]) -> None:
    """Save the commit of a branch and its files, for runs without the hub."""
    listing = json.dumps({"commit": commit, "files": list(files)})
    write_atomically(_listing_file(repo, revision), listing.encode())


def kept_listing(repo: str, revision: str) -> tuple[str, list[str]]:
    """Return the last known commit of a branch and its files; an empty commit and no file if there is none."""
    try:
        listing = json.loads(_listing_file(repo, revision).read_bytes())
    except FileNotFoundError:
        return "", []
    return listing["commit"], listing["files"]


def _listing_file(repo: str, revision: str) -> Path:
    return assets_folder(repo, "revisions") / f"{quote(revision, safe='')}.json"


def write_atomically(path: Path, data: bytes) -> None:
    """Write the whole file or nothing, even if the process is killed. Raises `DataError` if it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", delete=False) as stream:
            try:
                stream.write(data)
            except OSError:
                Path(stream.name).unlink()
                raise
        Path(stream.name).replace(path)
    except OSError as error:
        raise DataError(
            f"cannot write the hub's cache, {path.parent}: {error.strerror or error}; set HF_HOME to a folder with "
            "room that you may write"
        ) from error
