"""Each task from a file in its official format to examples, and what becomes of rows that cannot be used."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from tasks import TASKS, DataError, LoadedExamples, LoadRequest
from tasks.readers.scrolls_lines import SAMPLE_DOCUMENT
from tasks.scrolls_tasks import SAMPLE_OPTIONS
from tests.helpers.official_files import as_csv, as_lines, sample_records, write_official

SHARED = Path(__file__).parents[3] / "shared" / "data"
SCROLLS_FIELDS = ("input", "output")
LONGBENCH_FIELDS = ("context", "answers")
# The fields of document and reference for one task of each loader and kind of row; the others differ in names.
REPRESENTATIVES = {
    "arxiv": ("article_text", "abstract_text"),
    **dict.fromkeys(("gov_report", "qmsum", "qasper", "quality", "contract_nli"), SCROLLS_FIELDS),
    "big_patent_a": ("description", "abstract"),
    **dict.fromkeys(("longbench_hotpotqa", "longbench_gov_report", "longbench_samsum"), LONGBENCH_FIELDS),
}
# The number of examples in a sample, for one task of each loader.
NUM_EXAMPLES = dict.fromkeys(REPRESENTATIVES, 3) | {"multi_news": 3, "book_sum": 2, "plos": 1, "text": 2}
NUM_EXAMPLES |= {"aclsum": 1, "aclsum_aspects": 3}
SOME_TEXT = "a text"


def load(task: str, data: Path, *, on_bad_row: str = "fail", limit: int | None = None) -> LoadedExamples:
    split = TASKS[task].default_split
    return TASKS[task].load(LoadRequest(split=split, data=data, on_bad_row=on_bad_row, limit=limit))


@pytest.mark.parametrize("task", TASKS)
def test_the_sample_of_every_task_gives_examples(task: str, tmp_path: Path) -> None:
    assert TASKS[task].sample, "a task has a sample of its official files, for this test"
    loaded = load(task, write_official(task, tmp_path))
    assert len(loaded.examples) == NUM_EXAMPLES.get(task, len(loaded.examples))
    assert len({example.id for example in loaded.examples}) == len(loaded.examples) > 0
    assert not loaded.bad_rows
    assert loaded.provenance["num_bad"] == loaded.provenance["num_skipped"] == 0
    assert len(loaded.provenance["sha256"]) == 64
    asks = any("{query}" in template.text for template in TASKS[task].templates.values())
    for example in loaded.examples:
        assert example.context == example.context.strip() != ""
        assert all(example.references)
        assert bool(example.references) == TASKS[task].has_references
        assert (example.query is not None) == asks
        assert not example.query or example.query not in example.context
    assert load(task, tmp_path / next(tmp_path.iterdir()).name, limit=1).examples == loaded.examples[:1]


def first(task: str, folder: Path) -> Any:
    return load(task, write_official(task, folder)).examples[0]


def test_a_query_of_scrolls_ends_at_the_first_blank_line(tmp_path: Path) -> None:
    for task, query in {
        "qasper": "Was it closed?",
        "narrative_qa": "What was closed?",
        "contract_nli": "A bridge stays open.",
        "quality": f"What was closed?\n\n{SAMPLE_OPTIONS.strip()}",
    }.items():
        example = first(task, tmp_path)
        assert example.query == query
        assert example.context == f"Report 0. {SAMPLE_DOCUMENT}", "the document's own blank line stays"
    assert first("gov_report", tmp_path).context == f"Report 0. {SAMPLE_DOCUMENT}"


def test_a_line_of_scrolls_without_its_query_is_told(tmp_path: Path) -> None:
    file = tmp_path / "validation.jsonl"
    file.write_text(
        json.dumps({"id": "1", "pid": "1_0", "input": "\n\nPara one.\n\nPara two.", "output": "Yes"}) + "\n"
    )
    with pytest.raises(DataError, match="line 1: field 'input' has no query before the first blank line"):
        load("qasper", file)


def test_options_of_quality_may_stand_in_one_line_and_are_what_an_answer_must_be(tmp_path: Path) -> None:
    row = dict(sample_records("quality")[0])
    row["input"] = f"Is it (D)?\n\n(A) One (B) Two  words (C) Three (D) Four\n\n{SAMPLE_DOCUMENT}"
    row["output"] = "Two words"
    (example,) = load("quality", write_official("quality", tmp_path, as_lines([row]))).examples
    assert example.query == "Is it (D)?\n\n(A) One (B) Two  words (C) Three (D) Four"
    assert example.context == SAMPLE_DOCUMENT
    for change, reason in (
        ({"output": "Five"}, "'output' is 'Five', which is none of the options"),
        ({"output": "B"}, "which is none of the options"),
        ({"input": f"Why?\n\n{SAMPLE_DOCUMENT}"}, r"has no options \(A\) to \(D\)"),
        ({"input": "Why?\n\n(A) One (B) Two (C) Three (D) Four\n\n"}, r"has no options \(A\) to \(D\)"),
    ):
        with pytest.raises(DataError, match=reason):
            load("quality", write_official("quality", tmp_path, as_lines([row | change])))
    row = {**sample_records("contract_nli")[0], "output": "Neutral"}
    with pytest.raises(DataError, match="'output' is 'Neutral'; expected Entailment, Contradiction, Not mentioned"):
        load("contract_nli", write_official("contract_nli", tmp_path, as_lines([row])))


def test_several_lines_of_an_id_are_several_references(tmp_path: Path) -> None:
    rows = sample_records("qasper")
    again = [{**rows[0], "pid": "x_1", "output": "No"}, {**rows[0], "pid": "x_2"}]
    examples = load("qasper", write_official("qasper", tmp_path, as_lines([*rows, *again]))).examples
    assert [example.references for example in examples] == [("Yes", "No"), ("Unanswerable",), ("the bridge",)]


@pytest.mark.parametrize("task", ["gov_report", "quality", "qmsum"])
def test_hidden_references_are_one_clear_line(task: str, tmp_path: Path) -> None:
    hidden = "the references of the test split are hidden in SCROLLS; use --split validation"
    with pytest.raises(DataError, match=f"^task {task}: {hidden}"):
        TASKS[task].load(LoadRequest(split="test"))
    file = tmp_path / "test.jsonl"
    file.write_bytes(as_lines([{**row, "output": None} for row in sample_records(task)]))
    for data in (file, tmp_path):
        with pytest.raises(DataError, match=rf"^test\.jsonl line 1: field 'output' is null: {hidden}"):
            TASKS[task].load(LoadRequest(split="test", data=data))


def test_longbench_reads_the_unpacked_folder_and_no_other_sets_file(tmp_path: Path) -> None:
    for name in ("hotpotqa", "qasper", "gov_report"):
        (tmp_path / f"{name}.jsonl").write_bytes(as_lines(sample_records(f"longbench_{name}")))
    example = load("longbench_hotpotqa", tmp_path).examples[0]
    assert example.references == ("the bridge", "a bridge")
    assert (example.id, example.query) == ("0" * 48, "Question: What was closed?\nAnswer: ")
    (tmp_path / "qasper_e.jsonl").write_bytes(as_lines(sample_records("longbench_e_qasper")))
    assert [example.groups for example in load("longbench_e_qasper", tmp_path).examples] == [
        ("0-4k",),
        ("4-8k",),
        ("8k+",),
    ]
    assert load("longbench_gov_report", tmp_path).examples[0].query is None
    with pytest.raises(DataError, match=r"^qasper\.jsonl line 1: field 'dataset' is 'qasper'; expected 'hotpotqa'"):
        load("longbench_hotpotqa", tmp_path / "qasper.jsonl")
    row = {**sample_records("longbench_gov_report")[0], "input": "Why?"}
    (tmp_path / "gov_report.jsonl").write_bytes(as_lines([row]))
    with pytest.raises(DataError, match="field 'input' is 'Why\\?'; gov_report asks nothing"):
        load("longbench_gov_report", tmp_path)


def test_articles_of_multi_news_stay_apart_and_line_breaks_come_back(tmp_path: Path) -> None:
    data = write_official("multi_news", tmp_path)
    example = load("multi_news", data).examples[0]
    assert example.context == "A first article. \n \n More of it.\n\n|||||\n\nA second one."
    assert example.references == ("– Two articles.",)
    assert load("multi_news", data / "test.src.cleaned").examples[0] == example

    row = {"document": "A first article. \n \n More of it. ||||| A second one. |||||", "summary": "– Two articles."}
    (tmp_path / "rows.jsonl").write_bytes(as_lines([row]))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "rows.parquet")
    for name in ("rows.jsonl", "rows.parquet"):
        assert load("multi_news", tmp_path / name).examples == (example,)

    (data / "test.tgt").write_text("– Two articles.\n")
    with pytest.raises(DataError, match=r"^test\.tgt ends before line 2, where the other file goes on"):
        load("multi_news", data)
    (data / "test.tgt").unlink()
    with pytest.raises(DataError, match=r"has no test\.tgt beside it"):
        load("multi_news", data)


def test_summaries_of_one_chapter_are_its_references_wherever_they_stand(tmp_path: Path) -> None:
    data = write_official("book_sum", tmp_path)
    one, two = load("book_sum", data).examples
    assert (one.id, one.references) == ("test-0", ("Rain.", "It rains."))
    assert (two.id, two.references) == ("test-1", ("Sun.",))
    assert one.context == 'CHAPTER I\n\nIt rained, "all" day.'
    loaded = load("book_sum", data, limit=1)
    assert loaded.examples == (one,), "a limit leaves no reference out"
    assert loaded.provenance["num_rows"] == 3


def test_big_patent_reads_its_classes_apart_or_together(tmp_path: Path) -> None:
    data = write_official("big_patent", tmp_path)
    (data / "test" / "y").mkdir()
    other = {"abstract": "a lamp .", "description": "light ."}
    (data / "test" / "y" / "data-test-y-0.gz").write_bytes(gzip.compress(as_lines([other])))
    assert [example.id for example in load("big_patent", data).examples] == ["test-0", "test-1", "test-2", "test-3"]
    assert [example.context for example in load("big_patent_y", data).examples] == ["light ."]
    with pytest.raises(DataError, match=r"test holds no b/\*\.gz"):
        load("big_patent_b", data)
    file = tmp_path / "patents.jsonl.gz"
    file.write_bytes(gzip.compress(as_lines([other])))
    assert [example.references for example in load("big_patent", file).examples] == [("a lamp .",)]
    file.write_bytes(gzip.compress(as_lines([other]))[:-12])
    with pytest.raises(DataError, match=r"^patents\.jsonl\.gz: not a readable gzip file"):
        load("big_patent", file)
    shutil.copy(data / "test" / "y" / "data-test-y-0.gz", tmp_path / "test.jsonl.gz")
    (tmp_path / "folder").mkdir()
    shutil.move(tmp_path / "test.jsonl.gz", tmp_path / "folder")
    assert len(load("big_patent", tmp_path / "folder").examples) == 1


# Rows that cannot be used

Fault = Callable[[dict[str, Any], str, str], object]


def changed(value: Any, *, target: bool = False) -> Fault:
    def change(row: dict[str, Any], context: str, reference: str) -> object:
        return row | {reference if target else context: value}

    return change


def without(row: dict[str, Any], context: str, reference: str) -> object:
    return {key: value for key, value in row.items() if key != context}


def without_target(row: dict[str, Any], context: str, reference: str) -> object:
    return {key: value for key, value in row.items() if key != reference}


def raw(text: bytes) -> Fault:
    return lambda row, context, reference: text


FAULTS: dict[str, tuple[Fault, str]] = {
    "no context": (without, "CONTEXT|format not recognized"),
    "no reference": (without_target, "field 'TARGET' is missing"),
    "context is a number": (changed(3), "field 'CONTEXT' is a number"),
    "context is null": (changed(None), "field 'CONTEXT' is null"),
    "context is empty": (changed(" "), "field 'CONTEXT' is (empty|text; expected a list)"),
    "reference is a number": (changed(3, target=True), "field 'TARGET' is a number"),
    "reference is null": (changed(None, target=True), "field 'TARGET' is null"),
    "reference is empty": (changed("", target=True), "field 'TARGET' is (empty|text; expected a list)"),
    "half a surrogate pair": (changed("Who?\n\nx \ud800 y"), "half a surrogate pair|expected a list"),
    "bytes that are no text": (raw(b'{"a": "\xff"}\n'), "not UTF-8 text"),
    "a line of 5 MB": (raw(b'{"a": "' + b"x" * 5_000_000 + b'"}\n'), r"4\.8 MiB long, and 4 MiB"),
    "half a line": (raw(b'{"id": "x", "input": "a te\n'), "not valid JSON"),
    "a list": (raw(b"[1, 2]\n"), "holds a list; expected a JSON object"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("task", REPRESENTATIVES)
def test_a_row_that_cannot_be_used_is_named_or_skipped_and_counted(task: str, fault: str, tmp_path: Path) -> None:
    context, target = REPRESENTATIVES[task]
    good, bad, last = sample_records(task)
    change, reason = FAULTS[fault]
    made = change(dict(bad), context, target)
    middle = made if isinstance(made, bytes) else json.dumps(made).encode() + b"\n"
    data = write_official(task, tmp_path, as_lines([good]) + middle + as_lines([last]))
    reason = reason.replace("CONTEXT", context).replace("TARGET", target)
    with pytest.raises(DataError, match=reason) as caught:
        load(task, data)
    message = str(caught.value)
    (path,) = TASKS[task].sample
    files = {"arxiv": "arxiv.jsonl", "big_patent_a": "data-test-a-0"}  # others: the path inside a zip file
    place = f"{files.get(task, path.partition('/')[2])} line 2: "
    assert message.startswith((place, f"a/{place}")), message
    assert "\n" not in message
    assert len(message) < 400

    loaded = load(task, data, on_bad_row="skip")
    assert len(loaded.examples) == 2
    assert loaded.examples[0].context != loaded.examples[1].context
    assert loaded.bad_rows == (message,)
    assert loaded.provenance["num_bad"] == 1
    assert loaded.provenance["num_rows"] == 3


def test_rows_of_tables_that_cannot_be_used_are_named_or_skipped(tmp_path: Path) -> None:
    columns = (
        "bid",
        "is_aggregate",
        "chapter_path",
        "summary_id",
        "source",
        "chapter",
        "chapter_length",
        "summary_text",
    )
    good = ",".join(("1", "True", "p", "s", "a", "CHAPTER {}", "9", "Rain."))
    for broken, reason in (
        (b"1,True,p,s,a,,9,Rain.", "line 3: field 'chapter' is empty"),
        (b"1,True,p,s,a,CHAPTER,9,", "line 3: field 'summary_text' is empty"),
        (b"1,True,p,s,a,CHAPTER", "line 3: 6 cells under a header of 8"),
        (b"1,True,p,s,a,CHAP\xff,9,Rain.", "line 3: field 'chapter' holds bytes that are no UTF-8"),
        (b'1,True,p,s,a,"CHAPTER" no,9,Rain.', "line 3: not readable CSV"),
        (b"1,True,p,s,a," + b"x" * 5_000_000 + b",9,Rain.", "line 3: not readable CSV .*field larger than"),
    ):
        lines = [",".join(columns).encode(), good.format(1).encode(), broken, good.format(2).encode()]
        file = tmp_path / "test.csv"
        file.write_bytes(b"\n".join(lines) + b"\n")
        with pytest.raises(DataError, match=rf"^test\.csv {reason}") as caught:
            load("book_sum", file)
        loaded = load("book_sum", file, on_bad_row="skip")
        assert [example.context for example in loaded.examples] == ["CHAPTER 1", "CHAPTER 2"]
        assert loaded.bad_rows == (str(caught.value),)
    (tmp_path / "other.csv").write_bytes(as_csv([{"text": "a", "summary_text": "b"}]))
    with pytest.raises(DataError, match=r"^other\.csv line 2: field 'chapter' is missing.*found: text, summary_text$"):
        load("book_sum", tmp_path / "other.csv")
    assert sample_records("book_sum")[0].keys() == set(columns)


def test_rows_of_parquet_that_cannot_be_used_are_named_or_skipped(tmp_path: Path) -> None:
    good = {"description": SOME_TEXT, "abstract": "b"}
    for change, reason in (
        ({"description": None}, "field 'description' is null; expected text"),
        ({"description": ""}, "field 'description' is empty"),
        ({"abstract": None}, "field 'abstract' is null; expected text"),
        ({"abstract": " "}, "field 'abstract' is empty"),
    ):
        file = tmp_path / "test.parquet"
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([good, good | change, good]), file)
        with pytest.raises(DataError, match=rf"^test\.parquet row 1: {reason}") as caught:
            load("big_patent", file)
        loaded = load("big_patent", file, on_bad_row="skip")
        assert [example.id for example in loaded.examples] == ["test-0", "test-2"]
        assert loaded.bad_rows == (str(caught.value),)
    # Bytes that are no UTF-8 in a text column, and a text beyond the most.
    wrong = pyarrow.array([SOME_TEXT.encode(), b"\xff\xfe", SOME_TEXT.encode()]).view(pyarrow.string())
    table = pyarrow.table({"description": wrong, "abstract": ["b", "b", "b"]})
    pyarrow.parquet.write_table(table, file)
    loaded = load("big_patent", file, on_bad_row="skip")
    assert [example.id for example in loaded.examples] == ["test-0", "test-2"]
    assert loaded.bad_rows[0].startswith("test.parquet row 1: not UTF-8 text")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([good, good | {"description": "x " * 2_200_000}]), file)
    (problem,) = load("big_patent", file, on_bad_row="skip").bad_rows
    assert "row 1: field 'description' has 4,399,999 characters, and 4,194,304" in problem
    for rows, reason in (
        ([{"abstract": "b"}], "row 0: field 'description' is missing"),
        ([{"description": 3, "abstract": "b"}], "row 0: field 'description' is a number"),
        ([{"text": "b"}], ": columns are text; expected description, abstract"),
    ):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
        with pytest.raises(DataError, match=rf"^test\.parquet ?{reason}"):
            load("big_patent", file)


def test_bad_lines_of_multi_news_are_told(tmp_path: Path) -> None:
    data = write_official("multi_news", tmp_path)
    (data / "test.src.cleaned").write_bytes(b"One.\n||||| |||||\nb\xffd\n\nFive.\n")
    (data / "test.tgt").write_text("1\n2\n3\n4\n5\n")
    loaded = load("multi_news", data, on_bad_row="skip")
    assert [example.id for example in loaded.examples] == ["test-0", "test-4"]
    reasons = ("'document' holds no article", "'document' holds bytes that are no UTF-8", "'document' is empty")
    for number, (problem, reason) in enumerate(zip(loaded.bad_rows, reasons, strict=True), start=2):
        assert problem.startswith(f"test.src.cleaned line {number}: field {reason}")


def test_nothing_but_bad_rows_is_an_error_also_when_they_are_skipped(tmp_path: Path) -> None:
    rows = [{**row, "output": ""} for row in sample_records("qasper")]
    data = write_official("qasper", tmp_path, as_lines(rows))
    with pytest.raises(DataError, match=r"3 rows read, 0 of them left out, 3 bad.*first bad one: .*'output' is empty"):
        load("qasper", data, on_bad_row="skip")


@pytest.mark.parametrize(("task", "num_examples"), [("gov_report", 7), ("qasper", 78)])
def test_real_files(task: str, num_examples: int) -> None:
    file = SHARED / task / "validation.jsonl"
    if not file.exists():
        pytest.skip(f"{file} is not here")
    for data in (file, file.parent):
        assert len(load(task, data).examples) == num_examples
