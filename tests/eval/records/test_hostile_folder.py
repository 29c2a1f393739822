"""A folder that somebody sent is opened, scored, exported, ranked and resumed without writing outside of it."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from eval.errors import UserError
from eval.export import main as export
from eval.leaderboard import main as leaderboard
from eval.records.disk import inside, make_folder, open_append, write_whole
from eval.records.journal import open_journal
from eval.records.run_folder import RunFolder
from eval.score import main as score
from tests.helpers.run_folders import run_record, sentence, write_run

PRECIOUS = "precious\n"


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eval.reporting.charts.draw_chart", lambda spec, suffix: b"drawn")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Return a folder outside, with a file that nobody may change."""
    folder = tmp_path / "home"
    folder.mkdir()
    for name in ("notes.txt", "plos-instruct-positions.svg", "00000.jsonl", "leaderboard.md"):
        (folder / name).write_text(PRECIOUS)
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "got" / "run", lambda line, maxlen: sentence(3)).path


def said(capsys: pytest.CaptureFixture[str]) -> str:
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    return line


def assert_untouched(home: Path) -> None:
    assert {file.read_text() for file in home.iterdir()} == {PRECIOUS}
    assert len(list(home.iterdir())) == 4
    assert sorted(file.name for file in home.parent.iterdir() if file.name != "got") == ["home"]


def link(place: Path, target: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(target)


@pytest.mark.parametrize("name", ["notes.txt", "notes.txt/board", "x" * 300])
def test_a_place_that_holds_no_folder_is_named_with_what_helps(name: str, home: Path) -> None:
    with pytest.raises(UserError, match=r"cannot be written: .*; what is there is kept; give another path$"):
        write_whole(home / name, "leaderboard.md", b"")
    assert {file.read_text() for file in home.iterdir()} == {PRECIOUS}


@pytest.mark.parametrize(
    "name",
    [
        ".report.md.partial",
        "report.md",
        "report.html",
        "scores.json",
        "example_scores.jsonl",
        "plots/.partial-plos-instruct-positions.png",
        "plots/plos-instruct-positions.png",
    ],
)
def test_a_link_in_the_place_of_what_is_written_is_replaced(name: str, run: Path, home: Path) -> None:
    link(run / name, home / "notes.txt")
    assert score([str(run)]) == 0
    assert_untouched(home)


def test_a_lock_or_a_folder_that_is_a_link_is_refused(
    run: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, target in ((".lock", home / "notes.txt"), ("plots", home)):
        (run / name).unlink(missing_ok=True)
        link(run / name, target)
        assert score([str(run)]) == 2
        assert f"{run / name} is a link, and nothing is written through it" in said(capsys)
        (run / name).unlink()
    assert_untouched(home)


def test_a_run_folder_may_be_a_link_itself(run: Path, tmp_path: Path) -> None:
    (tmp_path / "got" / "mine").symlink_to(run)
    assert score([str(tmp_path / "got" / "mine")]) == 0
    assert (run / "plots" / "plos-instruct-positions.png").is_file()


@pytest.mark.parametrize("name", ["x/../../../../home/evil", "/evil", "..", ".", "a\0b", "t" * 300, "", "a\nb"])
@pytest.mark.parametrize("kind", ["task", "template"])
def test_names_obey_the_rule_of_task_files(
    kind: str, name: str, run: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = json.loads((run / "run.json").read_text())
    parent = content["tasks"] if kind == "task" else content["tasks"]["plos"]["templates"]
    parent[name] = parent.pop("plos" if kind == "task" else "instruct")
    (run / "run.json").write_text(json.dumps(content))
    for main in (score, export):
        assert main([str(run)]) == 2
        assert "letters, digits" in said(capsys)
    assert leaderboard([str(run.parent)]) == 2
    said(capsys)
    assert_untouched(home)


@pytest.mark.parametrize(
    "model", ["..", ".", "a/../../..", "m" * 400, "é" * 200, "a\0b", "\ud800", "\x1b]0;x\x07", "é/漢"]
)
def test_an_export_stays_in_its_folder_under_any_name_of_a_model(
    model: str, tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = run_record()
    reference = {"model": record.identity.model.__class__(reference=model, source="folder")}
    run = write_run(tmp_path / "got" / "run", lambda line, maxlen: "a", record=run_record(**reference)).path
    assert score([str(run)]) == 0
    before = {path.parent for path in run.rglob("*")}
    assert export([str(run)]) == 0, capsys.readouterr().err
    (made,) = {path.parent for path in run.rglob("samples_*")} - before
    assert made.parent == run / "lm_eval"
    for form, folder in (("inspect", "inspect"), ("dataset", "dataset"), ("lm-eval-tasks", "lm_eval_tasks")):
        assert export([str(run), "--to", form]) == 0, capsys.readouterr().err
        assert {path.parent for path in run.rglob("*")} - before == {made.parent, made, run / folder}
        before.add(run / folder)
    assert_untouched(home)


def test_exports_and_leaderboards_do_not_follow_links_either(
    run: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert score([str(run)]) == 0
    link(run / "lm_eval" / "tiny", home)
    link(run.parent / "leaderboard", home)
    capsys.readouterr()
    assert export([str(run)]) == 2
    assert "is a link" in said(capsys)
    assert leaderboard([str(run.parent)]) == 2
    assert "is a link" in said(capsys)
    assert_untouched(home)


def test_a_journal_is_not_written_through_a_link(tmp_path: Path, home: Path) -> None:
    folder = make_folder(tmp_path / "got", "journal")
    link(folder / "00000.jsonl", home / "00000.jsonl")
    with pytest.raises(UserError, match="is a link"):
        open_journal(folder, "00000.jsonl")
    (tmp_path / "got" / "other").symlink_to(home)
    with pytest.raises(UserError, match="is a link"):
        make_folder(tmp_path / "got", "other/deeper")
    os.mkfifo(folder / "pipe.jsonl")
    with pytest.raises(UserError, match="no regular file"):
        open_append(folder, "pipe.jsonl")
    assert_untouched(home)


@pytest.mark.parametrize("name", ["", "..", "a/../b", "/a", "a//b", "./a", "a\0"])
def test_a_path_is_joined_only_within_the_folder(name: str, tmp_path: Path) -> None:
    for use in (inside, lambda folder, name: write_whole(folder, name, b"x")):
        with pytest.raises(UserError, match="no name of a file within"):
            use(tmp_path / "folder", name)
    assert not (tmp_path / "folder" / "a").exists()


def test_names_are_on_the_disk_after_a_file_is_made_or_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    real: Callable[[int], None] = os.fsync

    def note(descriptor: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        real(descriptor)

    monkeypatch.setattr("os.fsync", note)
    write_whole(tmp_path, "plans/a.json", b"{}")
    file, folder = synced[-2:]
    assert (Path(file).parent, folder) == (tmp_path / "plans", str(tmp_path / "plans"))
    assert str(tmp_path) in synced, "the folder that was made has its name in this one"
    synced.clear()
    open_journal(make_folder(tmp_path, "journal"), "0.jsonl").close()
    assert synced == [str(tmp_path), str(tmp_path / "journal")]


def test_what_a_killed_writer_left_goes_with_the_next_one(tmp_path: Path) -> None:
    (tmp_path / ".a.json.0123456789abcdef.partial").write_text("half")
    for other in (".b.json.0123456789abcdef.partial", ".a.json.svg.0123456789abcdef.partial"):
        (tmp_path / other).write_text("half")  # of other files, which may be written at this moment
    write_whole(tmp_path, "a.json", b"{}")
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        ".a.json.svg.0123456789abcdef.partial",
        ".b.json.0123456789abcdef.partial",
        "a.json",
    ]


def test_documents_that_unpack_to_more_than_a_run_has_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eval.records.run_folder.MAX_BYTES", 5_000)
    (tmp_path / "documents.jsonl.gz").write_bytes(gzip.compress(b" " * 5_001))
    with pytest.raises(UserError, match=r"documents\.jsonl\.gz cannot be read: it holds more than 5,000 bytes"):
        RunFolder(tmp_path).read_documents()
