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
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

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
    provenance: dict[str, Any] = {"kind": "hub", "name": repo, "config": config, "revision": source.commit}
    provenance |= {"files": list(source.paths), "member": member}
    rows = _read(source, columns, member)
    return Rows(rows, {key: value for key, value in provenance.items() if value is not None})


# Finding one commit and its files


def pin_commit(repo: str, revision: str) -> tuple[str, str | None]:
    """Return the commit of a revision, and why the hub cannot be asked for more, or None.

    Raises:
        DataError: There is none, no access, or the hub cannot be reached and no earlier run knew the commit.
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import RevisionNotFoundError

    unreachable = "HF_HUB_OFFLINE is set"
    if not constants.HF_HUB_OFFLINE:
        answer = ask_commit(repo, revision)
        if isinstance(answer, Commit):
            keep_listing(repo, revision, answer.sha, answer.files)
            return answer.sha, None
        if isinstance(answer, RevisionNotFoundError):
            raise DataError(f"{repo} on the hub has no branch, tag or commit {revision}; {without_hub()}") from answer
        if final := refusal(repo, answer):
            raise final from answer
        unreachable = f"the hub cannot be reached ({one_line(answer)})"
    commit = revision if is_commit(revision) else kept_listing(repo, revision)[0]
    if not commit:
        raise DataError(f"nothing of {repo} at {revision} is in the cache, and {unreachable}; {without_hub()}")
    return commit, unreachable


@dataclass(frozen=True)
class _HubFiles:
    """Files of one commit: those in `local` are whole in the cache, the others are read in parts.

    `unreachable` says why the hub cannot be asked for more, or is None.
    """

    repo: str
    commit: str
    paths: tuple[str, ...]
    local: dict[str, Path]
    unreachable: str | None = None

    def open(self, path: str) -> BinaryIO:
        """Open a file, whole or in parts, for reading and seeking."""
        if path in self.local:
            return self.local[path].open("rb")
        return io.BufferedReader(HubFile(self.repo, self.commit, path, self.unreachable), 64 * 1024)


def _find(repo: str, patterns: Sequence[str], revisions: Sequence[str], whole: bool) -> _HubFiles:
    from huggingface_hub import constants
    from huggingface_hub.errors import RevisionNotFoundError

    wanted = " or ".join(patterns)
    if constants.HF_HUB_OFFLINE:
        if cached := _find_cached(repo, patterns, revisions, whole, "HF_HUB_OFFLINE is set"):
            return cached
        raise DataError(f"{repo} {wanted} is not in the cache and HF_HUB_OFFLINE is set; unset it, or {without_hub()}")
    missing = []
    for revision in revisions:
        answer = ask_commit(repo, revision)
        if isinstance(answer, RevisionNotFoundError):
            missing.append(revision)
        elif isinstance(answer, Exception):
            if final := refusal(repo, answer):
                raise final from answer
            reason = f"the hub cannot be reached ({one_line(answer)})"
            if cached := _find_cached(repo, patterns, revisions, whole, reason):
                return cached
            raise DataError(
                f"cannot reach the hub at {constants.ENDPOINT} for {repo} ({one_line(answer)}); {without_hub()}"
            ) from answer
        else:
            commit, listed = answer.sha, list(answer.files)
            if paths := matching(listed, patterns):
                keep_listing(repo, revision, commit, listed)
                local = _cached_files(repo, commit, paths)
                if whole and len(local) < len(paths):
                    local = _download(repo, commit, paths)
                return _HubFiles(repo, commit, paths, local)
    if missing == [*revisions]:
        raise DataError(f"{repo} on the hub has no branch, tag or commit {' or '.join(missing)}; {without_hub()}")
    raise DataError(f"{repo} on the hub has no file {wanted} at {' or '.join(revisions)}; {without_hub()}")


def _find_cached(
    repo: str, patterns: Sequence[str], revisions: Sequence[str], whole: bool, unreachable: str
) -> _HubFiles | None:
    """Return files that earlier runs left in the caches, or None; parts of files only count if parts are requested."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    for revision in revisions:
        commit, listed = kept_listing(repo, revision)
        if paths := matching(listed, patterns):
            local = _cached_files(repo, commit, paths)
            has_first = paths[0] in local or HubFile(repo, commit, paths[0], unreachable).has_blocks
            if len(local) == len(paths) or (has_first and not whole):
                return _HubFiles(repo, commit, paths, local, unreachable)
    for revision in revisions:  # fetched by another program
        with suppress(LocalEntryNotFoundError):
            folder = Path(snapshot_download(repo, repo_type="dataset", revision=revision, local_files_only=True))
            paths = matching([file.relative_to(folder).as_posix() for file in folder.rglob("*")], patterns)
            if paths and _all_shards(paths):
                return _HubFiles(repo, folder.name, paths, {path: folder / path for path in paths}, unreachable)
    return None


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
    from huggingface_hub import try_to_load_from_cache

    cached = {path: try_to_load_from_cache(repo, path, revision=commit, repo_type="dataset") for path in paths}
    return {path: Path(place) for path, place in cached.items() if isinstance(place, str)}


def _download(repo: str, commit: str, paths: Sequence[str]) -> dict[str, Path]:
    from huggingface_hub import snapshot_download

    exact = [glob.escape(path) for path in paths]
    try:
        folder = Path(snapshot_download(repo, repo_type="dataset", revision=commit, allow_patterns=exact))
    except Exception as error:  # the transport's exceptions depend on the version of huggingface_hub
        if status_of(error) in (401, 403) and (final := refusal(repo, error)):
            raise final from error
        raise DataError(f"fetching {repo} from the hub failed: {one_line(error)}; try again") from error
    return {path: folder / path for path in paths}


def _all_shards(files: Sequence[str]) -> bool:
    """Return whether files named NAME-00000-of-00003 are all there; an interrupted download may leave fewer."""
    totals = {int(match.group(1)) for file in files if (match := re.search(r"-of-(\d+)\.", file))}
    return not totals or totals == {len(files)}


# Reading


def _read(source: _HubFiles, columns: Sequence[str] | None, member: str | None) -> Iterator[Row | BadRow]:
    if all(path.endswith(".parquet") for path in source.paths):
        yield from read_parquet([source.local.get(path) or source.open(path) for path in source.paths], columns)
        return
    num_rows = 0
    for path in source.paths:
        first = num_rows
        for row in _read_file(source, path, member):
            yield replace(row, index=num_rows) if first and isinstance(row, Row) else row
            num_rows += 1


def _read_file(source: _HubFiles, path: str, member: str | None) -> Iterator[Row | BadRow]:
    with source.open(path) as file:
        if member is None:
            yield from parse_records(file, PurePosixPath(path).name)
        else:
            where = f"{path} of {source.repo} at {source.commit[:12]}"
            remedy = f"delete it from the hub's cache and run again, or {without_hub()}"
            yield from read_zip(file, member, where, remedy)
