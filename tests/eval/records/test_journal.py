"""The journal: what is whole and right is used once, and everything else is dropped and counted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from eval.errors import UserError
from eval.records.journal import append_line, fingerprint, open_journal, prediction_key, read_journal


def line(example: str, maxlen: int = 10, text: str = "t", **more: Any) -> dict[str, Any]:
    return {"task": "plos", "template": "instruct", "id": example, "maxlen": maxlen, "text": text} | more


def test_torn_garbled_and_duplicated_lines_are_dropped_and_counted(tmp_path: Path) -> None:
    file = tmp_path / "journal.jsonl"
    whole = [json.dumps(line(name)).encode() for name in "abc"]
    file.write_bytes(
        b"\n".join(
            [
                whole[0],
                whole[1][:20] + b"\x00\xff" + whole[1][22:],  # what a broken disk gives back
                b"7",
                b"[]",
                json.dumps({"task": "plos"}).encode(),
                json.dumps(line("a", text="another")).encode(),
                whole[1],
                whole[2][:-1],  # torn
            ]
        )
    )
    found = read_journal([file, tmp_path / "absent.jsonl"])
    assert {key[2]: text["text"] for key, text in found.lines.items()} == {"a": "t", "b": "t"}
    assert (found.torn, found.garbled, found.duplicates, found.stale) == (1, 4, 1, 0)
    assert found.describe() == "lines dropped from the journal: 1 torn, 4 garbled, 1 duplicated"
    with open_journal(file) as journal:
        append_line(journal, line("c"))
    assert [key[2] for key in read_journal([file]).lines] == ["a", "b", "c"]
    assert read_journal([file]).torn == 0


def test_a_whole_object_without_the_end_of_its_line_is_torn(tmp_path: Path) -> None:
    file = tmp_path / "journal.jsonl"
    file.write_text(json.dumps(line("a")) + "\n" + json.dumps(line("b")))
    found = read_journal([file])
    assert ([key[2] for key in found.lines], found.torn) == (["a"], 1)
    with open_journal(file) as journal:
        append_line(journal, line("b"))
    assert [key[2] for key in read_journal([file]).lines] == ["a", "b"]


def test_a_line_of_other_content_is_never_used(tmp_path: Path) -> None:
    file = tmp_path / "journal.jsonl"
    with open_journal(file) as journal:
        append_line(journal, line("a", text="old", fingerprint="1"))
        append_line(journal, line("a", text="new", fingerprint="2"))
        append_line(journal, line("b", fingerprint="1"))
        append_line(journal, line("z", fingerprint="1"))
    found = read_journal([file], {prediction_key(line("a")): "2", prediction_key(line("b")): "2"})
    assert {key[2]: text["text"] for key, text in found.lines.items()} == {"a": "new", "z": "t"}
    assert found.stale == 2
    assert found.describe() == "lines dropped from the journal: 2 of other content"


def test_a_fingerprint_follows_values_and_not_their_order() -> None:
    assert fingerprint({"a": 1, "b": [2]}) == fingerprint({"b": [2], "a": 1})
    assert len({fingerprint(*parts) for parts in (("ab",), ("a", "b"), ("a", "b", None), (1,), ("1",))}) == 5
    assert fingerprint("half a pair \ud83d") != fingerprint("half a pair ?")


def test_odd_text_comes_back_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "journal.jsonl"
    texts = ["a\u2028b\x85c\nd", "\x00", "half a pair \ud83d", "🙂 é"]
    with open_journal(file) as journal:
        for index, text in enumerate(texts):
            append_line(journal, line(str(index), text=text))
    assert [found["text"] for found in read_journal([file]).lines.values()] == texts


def test_a_full_disk_is_one_line_and_everything_before_it_is_safe(tmp_path: Path) -> None:
    # A limit on the size of files refuses a write in the middle of a line, as a full disk does.
    code = f"""
import resource
from pathlib import Path
from eval.records.journal import (append_line, open_journal)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
with open_journal(Path({str(tmp_path / "journal.jsonl")!r})) as journal:
    try:
        for index in range(100):
            append_line(journal, {{"task": "t", "template": "i", "id": str(index), "maxlen": 1, "text": "x" * 50}})
    except UserError as error:
        print(index, error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[3]
    )
    count, _, told = done.stdout.partition(" ")
    assert "journal.jsonl cannot be written: File too large; what is there is kept" in told
    found = read_journal([tmp_path / "journal.jsonl"])
    assert [key[2] for key in found.lines] == [str(index) for index in range(int(count))]
    assert found.torn == 1
    with (
        Path("/dev/full").open("ab", buffering=0) as full,
        pytest.raises(UserError, match="No space left on device"),
    ):
        append_line(full, line("a"))
