"""Rows of data sets on the hub: Parquet, CSV and JSON lines, also inside a zip, all of one commit.

    rows = hub_rows("tau/scrolls", ["qasper.zip"], member="qasper/validation.jsonl", request=request)
    rows.provenance["revision"]  # the full commit, also for a branch or a tag

Without a limit, whole files are fetched into huggingface_hub's cache. With one, only the parts of the files that hold
the rows that are read (see `tasks.readers.hub_client`). Both are read again when the hub cannot be reached.
"""

from __future__ import annotations

import glob
import io
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import huggingface_hub
from huggingface_hub import constants

from tasks.base import DataError, LoadRequest
from tasks.readers.files import parse_records, read_parquet, read_zip
from tasks.readers.hub_client import (
    Commit,
    HubFile,
    ask_commit,
    is_commit,
    keep_listing,
    kept_listing,
    refusal,
    status_of,
    without_hub,
)
from tasks.readers.rows import BadRow, Row, Rows, one_line

# Where the hub keeps its own Parquet conversion of a data set: CONFIG/SPLIT/NUMBER.parquet.
CONVERTED_REVISION = "refs/convert/parquet"


def hub_rows(
    repo: str,
    files: Sequence[str],
    *,
    request: LoadRequest,
    columns: Sequence[str] | None = None,
    member: str | None = None,
    config: str | None = None,
) -> Rows[Row]:
    """Return the rows of the files of a hub data set that match, in the order of their paths.

    Args:
        files: Patterns of paths inside the repository; `*` is anything but a slash, `**/` any folders. The first
            pattern with a match counts.
        request: Names the revision, `main` by default; if `main` has no matching file, the hub's own Parquet
            conversion is read. With a limit, parts of files are read.
        columns: The ones to read from Parquet files, if they exist; None reads all. Other formats give whole records.
        member: The path of a .jsonl, .json or .csv file inside the .zip file.
        config: For the provenance alone.

    Raises:
        DataError: Not reachable and not cached, not found, no access, no file or member matches, or a file is damaged.
    """
    revision = request.revision or "main"
    revisions = (revision, CONVERTED_REVISION) if revision == "main" else (revision,)
    source = _find(repo, files, revisions, whole=not request.reads_parts)
    provenance: dict[str, Any] = {"kind": "hub", "name": repo, "config": config, "revision": source.commit.sha}
    provenance |= {"files": list(source.paths), "member": member}
    rows = _read(source, columns, member)
    return Rows(rows, {key: value for key, value in provenance.items() if value is not None})


def _read(source: _HubFiles, columns: Sequence[str] | None, member: str | None) -> Iterator[Row | BadRow]:
    index = 0
    for path in source.paths:
        where = f"{path} of {source.repo} at {source.commit.sha[:12]}"
        remedy = f"delete it from the hub's cache and run again, or {without_hub()}"
        with source.open(path) as file:
            if path.endswith(".parquet"):
                rows = read_parquet(file, columns)
            elif member is None:
                rows = parse_records(file, PurePosixPath(path).name)
            else:
                rows = read_zip(file, member, where, remedy)
            for row in rows:
                yield replace(row, index=index) if isinstance(row, Row) else row
                index += 1


# Finding one commit and its files


def pin_commit(repo: str, revision: str, unreachable: str | None = None) -> Commit:
    """Return the commit of a revision, by the hub or, where it cannot be asked, by an earlier run.

    Args:
        repo: Data set.
        revision: Branch, tag or commit; one that is unknown gives a commit without digits.
        unreachable: Why the hub is not asked, if that is known.

    Raises:
        DataError: There is no such data set, or no access.
    """
    from huggingface_hub.errors import RevisionNotFoundError

    if constants.HF_HUB_OFFLINE:
        unreachable = "HF_HUB_OFFLINE is set"
    if unreachable is None:
        answer = ask_commit(repo, revision)
        if isinstance(answer, Commit):
            keep_listing(repo, revision, answer)
            return answer
        if isinstance(answer, RevisionNotFoundError):
            return Commit("")
        if final := refusal(repo, answer):
            raise final from answer
        unreachable = f"the hub at {constants.ENDPOINT} cannot be reached ({one_line(answer)})"
    known = kept_listing(repo, revision) or Commit(revision if is_commit(revision) else "")
    return replace(known, unreachable=unreachable)


def no_commit(repo: str, revision: str, unreachable: str | None) -> DataError:
    """Return the message for a revision that `pin_commit` does not know."""
    if unreachable is not None:
        return DataError(f"{repo} at {revision} is not in the cache, and {unreachable}; {without_hub()}")
    return DataError(f"{repo} on the hub has no branch, tag or commit {revision}; {without_hub()}")


@dataclass(frozen=True)
class _HubFiles:
    """Files of one commit: those in `local` are whole in the cache, the others are read in parts."""

    repo: str
    commit: Commit
    paths: tuple[str, ...]
    local: dict[str, Path]

    def open(self, path: str) -> BinaryIO:
        """Open a file, whole or in parts, for reading and seeking."""
        if path in self.local:
            return self.local[path].open("rb")
        return io.BufferedReader(self._in_parts(path), 64 * 1024)

    def can_be_read(self, whole: bool) -> bool:
        """Return whether the hub or its cache has the files, or the beginning of the first where parts will do."""
        has_all = self.commit.unreachable is None or len(self.local) == len(self.paths)
        first = self.paths[0]
        return has_all or (not whole and (first in self.local or self._in_parts(first).kept_size is not None))

    def _in_parts(self, path: str) -> HubFile:
        return HubFile(self.repo, self.commit.sha, path, self.commit.unreachable)


def _find(repo: str, patterns: Sequence[str], revisions: Sequence[str], whole: bool) -> _HubFiles:
    commits: list[Commit] = []
    unreachable = None
    for revision in revisions:
        commits.append(commit := pin_commit(repo, revision, unreachable))
        unreachable = commit.unreachable
        if paths := matching(commit.files, patterns):
            local = _cached_files(repo, commit.sha, paths)
            if unreachable is None and whole and len(local) < len(paths):
                local = _download(repo, commit.sha, paths)
            found = _HubFiles(repo, commit, paths, local)
            if found.can_be_read(whole):
                return found
    wanted, places = " or ".join(patterns), " or ".join(revisions)
    if unreachable is None and not any(commit.sha for commit in commits):
        raise no_commit(repo, places, None)
    if unreachable is None:
        raise DataError(f"{repo} on the hub has no file {wanted} at {places}; {without_hub()}")
    return _fetched_by_others(repo, patterns, revisions, unreachable)


def _fetched_by_others(repo: str, patterns: Sequence[str], revisions: Sequence[str], unreachable: str) -> _HubFiles:
    """Return files that another program left in the cache. Raises `DataError` if there are none."""
    look = partial(huggingface_hub.snapshot_download, repo, repo_type="dataset", local_files_only=True)
    for revision in revisions:
        with suppress(FileNotFoundError):
            folder = Path(look(revision=revision))
            paths = matching([file.relative_to(folder).as_posix() for file in folder.rglob("*")], patterns)
            if paths and _all_shards(paths):
                return _HubFiles(repo, Commit(folder.name), paths, {path: folder / path for path in paths})
    raise DataError(f"{repo} {' or '.join(patterns)} is not in the cache, and {unreachable}; {without_hub()}")


def matching(paths: Sequence[str], patterns: Sequence[str]) -> tuple[str, ...]:
    """Return the paths that match the first of the patterns that any path matches, sorted."""
    parts = {"**/": "(?:.*/)?", "*": "[^/]*"}
    for pattern in patterns:
        pieces = re.split(r"(\*\*/|\*)", pattern)
        expression = re.compile("".join(parts.get(piece) or re.escape(piece) for piece in pieces))
        if matches := sorted(path for path in paths if expression.fullmatch(path)):
            return tuple(matches)
    return ()


def _cached_files(repo: str, commit: str, paths: Sequence[str]) -> dict[str, Path]:
    """Return those files that are whole in huggingface_hub's cache."""
    look = partial(huggingface_hub.try_to_load_from_cache, repo, revision=commit, repo_type="dataset")
    return {path: Path(place) for path in paths if isinstance(place := look(path), str)}


def _download(repo: str, commit: str, paths: Sequence[str]) -> dict[str, Path]:
    exact = [glob.escape(path) for path in paths]
    try:
        folder = huggingface_hub.snapshot_download(repo, repo_type="dataset", revision=commit, allow_patterns=exact)
    except Exception as error:  # the transport's exceptions depend on the version of huggingface_hub
        if status_of(error) in (401, 403) and (final := refusal(repo, error)):
            raise final from error
        raise DataError(f"fetching {repo} from the hub failed: {one_line(error)}; try again") from error
    return {path: Path(folder, path) for path in paths}


def _all_shards(files: Sequence[str]) -> bool:
    """Return whether files named NAME-00000-of-00003 are all there; an interrupted download may leave fewer."""
    totals = {int(match.group(1)) for file in files if (match := re.search(r"-of-(\d+)\.", file))}
    return not totals or totals == {len(files)}
