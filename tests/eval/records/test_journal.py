"""The journal: what is whole and right is used once, and everything else is dropped and counted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from eval.errors import UserError
from eval.records.journal import Journal, append_line, fingerprint, open_journal, read_journal, read_lines
from eval.records.schema import Prediction
from eval.records.typed import to_json
from tests.helpers.records import prediction


def line(name: str, text: str = "t", **changes: Any) -> Prediction:
    return prediction(name, 10, text=text, **changes)


def encoded(record: Prediction) -> bytes:
    return json.dumps(to_json(record)).encode()


def read(file: Path, expected: dict[Any, str] | None = None) -> Journal[Prediction]:
    """Return the journal of a file, beside one that is not there."""
    return read_journal(Prediction, [file, file.with_name("absent.jsonl")], expected)


def test_torn_garbled_and_duplicated_lines_are_dropped_and_counted(tmp_path: Path) -> None:
    file = tmp_path / "journal.jsonl"
    whole = [encoded(line(name)) for name in "abc"]
    file.write_bytes(
        b"\n".join(
            [
                whole[0],
                whole[1][:20] + b"\x00\xff" + whole[1][22:],  # what a broken disk gives back
                b"7",
                b"[]",
                json.dumps({"task": "plos"}).encode(),
                encoded(line("a", "another")),
                whole[1],
                whole[2][:-1],  # torn
            ]
        )
    )
    found = read(file)
    assert {key[2]: record.text for key, record in found.lines.items()} == {"a": "t", "b": "t"}
    assert (found.torn, found.garbled, found.duplicates, found.stale) == (1, 4, 1, 0)
    assert found.places == [f"{file}, line {number}" for number in (2, 3, 4, 5)]
    places = "; ".join(found.places[:3])
    assert found.describe() == (
        f"lines dropped from the journal: 1 torn, 4 damaged ({places}; and 1 more), 1 duplicated"
    )
    with open_journal(tmp_path, "journal.jsonl") as journal:
        append_line(journal, line("c"))
    assert [key[2] for key in read(file).lines] == ["a", "b", "c"]
    assert read(file).torn == 0


def test_a_whole_object_without_the_end_of_its_line_is_torn(tmp_path: Path) -> None:
    file = tmp_path / "journal.jsonl"
    file.write_bytes(encoded(line("a")) + b"\n" + encoded(line("b")))
    found = read(file)
    assert ([key[2] for key in found.lines], found.torn) == (["a"], 1)
    with open_journal(tmp_path, "journal.jsonl") as journal:
        append_line(journal, line("b"))
    assert [key[2] for key in read(file).lines] == ["a", "b"]


def test_a_line_of_other_content_is_never_used(tmp_path: Path) -> None:
    file = tmp_path / "journal.jsonl"
    with open_journal(tmp_path, "journal.jsonl") as journal:
        append_line(journal, line("a", "old", fingerprint="1"))
        append_line(journal, line("a", "new", fingerprint="2"))
        append_line(journal, line("b", fingerprint="1"))
        append_line(journal, line("z", fingerprint="1"))
    found = read(file, {line("a").key: "2", line("b").key: "2"})
    assert {key[2]: record.text for key, record in found.lines.items()} == {"a": "new", "z": "t"}
    assert found.stale == 2
    assert found.describe() == "lines dropped from the journal: 2 of other content"


def test_lines_that_lack_a_field_are_named_by_file_and_line(tmp_path: Path) -> None:
    file = tmp_path / "journal.jsonl"
    damaged = to_json(line("b"))
    del damaged["finish_reason"]
    file.write_bytes(encoded(line("a")) + b"\n" + json.dumps(damaged).encode() + b"\n")
    with pytest.raises(UserError, match=r"journal\.jsonl, line 2 has no field 'finish_reason'"):
        read(file)


def test_a_torn_line_of_a_file_is_left_out_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    file = tmp_path / "lines.jsonl"
    assert read_lines(Prediction, file) == []
    file.write_bytes(encoded(line("a")) + b"\n" + encoded(line("b")))
    assert read_lines(Prediction, file) == [line("a")]
    file.write_bytes(b"7\n" + file.read_bytes())
    damaged: list[str] = []
    assert read_lines(Prediction, file, damaged=damaged) == [line("a")]
    assert damaged == [f"{file}, line 1"]
    with pytest.raises(UserError, match=r"lines\.jsonl, line 1 is damaged: .*; restore the line"):
        read_lines(Prediction, file)


def test_a_fingerprint_follows_values_and_not_their_order() -> None:
    assert fingerprint({"a": 1, "b": [2]}) == fingerprint({"b": [2], "a": 1})
    assert len({fingerprint(*parts) for parts in (("ab",), ("a", "b"), ("a", "b", None), (1,), ("1",))}) == 5
    assert fingerprint("half a pair \ud83d") != fingerprint("half a pair ?")


def test_odd_text_comes_back_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "journal.jsonl"
    texts = ["a\u2028b\x85c\nd", "\x00", "half a pair \ud83d", "🙂 é"]
    with open_journal(tmp_path, "journal.jsonl") as journal:
        for index, text in enumerate(texts):
            append_line(journal, line(str(index), text))
    assert [record.text for record in read(file).lines.values()] == texts


def test_a_full_disk_is_one_line_and_everything_before_it_is_safe(tmp_path: Path) -> None:
    # A limit on the size of files refuses a write in the middle of a line, as a full disk does.
    code = f"""
import resource
from pathlib import Path
from eval.errors import UserError
from eval.records.journal import append_line, open_journal
from tests.helpers.records import prediction
resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
with open_journal(Path({str(tmp_path)!r}), "journal.jsonl") as journal:
    try:
        for index in range(100):
            append_line(journal, prediction(str(index), 1))
    except UserError as error:
        print(index, error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[3]
    )
    count, _, told = done.stdout.partition(" ")
    assert "journal.jsonl cannot be written: File too large; what is there is kept" in told
    found = read(tmp_path / "journal.jsonl")
    assert int(count) > 1
    assert [key[2] for key in found.lines] == [str(index) for index in range(int(count))]
    assert found.torn == 1
    with (
        Path("/dev/full").open("ab", buffering=0) as full,
        pytest.raises(UserError, match="No space left on device"),
    ):
        append_line(full, line("a"))


def test_a_line_that_has_no_end_is_not_read_into_memory(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(encoded(line("a")) + b"\n")
    os.truncate(file, 40 << 30)  # takes no room on the disk
    with pytest.raises(UserError, match="a line of more than"):
        read(file)


@pytest.mark.parametrize("torn", [b"", b"x", b"x" * 9, b"x" * 40])
@pytest.mark.parametrize("whole", [b"", b"\n", b"ab\ncdefgh\n", b"a" * 30 + b"\n"])
def test_a_torn_end_of_any_length_is_cut(
    torn: bytes, whole: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eval.records.journal._TAIL_BYTES", 8)
    (tmp_path / "a.jsonl").write_bytes(whole + torn)
    open_journal(tmp_path, "a.jsonl").close()
    assert (tmp_path / "a.jsonl").read_bytes() == whole
