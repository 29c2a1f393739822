"""Checksums: a bit that the disk turns over anywhere in a line is noticed, and the line is made again."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from eval.compare import main as compare
from eval.merge import main as merge
from eval.records.journal import append_line, line_of, open_journal, parse_line, read_journal, read_lines
from eval.records.run_folder import RunFolder
from eval.records.schema import ExampleRecord, Prediction, RunRecord
from eval.run import main as run
from eval.score import main as score
from tests.helpers.records import prediction
from tests.helpers.run_folders import example_line, without_checksums

pytestmark = pytest.mark.usefixtures("no_plots", "fresh_accelerator")


def flips(count: int) -> Iterator[tuple[int, int]]:
    """Yield bytes of a line and bits in them: all, or one at random."""
    chance = random.Random(0)
    for byte in range(len(line_of(LINE))):
        for bit in range(8) if count == 8 else [chance.randrange(8)]:
            yield byte, bit


LINE = prediction("b", 10, text='é — 漢 "quoted"\n')


@pytest.mark.parametrize("count", [1, pytest.param(8, marks=pytest.mark.nightly)])
def test_a_bit_that_is_turned_over_in_any_byte_of_a_line_is_noticed(count: int, tmp_path: Path) -> None:
    file = tmp_path / "0.jsonl"
    before, after = prediction("a", 10), prediction("c", 10)
    with open_journal(tmp_path, "0.jsonl") as journal:
        for one in (before, LINE, after):
            append_line(journal, one)
    whole, start = file.read_bytes(), len(line_of(before))
    for byte, bit in flips(count):
        damaged = bytearray(whole)
        damaged[start + byte] ^= 1 << bit
        file.write_bytes(damaged)
        found = read_journal(Prediction, [file], needs_checksums=True)
        # The end of the line joins it to the next, which is lost with it; both are made again.
        assert found.lines in ({before.key: before, after.key: after}, {before.key: before}), (byte, bit)
        assert found.garbled, (byte, bit)
        assert found.places[0] == f"{file}, line 2"


@pytest.mark.parametrize("text", ["", "x" * 50_000, '", "crc32": "00000000"}', "\ud83d", "\x00\x85\u2028"])
def test_lines_come_back_whatever_their_text_is(text: str) -> None:
    assert parse_line(line_of(prediction("a", 1, text=text)), needs_checksum=True)["text"] == text  # type: ignore[index]


def test_lines_of_version_0_1_have_no_checksum_and_are_read(tmp_path: Path) -> None:
    line = line_of(example_line(0)).decode()
    (tmp_path / "old.jsonl").write_text(without_checksums(line) + line)
    assert "crc32" not in without_checksums(line)
    assert read_lines(ExampleRecord, tmp_path / "old.jsonl") == [example_line(0)] * 2
    damaged: list[str] = []
    assert read_lines(ExampleRecord, tmp_path / "old.jsonl", needs_checksums=True, damaged=damaged) == [example_line(0)]
    assert damaged == [f"{tmp_path / 'old.jsonl'}, line 1"]


@pytest.mark.parametrize(
    "line",
    [
        b'{"task": "plos", "template": "t", "id": [1], "maxlen": 1}',
        b'{"a":' * 60_000 + b"1" + b"}" * 60_000,
        b"[" * 100_000,
        b'{"task": "p", "template": "t", "id": "x", "maxlen": ' + b"9" * 5_000 + b"}",
        b"\xff\xfe{}",
        b"null",
    ],
)
def test_lines_of_another_kind_are_damaged(line: bytes, tmp_path: Path) -> None:
    (tmp_path / "0.jsonl").write_bytes(line + b"\n" + line_of(LINE))
    found = read_journal(Prediction, [tmp_path / "0.jsonl"])
    assert (list(found.lines.values()), found.garbled) == ([LINE], 1)


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    rows = [{"article": f"A report number {n} on {n} bridges. " * 9, "abstract": f"Bridges {n}."} for n in range(4)]
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"--engine mock --task arxiv --data {data} --max-new-tokens 16 --maxlen 60 80".split()


def flip(file: Path, number: int, at: bytes) -> None:
    """Turn a bit over in one line of a file, in the first byte of a part of it."""
    lines = file.read_bytes().splitlines(keepends=True)
    place = lines[number].index(at)
    lines[number] = lines[number][:place] + bytes([lines[number][place] ^ 1]) + lines[number][place + 1 :]
    file.write_bytes(b"".join(lines))


@pytest.mark.parametrize("at", [b'"text": "', b"crc32", b'"id": "'])
def test_a_damaged_line_is_said_and_made_again(
    at: bytes, arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    command = [*arguments, "--output", str(folder)]
    assert run(command) == 0
    before = {name: (folder / name).read_bytes() for name in ("predictions.jsonl", "examples.jsonl")}
    for name, number in (("predictions.jsonl", 3), ("examples.jsonl", 1)):
        flip(folder / name, number, at if name == "predictions.jsonl" else b"id")
    capsys.readouterr()
    assert score([str(folder)]) == 2
    assert f"{folder / 'examples.jsonl'}, line 2 is damaged" in capsys.readouterr().err
    (folder / "examples.jsonl").write_bytes(before["examples.jsonl"])
    assert score([str(folder)]) == 0
    assert "predictions.jsonl, line 4)" in " ".join(capsys.readouterr().out.split())
    flip(folder / "examples.jsonl", 1, b"crc32")
    assert run(command) == 0
    printed = capsys.readouterr().out
    assert f"1 damaged ({folder / 'predictions.jsonl'}, line 4)" in printed
    assert f"damaged lines made again: {folder / 'examples.jsonl'}, line 2" in printed
    assert (folder / "examples.jsonl").read_bytes() == before["examples.jsonl"]
    # Only the number of its group tells that an answer was made later.
    lines, first = (
        list(map(parse_line, made.splitlines()))
        for made in ((folder / "predictions.jsonl").read_bytes(), before["predictions.jsonl"])
    )
    for line in (*lines, *first):
        assert line is not None
        del line["group"]
    assert lines == first


def test_a_folder_of_version_0_1_gets_checksums_when_a_run_goes_on(arguments: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command = [*arguments, "--output", str(folder)]
    assert run(command) == 0
    record = json.loads((folder / "run.json").read_text())
    assert record.pop("checksums") is True
    (folder / "run.json").write_text(json.dumps(record))
    for file in folder.glob("*.jsonl"):
        file.write_text(without_checksums(file.read_text()))
    assert score([str(folder)]) == 0
    assert not RunFolder(folder).needs_checksums
    assert run([*command, "--maxlen", "60", "80", "100"]) == 0
    assert RunFolder(folder).needs_checksums
    lines = (folder / "predictions.jsonl").read_bytes().splitlines()
    assert len(lines) == 12
    assert all(parse_line(line, needs_checksum=True) for line in lines)
    assert compare([str(folder), str(folder)]) == 0


def test_a_merge_that_was_killed_anywhere_is_made_again_to_the_same_result(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = [str(tmp_path / f"part-{number}") for number in (1, 2)]
    for number, part in enumerate(parts, start=1):
        assert run([*arguments, "--shard", f"{number}/2", "--output", part]) == 0
    assert merge([*parts, "--output", str(tmp_path / "whole")]) == 0
    names = ("predictions.jsonl", "scores.json", "example_scores.jsonl", "examples.jsonl", "documents.jsonl.gz")
    whole = {name: (tmp_path / "whole" / name).read_bytes() for name in names}
    replace, folder = os.replace, tmp_path / "killed"

    class Killed(BaseException):
        pass

    number_of_kills = 0
    for last in range(100):
        done = 0

        def stop(path: Path, target: Path, last: int = last) -> Path:
            nonlocal done
            done += 1
            if done > last:
                raise Killed
            replace(path, target)
            return target

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", stop)
            try:
                assert merge([*parts, "--output", str(folder)]) == 0
                break
            except Killed:
                number_of_kills += 1
    assert number_of_kills > 6
    assert {name: (folder / name).read_bytes() for name in names} == whole
    assert not [file for file in folder.iterdir() if file.name.startswith(".") and file.name != ".lock"]
    # A kill may come after all is there: the same merge is made again.
    assert merge([*parts, "--output", str(folder)]) == 0
    assert {name: (folder / name).read_bytes() for name in names} == whole
    capsys.readouterr()
    assert merge([parts[0], "--output", str(folder)]) == 2
    assert "holds a run already" in capsys.readouterr().err


def test_a_merge_does_not_replace_a_folder_in_which_a_run_went_on(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = [str(tmp_path / "part-1")]
    assert run([*arguments, "--output", parts[0]]) == 0
    whole = tmp_path / "whole"
    assert merge([*parts, "--output", str(whole)]) == 0
    RunFolder(whole).write_text(".merging", "")
    assert run([*arguments, "--maxlen", "100", "--output", str(whole)]) == 0
    assert merge([*parts, "--output", str(whole)]) == 2
    assert "holds a run already" in capsys.readouterr().err
    record = RunFolder(whole).read_record(RunRecord)
    assert record is not None
    assert record.tasks["arxiv"].maxlen == [60, 80, 100]
