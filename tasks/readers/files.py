"""Records of local files and of open streams: JSON lines, CSV, Parquet, plain text, also zipped or gzipped.

    rows = record_rows(Path("val.jsonl"))
    for row in rows:  # a `BadRow` in place of a line that cannot be read
        row.text("abstract")

Every failure here is a `DataError` of one line.
"""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any, BinaryIO

from tasks.base import DataError
from tasks.readers.decoding import decode_text, unique_names, wide_encoding
from tasks.readers.kept import reading
from tasks.readers.opening import PACKED, open_packed, parsing, unpacked_name
from tasks.readers.rows import MAX_LINE_BYTES, BadRow, Row, Rows, file_provenance, kind_of, one_line

_SPLIT_NAMES = {"validation": ("val", "valid", "dev")}
RECORDS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", *PACKED)
_PAGE_BUFFER_BYTES = 64 * 1024
_HEADER_BYTES = 64 * 1024
# Of a file that is one text or one object.
_MAX_TEXT_BYTES = 64 << 20
_MAX_TABLE_LINE = 4 * MAX_LINE_BYTES  # several texts
_MAX_BLANK_LINES = 1_000_000
_MAX_SKIPPED_BYTES = 1 << 30
_DELIMITERS = {".csv": ",", ".tsv": "\t"}


def require_path(path: Path) -> Path:
    """Return the path, or raise `DataError` if it does not exist."""
    if not path.exists():
        raise DataError(f"no such file or folder: {path}; check the path given to --data")
    return path


def require_file(path: Path) -> Path:
    """Return the path, or raise `DataError` if it is not a file."""
    if require_path(path).is_dir():
        raise DataError(f"{path} is a folder; give --data a file")
    return path


def parse_json_lines(stream: IO[bytes], name: str) -> Iterator[Row | BadRow]:
    """Yield a row for each line that is not blank; a line that is too long is not kept in memory."""
    num_blank = 0
    for number, line in enumerate(iter(partial(stream.readline, MAX_LINE_BYTES + 1), b""), start=1):
        where = f"{name} line {number}"
        num_blank = 0 if line.strip() else num_blank + 1
        if len(line) > MAX_LINE_BYTES:
            yield _skip_line(stream, line, where)
        elif num_blank:
            _check_blank(num_blank, where)
        else:
            try:
                yield _parse_json(line, where)
            except DataError as error:
                yield BadRow(str(error))


def _skip_line(stream: IO[bytes], line: bytes, where: str) -> BadRow:
    """Read to the end of a line that is too long, and say how long it is."""
    num_bytes = len(line)
    while not line.endswith(b"\n") and (line := stream.readline(1 << 20)):
        num_bytes += len(line)
        if num_bytes > _MAX_SKIPPED_BYTES:
            raise DataError(f"{where}: longer than {_MAX_SKIPPED_BYTES >> 30} GiB; write a record a line")
    return BadRow(
        f"{where}: {num_bytes / 2**20:.1f} MiB long, and {MAX_LINE_BYTES >> 20} MiB, about a million tokens, "
        "is the most; split the document or take it out"
    )


def _check_blank(count: int, where: str) -> None:
    # A small archive can hold blank lines for hours.
    if count > _MAX_BLANK_LINES:
        raise DataError(f"{where}: more than {_MAX_BLANK_LINES:,} blank lines in a row; take them out")


def read_zip(file: Path | BinaryIO, member: str, where: str, remedy: str) -> Iterator[Row | BadRow]:
    """Yield the records of a file inside a zip file, given by path or open for reading and seeking."""
    with parsing(f"{where}, {member}: not a readable zip file", remedy), zipfile.ZipFile(file) as archive:
        if member not in archive.namelist():
            raise DataError(f"{where} has no file {member}; it has {', '.join(archive.namelist())[:500]}")
        with archive.open(member) as stream:
            yield from parse_records(stream, member)


def parse_records(stream: IO[bytes], name: str) -> Iterator[Row | BadRow]:
    """Yield the records of an open file; the suffix of its name is the format."""
    if encoding := wide_encoding(stream.peek(4)[:4]):  # type: ignore[attr-defined]
        raise DataError(f"{name}: not UTF-8 text but {encoding}; save it as UTF-8")
    suffix = Path(name).suffix.lower()
    if suffix == ".parquet":
        raise DataError(f"{name} is Parquet, packed once more; unpack it")
    delimiter = _DELIMITERS.get(suffix)
    return parse_json_lines(stream, name) if delimiter is None else parse_table(stream, name, delimiter)


def parse_table(stream: IO[bytes], name: str, delimiter: str) -> Iterator[Row | BadRow]:
    """Yield a row for each record under the first line, which names the fields; all values are texts."""
    csv.field_size_limit(MAX_LINE_BYTES)
    delimiter, has_spaces = _dialect(stream, delimiter)
    # Bytes that are no UTF-8 become surrogates, so that the record that has them can be named.
    text = io.TextIOWrapper(stream, "utf-8-sig", "surrogateescape", newline="")
    lines = csv.reader(_text_lines(text, name), delimiter=delimiter, skipinitialspace=has_spaces, strict=True)
    try:
        header = [cell.strip() for cell in next(lines, [])]
    except csv.Error as error:
        raise DataError(f"{name}: its first line is not readable CSV ({one_line(error)}); correct it") from error
    _check_names(header, name)
    num_blank = 0
    while True:
        first = lines.line_num + 1
        where = f"{name} line {first}"
        try:
            cells = next(lines)
        except StopIteration:
            return
        except csv.Error as error:
            problem = f"{where}: not readable CSV ({one_line(error)})"
            if lines.line_num > first:
                # A quote that nothing closes: the lines that follow were read as part of the field.
                raise DataError(f"{problem} up to line {lines.line_num}; a quote is not closed") from error
            yield BadRow(f"{problem}; correct it")
            continue
        num_blank = 0 if cells else num_blank + 1
        if len(cells) > 1 and [cell.strip() for cell in cells] == header:
            yield BadRow(f"{where}: is the header again, as where files were joined; take the line out")
        elif len(cells) == len(header):
            yield Row(where, dict(zip(header, cells, strict=True)), is_table=True)
        elif cells:
            yield BadRow(f"{where}: {len(cells)} cells under a header of {len(header)}; correct it")
        else:
            _check_blank(num_blank, where)


def _text_lines(text: IO[str], name: str) -> Iterator[str]:
    """Yield the lines of a table, without the marks that files have at their start and keep where they are joined."""
    for number, line in enumerate(iter(partial(text.readline, _MAX_TABLE_LINE + 1), ""), start=1):
        if len(line) > _MAX_TABLE_LINE:
            raise DataError(f"{name} line {number}: longer than {_MAX_TABLE_LINE >> 20} MiB; write a record a line")
        yield line.removeprefix("\ufeff")


def _dialect(stream: IO[bytes], delimiter: str) -> tuple[str, bool]:
    """Return the delimiter of a table, and whether spaces follow it; in half of Europe Excel writes `;`."""
    first = stream.peek(_HEADER_BYTES)[:_HEADER_BYTES].splitlines()[:1]  # type: ignore[attr-defined]
    header = first[0].decode("utf-8-sig", "replace") if first else ""
    for found in (delimiter, ";", "\t") if delimiter == "," else (delimiter,):
        cells = next(csv.reader([header], delimiter=found), [])
        if len(cells) > 1:
            return found, any(cell.startswith(" ") for cell in cells[1:])
    return delimiter, False


def _check_names(names: Sequence[str], file: str) -> None:
    try:
        "".join(names).encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{file}: its first line is not UTF-8 text; save it as UTF-8") from error
    for field, count in Counter(names).items():
        if count > 1:
            raise DataError(f"{file}: the field '{field}' is there {count} times; give each a name of its own")


def record_rows(path: Path, columns: Sequence[str] | None = None) -> Rows[Row]:
    """Return the records of a local file; the suffix is the format: Parquet, CSV, TSV, else JSON lines; or packed.

    Of Parquet, only the `columns` that exist are read, or all of them; other formats give whole records.
    """
    return Rows(read_records(path, columns), file_provenance(require_file(path)))


def read_records(path: Path, columns: Sequence[str] | None = None) -> Iterator[Row | BadRow]:
    """Yield the records of a local file of Parquet, JSON lines, CSV or TSV, the latter three also packed."""
    if path.suffix.lower() == ".parquet":
        yield from read_parquet(path, columns)
        return
    with open_packed(path) as (stream, name):
        yield from parse_records(stream, name)


def split_names(split: str) -> tuple[str, ...]:
    """Return the names that publishers give to a split."""
    return (split, *_SPLIT_NAMES.get(split, ()))


def split_file(folder: Path, split: str, *others: str) -> Path:
    """Return the one file of a folder that is named for a split, or the one zip file in it.

    Names `others`, without a suffix, take precedence; the first name with a file counts.

    Raises:
        DataError: There is none, or more than one.
    """
    matches = files_of_split(folder, split, *others) or sorted(folder.glob("*.zip"))
    if len(matches) != 1:
        what = f"holds {', '.join(file.name for file in matches)}" if matches else f"holds no file named {split}"
        raise DataError(f"{folder} {what}; give --data a file, or a folder with one for the split")
    return matches[0]


def files_of_split(folder: Path, split: str, *others: str) -> list[Path]:
    """Return the files of a folder with records that are named for a split, or as the first of `others` there."""
    files = sorted(file for file in folder.iterdir() if file.is_file() and file.suffix.lower() in RECORDS)
    matches: list[Path] = []
    for names in (*((other,) for other in others), split_names(split)):
        matches = matches or [file for file in files if unpacked_name(file.name).rpartition(".")[0] in names]
    return matches


def data_rows(
    path: Path, split: str, *others: str, member: str | None = None, columns: Sequence[str] | None = None
) -> Rows[Row]:
    """Return the records of the file `--data`, of its `member` if it is a zip file, or of the split's file in a folder.

    Other arguments are those of `split_file` and `record_rows`.
    """
    if require_path(path).is_dir():
        path = split_file(path, split, *others)
    if member is None or path.suffix.lower() != ".zip":
        return record_rows(path, columns)
    return Rows(read_zip(path, member, path.name, "fetch it again"), file_provenance(path) | {"member": member})


def read_text_file(path: Path, name: str) -> str:
    """Return the text of a file without the space around it; `name` is for messages."""
    try:
        text = decode_text(_read_bytes(path)).strip()
    except UnicodeDecodeError as error:
        raise DataError(f"{name}: {error.reason}") from error
    if not text:
        raise DataError(f"{name} is empty; give it a text or take it out")
    return text


def read_json(path: Path) -> Row:
    """Return the one object of a JSON file."""
    return _parse_json(_read_bytes(require_file(path)), path.name)


def _read_bytes(path: Path) -> bytes:
    with reading(path) as stream:
        data = stream.read(_MAX_TEXT_BYTES + 1)
    if len(data) > _MAX_TEXT_BYTES:
        raise DataError(f"{path} holds more than {_MAX_TEXT_BYTES >> 20} MiB; split it or take it out")
    return data


def _parse_json(data: bytes, where: str) -> Row:
    try:
        record = json.loads(decode_text(data), object_pairs_hook=unique_names)
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: expected JSON; {error.reason}") from error
    except json.JSONDecodeError as error:
        if data.lstrip()[:1] == b"[":
            raise DataError(f"{where}: begins a JSON array; write one object a line, without brackets") from error
        raise DataError(f"{where}: not valid JSON ({error.msg} at column {error.colno}); correct it") from error
    except (RecursionError, ValueError) as error:  # nested too deeply, or a number of thousands of digits
        raise DataError(f"{where}: not readable JSON ({one_line(error)}); correct it") from error
    if not isinstance(record, dict):
        raise DataError(f"{where}: holds {kind_of(record)}; expected a JSON object")
    return Row(where, record)


def _check_sizes(table: Any, columns: Sequence[str], name: str) -> None:
    """Raise `DataError` where values of a `ParquetFile` are too long on average, which a few kB can unpack to."""
    metadata = table.metadata
    for group in (metadata.row_group(index) for index in range(metadata.num_row_groups)):
        most = MAX_LINE_BYTES * max(group.num_rows, 1)
        if 0 < group.total_byte_size <= most:
            continue  # and columns are not looked at: pyarrow aborts the process where one is encrypted
        for chunk in (group.column(index) for index in range(group.num_columns)):
            path = chunk.path_in_schema
            if not {path, path.partition(".")[0]}.isdisjoint(columns) and chunk.total_uncompressed_size > most:
                raise DataError(
                    f"{name}: column {chunk.path_in_schema} has {chunk.total_uncompressed_size:,} bytes in "
                    f"{group.num_rows:,} rows, and {MAX_LINE_BYTES:,} a row are the most; split its documents"
                )


def read_parquet(file: Path | BinaryIO, columns: Sequence[str] | None) -> Iterator[Row | BadRow]:
    """Yield the records of a Parquet file, given by path or open for reading and seeking; columns None reads all.

    Pages are read one by one, not whole row groups: an open file may be on the hub.
    """
    import pyarrow.parquet

    name = Path(file.name).name
    with parsing(f"{name}: not a readable Parquet file", "fetch it again"):
        table = pyarrow.parquet.ParquetFile(file, buffer_size=_PAGE_BUFFER_BYTES, pre_buffer=False)
        names = table.schema_arrow.names
        _check_names(names, name)
        present = [column for column in names if columns is None or column in columns]
        if not present:
            raise DataError(f"{name}: columns are {', '.join(names)}; expected {', '.join(columns or ())}")
        _check_sizes(table, present, name)
        index = 0
        for group in range(table.num_row_groups):  # a batch of its own each: it would read on into the next
            for batch in table.iter_batches(16, [group], present, use_threads=False):
                for place in range(batch.num_rows):
                    where = f"{name} row {index}"
                    try:
                        (record,) = batch.slice(place, 1).to_pylist()
                    except UnicodeDecodeError as error:
                        yield BadRow(f"{where}: not UTF-8 text ({error.reason}); correct it")
                    else:
                        yield Row(where, record, is_table=True, may_be_json=True)
                    index += 1
