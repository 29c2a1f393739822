"""A user's own data in every format, task files, and every mistake in them as one line."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from tasks import CustomTask, DataError, LoadRequest, Task, check_instruction, find_task, read_task_file, tasks_of

ROWS: list[dict[str, Any]] = [
    {"id": "t1", "ticket": "The printer is on fire.", "summary": "Fire.", "ask": "What burns?"},
    {"id": "t2", "ticket": "The screen\nis black, all day.", "summary": "Black screen.", "ask": "What is it?"},
]
PLAIN = CustomTask(context_field="ticket", target_field="summary")
ASKING = CustomTask(context_field="ticket", target_field="summary", query_field="ask")


def load(about: CustomTask, data: Path | None, split: str = "test", on_bad_row: str = "fail") -> Any:
    return about.task().load(LoadRequest(split=split, data=data, on_bad_row=on_bad_row))


def write_table(path: Path, delimiter: str) -> None:
    with path.open("w", newline="", encoding="utf-8-sig") as stream:
        writer = csv.DictWriter(stream, list(ROWS[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(ROWS)


def write_all(folder: Path) -> list[Path]:
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    write_table(folder / "a.csv", ",")
    write_table(folder / "a.tsv", "\t")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row | {"more": 1} for row in ROWS]), folder / "a.parquet")
    texts = folder / "texts"
    texts.mkdir()
    for row in ROWS:
        (texts / f"{row['id']}.txt").write_text(row["ticket"] + "\n")
        (texts / f"{row['id']}.target.txt").write_text(row["summary"])
        (texts / f"{row['id']}.query.txt").write_text(row["ask"])
    return [folder / name for name in ("a.jsonl", "a.csv", "a.tsv", "a.parquet", "texts")]


def test_every_format_gives_the_same_examples(tmp_path: Path) -> None:
    expected = [(row["id"], row["ticket"], row["ask"], (row["summary"],)) for row in ROWS]
    for data in write_all(tmp_path):
        loaded = load(ASKING, data)
        assert [(e.id, e.context, e.query, e.references) for e in loaded.examples] == expected, data
        assert loaded.provenance["kind"] == "file"
        assert len(loaded.provenance["sha256"]) == 64
        if not data.is_dir():
            assert [example.query for example in load(PLAIN, data).examples] == [None, None]


def test_a_folder_has_a_file_for_each_split(tmp_path: Path) -> None:
    for name, row in zip(("test", "val"), ROWS, strict=True):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "README.txt").write_text("These are tickets.")
    assert [e.id for e in load(PLAIN, tmp_path).examples] == ["t1"]
    assert [e.id for e in load(PLAIN, tmp_path, split="validation").examples] == ["t2"]
    with pytest.raises(DataError, match="has no split 'train'; it has validation, test: name one with --split"):
        load(PLAIN, tmp_path, split="train")


def test_rows_without_ids_are_numbered_and_a_list_is_several_references(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    rows = [{"context": "a", "target": ["one", " two ", "one"]}, {"context": "a", "target": "three", "id": 7}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    first, second = load(CustomTask(), file).examples
    assert (first.id, first.references) == ("test-0", ("one", "two"))
    assert (second.id, second.references) == ("7", ("three",))
    assert first.document_id == second.document_id, "rows with the same document share its prefill"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (
            {"target": "b"},
            "no field 'context', fields found: target; name one with --context-field, or c",
        ),
        ({"context": "a"}, "no field 'target', fields found: context; name one with --target-field"),
        ({"context": "a", "target": []}, "field 'target' has no text"),
        ({"context": "a", "target": ["b", " "]}, "field 'target' has an empty text"),
        ({"context": "a", "target": ["b", 1]}, r"field 'target\[1\]' is a number"),
        ({"context": "a", "target": None}, "field 'target' is null"),
        ({"context": ["a"], "target": "b"}, "field 'context' is a list; expected text"),
        ({"context": "", "target": "b"}, "field 'context' is empty"),
        ({"context": "a", "target": "b", "id": "same"}, "id 'same' occurs twice"),
        ({"context": "a", "target": "b", "id": "\ud800"}, "field 'id' holds bytes that are no UTF-8, or half"),
    ],
)
def test_a_row_that_cannot_be_used_is_named_or_skipped(row: object, reason: str, tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    good = {"context": "x", "target": "y", "id": "same"}
    file.write_text(f"{json.dumps(good)}\n{json.dumps(row)}\n")
    with pytest.raises(DataError, match=rf"^a\.jsonl line 2: {reason}") as caught:
        load(CustomTask(), file)
    loaded = load(CustomTask(), file, on_bad_row="skip")
    assert [e.id for e in loaded.examples] == ["same"]
    assert loaded.bad_rows == (str(caught.value),)


def test_one_field_is_one_thing() -> None:
    for fields in ({"target_field": "context"}, {"query_field": "target"}, {"query_field": "context"}):
        with pytest.raises(DataError, match="each needs a field of its own"):
            CustomTask(**fields).task()


def test_other_fields_of_a_file_are_another_source(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps({"context": "a", "target": "b", "title": "c"}) + "\n")
    sources = [load(about, file).provenance for about in (CustomTask(), CustomTask(target_field="title"))]
    assert sources[0] != sources[1]
    assert sources[1]["fields"] == {"context": "context", "target": "title", "query": None}


def test_a_revision_is_of_the_hub(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--revision x is of the hub, which task custom does not read"):
        CustomTask(data=tmp_path / "a.jsonl").task().load(LoadRequest(split="test", revision="x"))


def test_a_table_whose_rows_cannot_be_told_apart_is_refused_whole(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    for text, reason in (
        (
            'context,target\nx,y\n"oops,c\nd,e\nf,g\n',
            r"line 3: not readable CSV .* up to line 5; a quote is not closed",
        ),
        ("context,target,context\nx,y,z\n", "the field 'context' is there 2 times"),
        ('"a"b,target\nx,y\n', "its first line is not readable CSV"),
    ):
        file.write_text(text)
        with pytest.raises(DataError, match=reason):
            load(CustomTask(), file, on_bad_row="skip")


def test_data_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    *_, texts = write_all(tmp_path)
    with pytest.raises(DataError, match=r"^task custom has no data; give --data a file, a folder or hf://OWNER/NAME$"):
        load(PLAIN, None)
    with pytest.raises(DataError, match=r"^no such file or folder"):
        load(PLAIN, tmp_path / "nothing")
    (tmp_path / "a.docx").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"a\.docx: format not recognized \(.*\); give \.jsonl, \.csv, \.tsv, \.par"):
        load(PLAIN, tmp_path / "a.docx")
    with pytest.raises(DataError, match=r"a\.csv line 2: no field 'question'.*--query-field"):
        load(CustomTask(context_field="ticket", target_field="summary", query_field="question"), tmp_path / "a.csv")
    with pytest.raises(DataError, match=r"a\.parquet row 0: no field 'text', fields found: id, ticket, summary"):
        load(CustomTask(context_field="text", target_field="summary"), tmp_path / "a.parquet")

    with pytest.raises(DataError, match=r"holds t1\.query\.txt; give --query-field query so that it is asked"):
        load(PLAIN, texts)
    (texts / "t2.target.txt").write_text(" ")
    with pytest.raises(DataError, match=r"^t2\.target\.txt is empty"):
        load(ASKING, texts)
    assert [e.id for e in load(ASKING, texts, on_bad_row="skip").examples] == ["t1"]
    (texts / "t2.target.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"^t2\.target\.txt: not UTF-8 text"):
        load(ASKING, texts)
    (texts / "t2.txt").unlink()
    with pytest.raises(DataError, match=r"texts holds t2\.query\.txt and no t2\.txt; put it there or"):
        load(ASKING, texts)


# Task files


def task_of(folder: Path, text: str) -> Task:
    file = folder / "tickets.yaml"
    file.write_text(text, encoding="utf-8")
    return read_task_file(file).task()


def test_a_task_file_says_all_that_the_flags_say_and_more(tmp_path: Path) -> None:
    write_all(tmp_path)
    task = task_of(
        tmp_path,
        "data: a.csv\ncontext_field: ticket\ntarget_field: summary\nquery_field: ask\nmetrics: scrolls\n"
        "max_new_tokens: 96\nversion: 3\nlicence: ours\ndescription: ticket -> summary\n"
        "templates:\n  short: '{context} {query}'\n  bare:\n    text: '{query} {context} Answer:'\n    chat: false\n",
    )
    assert (task.name, task.profile, task.max_new_tokens, task.version) == ("tickets", "scrolls", 96, 3)
    assert (task.licence, task.description, task.default_template) == ("ours", "ticket -> summary", "short")
    assert [(name, one.text, one.chat) for name, one in task.templates.items()] == [
        ("short", "{context} {query}", True),
        ("bare", "{query} {context} Answer:", False),
        ("document", "{query}\n\n{context}", False),
    ]
    assert [e.id for e in task.load(LoadRequest(split="test")).examples] == ["t1", "t2"], "data lies beside the file"
    other = task.load(LoadRequest(split="test", data=tmp_path / "a.jsonl"))
    assert other.provenance["name"] == "a.jsonl", "--data wins"


def test_templates_are_made_of_the_instruction(tmp_path: Path) -> None:
    plain = task_of(tmp_path, "instruction: Say it in one word.\n")
    assert set(plain.templates) == {"instruct", "instruct-once", "instruct-plain", "instruct-once-plain", "document"}
    assert plain.templates["instruct"].text == "Say it in one word.\n\n{context}\n\nSay it in one word."
    asking = task_of(tmp_path, "instruction: Say it in one word.\nquery_field: ask\n")
    assert asking.default_template == "context_first"
    assert asking.templates["context_first"].text.endswith("Say it in one word.\n\n{query}")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("- a\n", "holds no 'name: value' lines"),
        ("", "holds no 'name: value' lines"),
        ("a: [", "is not YAML"),
        ("context: x\n", "unknown key 'context'; known: name, data, subset, split"),
        ("max_new_tokens: '96'\n", "max_new_tokens is '96'; expected a whole number above 0"),
        ("max_new_tokens: -1\n", "max_new_tokens is -1; expected a whole number above 0"),
        ("max_new_tokens: true\n", "max_new_tokens is True; expected a whole number above 0"),
        ("version: 0\n", "version is 0; expected a whole number above 0"),
        ("metrics: [hf]\n", r"metrics is \['hf'\]; expected a text"),
        ("query_field:\n", "query_field is None; expected a text"),
        ("name: ''\n", "name is ''; expected a text"),
        ("name: a/b\n", "name is 'a/b'; expected at most 100 letters"),
        ("templates: {}\n", "templates is {}; expected texts by name"),
        ("templates: {a: 3}\n", "template 'a' is 3; expected a text, or `text`"),
        ("templates: {a: {text: '{context}', chat: maybe}}\n", "template 'a': chat is 'maybe'; expected true or false"),
        ("templates: {a: {text: '{context}', kind: x}}\n", "template 'a' is {"),
        ("templates: {a: 'no place'}\n", "template 'a' holds {context} 0 times; expected once"),
        ("templates: {a: '{context}{context}'}\n", "template 'a' holds {context} 2 times; expected once"),
        ("templates: {a: '{context} {query}'}\n", "template 'a' holds {query}, and the task has no query_field"),
        ("query_field: q\ntemplates: {a: '{context}'}\n", "template 'a' holds no {query}; correct one of them"),
        ("name: .hidden\n", "name is '.hidden'; expected at most 100 letters"),
        ("name: 2024-99-99\n", "is not YAML: line 1: no timestamp: month must be in 1..12"),
        ("templates: {'a,b': '{context}'}\n", "template 'a,b': a name has at most 100 letters, digits"),
        ("instruction: ' '\n", "instruction is empty; leave it out"),
        ("instruction: Read {context}\n", "instruction 'Read {context}' holds a placeholder"),
        ("instruction: Do.\ntemplates: {a: '{context}'}\n", "has an instruction and templates"),
    ],
)
def test_a_mistake_in_a_task_file_is_one_line_that_names_it(text: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=reason) as caught:
        task_of(tmp_path, text)
    assert str(caught.value).startswith(f"task file {tmp_path / 'tickets.yaml'}")
    assert "\n" not in str(caught.value)


def test_a_task_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no\.yaml cannot be read: No such file or directory; check the path"):
        read_task_file(tmp_path / "no.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"name: \xff\n")
    with pytest.raises(DataError, match=r"bytes\.yaml is not YAML"):
        read_task_file(tmp_path / "bytes.yaml")
    with pytest.raises(DataError, match=r"--instruction '{query}' holds a placeholder"):
        check_instruction("{query}")


def test_a_task_file_names_data_of_the_hub_shots_lengths_and_a_system_message(tmp_path: Path) -> None:
    task = task_of(
        tmp_path,
        "data: hf://owner/tickets\nsubset: mail\nsplit: testmini\nrevision: v1\nshots: 3\nshots_split: dev\n"
        'shots_seed: 7\nsystem: Be brief.\nmaxlen: [2048, 1024]\nstop: "\\n\\n"\n',
    )
    assert (task.default_split, task.revision, task.needs_hub) == ("testmini", "v1", True)
    assert {"testmini", "dev", "validation"} <= task.splits.keys()
    assert (task.shots, task.shots_split, task.shots_seed, task.maxlen) == (3, "dev", 7, (1024, 2048))
    assert task.stop == ("\n\n",)
    assert {template.system for template in task.templates.values()} == {"Be brief.", None}
    assert task_of(tmp_path, "data: hf://owner/tickets\n").revision == "main"
    assert task_of(tmp_path, "maxlen: 512\n").maxlen == (512,)


def test_prompts_of_a_task_file_may_be_jinja(tmp_path: Path) -> None:
    text = 'query_field: ask\ntemplates:\n  short: "{% if true %}{{ context }}{% endif %}\\n\\n{{ query }}"\n'
    assert task_of(tmp_path, text).templates["short"].text == "{context}\n\n{query}"
    with pytest.raises(DataError, match="template 'short': 'title' is undefined; correct the template"):
        task_of(tmp_path, "templates: {short: '{{ context }} {{ title }}'}\n")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("shots: -1\n", "shots is -1; expected a whole number, 0 or more"),
        ("stop: [a, '']\n", r"stop is \['a', ''\]; expected a text or a list of texts"),
        ("maxlen: []\n", r"maxlen is \[\]; expected a whole number above 0, or a list of them"),
        ("maxlen: [1024, '2k']\n", r"maxlen is \[1024, '2k'\]; expected a whole number above 0, or a list"),
        ("data: a.csv\nrevision: v1\n", "revision v1 is of the hub, and the data is not; leave it out"),
    ],
)
def test_a_mistake_in_what_is_optional_is_told(text: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=reason):
        task_of(tmp_path, text)


# Folders of task files


def test_tasks_of_a_folder_are_known_by_their_names(tmp_path: Path) -> None:
    write_all(tmp_path)
    fields = "data: a.csv\ncontext_field: ticket\ntarget_field: summary\n"
    (tmp_path / "one.yaml").write_text(fields)
    (tmp_path / "two.yml").write_text(f"name: second\n{fields}")
    assert list(tasks_of(tmp_path)) == ["one", "second"]
    assert len(find_task("second", tmp_path).load(LoadRequest(split="test")).examples) == 2
    assert find_task("plos", tmp_path).name == "plos", "published tasks stay"
    with pytest.raises(DataError, match=r"unknown task 'secnd', perhaps 'second'; .*others here: one, second$"):
        find_task("secnd", tmp_path)
    (tmp_path / "three.yaml").write_text("name: second\n")
    with pytest.raises(DataError, match=r"two task files of .* are called 'second'; rename one"):
        tasks_of(tmp_path)
    (tmp_path / "three.yaml").write_text("name: plos\n")
    with pytest.raises(DataError, match=r"three\.yaml is called 'plos' like a published task; rename it"):
        tasks_of(tmp_path)
    with pytest.raises(DataError, match=r"texts holds no \.yaml or \.yml file; give a folder of task files"):
        tasks_of(tmp_path / "texts")
