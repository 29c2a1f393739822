"""Run folders and files are scored without a model; what does not belong together is refused in one line."""

from __future__ import annotations

import gzip
import json
import lzma
import os
import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.compare import main as compare
from eval.errors import UserError
from eval.records.run_folder import RunFolder
from eval.reporting.columns import verdict
from eval.score import main as score
from eval.scoring.files import score_files
from eval.scoring.profiles import score_prediction
from tests.helpers.properties import tries
from tests.helpers.run_folders import document, example_line, run_record, with_task, without_checksums, write_run

pytestmark = pytest.mark.usefixtures("no_plots")


def half(line: Any, maxlen: int) -> str:
    """Answer with the reference, or half of it at the smallest length."""
    words = line.references[0].split()
    return " ".join(words if maxlen > 100 else words[: len(words) // 2])


def nothing(line: Any, maxlen: int) -> str:
    return ""


def read(folder: Path, name: str = "scores.json") -> Any:
    text = (folder / name).read_text()
    return [json.loads(line) for line in text.splitlines()] if name.endswith("jsonl") else json.loads(text)


def said(capsys: pytest.CaptureFixture[str]) -> str:
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error


def test_a_run_is_scored_again_under_another_profile(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path, half)
    assert score([str(tmp_path), "--full", "--explain"]) == 0
    printed = capsys.readouterr().out
    for part in (
        "ROUGE profile hf",
        "visible oracle",
        "where every length cuts",
        "100 to 200",
        "attn TFLOP",
        "n: exam",
    ):
        assert part in printed
    first = read(tmp_path)
    assert first["profiles"] == {"plos": "hf"}
    assert score([str(tmp_path), "--profile", "scrolls"]) == 0
    again = read(tmp_path)
    assert (again["profiles"], {one["profile"] for one in again["results"]}) == ({"plos": "scrolls"}, {"scrolls"})
    assert "geometric" in again["results"][0]["metrics"]
    assert score([str(tmp_path)]) == 0
    assert read(tmp_path) == first
    lines = read(tmp_path, "example_scores.jsonl")
    assert len(lines) == 6 * 2 * 8  # six examples at two lengths: the model, and seven texts that need none
    assert all(line["metrics"]["rouge1"] == 1 for line in lines if line["is_model"] and line["maxlen"] == 200)


def test_where_no_subset_is_shown_the_reason_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, num_sentences, reason in (
        ("long", 20, "Every length truncates all of them."),
        ("short", 3, "The greatest length truncates none."),
    ):
        write_run(tmp_path / name, half, documents={f"doc-{i}": document(i, num_sentences) for i in range(6)})
        assert score([str(tmp_path / name), "--full"]) == 0
        assert reason in capsys.readouterr().out
        assert reason in (tmp_path / name / "report.html").read_text()


def test_a_page_for_others_holds_no_texts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path, half)
    assert score([str(tmp_path), "--no-texts"]) == 0
    page = (tmp_path / "report.html").read_text()
    for line in read(tmp_path, "examples.jsonl"):
        assert line["references"][0][:30] not in page
    with gzip.open(tmp_path / "documents.jsonl.gz") as stream:
        assert json.loads(stream.readline())["text"][:30] not in page
    assert "test-0" in page


def test_a_run_without_texts_stays_without_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path, half, record=replace(run_record(), config={"texts": False}))
    reference = read(tmp_path, "examples.jsonl")[3]["references"][0][:30]
    for flags, is_there in (([], False), (["--texts"], True), ([], True), (["--no-texts"], False), ([], False)):
        assert score([str(tmp_path), *flags]) == 0
        assert (reference in (tmp_path / "report.html").read_text()) == is_there


def test_scores_that_were_interrupted_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(tmp_path, half)
    assert score([str(tmp_path)]) == 0
    original = RunFolder.write_json

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(RunFolder, "write_json", interrupt)
    assert score([str(tmp_path), "--profile", "longbench"]) == 130
    monkeypatch.setattr(RunFolder, "write_json", original)
    assert read(tmp_path)["profiles"] == {"plos": "hf"}
    capsys.readouterr()
    assert compare([str(tmp_path)] * 2) == 2
    assert "was interrupted, or is at work; run: python -m eval.score" in said(capsys)
    assert score([str(tmp_path), "--profile", "longbench"]) == 0
    assert compare([str(tmp_path)] * 2) == 0


def test_texts_may_come_from_a_pipe_and_none_keeps_its_reader_waiting(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "r.txt").write_text("a b\n")
    read, write = os.pipe()
    os.write(write, b"a b\n")
    os.close(write)
    assert scored(Path(f"/dev/fd/{read}"), tmp_path / "r.txt") == 0
    os.close(read)
    os.mkfifo(tmp_path / "p")
    assert scored(tmp_path / "p", tmp_path / "r.txt") == 2
    assert "is empty; give it an item a line" in said(capsys)


def test_a_field_that_is_null_is_none(tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_text('{"reference": null, "references": ["a b"]}\n')
    (tmp_path / "p.txt").write_text("a b\n")
    assert scored(tmp_path / "p.txt", tmp_path / "r.jsonl") == 0


def test_references_that_are_printed_lists_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "r.jsonl").write_text(json.dumps(["a b", "['c d', 'e']"]) + "\n" + json.dumps("f") + "\n")
    (tmp_path / "p.txt").write_text("a b\nf\n")
    assert scored(tmp_path / "p.txt", tmp_path / "r.jsonl") == 0
    assert (
        "note: 1 references are what Python prints of a list, the first in r.jsonl, line 1" in capsys.readouterr().err
    )


def test_json_instead_of_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path, half)
    assert score([str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == read(tmp_path)


def test_folders_that_cannot_be_scored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert score([str(tmp_path / "none")]) == 2
    assert "holds no run" in said(capsys)
    folder = write_run(tmp_path / "run", half)
    (folder.path / "documents.jsonl.gz").write_bytes(b"no gzip")
    assert score([str(folder.path)]) == 2
    assert "documents.jsonl.gz cannot be read" in said(capsys)
    lines = without_checksums((folder.path / "examples.jsonl").read_text())
    folder.write_documents([])
    (folder.path / "examples.jsonl").write_text(lines.replace('"evidence"', '"proof"'))
    assert score([str(folder.path)]) == 2
    assert "examples.jsonl, line 1 has no field 'evidence'" in said(capsys)
    (folder.path / "examples.jsonl").write_text(lines)
    (folder.path / "documents.jsonl.gz").unlink()
    assert score([str(folder.path)]) == 2
    assert "lacks the document of test-0" in said(capsys)
    (folder.path / "predictions.jsonl").unlink()
    assert score([str(folder.path)]) == 2
    assert "no predictions yet" in said(capsys)
    assert not (folder.path / "scores.json").exists()


def test_a_run_that_was_interrupted_is_scored_as_far_as_it_got(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path, half)
    lines = read(tmp_path, "predictions.jsonl")
    (tmp_path / "journal").mkdir()
    written = "".join(json.dumps(line) + "\n" for line in reversed(lines[:5]))
    (tmp_path / "journal" / "00000.jsonl").write_text(written + '{"task": "pl')
    (tmp_path / "predictions.jsonl").unlink()
    assert score([str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "Not there yet: 7 predictions" in printed
    assert "Lines dropped from the journal: 1 torn." in printed
    model = [one for one in read(tmp_path)["results"] if one["kind"] == "model" and one["subset"] == "all"]
    assert [(one["maxlen"], one["num_examples"]) for one in model] == [(100, 3), (200, 2)]


@pytest.mark.parametrize("kind", ["txt", "jsonl", "objects"])
def test_files_of_any_system_are_scored(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    predictions = ["The cat sat.", "A dog ran\u2028far."]
    references = [["The cat sat down."], ["The dog ran.", "A dog ran far."]]
    if kind == "txt":
        references = [[texts[0]] for texts in references]
        files = ["\n".join(predictions) + "\n", "\n".join(texts[0] for texts in references)]
    elif kind == "jsonl":
        files = ["\n".join(map(json.dumps, items)) for items in (predictions, references)]
    else:
        items = [{"id": i, "prediction": text} for i, text in enumerate(predictions)]
        held = [{"id": i, "references": texts, "document_id": "d"} for i, texts in enumerate(references)]
        files = ["\n".join(map(json.dumps, rows)) for rows in (items, reversed(held))]
    suffix = "txt" if kind == "txt" else "jsonl"
    paths = [tmp_path / f"{name}.{suffix}" for name in ("predictions", "references")]
    for path, text in zip(paths, files, strict=True):
        path.write_text(text)
    assert score(["--predictions", str(paths[0]), "--references", str(paths[1]), "--profile", "scrolls"]) == 0
    content = json.loads(capsys.readouterr().out)
    (result,) = content["results"]
    expected = [score_prediction("scrolls", *pair) for pair in zip(predictions, references, strict=True)]
    assert [line["metrics"] for line in content["examples"]] == expected
    assert result["metrics"]["rouge1"]["mean"] == pytest.approx(sum(one["rouge1"] for one in expected) / 2)
    assert (result["num_examples"], result["num_documents"]) == (2, 1 if kind == "objects" else 2)
    assert result["metrics"]["geometric"]["mean"] > 0


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        ('"a"\n"b"\n', '"a"\n', "2 predictions for 1 references"),
        ('"a"\nb\n', '"a"\n"b"\n', "predictions.jsonl, line 2: not JSON"),
        ('{"other": 1}\n', '"a"\n', "no field 'prediction' or 'text', fields found: other"),
        ("3\n", '"a"\n', "line 1: 3; a text or a list of texts was expected"),
        ('["a", "b"]\n', '"a"\n', "2 predictions; give one text an item"),
        ('"a"\n', "[]\n", "no reference"),
        ("", '"a"\n', "predictions.jsonl is empty"),
        ('{"id": 1, "text": "a"}\n', '{"id": 2, "references": ["a"]}\n', "2 ids are in one file alone"),
        ('{"id": 1, "text": "a"}\n"b"\n', '"a"\n"b"\n', "predictions.jsonl, line 2: no id, where"),
        ('{"id": 1, "text": "a"}\n', '"a"\n', "references.jsonl, line 1: no id, where predictions.jsonl, line 1 has"),
        ("[" * 100_000 + "\n", '"a"\n', "line 1: not JSON"),
        (
            '{"text": "a", "document_id": "x"}\n',
            '{"reference": "a", "document_id": "y"}\n',
            "another document_id than in references.jsonl, line 1",
        ),
        ('{"id": 1, "text": "a"}\n' * 2, '{"id": 1, "references": ["a"]}\n', "id '1' occurs twice"),
    ],
)
def test_files_that_do_not_belong_together(
    predictions: str, references: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, text in (("predictions", predictions), ("references", references)):
        (tmp_path / f"{name}.jsonl").write_text(text)
    arguments = [
        "--predictions",
        str(tmp_path / "predictions.jsonl"),
        "--references",
        str(tmp_path / "references.jsonl"),
    ]
    assert score(arguments) == 2
    assert message in said(capsys)


def scored(predictions: Path, references: Path, *flags: str) -> int:
    return score(["--predictions", str(predictions), "--references", str(references), *flags])


def test_tables_are_read_by_column(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    predictions = 'id,prediction\n1,"rivers, run"\n2,"two\nlines"\n'
    references = 'id,reference\n2,"two\nlines"\n1,"rivers, sleep"\n'
    (tmp_path / "p.csv").write_text(predictions)
    (tmp_path / "p.tsv").write_text(predictions.replace(",p", "\tp").replace(',"', '\t"'))
    (tmp_path / "p.csv.gz").write_bytes(gzip.compress(predictions.replace("id,", "id ;").replace(',"', ';"').encode()))
    (tmp_path / "r.csv").write_text(references)
    table = pyarrow.table({"id": [2.0, 1.0], "references": [["x", "two\nlines"], ["rivers, sleep"]]})
    pyarrow.parquet.write_table(table, tmp_path / "r.parquet")
    (tmp_path / "p.jsonl.xz").write_bytes(
        lzma.compress(b'{"id": 1.0, "text": "rivers, run"}\n{"id": 2, "text": "two lines"}\n')
    )
    for prediction in ("p.csv", "p.tsv", "p.csv.gz", "p.jsonl.xz"):
        for reference in ("r.csv", "r.parquet"):
            assert scored(tmp_path / prediction, tmp_path / reference) == 0
            content = json.loads(capsys.readouterr().out)
            assert [line["metrics"]["rouge1"] for line in content["examples"]] == [0.5, 1.0], (prediction, reference)
            assert [line["id"] for line in content["examples"]] == ["1", "2"]


def test_columns_are_named_by_flags(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.csv").write_text("key,answer,gold\n1,rivers run,rivers run\n2,,x\n")
    named = ["--prediction-field", "answer", "--reference-field", "gold", "--id-field", "key"]
    assert scored(tmp_path / "a.csv", tmp_path / "a.csv", *named) == 0
    content = json.loads(capsys.readouterr().out)
    assert [(line["id"], line["metrics"]["rouge1"]) for line in content["examples"]] == [("1", 1.0), ("2", 0.0)]
    assert scored(tmp_path / "a.csv", tmp_path / "a.csv") == 2
    error = said(capsys)
    assert "a.csv line 2: no field 'prediction' or 'text', fields found: key, answer, gold" in error
    assert "--prediction-field" in error
    with pytest.raises(SystemExit):
        score([str(tmp_path), "--id-field", "key"])
    assert "are for files; a run folder has its own" in said(capsys)


def test_an_array_that_is_a_whole_json_file_holds_an_item_an_entry(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "r.json").write_text('["a b", "c d", "e f"]\n')
    (tmp_path / "p.json").write_text(json.dumps(["a b", "c d", "x"], indent=1))
    assert scored(tmp_path / "p.json", tmp_path / "r.json") == 0
    assert json.loads(capsys.readouterr().out)["results"][0]["num_examples"] == 3
    (tmp_path / "one.txt").write_text("e f\n")
    assert scored(tmp_path / "one.txt", tmp_path / "r.json") == 2
    assert "1 predictions for 3 references" in said(capsys)
    # JSON lines: one item, as documented, which is said.
    (tmp_path / "r.jsonl").write_text('["a b", "c d", "e f"]\n')
    assert scored(tmp_path / "one.txt", tmp_path / "r.jsonl") == 0
    assert capsys.readouterr().err == "note: r.jsonl holds one item with 3 references\n"


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.txt", "a b\n".encode("utf-16"), "a.txt, line 1: not UTF-8 text but UTF-16; save it as UTF-8"),
        ("a.txt", "a b\n".encode("utf-16-le"), "a.txt, line 1: not UTF-8 text but UTF-16; save it as UTF-8"),
        ("a.csv", "prediction\na\n".encode("utf-16"), "a.csv: not UTF-8 text but UTF-16; save it as UTF-8"),
        ("a.txt", "a\nStra\xdfe\n".encode("cp1252"), "a.txt, line 2: not UTF-8 text"),
        (
            "a.csv",
            "prediction\nStra\xdfe\n".encode("cp1252"),
            "a.csv line 2: field 'prediction' holds bytes that are no",
        ),
        ("a.csv", b"prediction\n\"['Yes', 'Yes']\"\n", "a list that was printed into a cell"),
        ("a.csv", b"prediction\na,b\n", "a.csv line 2: 2 cells under a header of 1"),
        ("a.jsonl", b'{"id": true, "text": "a"}\n', "a.jsonl, line 1: id is a boolean; give a text or a whole number"),
        ("a.jsonl", b'{"id": 1.5, "text": "a"}\n', "a.jsonl, line 1: id is 1.5; give a text or a whole number"),
        ("a.jsonl", b'{"text": ' + b"[" * 60_000, "a.jsonl, line 1: not JSON (maximum recursion"),
        ("a.json", b"[" * 60_000, "a.json, line 1: not JSON (maximum recursion"),
        ("a.jsonl.gz", b"no gzip", "a.jsonl.gz: not a readable gzip file"),
        ("a.parquet", b"PAR1", "a.parquet: not a readable Parquet file"),
        ("none.csv", None, "none.csv cannot be read: No such file or directory; check the path"),
        ("empty.csv", b"prediction\n", "empty.csv is empty"),
    ],
)
def test_files_that_cannot_be_read_are_one_line(
    name: str, data: bytes | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if data is not None:
        (tmp_path / name).write_bytes(data)
    (tmp_path / "r.txt").write_text("a\n")
    assert scored(tmp_path / name, tmp_path / "r.txt") == 2
    assert message in said(capsys)


FILES: dict[str, bytes] = {
    "a.jsonl": b'{"id": 1, "prediction": "a b"}\n{"id": "2", "text": "c"}\n["a", "b"]\n',
    "a.json": b'{"a": "x y", "b": "z"}\n',
    "a.csv": b'id,prediction\r\n1,"rivers, run"\r\n2,two\r\n',
    "a.txt": b"a b\nc d\n",
    "a.jsonl.gz": gzip.compress(b'"a b"\n"c d"\n'),
}
ODD = [
    b"\0",
    b"\xff",
    b"null",
    b"[" * 9000,
    b"1e999",
    b"9" * 5000,
    b'"',
    b"\n",
    b"\\ud800",
    b"['a', 'b']",
    b"{}",
    b"\x1b",
]
CHANGES = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 6), st.sampled_from(ODD)), max_size=4)


@pytest.mark.nightly
@pytest.mark.parametrize("name", FILES)
@tries(100)
@given(changes=CHANGES, as_references=st.booleans())
def test_a_garbled_file_is_scored_or_refused_in_one_line(
    name: str,
    changes: list[tuple[float, int, bytes]],
    as_references: bool,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    data = FILES[name]
    for place, length, piece in changes:
        start = int(place * len(data))
        data = data[:start] + piece + data[start + length :]
    folder = tmp_path_factory.getbasetemp()
    (folder / name).write_bytes(data)
    (folder / "other.jsonl").write_bytes(b'"a b"\n"c d"\n')
    paths = [folder / name, folder / "other.jsonl"]
    try:
        score_files(*(reversed(paths) if as_references else paths), "f1")
        problem = "none"
    except UserError as error:
        problem = str(error)
    assert len(" ".join(problem.split("\n")).splitlines()) == 1


def test_a_system_that_says_nothing_scores_zero(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_text("\n\n")
    (tmp_path / "b.ndjson").write_text('{"references": ["one", "two"], "document_id": "1"}\n\n"three"\n')
    assert score(["--predictions", str(tmp_path / "a.txt"), "--references", str(tmp_path / "b.ndjson")]) == 0
    (result,) = json.loads(capsys.readouterr().out)["results"]
    assert (result["metrics"]["rouge1"]["mean"], result["num_documents"]) == (0, 2)


def test_json_lines_are_not_taken_for_plain_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_text('{"text": "one"}\n')
    assert score(["--predictions", str(tmp_path / "a.txt"), "--references", str(tmp_path / "a.txt")]) == 2
    assert "looks like JSON lines" in said(capsys)
    with pytest.raises(SystemExit):
        score(["--predictions", "a.txt", "--references", "b.txt", "--margin", "0.1"])
    assert "--margin is for the folder of a run" in said(capsys)


def test_a_command_line_that_asks_for_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["run", "--predictions", "a", "--references", "b"], ["--predictions", "a"]):
        with pytest.raises(SystemExit) as caught:
            score(arguments)
        assert caught.value.code == 2
        assert "give either the folder of a run, or --predictions with --references" in said(capsys)


@pytest.fixture
def runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> list[Path]:
    """Two scored runs: the second answers nothing at the smallest length."""
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder, answer in zip(
        folders, (half, lambda line, maxlen: half(line, maxlen) if maxlen > 100 else ""), strict=True
    ):
        write_run(folder, answer)
        assert score([str(folder)]) == 0
    capsys.readouterr()
    return folders


def test_runs_are_compared_pair_by_pair(runs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert compare([*map(str, runs), "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    rows = {(row["maxlen_a"], row["metric"]): row for row in content["comparisons"]}
    assert len(rows) == 2 * 4
    lost, same = rows[100, "rouge1"], rows[200, "rouge1"]
    assert (lost["wins"], lost["ties"], lost["losses"]) == (0, 0, 6)
    assert lost["difference"] < -0.5
    # Two documents fit both lengths, and are the same prompts of the same model.
    assert (same["difference"], same["ties"], same["p_value"], same["low"], same["high"]) == (0, 4, 1.0, None, None)
    assert (same["num_same_prompts"], lost["num_same_prompts"]) == (2, 0)
    # All answers are perfect in both, which says nothing of others.
    assert (verdict(SimpleNamespace(value=None, **same)), same["non_inferior"], lost["non_inferior"]) == (
        "not settled",
        False,
        False,
    )
    assert content["changed_most"][0]["a"] > content["changed_most"][0]["b"] == 0
    assert compare(list(map(str, runs))) == 0
    printed = capsys.readouterr().out
    assert "wins/ties/losses" in printed
    assert "Examples that changed most" in printed


def apart(num_words: int, line: Any, maxlen: int) -> str:
    """Return the first words of the reference, of which no two follow each other: ROUGE-2 is 0."""
    return " or ".join(line.references[0].split()[: num_words + int(line.id.removeprefix("test-"))])


def test_examples_without_a_pair_of_words_in_common_change_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, num_words in (("a", 8), ("b", 2)):
        write_run(tmp_path / name, partial(apart, num_words), record=with_task(run_record(), "plos", profile="scrolls"))
        assert score([str(tmp_path / name)]) == 0
    capsys.readouterr()
    assert compare([str(tmp_path / "a"), str(tmp_path / "b"), "--json"]) == 0
    changed = json.loads(capsys.readouterr().out)["changed_most"]
    changes = [abs(one["difference"]) for one in changed]
    assert changes == sorted(changes, reverse=True)
    assert min(changes) > 0.01
    scores = [read(tmp_path / name, "example_scores.jsonl") for name in "ab"]
    first, second = (
        next(line["metrics"] for line in lines if line["is_model"] and line["id"] == changed[0]["id"])
        for lines in scores
    )
    means = [sum(metrics[name] for name in ("rouge1", "rouge2", "rougeL")) / 3 for metrics in (first, second)]
    assert first["rouge2"] == second["rouge2"] == 0
    assert [changed[0]["a"], changed[0]["b"]] == pytest.approx(means)


def test_a_run_is_compared_with_itself_at_two_lengths(runs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(runs[0]), str(runs[0]), "--maxlen-a", "100", "--maxlen-b", "200", "--metric", "rouge1", "--json"]
    assert compare(arguments) == 0
    row, _ = json.loads(capsys.readouterr().out)["comparisons"]
    assert (row["name"], row["wins"]) == ("plos, instruct, 100 to 200", 6)


def test_examples_that_both_lengths_cut_are_compared_apart(
    runs: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    long = [str(runs[0])] * 2 + ["--maxlen-a", "100", "--maxlen-b", "200", "--metric", "rouge1"]
    assert compare([*long, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["comparisons"]
    assert [(row["subset"], row["num_examples"]) for row in rows] == [("all", 6), ("always_truncated", 4)]
    assert rows[0]["p_corrected"] == rows[0]["p_value"]
    assert compare(long) == 0
    assert "Where both lengths cut:" in capsys.readouterr().out


def test_settings_that_differ_are_named(runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = run_record(truncation="tail", generation={"num_beams": 4})
    write_run(tmp_path / "other", half, record=with_task(record, max_new_tokens=32))
    assert score([str(tmp_path / "other")]) == 0
    capsys.readouterr()
    assert compare([str(runs[0]), str(tmp_path / "other")]) == 0
    printed = capsys.readouterr().out
    assert 'differ in truncation of plos: "head" | "tail"' in printed
    assert "differ in max_new_tokens of plos: 16 | 32" in printed


def test_a_run_that_is_not_finished_is_said_to_be(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = read(runs[1], "predictions.jsonl")[:8]
    (runs[1] / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert score([str(runs[1])]) == 0
    capsys.readouterr()
    assert compare(list(map(str, runs))) == 2
    assert "lacks 4 predictions, of 'test-4' of plos among them; finish it" in said(capsys)


@pytest.mark.parametrize(
    ("examples", "documents", "message"),
    [
        ([example_line(i) for i in range(5)], None, "1 of plos are in {a} and not in {b}, 'test-5' among them"),
        (
            [example_line(i) if i else example_line(i, references=["another"]) for i in range(6)],
            None,
            "'test-0' of plos has another references",
        ),
        ([example_line(i) if i else example_line(i, query="what?") for i in range(6)], None, "has another query"),
        (None, {f"doc-{i}": document(i + 9, 20) for i in range(6)}, "has another document"),
    ],
)
def test_runs_on_other_data_are_refused(
    examples: Any, documents: Any, message: str, runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "c"
    write_run(other, half, examples, documents)
    assert score([str(other)]) == 0
    capsys.readouterr()
    assert compare([str(runs[0]), str(other)]) == 2
    assert message.format(a=runs[0], b=other) in said(capsys)


def test_runs_scored_otherwise_are_refused(runs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert score([str(runs[1]), "--profile", "longbench"]) == 0
    capsys.readouterr()
    assert compare(list(map(str, runs))) == 2
    assert "profiles of plos differ: hf" in said(capsys)
    assert score([str(runs[1])]) == 0
    file = runs[1] / "predictions.jsonl"
    file.write_text(without_checksums(file.read_text()))
    lines = read(runs[1], "predictions.jsonl")
    lines[0]["text"] = "changed by hand"
    (runs[1] / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    capsys.readouterr()
    assert compare(list(map(str, runs))) == 2
    assert f"are not those of its predictions; run: python -m eval.score {runs[1]}" in said(capsys)
    (runs[1] / "scores.json").unlink()
    assert compare(list(map(str, runs))) == 2
    assert "has no scores that can be read" in said(capsys)


def test_settings_that_the_runs_do_not_share(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare([*map(str, runs), "--metric", "bleu"]) == 2
    assert "has no metric 'bleu'; known: rouge1" in said(capsys)
    assert compare([*map(str, runs), "--maxlen-a", "7"]) == 2
    assert "no task, template and length in common" in said(capsys)
    other = tmp_path / "other"
    write_run(other, half, [example_line(0, task="arxiv")], record=run_record(("arxiv",)))
    assert score([str(other)]) == 0
    capsys.readouterr()
    assert compare([str(runs[0]), str(other)]) == 2
    assert "tasks differ: plos" in said(capsys)


def test_hostile_texts_stay_texts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nasty = "</script><img src=x onerror=alert(1)><script>alert(2)</script>"
    examples = [example_line(0, references=[nasty], query=nasty)]
    write_run(tmp_path, lambda line, maxlen: nasty, examples, {"doc-0": f"{nasty} {document(1)}"})
    assert score([str(tmp_path)]) == 0
    page = (tmp_path / "report.html").read_text()
    assert "onerror=alert(1)>" not in page.replace("\\u003c", "<").split("<script")[0]
    assert nasty not in page


MIXED = {"arxiv": "hf", "qmsum": "scrolls", "qasper": "f1"}


def write_mixed(path: Path, answer: Any = half, **changes: Any) -> None:
    """Write a run of three tasks, each with a profile of its own."""
    record = run_record(tuple(MIXED))
    for task, profile in MIXED.items():
        record = with_task(record, task, profile=profile, **changes)
    examples = [
        example_line(index, task=task, id=f"{task}-{index}", document_id=f"{task}-{index}")
        for task in MIXED
        for index in range(6)
    ]
    documents = {line.document_id: document(index, 20) for index, line in enumerate(examples)}
    write_run(path, answer, examples, documents, record)


def test_a_run_of_several_tasks_is_scored_under_the_profile_of_each(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_mixed(tmp_path)
    assert score([str(tmp_path)]) == 0
    scores = read(tmp_path)
    assert scores["profiles"] == MIXED
    assert {one["task"]: one["profile"] for one in scores["results"]} == MIXED
    metrics = {row["task"]: row["metric"] for row in scores["comparisons"]}
    assert metrics == {"arxiv": "rougeLsum", "qmsum": "geometric", "qasper": "f1"}
    for line in read(tmp_path, "example_scores.jsonl"):
        assert ("f1" in line["metrics"]) == (line["task"] == "qasper")
    assert scores["yardsticks"]["qasper"]["common_answer"] is not None
    assert scores["yardsticks"]["arxiv"]["common_answer"] is None
    printed, report = capsys.readouterr().out, (tmp_path / "report.md").read_text()
    assert "each task under its profile: hf (arxiv), scrolls (qmsum), f1 (qasper), x 100" in printed
    rows = [line.split() for line in printed.splitlines() if "geometric" in line]
    assert [[*row[:3], row[5]] for row in rows[:2]] == [["qmsum", n, "6", "geometric"] for n in ("100", "200")]
    assert "qmsum: 200 tokens are better than 100: geometric +" in printed
    assert "Scores: answers, profile `f1`, F1 and exact match x 100." in report
    of_answers = report.split("## qasper")[1].split("\n## ")[0]
    assert "ROUGE" not in of_answers
    assert "| F1 | exact match |" in of_answers
    assert "| common answer |" in of_answers
    # Two of the seven tasks of SCROLLS.
    assert "SCROLLS" not in printed
    assert "SCROLLS score, the mean of seven tasks: none; missing: gov_report (not there)" in report
    assert score([str(tmp_path), "--profile", "longbench"]) == 0
    assert set(read(tmp_path)["profiles"].values()) == {"longbench"}
    assert {tuple(one["metrics"]) for one in read(tmp_path)["results"]} == {("rougeL",)}


def test_the_report_says_how_answers_are_cut_and_which_rows_were_bad(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = {"num_rows": 9, "num_bad": 2, "bad": ["val.jsonl, line 3: no 'output'", "val.jsonl, line 5: no 'id'"]}
    write_mixed(tmp_path, lambda line, maxlen: f"\n{line.references[0]}\nmore", scores_first_line=True, rows=rows)
    assert score([str(tmp_path)]) == 0
    model = [one for one in read(tmp_path)["results"] if one["kind"] == "model" and one["task"] == "qasper"]
    assert all(one["metrics"]["exact_match"]["mean"] == 1 for one in model)
    assert "2 rows of qasper could not be used and were skipped" in " ".join(capsys.readouterr().out.split())
    assert score([str(tmp_path), "--full"]) == 0
    for text in (capsys.readouterr().out, *((tmp_path / f"report.{end}").read_text() for end in ("md", "html"))):
        assert "Scored by the first line of each answer, as the benchmark does: arxiv, qmsum, qasper." in text
        assert "2 rows of qasper could not be used and were skipped. The first: val.jsonl, line 3" in text
    assert "more" in (tmp_path / "report.html").read_text()


def test_a_run_of_an_earlier_version_is_scored_and_until_then_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_run(tmp_path, half, record=run_record(profile="scrolls"))
    record = read(tmp_path, "run.json")
    record["identity"]["profile"] = record["tasks"]["plos"].pop("profile")
    del record["tasks"]["plos"]["scores_first_line"]
    folder.write_json("run.json", record)
    (tmp_path / "scores.json").write_text(json.dumps({"profile": "scrolls", "scoring_version": 1, "results": []}))
    (tmp_path / "example_scores.jsonl").write_text("")
    assert compare([str(tmp_path)] * 2) == 2
    assert f"was scored by another version of the code; run: python -m eval.score {tmp_path}" in said(capsys)
    assert score([str(tmp_path)]) == 0
    assert read(tmp_path)["profiles"] == {"plos": "scrolls"}
    assert compare([str(tmp_path)] * 2) == 0


def test_files_in_the_format_of_scrolls_are_scored_as_answers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # An id that is there twice has two references, as `drop_duplicates_in_input` of the benchmark's evaluator has it.
    references = [("1", "No"), ("2", "a cat sat"), ("1", "Yes."), ("3", "Oslo")]
    lines = [json.dumps({"id": name, "pid": f"{name}_0", "output": text}) for name, text in references]
    (tmp_path / "val.jsonl").write_text("\n".join(lines))
    answers = {"1": "yes", "2": "the cat", "3": ""}
    asked = ["--predictions", str(tmp_path / "a.jsonl"), "--references", str(tmp_path / "val.jsonl"), "--profile", "f1"]

    def write(answers: dict[str, str]) -> None:
        text = "\n".join(json.dumps({"id": name, "text": text}) for name, text in answers.items())
        (tmp_path / "a.jsonl").write_text(text)

    write(answers)
    assert score(asked) == 0
    content = json.loads(capsys.readouterr().out)
    scores = {line["id"]: line["metrics"] for line in content["examples"]}
    assert scores["1"] == {"f1": 1, "exact_match": 1}
    assert scores["2"] == {"f1": pytest.approx(2 / 3), "exact_match": 0}
    assert scores["3"] == {"f1": 0, "exact_match": 0}  # an empty answer counts as one
    assert content["results"][0]["metrics"]["f1"]["mean"] == pytest.approx(5 / 9)
    # A missing answer is an error, and so is one too many, as in `verify` of that evaluator.
    for wrong in ({"1": "yes", "2": "the cat"}, answers | {"4": "x"}):
        write(wrong)
        assert score(asked) == 2
        assert "1 ids are in one file alone" in said(capsys)


def test_runs_of_several_profiles_are_compared_task_by_task(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, answer in (("a", half), ("b", nothing)):
        write_mixed(tmp_path / name, answer)
        assert score([str(tmp_path / name)]) == 0
    capsys.readouterr()
    asked = [str(tmp_path / "a"), str(tmp_path / "b")]
    assert compare(asked) == 0
    printed = capsys.readouterr().out
    assert "B minus A; each task under its profile: hf (arxiv), scrolls (qmsum), f1 (qasper), x 100" in printed
    assert compare([*asked, "--json", "--metric", "f1", "rouge1"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert {(row["task"], row["metric"]) for row in content["comparisons"]} == {
        ("arxiv", "rouge1"),
        ("qmsum", "rouge1"),
        ("qasper", "f1"),
    }
    assert {change["task"]: change["metric"] for change in content["changed_most"]} == {
        "arxiv": "rougeLsum",
        "qmsum": "mean of R1, R2, RL",
        "qasper": "f1",
    }
    assert compare([*asked, "--metric", "bleu"]) == 2
    assert "profile hf, scrolls, f1 has no metric 'bleu'" in said(capsys)
    assert score([asked[1], "--profile", "scrolls"]) == 0
    capsys.readouterr()
    assert compare(asked) == 2
    # Its own profiles are what the other run has: an override would change the tasks that agree.
    assert said(capsys).endswith(
        f"profiles of arxiv differ: hf in {asked[0]}, scrolls in {asked[1]}; run: python -m eval.score {asked[1]}\n"
    )
    assert score([asked[0], "--profile", "f1"]) == 0
    capsys.readouterr()
    assert compare(asked) == 2
    assert said(capsys).endswith(f"eval.score {asked[1]} --profile f1\n")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (
            "p.jsonl",
            '{"prediction": "a"}\n{"prediction": "a", "prediction": "b"}',
            "line 2: not JSON (the name 'prediction'",
        ),
        ("p.json", '{"q1": "a", "q2": "b", "q1": "c"}', "p.json: the name 'q1' is there twice"),
        ("p.json", '[{"text": "a", "more": {"x": 1, "x": 1}}]', "the name 'x' is there twice"),
        ("p.jsonl", '{"text": "a", "prediction": "b"}', "has both 'prediction' and 'text'; name one"),
        ("p.csv", "text,prediction\na,b", "has both 'prediction' and 'text'; name one"),
    ],
)
def test_what_is_there_twice_is_refused(name: str, content: str, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    (tmp_path / "r.txt").write_text("a")
    with pytest.raises(UserError, match=re.escape(said)):
        score_files(tmp_path / name, tmp_path / "r.txt", "scrolls")
