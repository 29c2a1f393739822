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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from tasks.base import DataError, LoadRequest
from tasks.readers.files import parse_records, read_parquet, read_zip
from tasks.readers.hub_client import Commit, HubFile, not_found, pin_commit, refusal, without_hub
from tasks.readers.rows import BadRow, Row, Rows, one_line

# Where the hub keeps its own Parquet conversion of a data set: CONFIG/SPLIT/NUMBER.parquet.
CONVERTED_REVISION = "refs/convert/parquet"
# Files of a commit by path: where each lies as a whole on this machine, or None.
_Places = Mapping[str, Path | None]


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
    commit, places = _find(repo, files, revisions, whole=not request.reads_parts)
    provenance: dict[str, Any] = {"kind": "hub", "name": repo, "config": config, "revision": commit.sha}
    provenance |= {"files": list(places), "member": member}
    rows = _read(commit, places, columns, member)
    return Rows(rows, {key: value for key, value in provenance.items() if value is not None})


def _read(commit: Commit, places: _Places, columns: Sequence[str] | None, member: str | None) -> Iterator[Row | BadRow]:
    for path, place in places.items():
        where = f"{path} of {commit.repo} at {commit.sha[:12]}"
        remedy = f"delete it from the hub's cache and run again, or {without_hub()}"
        with place.open("rb") if place else io.BufferedReader(HubFile(commit, path), 64 * 1024) as file:
            if path.endswith(".parquet"):
                yield from read_parquet(file, columns)
            elif member is None:
                yield from parse_records(file, PurePosixPath(path).name)
            else:
                yield from read_zip(file, member, where, remedy)


# Finding one commit and its files


def _find(repo: str, patterns: Sequence[str], revisions: Sequence[str], whole: bool) -> tuple[Commit, _Places]:
    """Return a commit and the places of the files that match, in the order of their paths."""
    known, unreachable = False, None
    for revision in revisions:
        commit = pin_commit(repo, revision, unreachable)
        known, unreachable = known or bool(commit.sha), commit.unreachable
        if paths := matching(commit.files, patterns):
            places = _cached_files(commit, paths)
            if unreachable is None and whole and None in places.values():
                places = _download(commit, paths)
            has_first = places[paths[0]] is not None or HubFile(commit, paths[0]).kept_size is not None
            if unreachable is None or None not in places.values() or (has_first and not whole):
                return commit, places
    if unreachable is not None:
        return _fetched_by_others(repo, patterns, revisions, unreachable)
    what = f"file {' or '.join(patterns)} at" if known else "branch, tag or commit"
    raise not_found(repo, f"{what} {' or '.join(revisions)}", None)


def _fetched_by_others(
    repo: str, patterns: Sequence[str], revisions: Sequence[str], unreachable: str
) -> tuple[Commit, _Places]:
    """Return files that another program left in the cache. Raises `DataError` if there are none."""
    from huggingface_hub import snapshot_download

    look = partial(snapshot_download, repo, repo_type="dataset", local_files_only=True)
    for revision in revisions:
        with suppress(FileNotFoundError):
            folder = Path(look(revision=revision))
            paths = matching([file.relative_to(folder).as_posix() for file in folder.rglob("*")], patterns)
            if paths and _all_shards(paths):
                return Commit(repo, folder.name), {path: folder / path for path in paths}
    raise not_found(repo, " or ".join(patterns), unreachable)


def matching(paths: Sequence[str], patterns: Sequence[str]) -> tuple[str, ...]:
    """Return the paths that match the first of the patterns that any path matches, sorted."""
    for pattern in patterns:
        expression = re.escape(pattern).replace(r"\*\*/", "(?:.*/)?").replace(r"\*", "[^/]*")
        if matches := sorted(path for path in paths if re.fullmatch(expression, path)):
            return tuple(matches)
    return ()


def _cached_files(commit: Commit, paths: Sequence[str]) -> _Places:
    """Return the places of files in huggingface_hub's cache, None for one that is not there as a whole."""
    from huggingface_hub import try_to_load_from_cache

    look = partial(try_to_load_from_cache, commit.repo, revision=commit.sha, repo_type="dataset")
    places = {path: look(path) for path in paths}
    return {path: Path(place) if isinstance(place, str) else None for path, place in places.items()}


def _download(commit: Commit, paths: Sequence[str]) -> _Places:
    from huggingface_hub import snapshot_download

    fetch = partial(snapshot_download, commit.repo, revision=commit.sha, repo_type="dataset")
    try:
        folder = fetch(allow_patterns=[glob.escape(path) for path in paths])
    except Exception as error:  # the transport's exceptions depend on the version of huggingface_hub
        if final := refusal(commit.repo, error):
            raise final from error
        raise DataError(f"fetching {commit.repo} from the hub failed: {one_line(error)}; try again") from error
    return {path: Path(folder, path) for path in paths}


def _all_shards(files: Sequence[str]) -> bool:
    """Return whether files named NAME-00000-of-00003 are all there; an interrupted download may leave fewer."""
    totals = {int(match.group(1)) for file in files if (match := re.search(r"-of-(\d+)\.", file))}
    return not totals or totals == {len(files)}
