"""The run folder: nothing on disk is lost, and another run is refused by the name of the setting."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from eval.errors import UserError
from eval.records.journal import append_line, prediction_key
from eval.records.run_folder import RunFolder, in_order

IDENTITY = {"model": {"reference": "m", "files": {"w": "1"}}, "dtype": "float32"}
TASKS = {"plos": {"version": 1, "limit": 3, "maxlen": [10]}}


def line(example: str, maxlen: int = 10, text: str = "t") -> dict[str, Any]:
    return {"task": "plos", "template": "instruct", "id": example, "maxlen": maxlen, "text": text}


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    made = RunFolder(tmp_path / "run")
    made.write_json("run.json", {"identity": IDENTITY, "tasks": TASKS, "sessions": []})
    return made


def accept(folder: RunFolder, identity: dict[str, Any] | None = None, **changes: Any) -> None:
    folder.check_accepts(identity or IDENTITY, {"plos": TASKS["plos"] | changes})


def test_the_same_run_and_additions_are_accepted(folder: RunFolder) -> None:
    accept(folder)
    accept(folder, maxlen=[10, 20])
    accept(folder, maxlen=[20])
    accept(folder, limit=4)
    accept(folder, limit=None)
    folder.check_accepts(IDENTITY, {"qmsum": {"version": 1, "limit": 1, "maxlen": [10]}})


def test_any_other_difference_is_refused_by_name(folder: RunFolder) -> None:
    for identity, changes, message in (
        (IDENTITY | {"dtype": "bfloat16"}, {}, 'dtype is "float32" there and "bfloat16" now'),
        ({"model": {"reference": "m", "files": {"w": "2"}}, "dtype": "float32"}, {}, 'model files w is "1" there'),
        (IDENTITY, {"version": 2}, "version of plos is 1 there and 2 now"),
        (IDENTITY, {"limit": 2}, "limit of plos is 3 there and 2 now"),
    ):
        with pytest.raises(UserError, match="holds another run") as error:
            accept(folder, identity, **changes)
        assert message in str(error.value)


def test_folders_that_are_no_runs_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("x")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "run.json").write_text("{")
    for name, message in (("file", "is a file"), ("other", "holds files but no run"), ("broken", "cannot be read")):
        with pytest.raises(UserError, match=message):
            RunFolder(tmp_path / name).read_run()
    assert RunFolder(tmp_path / "absent").read_run() is None


def test_a_folder_whose_first_record_was_never_finished_is_new(tmp_path: Path) -> None:
    (tmp_path / ".run.json.partial").write_text("{")
    (tmp_path / ".lock").write_text("")
    (tmp_path / "journal").mkdir()
    assert RunFolder(tmp_path).read_run() is None


def test_a_disk_that_cannot_be_written_is_one_line(tmp_path: Path, folder: RunFolder) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot be written: Not a directory"):
        RunFolder(tmp_path / "file" / "run").write_json("run.json", {})


def test_journals_survive_a_kill_and_merge_in_order(folder: RunFolder) -> None:
    with folder.open_journal("00000") as journal:
        append_line(journal, line("b"))
        journal.write(b'{"task": "plos", "templ')  # killed while writing
    with folder.open_journal("00001") as journal:
        append_line(journal, line("a"))
    found = folder.read_predictions()
    assert {key[2] for key in found.lines} == {"a", "b"}
    assert found.torn == 1
    with folder.open_journal("00000") as journal:
        append_line(journal, line("c"))
    assert folder.read_predictions().torn == 0
    order = [prediction_key(line(name)) for name in "abc"]
    assert [merged["id"] for merged in folder.merge_journal(order, ())[0]] == ["a", "b", "c"]
    assert not (folder.path / "journal").exists()
    lines = (folder.path / "predictions.jsonl").read_text().splitlines()
    assert [json.loads(text)["id"] for text in lines] == ["a", "b", "c"]


def test_a_merge_cut_short_loses_nothing(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    with folder.open_journal("00000") as journal:
        append_line(journal, line("a"))
    monkeypatch.setattr("eval.records.run_folder.shutil.rmtree", lambda *_, **__: None)  # killed
    folder.merge_journal([], ())
    assert [key[2] for key in folder.read_predictions().lines] == ["a"]


def test_a_second_writer_is_refused_while_the_first_is_at_work(folder: RunFolder) -> None:
    held = folder.read_run()
    with (
        folder.lock(held),
        pytest.raises(UserError, match="in use by another run"),
        RunFolder(folder.path).lock(held),
    ):
        pass
    with RunFolder(folder.path).lock(held):
        pass


def test_a_folder_that_another_run_changed_meanwhile_is_refused(folder: RunFolder) -> None:
    held = folder.read_run()
    changed = {"identity": {"seed": 7}, "tasks": {}, "sessions": []}
    assert held != changed
    folder.write_json("run.json", changed)
    with pytest.raises(UserError, match="was changed by another run meanwhile"), folder.lock(held):
        pass
    with folder.lock(changed):
        pass


def test_a_record_that_is_none_is_not_taken_for_one(folder: RunFolder) -> None:
    folder.write_json("run.json", {"identity": {}})
    with pytest.raises(UserError, match="is not the record of a run"):
        folder.read_run()
    with pytest.raises(UserError, match="is not the record of a run"):
        folder.read_run(is_replaced=True)
    (folder.path / "run.json").write_text("{")
    assert folder.read_run(is_replaced=True) is None


def test_templates_may_be_added_and_not_changed(folder: RunFolder) -> None:
    templates = {"instruct": {"text": "a"}, "other": {"text": "b"}}
    folder.write_json("run.json", {"identity": IDENTITY, "tasks": {"plos": {"templates": templates}}, "sessions": []})
    folder.check_accepts(IDENTITY, {"plos": {"templates": {"instruct": {"text": "a"}, "new": {"text": "c"}}}})
    with pytest.raises(UserError, match='template \'other\' of plos text is "b" there and "c" now'):
        folder.check_accepts(IDENTITY, {"plos": {"templates": {"other": {"text": "c"}}}})


def test_clearing_takes_out_what_a_run_has_left_and_nothing_else(folder: RunFolder) -> None:
    with folder.open_journal("00000") as journal:
        append_line(journal, line("a"))
    (folder.path / "notes.txt").write_text("mine")
    folder.clear()
    assert [file.name for file in folder.path.iterdir()] == ["notes.txt"]


def test_predictions_come_in_the_order_asked_for_and_others_after_them() -> None:
    keys = [("t", "p", str(index), 1) for index in range(50_000)]
    found = {key: {"id": key[2]} for key in reversed(keys)}
    lines = in_order(found, keys[:40_000])
    assert [lines[index]["id"] for index in (0, 1, 39_999, 40_000, 49_999)] == ["0", "1", "39999", "49999", "40000"]


def test_clearing_a_folder_takes_its_own_plots_and_leaves_others(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    record = {"identity": {}, "tasks": {"plos": {"templates": {"instruct": {}}}}, "sessions": []}
    folder.write_json("run.json", record)
    (tmp_path / "plots").mkdir()
    names = ("plos-instruct-positions.png", "plos-instruct-length-rouge1.svg", "mine-positions.png", "notes.txt")
    for name in names:
        (tmp_path / "plots" / name).write_text("")
    folder.clear()
    assert sorted(file.name for file in (tmp_path / "plots").iterdir()) == ["mine-positions.png", "notes.txt"]
    assert not (tmp_path / "run.json").exists()
