"""The run folder: nothing on disk is lost, and another run is refused by the name of the setting."""

from __future__ import annotations

import errno
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from eval.errors import UserError
from eval.records.journal import append_line
from eval.records.run_folder import RunFolder, in_order
from eval.records.schema import Identity, ModelRecord, PerplexityRecord, Prediction, RunRecord, TemplateRecord
from eval.records.typed import to_json
from tests.helpers.records import prediction
from tests.helpers.run_folders import run_record, with_task

IDENTITY = Identity(
    model=ModelRecord(reference="m", source="folder", files={"w": "1"}), dtype="float32", truncation="head"
)
RECORD = with_task(replace(run_record(lengths=[10]), identity=IDENTITY), limit=3)


def line(name: str) -> Prediction:
    return prediction(name, 10)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    made = RunFolder(tmp_path / "run")
    made.write_json("run.json", RECORD)
    return made


def accept(folder: RunFolder, identity: Identity = IDENTITY, **changes: Any) -> None:
    """Check a run that would continue the folder with other settings of its task."""
    saved = folder.read_record(RunRecord)
    assert saved == RECORD
    folder.check_accepts(saved, identity, with_task(RECORD, **changes).tasks)


def test_the_same_run_and_additions_are_accepted(folder: RunFolder) -> None:
    accept(folder)
    accept(folder, maxlen=[10, 20])
    accept(folder, maxlen=[20])
    accept(folder, limit=4)
    accept(folder, limit=None)
    folder.check_accepts(RECORD, IDENTITY, {"qmsum": replace(RECORD.tasks["plos"], limit=1)})
    folder.check_accepts(None, IDENTITY, {})


def test_any_other_difference_is_refused_by_name(folder: RunFolder) -> None:
    other_files = replace(IDENTITY, model=replace(IDENTITY.model, files={"w": "2"}))
    for identity, changes, message in (
        (replace(IDENTITY, dtype="bfloat16"), {}, 'dtype is "float32" there and "bfloat16" now'),
        (other_files, {}, 'model files w is "1" there'),
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
            RunFolder(tmp_path / name).read_record(RunRecord)
    assert RunFolder(tmp_path / "absent").read_record(RunRecord) is None


def test_a_folder_whose_first_record_was_never_finished_is_new(tmp_path: Path) -> None:
    (tmp_path / ".run.json.partial").write_text("{")
    (tmp_path / ".lock").write_text("")
    (tmp_path / "journal").mkdir()
    assert RunFolder(tmp_path).read_record(RunRecord) is None


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
    found = folder.read_journal(Prediction)
    assert {key[2] for key in found.lines} == {"a", "b"}
    assert found.torn == 1
    with folder.open_journal("00000") as journal:
        append_line(journal, line("c"))
    assert folder.read_journal(Prediction).torn == 0
    order = [line(name).key for name in "abcd"]
    with pytest.raises(UserError, match=r"1 predictions are not in .*, d at 10 among them; the process that was to"):
        folder.merge_journal(Prediction, order, {line("d").key})
    merged, absent = folder.merge_journal(Prediction, order, ())
    assert ([one.id for one in merged], absent) == (["a", "b", "c"], [line("d").key])
    assert not (folder.path / "journal").exists()
    lines = (folder.path / "predictions.jsonl").read_text().splitlines()
    assert [json.loads(text)["id"] for text in lines] == ["a", "b", "c"]


def test_a_merge_cut_short_loses_nothing(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    with folder.open_journal("00000") as journal:
        append_line(journal, line("a"))
    monkeypatch.setattr("eval.records.run_folder.shutil.rmtree", lambda *_, **__: None)  # killed
    folder.merge_journal(Prediction, [], ())
    assert [key[2] for key in folder.read_journal(Prediction).lines] == ["a"]


def test_a_second_writer_is_refused_while_the_first_is_at_work(folder: RunFolder) -> None:
    with (
        folder.lock(RECORD, RunRecord),
        pytest.raises(UserError, match="in use by another run"),
        RunFolder(folder.path).lock(RECORD, RunRecord),
    ):
        pass
    with RunFolder(folder.path).lock(RECORD, RunRecord):
        pass


def test_a_disk_without_locks_is_one_line_and_never_a_folder_in_use(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", no_locks)
    with (
        pytest.raises(UserError, match=r"cannot be locked: .*; give one elsewhere"),
        folder.lock(RECORD, RunRecord),
    ):
        pass


def test_a_folder_that_another_run_changed_meanwhile_is_refused(folder: RunFolder) -> None:
    changed = replace(RECORD, identity=replace(IDENTITY, seed=7))
    folder.write_json("run.json", changed)
    with (
        pytest.raises(UserError, match="was changed by another run meanwhile"),
        folder.lock(RECORD, RunRecord),
    ):
        pass
    with folder.lock(changed, RunRecord):
        pass


def test_a_record_that_is_none_is_not_taken_for_one(folder: RunFolder) -> None:
    for content in ({"identity": {}}, [RECORD], to_json(RECORD) | {"sessions": {}}):
        folder.write_json("run.json", content)
        for is_replaced in (False, True):
            with pytest.raises(UserError, match="is not the record of a run"):
                folder.read_record(RunRecord, is_replaced=is_replaced)
    (folder.path / "run.json").write_text("{")
    assert folder.read_record(RunRecord, is_replaced=True) is None


def test_a_damaged_record_is_named_and_may_be_replaced(folder: RunFolder) -> None:
    content = to_json(RECORD)
    content["tasks"]["plos"]["maxlen"] = "10"
    folder.write_json("run.json", content)
    with pytest.raises(UserError, match=r"run\.json: field 'tasks\.plos\.maxlen' is \"10\", expected a list; restore"):
        folder.read_record(RunRecord)
    assert folder.read_record(RunRecord, is_replaced=True) is None


@pytest.mark.parametrize("is_replaced", [False, True])
def test_a_folder_of_another_kind_is_never_replaced(folder: RunFolder, is_replaced: bool) -> None:
    with pytest.raises(UserError, match=r"holds a run of eval/run\.py, not a measurement of eval/perplexity\.py"):
        folder.read_record(PerplexityRecord, is_replaced=is_replaced)


def test_templates_may_be_added_and_not_changed(folder: RunFolder) -> None:
    saved = with_task(RECORD, templates={"instruct": TemplateRecord(text="a"), "other": TemplateRecord(text="b")})
    added = {"instruct": TemplateRecord(text="a"), "new": TemplateRecord(text="c")}
    folder.check_accepts(saved, IDENTITY, with_task(RECORD, templates=added).tasks)
    changed = with_task(RECORD, templates={"other": TemplateRecord(text="c")})
    with pytest.raises(UserError, match='template \'other\' of plos text is "b" there and "c" now'):
        folder.check_accepts(saved, IDENTITY, changed.tasks)


def test_clearing_takes_out_what_a_run_has_left_and_nothing_else(folder: RunFolder) -> None:
    with folder.open_journal("00000") as journal:
        append_line(journal, line("a"))
    (folder.path / "notes.txt").write_text("mine")
    folder.clear()
    assert [file.name for file in folder.path.iterdir()] == ["notes.txt"]


def test_predictions_come_in_the_order_asked_for_and_others_after_them() -> None:
    keys = [("t", "p", str(index), 1) for index in range(10_000)]
    found = {key: replace(line("0"), id=key[2]) for key in reversed(keys)}
    lines = in_order(found, keys[:8_000])
    assert [lines[index].id for index in (0, 1, 7_999, 8_000, 9_999)] == ["0", "1", "7999", "9999", "8000"]


def test_clearing_a_folder_takes_its_own_plots_and_leaves_others(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.write_json("run.json", RECORD)
    (tmp_path / "plots").mkdir()
    names = ("plos-instruct-positions.png", "plos-instruct-length-rouge1.svg", "mine-positions.png", "notes.txt")
    for name in names:
        (tmp_path / "plots" / name).write_text("")
    folder.clear()
    assert sorted(file.name for file in (tmp_path / "plots").iterdir()) == ["mine-positions.png", "notes.txt"]
    assert not (tmp_path / "run.json").exists()
