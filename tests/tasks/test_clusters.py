"""What documents are part of, as the loaders name it: a book, a series of meetings, a show, a field of one's own."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from tasks import TASKS, CustomTask, DataError, LoadRequest
from tasks.qmsum import meeting_series


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def clusters(task: str, data: Path, split: str = "test") -> list[str | None]:
    return [example.cluster_id for example in TASKS[task].load(LoadRequest(split=split, data=data)).examples]


CHAPTERS: list[dict[str, Any]] = [
    {"chapter": "One.", "summary_text": "1", "bid": 27681},
    {"chapter": "Two.", "summary_text": "2", "bid": 27681},
    {"chapter": "One.", "summary_text": "uno", "bid": 27681},
    {"chapter": "Other.", "summary_text": "3", "bid": 4},
]


def test_chapters_are_of_their_book_in_every_format(tmp_path: Path) -> None:
    files = [write_lines(tmp_path / "test.jsonl", CHAPTERS), tmp_path / "test.csv", tmp_path / "test.parquet"]
    with files[1].open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(CHAPTERS[0]))
        writer.writeheader()
        writer.writerows(CHAPTERS)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(CHAPTERS), files[2])
    for file in files:
        assert clusters("book_sum", file) == ["27681", "27681", "4"], file


def test_a_chapter_of_no_named_book_is_by_itself(tmp_path: Path) -> None:
    unnamed = [{name: text for name, text in row.items() if name != "bid"} for row in CHAPTERS]
    assert clusters("book_sum", write_lines(tmp_path / "a.jsonl", unnamed)) == [None] * 3
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(unnamed), tmp_path / "a.parquet")
    assert clusters("book_sum", tmp_path / "a.parquet") == [None] * 3
    blank = [row | {"bid": ""} for row in CHAPTERS[:1]] + CHAPTERS[1:2]
    assert clusters("book_sum", write_lines(tmp_path / "b.jsonl", blank)) == [None, "27681"]
    wrong = write_lines(tmp_path / "c.jsonl", [CHAPTERS[0] | {"bid": [1]}])
    with pytest.raises(DataError, match=r"^c\.jsonl line 1: field 'bid' is "):
        clusters("book_sum", wrong)


@pytest.mark.parametrize(
    ("name", "series"),
    [
        ("ES2002a", "ES2002"),
        ("ES2002d.json", "ES2002"),
        ("IS1003b", "IS1003"),
        ("TS3005c", "TS3005"),
        ("Bmr019", "Bmr"),
        ("Bed003", "Bed"),
        ("covid_4", None),
        ("education_10", None),
        ("ES2002abc", None),
        ("", None),
    ],
)
def test_meetings_of_one_team_or_group_are_a_series(name: str, series: str | None) -> None:
    assert meeting_series(name) == series


@pytest.mark.parametrize("field", ["meeting_id", "file_name", "id"])
def test_queries_about_a_series_share_it(field: str, tmp_path: Path) -> None:
    turns = [{"speaker": "Marketing", "content": "Yes ."}]
    asked = [{"query": "What?", "answer": "That."}]
    meeting = {"meeting_transcripts": turns, "general_query_list": asked * 2, "specific_query_list": []}
    names = ["ES2002a", "ES2002b", "covid_1", None]
    data = write_lines(tmp_path / "val.jsonl", [meeting | ({field: name} if name else {}) for name in names])
    assert clusters("qmsum", data, "validation") == ["ES2002"] * 4 + [None] * 4


def test_a_number_beside_the_name_of_a_meeting_hides_no_series(tmp_path: Path) -> None:
    turns = [{"speaker": "Marketing", "content": "Yes ."}]
    asked = [{"query": "What?", "answer": "That."}]
    meeting = {"meeting_transcripts": turns, "general_query_list": asked, "specific_query_list": []}
    named = [meeting | {"meeting_id": number, "meeting_name": f"ES2002{'ab'[number]}"} for number in range(2)]
    data = write_lines(tmp_path / "val.jsonl", named)
    assert clusters("qmsum", data, "validation") == ["ES2002", "ES2002"]


def test_episodes_are_of_their_show(tmp_path: Path) -> None:
    names = ["fd_Charmed_01x18", "fd_Charmed_08x01", "fd_The_Office_03x09", "fd_24_02x13", "Doctor_Who-05x01", "17"]
    rows = [
        {"id": name, "pid": f"{name}_0", "input": f"Scene {index}.", "output": "Recap."}
        for index, name in enumerate(names)
    ]
    file = write_lines(tmp_path / "validation.jsonl", rows)
    shows = ["Charmed", "Charmed", "The_Office", "24", "Doctor_Who", None]
    assert clusters("summ_screen_fd", file, "validation") == shows
    # Ids of other sets that look alike name no show.
    assert clusters("gov_report", file, "validation") == [None] * 6


def own_clusters(file: Path, **fields: str) -> list[str | None]:
    task = CustomTask(cluster_field="book", **fields).task()
    return [example.cluster_id for example in task.load(LoadRequest(split="test", data=file)).examples]


def test_a_field_of_ones_own_data_names_clusters(tmp_path: Path) -> None:
    rows = [
        {"context": f"c{index}", "target": "t", "book": book} for index, book in enumerate([7, "7", "8", "a\0", "a"])
    ]
    file = write_lines(tmp_path / "a.jsonl", rows)
    # A number and its digits are one name, as ids are; what differs by a NUL alone differs.
    assert own_clusters(file) == ["7", "7", "8", "a\0", "a"]
    plain = CustomTask().task().load(LoadRequest(split="test", data=file))
    assert {example.cluster_id for example in plain.examples} == {None}
    # Other clusters are other data: intervals of a folder must not change their units in between.
    clustered = CustomTask(cluster_field="book").task().load(LoadRequest(split="test", data=file))
    assert clustered.provenance != plain.provenance


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{}], "no field 'book', fields found: context, target; name one with --cluster-field, or cluster_field in a"),
        ([{"book": ""}], "field 'book' is empty; name what the document is part of, itself if nothing"),
        ([{"book": None}], "field 'book' is empty"),
        ([{"book": ["x"]}], "field 'book' is a list"),
        ([{"book": "x"}, {"book": "y"}], "field 'book' is 'y', and 'x' in another row about the same document; give"),
    ],
)
def test_a_cluster_that_cannot_be_one_is_told(rows: list[dict[str, Any]], message: str, tmp_path: Path) -> None:
    about = {"context": "the same", "target": "t"}
    file = write_lines(tmp_path / "a.jsonl", [about | row for row in rows])
    with pytest.raises(DataError) as error:
        own_clusters(file)
    assert message in str(error.value)
