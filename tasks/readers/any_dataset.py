"""Whatever Hugging Face `datasets` loads, row by row: data sets of the hub, folders, patterns of paths, Arrow on disk.

    rows = hub_dataset_rows(HubPath.of(Path("hf://owner/name")), None, ("article", "highlights"), request)
    rows.provenance["revision"]  # the full commit, also for a branch or a tag

`datasets` says which files a subset and a split have, and reads them as a stream: nothing is converted, and no file of
another split is fetched. It keeps nothing of a stream, and without the hub its cache returns the newest version there
is (`CachedDatasetModuleFactory` of 5.2 does not look at the revision). So rows of the hub are kept here, under their
commit, in blocks that are read again without the hub. What `tasks.readers.files` and `tasks.readers.hub` read does not
come here: they name a bad row by its line, and read no more of a file than pages.
"""

from __future__ import annotations

import glob
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from tasks.base import DataError, LoadRequest
from tasks.readers.files import split_names
from tasks.readers.hub import CONVERTED_REVISION
from tasks.readers.hub_client import assets_folder, not_found, pin_commit, without_hub
from tasks.readers.kept import keep, read_kept
from tasks.readers.opening import parsing
from tasks.readers.rows import BadRow, Row, Rows, file_provenance, kind_of

BLOCK_ROWS = 64
_MARKS_OF_DISK = ("dataset_dict.json", "state.json")


@dataclass(frozen=True, kw_only=True)
class HubPath:
    """What `hf://OWNER/NAME@REVISION/FILES` names: a data set of the hub, and perhaps a pattern of paths inside it."""

    repo: str
    revision: str | None = None
    files: str | None = None

    @classmethod
    def of(cls, path: Path) -> HubPath | None:
        """Return what a path names; None for one of this machine. A `Path` has one slash where `hf://` has two."""
        if path.parts[:1] != ("hf:",):
            return None
        parts = path.parts[2 if path.parts[1:2] == ("datasets",) else 1 :]
        name, _, revision = "/".join(parts[:2]).partition("@")
        return cls(repo=name, revision=unquote(revision) or None, files="/".join(parts[2:]) or None)


def hub_dataset_rows(place: HubPath, subset: str | None, columns: Sequence[str], request: LoadRequest) -> Rows[Row]:
    """Return the rows of a split of a data set on the hub.

    Args:
        subset: What `datasets` calls its config; None for the only one, or the default.
        columns: The ones to keep, if they exist.
        request: Names the split, and the revision that counts before that of `place`.

    Raises:
        DataError: Not reachable and not kept, not found, no access, no such subset or split, a subset beside
            named files, or a file is damaged.
    """
    repo, revision = place.repo, request.revision or place.revision or "main"
    if place.files:
        refuse_subset(subset, f"hf://{repo}/{place.files}")
    commit = pin_commit(repo, revision)
    if not commit.sha:
        what = f"at {revision}" if commit.unreachable else f"branch, tag or commit {revision}"
        raise not_found(repo, what, commit.unreachable)
    what = " ".join(filter(None, (repo, subset, request.split)))
    choice = json.dumps([subset, request.split, place.files, sorted(columns)])
    folder = assets_folder(repo, commit.sha) / f"rows-{hashlib.sha256(choice.encode()).hexdigest()[:32]}@{BLOCK_ROWS}"

    def stream(start: int) -> Iterator[Mapping[str, Any]]:
        if commit.unreachable:
            raise DataError(
                f"the cache holds fewer rows of {what} than this run needs, and {commit.unreachable}; connect and "
                f"run it once, lower --limit, or {without_hub()}"
            )
        more: dict[str, Any] = {"data_files": {request.split: place.files}} if place.files else {}
        if revision == CONVERTED_REVISION and subset is not None:
            more = {"data_dir": subset}
        with parsing(f"hf://{repo} at {revision}: not loaded by datasets", without_hub()):
            found, _ = _stream(repo, request.split, repo, name=None if more else subset, revision=commit.sha, **more)
            yield from found.skip(start) if start else found

    provenance = {"kind": "hub", "name": repo, "subset": subset, "revision": commit.sha, "files": place.files}
    rows = _kept_rows(folder, stream, frozenset(columns), what)
    return Rows(_rows(rows, what), {key: value for key, value in provenance.items() if value is not None})


def local_dataset_rows(path: Path, subset: str | None, columns: Sequence[str], split: str) -> Rows[Row]:
    """Return the rows of a split of local data: a file or several, by a pattern, a folder, or one of `save_to_disk`.

    A file, several by a pattern, and a single saved split serve every split. Other arguments as above.

    Raises:
        DataError: Nothing is there, no such subset or split, a subset beside named files, or a file is damaged.
    """
    remedy = "give .jsonl, .csv, .tsv, .parquet, one of them packed, or what datasets loads"
    with parsing(f"{path}: format not recognized", remedy):
        if path.is_dir() and any((path / mark).exists() for mark in _MARKS_OF_DISK):
            import datasets

            refuse_subset(subset, f"the saved folder {path}")
            saved = datasets.load_from_disk(str(path))
            if isinstance(saved, datasets.DatasetDict):
                name = _split_of(saved, split, str(path))
                saved, path = saved[name], path / name
            found, files = saved.to_iterable_dataset(), sorted(file for file in path.iterdir() if file.is_file())
        elif path.is_dir():
            found, names = _stream(str(path.resolve()), split, str(path), name=subset)
            files = [Path(name) for name in names]
        else:
            refuse_subset(subset, str(path))
            files = [file.resolve() for file in files_of(path)]
            given = {split: [str(file) for file in files]}
            found, _ = _stream(str(files[0].parent), split, str(path), data_files=given)
    provenance = file_provenance(path, files) | ({"subset": subset} if subset else {})

    def read() -> Iterator[Mapping[str, Any]]:
        with parsing(f"{path}: not loaded by datasets", "check it"):
            for row in found:
                yield _plain(row, frozenset(columns), path.name)

    return Rows(_rows(read(), path.name), provenance)


def refuse_subset(subset: str | None, what: str) -> None:
    """Raise `DataError` for a subset beside files that are chosen already."""
    if subset is not None:
        raise DataError(f"subset {subset} chooses among the files of a data set, and {what} is chosen; leave one out")


def files_of(path: Path) -> list[Path]:
    """Return a file, or those that match a pattern of paths, sorted. Raises `DataError` if there is none."""
    files = [path] if path.exists() else sorted(Path(path.anchor).glob(str(path.relative_to(path.anchor))))
    if not files:
        what = "no file matches" if glob.has_magic(str(path)) else "no such file or folder:"
        raise DataError(f"{what} {path}; check the path given to --data")
    return files


def _stream(source: str, split: str, where: str, **more: Any) -> tuple[Any, list[str]]:
    """Return the rows of a split, which `datasets` finds, as a stream, and the files that have them."""
    import datasets

    shows = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()  # of listing the files, one for each split
    try:
        builder = datasets.load_dataset_builder(source, **more)
    finally:
        if shows:
            datasets.enable_progress_bars()
    files = builder.config.data_files
    name = _split_of(files, split, where)
    builder.config.data_files = type(files)({name: files[name]})  # it would open the first file of another split
    return builder.as_streaming_dataset(split=name), [str(file) for file in files[name]]


def _split_of(known: Mapping[Any, Any], split: str, where: str) -> str:
    names = [str(name) for name in known]
    found = next((name for name in split_names(split) if name in names), None)
    if found is None:
        raise DataError(f"{where} has no split '{split}'; it has {', '.join(names)}: name one with --split")
    return found


def _rows(rows: Iterator[Mapping[str, Any]], what: str) -> Iterator[Row | BadRow]:
    for index, fields in enumerate(rows):
        yield Row(f"{what} row {index}", fields, is_table=True, may_be_json=True)


def _plain(row: Mapping[str, Any], columns: frozenset[str], what: str) -> dict[str, Any]:
    """Return the columns of a row that are named.

    If one is missing, the others are there too, as nulls: the reader of the row will say which there are.
    """
    found = {name: _as_json(row[name], f"{what}: column '{name}'") for name in row if name in columns}
    return found if columns - {"id"} <= found.keys() else dict.fromkeys(row) | found


def _as_json(value: Any, what: str) -> Any:
    """Return a value as JSON has it, so that a kept row is the row that was read."""

    def convert(other: Any) -> str:
        if hasattr(other, "isoformat"):
            return str(other.isoformat())
        raise DataError(f"{what} holds {kind_of(other)}; name columns of texts")

    try:
        return json.loads(json.dumps(value, default=convert))
    except TypeError as error:  # a key that is no text
        raise DataError(f"{what} holds an object without names; name columns of texts") from error


# Rows of the hub, kept between runs


def _kept_rows(
    folder: Path, stream: Callable[[int], Iterator[Mapping[str, Any]]], columns: frozenset[str], what: str
) -> Iterator[Mapping[str, Any]]:
    """Yield the rows that are kept, then those of `stream`, called with the number of the first; and keep them.

    Several processes may do so at once: they write the same.
    """
    num_rows = 0
    while num_rows % BLOCK_ROWS == 0 and (kept := read_kept(folder / str(num_rows // BLOCK_ROWS))):
        known, is_last = json.loads(kept)
        yield from known
        if is_last:
            return
        num_rows += len(known)
    number, num_known = divmod(num_rows, BLOCK_ROWS)
    block: list[Any] = []
    is_last = False
    try:
        for row in stream(number * BLOCK_ROWS):
            block.append(_plain(row, columns, what))
            if len(block) > num_known:
                yield block[-1]
            if len(block) == BLOCK_ROWS:
                keep(folder / str(number), json.dumps([block, False]).encode())
                number, num_known, block = number + 1, 0, []
        is_last = True
    finally:  # also where no more rows are asked for
        if is_last or len(block) > num_known:
            keep(folder / str(number), json.dumps([block, is_last]).encode())
