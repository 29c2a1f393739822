"""Files as people send them: packed, of other encodings and dialects, damaged, or made to take for ever."""

from __future__ import annotations

import base64
import bz2
import gzip
import io
import json
import lzma
import os
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pyarrow.parquet.encryption as parquet_encryption
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks import CustomTask, DataError, LoadRequest
from tasks.plos import PLOS
from tasks.plos import SAMPLE as ARTICLE
from tasks.readers.files import record_rows
from tests.helpers.properties import tries

LINES = b'{"id": "a", "context": "It rains.", "target": "Rain."}\n{"context": "It snows.", "target": "Snow."}\n'
TABLE = "id,context,target\r\na,It rains.,Rain.\r\n,It snows.,Snow.\r\n"


def load(file: Path, on_bad_row: str = "fail", about: CustomTask | None = None) -> Any:
    return (about or CustomTask()).task().load(LoadRequest(split="test", data=file, on_bad_row=on_bad_row))


def told(file: Path, on_bad_row: str = "fail") -> str:
    with pytest.raises(DataError) as caught:
        load(file, on_bad_row)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def zst(data: bytes) -> bytes:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    packed: bytes = sink.getvalue().to_pybytes()
    return packed


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zst,
}


@pytest.mark.parametrize("suffix", PACKERS)
def test_packed_files_are_read_as_the_plain_ones(suffix: str, tmp_path: Path) -> None:
    pack = PACKERS[suffix]
    for name, content in {"a.jsonl": LINES, "a.ndjson": LINES, "a.csv": TABLE.encode()}.items():
        file = tmp_path / f"{name}{suffix}"
        file.write_bytes(pack(content))
        examples = load(file).examples
        assert [(e.id, e.context, e.references) for e in examples] == [
            ("a", "It rains.", ("Rain.",)),
            ("test-1", "It snows.", ("Snow.",)),
        ], file.name
    # As two programs append to one file.
    half = len(LINES.splitlines(keepends=True)[0])
    file = tmp_path / f"two.jsonl{suffix}"
    file.write_bytes(pack(LINES[:half]) + pack(LINES[half:]))
    assert len(load(file).examples) == 2

    file.write_bytes(pack(LINES * 200)[:-9])
    assert told(file, "skip").startswith(f"two.jsonl{suffix}: not a readable ")
    file.write_bytes(b"nothing of the kind, and long enough")
    assert told(file).startswith(f"two.jsonl{suffix}: not a readable ")
    twice = tmp_path / f"a.parquet{suffix}"
    twice.write_bytes(pack(b"PAR1"))
    assert told(twice) == "a.parquet is Parquet, packed once more; unpack it"


def test_the_files_of_an_archive_are_read_without_what_lies_beside_them(tmp_path: Path) -> None:
    file = tmp_path / "a.zip"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("data/", "")
        archive.writestr("data/a.csv", TABLE)
        archive.writestr("__MACOSX/data/._a.csv", "x")
        archive.writestr("data/.DS_Store", "x")
    assert len(load(file).examples) == 2
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("data/b.csv", TABLE.replace("a,It", "b,It"))
    assert [example.context for example in load(file).examples] == ["It rains.", "It snows."] * 2
    with pytest.raises(DataError, match=r"^a\.zip holds 2 files \(data/a\.csv, data/b\.csv\); unpack it"):
        list(record_rows(file))


def test_a_packed_file_is_that_of_its_split(tmp_path: Path) -> None:
    (tmp_path / "val.jsonl.zst").write_bytes(zst(LINES))
    (tmp_path / "train.jsonl.xz").write_bytes(lzma.compress(LINES))
    assert len(CustomTask().task().load(LoadRequest(split="validation", data=tmp_path)).examples) == 2


def test_a_table_of_semicolons_or_with_spaces_in_its_header_is_read(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    tables = {
        "semicolons": 'id;context;target\r\na;It rains, it pours.;"Rain; more"\r\n',
        "tabs": 'id\tcontext\ttarget\r\na\tIt rains, it pours.\t"Rain; more"\r\n',
        "spaces": 'id, context, target\r\na, "It rains, it pours.", "Rain; more"\r\n',
        "spaces at the end": 'id ,context ,target \na,"It rains, it pours.",Rain; more\n',
        "a mark": '\ufeffid;context;target\r\na;It rains, it pours.;"Rain; more"\r\n',
    }
    for kind, text in tables.items():
        file.write_text(text, encoding="utf-8", newline="")
        (example,) = load(file).examples
        assert (example.id, example.context, example.references) == ("a", "It rains, it pours.", ("Rain; more",)), kind


def test_another_encoding_is_told_by_its_name(tmp_path: Path) -> None:
    for name, text in {"a.jsonl": LINES.decode(), "a.csv": TABLE}.items():
        file = tmp_path / name
        for encoding, shown in {"utf-16": "UTF-16", "utf-16-be": "UTF-16", "utf-32": "UTF-32"}.items():
            file.write_bytes(text.encode(encoding))
            assert told(file, "skip") == f"{name}: not UTF-8 text but {shown}; save it as UTF-8"
        file.write_bytes(text.replace("Rain.", "Stra\xdfe").encode("cp1252"))
        assert f"{name} line " in told(file)
        assert "UTF-8" in told(file)
        assert len(load(file, "skip").examples) == 1
    file.write_bytes(TABLE.replace("target", "l\xf6sung").encode("cp1252"))
    assert told(file) == "a.csv: its first line is not UTF-8 text; save it as UTF-8"


@pytest.mark.parametrize(
    "cell",
    [
        "['Yes', 'No']",
        '["Yes"]',
        "['Yes' 'No']",
        "('Yes', 'No')",
        "['Yes'\n 'No']",
        "array(['Yes', 'No'], dtype=object)",
        "{'text': array(['Yes'], dtype=object), 'answer_start': array([1])}",
        "{'text': ['Yes'], 'answer_start': [1]}",
        "[{'text': 'Yes'}]",
    ],
)
def test_a_list_that_was_printed_into_a_cell_is_told(cell: str, tmp_path: Path) -> None:
    quoted = cell.replace('"', '""')
    (tmp_path / "a.csv").write_text(f'context,target\nIs it so?,"{quoted}"\nIs it?,Yes\n')
    assert "a.csv line 2: field 'target' is a list that was printed into a cell" in told(tmp_path / "a.csv")
    assert len(load(tmp_path / "a.csv", "skip").examples) == 1
    both = pyarrow.table({"context": ["Is it so?", "Is it?"], "target": [cell, "Yes"]})
    pyarrow.parquet.write_table(both, tmp_path / "a.parquet")
    if cell != '["Yes"]':  # a list in JSON may be meant
        assert "field 'target' is a list that was printed into a cell" in told(tmp_path / "a.parquet")
    # JSON says which it is.
    (tmp_path / "a.jsonl").write_text(json.dumps({"context": "Is it so?", "target": cell}) + "\n")
    assert load(tmp_path / "a.jsonl").examples[0].references == (cell,)


@pytest.mark.parametrize(
    "cell", ["[sic]", '{"text": "Yes"}', "[1, 2]", "['Yes'] or ['No']", "(\"so called\" by 'some')", "[]"]
)
def test_brackets_are_no_list(cell: str, tmp_path: Path) -> None:
    quoted = cell.replace('"', '""')
    (tmp_path / "a.csv").write_text(f'context,target\nIs it so?,"{quoted}"\n')
    assert load(tmp_path / "a.csv").examples[0].references == (cell,)


def test_ids_are_kept_or_told_and_never_replaced(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    columns = {"context": ["a", "b", "c"], "target": ["x", "y", "z"]}
    pyarrow.parquet.write_table(pyarrow.table({"id": [17.0, 2.0**40, None], **columns}), file)
    assert [e.id for e in load(file).examples] == ["17", str(2**40), "test-2"]
    pyarrow.parquet.write_table(pyarrow.table({"id": [17.0, float("nan"), 3.0], **columns}), file)
    assert [e.id for e in load(file).examples] == ["17", "test-1", "3"]
    for value, shown in {
        "1.5": "1.5",
        "true": "a boolean",
        '["a"]': "a list",
        "1e999": "inf",
        "9007199254740994.0": "9007199254740994.0",
    }.items():
        lines = tmp_path / "a.jsonl"
        lines.write_text(f'{{"id": {value}, "context": "x", "target": "y"}}\n')
        assert told(lines) == (f"a.jsonl line 1: field 'id' is {shown}; give a text or a whole number, or leave it out")
    lines.write_text('{"id": 7.0, "context": "x", "target": "y"}\n{"id": "7", "context": "z", "target": "y"}\n')
    assert "id '7' occurs twice" in told(lines)


def test_texts_of_every_arrow_type_are_read_and_others_are_told(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    for kind in (pyarrow.large_string(), pyarrow.string_view(), pyarrow.dictionary(pyarrow.int32(), pyarrow.string())):
        texts = pyarrow.array(["It rains.", "It snows."], pyarrow.string()).cast(kind)
        pyarrow.parquet.write_table(pyarrow.table({"context": texts, "target": texts}), file)
        assert [e.references for e in load(file).examples] == [("It rains.",), ("It snows.",)], kind
    lists = pyarrow.array([["a", "b"]], pyarrow.large_list(pyarrow.large_string()))
    pyarrow.parquet.write_table(pyarrow.table({"context": ["x"], "target": lists}), file)
    assert load(file).examples[0].references == ("a", "b")
    pyarrow.parquet.write_table(pyarrow.table({"context": [b"x"], "target": ["y"]}), file)
    assert told(file) == "a.parquet row 0: field 'context' is binary data; expected text"


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_blank_lines_without_end_are_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.readers.files._MAX_BLANK_LINES", 1000)
    monkeypatch.setattr("tasks.readers.files._MAX_SKIPPED_BYTES", 8 << 20)
    start = LINES if name == "a.jsonl" else TABLE.encode()
    file = tmp_path / "a.zip"
    for blank, fits in ((b"\n" * 900, True), (b"\n" * 30_000_000, False)):
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(name, start + blank)
        if fits:
            assert len(load(file).examples) == 2
        else:
            assert "more than 1,000 blank lines in a row; take them out" in told(file, "skip")
    if name == "a.jsonl":
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(name, b"x" * (20 << 20))
        assert told(file, "skip") == "a.jsonl line 1: longer than 0 GiB; write a record a line"


def test_lines_that_are_nested_too_deeply_are_bad_rows(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"a": ' * 60_000 + b"\n" + LINES)
    assert "a.jsonl line 1: not readable JSON (maximum recursion" in told(tmp_path / "a.jsonl")
    assert len(load(tmp_path / "a.jsonl", "skip").examples) == 2


def test_an_article_that_no_parser_reads_is_told_or_left_out(tmp_path: Path) -> None:
    (tmp_path / "good.xml").write_text(ARTICLE)
    nested = ARTICLE.replace("<p>The river", "<sec>" * 3000 + "<p>The river").replace(
        "</p></sec></body>", "</p></sec>" + "</sec>" * 3000 + "</body>"
    )
    italic = ARTICLE.replace("The river rose. ", f"{'<italic>' * 3000}x{'</italic>' * 3000} ", 1)
    bad: dict[str, tuple[bytes, str]] = {
        "unknown": (b'<?xml version="1.0" encoding="no-such"?><article/>', "not valid XML"),
        "multi": (b'<?xml version="1.0" encoding="big5"?><article/>', "not valid XML"),
        "utf32": ('<?xml version="1.0" encoding="utf-32"?><article/>'.encode("utf-32"), "not valid XML"),
        "utf7": (b'<?xml version="1.0" encoding="utf-7"?><article/>', "not valid XML"),
        "rot13": (b'<?xml version="1.0" encoding="rot13"?><article/>', "not valid XML"),
        "nested": (nested.encode(), "nested more than 200 levels deep"),
        "italic": (italic.encode(), "nested more than 200 levels deep"),
        "half": (ARTICLE.encode()[:-9], "not valid XML"),
    }
    for name, (content, problem) in bad.items():
        file = tmp_path / f"{name}.xml"
        file.write_bytes(content)
        with pytest.raises(DataError, match=rf"^{name}\.xml: {problem}"):
            PLOS.load(LoadRequest(split="test", data=file))
    loaded = PLOS.load(LoadRequest(split="test", data=tmp_path, on_bad_row="skip"))
    assert [len(loaded.examples), len(loaded.bad_rows)] == [1, len(bad)]


def parquet() -> bytes:
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.table({"context": ["a b"] * 9, "target": [["x", "y"]] * 9}), sink)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def archive_of(method: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        archive.writestr("a.jsonl", LINES * 9)
    return buffer.getvalue()


WHOLE: dict[str, bytes] = {
    "a.jsonl": LINES,
    "a.csv": TABLE.encode(),
    "a.tsv": TABLE.replace(",", "\t").encode(),
    "a.parquet": parquet(),
    "a.xml": ARTICLE.replace("The river rose. " * 690, "").encode(),
    **{f"a.jsonl{suffix}": pack(LINES * 9) for suffix, pack in PACKERS.items()},
    **{
        f"{method}.zip": archive_of(method) for method in (0, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
    },
}
CHANGE = st.tuples(
    st.floats(0, 1),
    st.integers(0, 6),
    st.one_of(
        st.binary(max_size=6),
        st.sampled_from(
            [b"\0", b"\xff\xfe", b'"', b"[" * 5000, b"{}", b"1e999", b"9" * 5000, b"&x;", b"<a>", b"\\ud800"]
        ),
    ),
)


@pytest.mark.nightly
@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("on_bad_row", ["fail", "skip"])
@tries(100)
@given(changes=st.lists(CHANGE, min_size=1, max_size=4))
def test_a_garbled_file_is_read_or_refused_in_one_line(
    name: str, on_bad_row: str, changes: list[tuple[float, int, bytes]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    data = WHOLE[name]
    for place, length, piece in changes:
        start = int(place * len(data))
        data = data[:start] + piece + data[start + length :]
    file = tmp_path_factory.getbasetemp() / name
    file.write_bytes(data)
    problem = "one line"
    try:
        if name.endswith(".xml"):
            PLOS.load(LoadRequest(split="test", data=file, on_bad_row=on_bad_row))
        else:
            load(file, on_bad_row)
    except DataError as error:
        problem = str(error)
    assert len(problem.splitlines()) == 1


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet", "a.jsonl.gz", "a.zip"])
def test_what_is_no_regular_file_is_refused_at_once(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / name)
    assert "no regular file" in told(tmp_path / name)
    (tmp_path / "zero").mkdir()
    (tmp_path / "zero" / name).symlink_to("/dev/zero")
    assert "no regular file" in told(tmp_path / "zero" / name)


def test_a_name_twice_in_one_object_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(LINES + b'{"context": "It hails.", "target": "A", "target": "B"}\n')
    assert "line 3: not readable JSON (the name 'target' is there twice" in told(file)


def test_joined_tables_and_endless_lines_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text(TABLE + "\ufeff" + TABLE.replace("a,", "b,"), encoding="utf-8", newline="")
    assert "line 4: is the header again" in told(file)
    assert len(load(file, "skip").examples) == 4
    packed = tmp_path / "b.csv.gz"
    packed.write_bytes(gzip.compress(TABLE.encode() + b"," * (20 << 20)))
    assert "line 4: longer than 16 MiB" in told(packed)


def test_a_parquet_value_that_unpacks_to_very_much_is_not_read(tmp_path: Path) -> None:
    long = pyarrow.table({"context": ["a" * (9 << 20), "b"], "target": ["c", "d"]})
    pyarrow.parquet.write_table(long, tmp_path / "a.parquet", compression="zstd", use_dictionary=False)
    assert (tmp_path / "a.parquet").stat().st_size < 1 << 20
    assert re.match(r"a.parquet: column context has 9,\d{3},\d{3} bytes in 2 rows, and ", told(tmp_path / "a.parquet"))


class _OpenKeys(parquet_encryption.KmsClient):  # type: ignore[misc]
    """Keys that are wrapped in nothing."""

    def wrap_key(self, key_bytes: bytes, master_key_identifier: str) -> bytes:
        return base64.b64encode(key_bytes)

    def unwrap_key(self, wrapped_key: bytes, master_key_identifier: str) -> bytes:
        return base64.b64decode(wrapped_key)


def test_an_encrypted_column_is_an_error_and_no_abort(tmp_path: Path) -> None:
    settings = parquet_encryption.EncryptionConfiguration(
        footer_key="f", column_keys={"c": ["context"]}, plaintext_footer=True
    )
    keys = parquet_encryption.CryptoFactory(lambda connection: _OpenKeys())
    secret = keys.file_encryption_properties(parquet_encryption.KmsConnectionConfig(), settings)
    table = pyarrow.table({"context": ["It rains.", "It snows."], "target": ["Rain.", "Snow."]})
    with pyarrow.parquet.ParquetWriter(tmp_path / "a.parquet", table.schema, encryption_properties=secret) as writer:
        writer.write_table(table)
    assert "a.parquet: not a readable Parquet file" in told(tmp_path / "a.parquet")


@pytest.mark.parametrize("character", ["\v", "\f", "\x1c", "\x85", "\u2028"])
def test_a_name_of_a_column_that_breaks_lines_makes_one_line(character: str, tmp_path: Path) -> None:
    file = tmp_path / "a.tsv"
    file.write_text(f"id\tcontext\ttar{character}get\n1\tIt rains.\tRain.\n", encoding="utf-8", newline="")
    assert "no field 'target'" in told(file)
