"""The local page of a folder of runs: what it lists, how far a run is, what it makes, and who may ask it."""

from __future__ import annotations

import json
import os
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import pytest

from eval.generation.claims import Claims
from eval.generation.progress import Progress
from eval.records.journal import append_line
from eval.records.run_folder import RunFolder, is_locked, locked
from eval.records.schema import ModelRecord, Prediction, ProgressRecord, UntilRecord
from eval.records.typed import from_json, to_json
from eval.score import main as score
from eval.view import main as view
from eval.viewing.progress import read_ahead, read_progress
from eval.viewing.runs import find_runs, read_row
from eval.viewing.serve import ViewServer
from tests.helpers.browser import chromium
from tests.helpers.run_folders import example_line, prediction_line, run_record, with_session, write_run

HOSTILE = "</script><img src=x onerror=alert(1)>"
STARTED = datetime(2026, 1, 1, tzinfo=UTC)


@contextmanager
def served(root: Path) -> Iterator[ViewServer]:
    server = ViewServer(root)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def ask(server: ViewServer, path: str = "", content: Any = None, **headers: str) -> tuple[int, str, Any]:
    """Return status, text and headers of a reply; content is posted."""
    data = None if content is None else json.dumps(content).encode()
    request = urllib.request.Request(server.address + path, data, headers)
    try:
        with urllib.request.urlopen(request, timeout=300) as reply:
            return reply.status, reply.read().decode(), reply.headers
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(), error.headers


def make(server: ViewServer, **content: Any) -> tuple[int, str]:
    status, text, _ = ask(server, "make", content, Origin=server.address.rpartition("/")[0].rpartition("/")[0])
    return status, text


def write_begun(path: Path, num_answered: int = 5, text: str = "It says so.", **settings: Any) -> Path:
    """Write a run of 6 examples at 2 lengths whose session has not ended, with its first answers in the journal."""
    record = with_session(run_record(), finished=None, num_to_generate=12, **settings)
    folder = write_run(path, lambda line, maxlen: text, record=record)
    (path / "predictions.jsonl").unlink()
    lines = [prediction_line(example_line(index), maxlen, text, 400) for index in range(6) for maxlen in (100, 200)]
    with folder.open_journal("00000-a") as journal:
        for line in lines[:num_answered]:
            append_line(journal, line)
    return path


def write_scored(path: Path, text: str = "the model reads", **options: Any) -> Path:
    write_run(path, lambda line, maxlen: text, **options)
    assert score([str(path)]) == 0
    return path


def answer_more(path: Path, index: int, text: str) -> None:
    with RunFolder(path).open_journal("00000-b") as journal:
        append_line(journal, prediction_line(example_line(index), 200, text, 400))


def test_each_run_is_listed_with_its_state(tmp_path: Path) -> None:
    write_scored(tmp_path / "group" / "ended")
    write_run(tmp_path / "unscored", lambda line, maxlen: "x")
    write_begun(tmp_path / "begun")
    write_begun(tmp_path / "killed")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "run.json").write_text('{"identity": 3')
    (tmp_path / "notes").mkdir()
    (tmp_path / "linked").symlink_to(tmp_path / "begun")
    with locked(tmp_path / "begun"), served(tmp_path) as server:
        listed = json.loads(ask(server, "runs.json")[1])["runs"]
    rows = {row["name"]: row for row in listed}
    assert {name: row["state"] for name, row in rows.items()} == {
        "group/ended": "finished",
        "unscored": "not scored",
        "begun": "running",
        "killed": "interrupted",
        "broken": "damaged",
    }
    ended = rows["group/ended"]
    assert (ended["tasks"], ended["model"], ended["plan"]) == (["plos"], "tiny", "full")
    assert (ended["lengths"], ended["files"]) == ([100, 200], ["report.html"])
    [(text, about)] = ended["scores"]
    assert text.startswith("RLsum ")
    assert about == "at 200, n = 6"
    assert "run.json" in rows["broken"]["remark"]
    assert [row["ahead"] and row["ahead"]["num_answered"] for row in listed if row["name"] == "begun"] == [5]
    assert rows["killed"]["ahead"] is None


def test_other_kinds_of_folders_are_listed_too(tmp_path: Path) -> None:
    golden = Path(__file__).parents[2] / "golden"
    kinds = {read_row(golden, name).kind for name in find_runs(golden)}
    assert {"answers", "perplexity"} <= kinds
    assert all(read_row(golden, name).state != "damaged" for name in find_runs(golden))


def test_to_look_whether_a_folder_is_in_use_changes_nothing(tmp_path: Path) -> None:
    path = write_begun(tmp_path / "run")
    before = {file.name for file in path.iterdir()}
    assert not is_locked(path)
    assert {file.name for file in path.iterdir()} == before
    with locked(path):
        assert is_locked(path)
    assert not is_locked(path)
    with locked(path):  # nothing is left in the way
        pass


def test_answers_so_far_are_counted_by_length_and_shown_newest_first(tmp_path: Path) -> None:
    path = write_begun(tmp_path / "run", 5, "one two " * 20)
    answer_more(path, 5, " ")
    found = read_progress(path)
    assert (found.ahead.num_answered, found.ahead.num_wanted, found.state) == (6, 12, "interrupted")
    first, second = found.lengths
    assert (first.maxlen, first.num_answered, first.num_wanted, first.words, first.seconds) == (100, 3, 6, 40.0, 3.0)
    assert (first.num_loops, first.num_empty) == (3, 0)
    assert (second.num_answered, second.num_loops, second.num_empty) == (3, 2, 1)
    assert [(one.id, one.maxlen) for one in found.answers[:3]] == [("test-5", 200), ("test-2", 100), ("test-1", 200)]
    assert found.answers[1].references == example_line(2).references
    assert found.command.endswith("eval/run.py --task plos")


def test_time_left_follows_answers_where_the_engine_predicts_no_cost(tmp_path: Path) -> None:
    path = write_begun(tmp_path / "run", 3)
    now = STARTED + timedelta(seconds=60)
    assert read_ahead(path, now).share is None  # nothing is at work
    with locked(path):
        ahead = read_ahead(path, now)
        assert (ahead.share, ahead.seconds_left) == (0.25, 180.0)
        none = read_ahead(write_begun(tmp_path / "first", 0), now)
        assert (none.share, none.seconds_left) == (None, None)
        until = UntilRecord(
            asked="2h",
            metric=None,
            subject="this",
            beside="this",
            differs=False,
            margin=None,
            sample_seed=0,
            recorded=str(STARTED),
        )
        record = json.loads((path / "run.json").read_text())
        (path / "run.json").write_text(json.dumps(record | {"until": to_json(until)}))
        stops_itself = read_ahead(path, now)
        assert (stops_itself.num_answered, stops_itself.share, stops_itself.seconds_left) == (3, None, None)


def test_time_left_is_that_which_the_run_wrote_until_a_new_session_begins(tmp_path: Path) -> None:
    path = write_begun(tmp_path / "run", 3)
    told = {
        "share": 0.8,
        "seconds": 100.0,
        "doing": "decoding 2 rows",
        "written": str(STARTED + timedelta(seconds=100)),
    }
    (path / "journal" / "progress.json").write_text(json.dumps(told))
    with locked(path):
        ahead = read_ahead(path, STARTED + timedelta(seconds=105))
        assert (ahead.share, ahead.doing) == (0.8, "decoding 2 rows")
        assert ahead.seconds_left == pytest.approx(20.0)
        for wrong in ({**told, "written": str(STARTED - timedelta(seconds=1))}, {**told, "share": 7}, [], "x"):
            (path / "journal" / "progress.json").write_text(json.dumps(wrong))
            assert read_ahead(path, STARTED + timedelta(seconds=60)).share == 0.25


def test_a_run_writes_how_far_it_is_beside_its_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eval.generation.progress._WRITE_SECONDS", -1.0)
    folder = tmp_path / "journal" / "claims-a"
    folder.mkdir(parents=True)
    groups: Any = [SimpleNamespace(index=0, cost=30.0), SimpleNamespace(index=1, cost=10.0)]
    size: Any = SimpleNamespace(prefill=lambda start, stop: float(stop - start))
    file = folder.parent / "progress.json"
    for is_main in (False, True):
        process: Any = SimpleNamespace(index=0, count=1, is_main=is_main)
        progress = Progress(Claims(folder, groups), size, process)
        node: Any = SimpleNamespace(start=0, stop=10)
        progress.filled(node)
        assert file.exists() is is_main
    told = from_json(ProgressRecord, json.loads(file.read_text()), "progress.json")
    assert (told.share, told.doing) == (0.25, "prefilled to 10")
    assert list(RunFolder(tmp_path).read_journal(Prediction).lines) == []  # and it is none of the answers
    file.unlink()
    file.mkdir()  # the run goes on where the file cannot be written
    progress.filled(node)


def test_pages_of_the_folder_are_given_without_links_and_in_an_origin_of_their_own(tmp_path: Path) -> None:
    secret = tmp_path / "secret.html"
    secret.write_text("secret")
    root = tmp_path / "runs"
    run = write_scored(root / "a b")
    (run / "compare-x.html").symlink_to(secret)
    with served(root) as server:
        status, text, headers = ask(server, "files/a%20b/report.html")
        assert (status, text) == (200, (run / "report.html").read_text())
        policy = headers["Content-Security-Policy"]
        assert policy.startswith("sandbox allow-scripts ")
        assert "allow-same-origin" not in policy
        for name in (
            *("../secret.html", "a%20b/../../secret.html", "a%20b/compare-x.html", "a%20b/none.html", "%00.html"),
            *("a%20b/run.json", "a%20b/predictions.jsonl", "a%20b", "", quote(str(secret))),
        ):
            status, text, _ = ask(server, f"files/{name}")
            assert (status, text) == (404, "not here")


def test_only_who_has_the_address_may_look_and_only_the_page_may_make(tmp_path: Path) -> None:
    write_run(tmp_path / "run", lambda line, maxlen: "x")
    with served(tmp_path) as server:
        assert ask(server, Host="evil.example")[0] == 404
        assert server.server_address[0] == "127.0.0.1"
        for path in ("/", "/runs.json", f"/{server.key}", "/" + "a" * len(server.key) + "/", f"/x{server.key}/"):
            with pytest.raises(urllib.error.HTTPError, match="404"):
                urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}{path}", timeout=20)
        for origin in ({}, {"Origin": "null"}, {"Origin": "http://evil.example"}):
            assert ask(server, "make", {"what": "leaderboard"}, **origin)[0] == 404
        assert not (tmp_path / "leaderboard").exists()
        for wrong in (
            {},
            {"what": "x"},
            {"what": "compare", "runs": ["run"]},
            {"what": "compare", "runs": [["run"], 1]},
        ):
            assert make(server, **wrong)[0] == 400
        assert ask(server, "run.json?run=none")[0] == 404
        assert ask(server, "run.json?run=../run")[0] == 404


def test_comparisons_and_leaderboards_are_made_by_their_commands(tmp_path: Path) -> None:
    for name, text in (("first", "the model reads a paper"), ("second", "attention over many tokens")):
        record = run_record(model=ModelRecord(reference=name, source="folder"), seed=0, generation_version=4)
        write_scored(tmp_path / name, text, record=record)
    write_run(tmp_path / "unscored", lambda line, maxlen: "x")
    with served(tmp_path) as server:
        status, text = make(server, what="compare", runs=["first", "second"])
        assert status == 200, text
        page = json.loads(text)["file"]
        assert Path(page).parent.name == "second"
        assert ask(server, f"files/{page}")[:2] == (200, (tmp_path / page).read_text())
        assert "attention over many" not in page
        assert Path(page).name in read_row(tmp_path, "second").files
        assert make(server, what="leaderboard") == (200, '{"file": "leaderboard/leaderboard.html"}')
        assert json.loads(ask(server, "runs.json")[1])["pages"] == ["leaderboard/leaderboard.html"]
        status, text = make(server, what="compare", runs=["first", "unscored"])
        assert status == 409
        assert "has no scores that can be read" in text
        assert "\n" not in text


def test_a_missing_folder_and_a_taken_port_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert view([str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path / 'none'} is not a folder; give one that holds run folders\n"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert view([str(tmp_path), "--port", str(port)]) == 2
    assert capsys.readouterr().err == f"error: port {port}: {os.strerror(98)}; give another --port, or none\n"
    with pytest.raises(SystemExit) as end:
        view([str(tmp_path), "--port", "65536"])
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith("error: --port 65536: give a number up to 65535")


def test_the_page_filters_compares_and_follows_a_run(tmp_path: Path) -> None:
    for name in ("first", "second"):
        write_scored(tmp_path / name, f"{name} says so")
    begun = write_begun(tmp_path / "begun", 3)
    complaints: list[str] = []
    with chromium() as browser, served(tmp_path) as server, locked(begun):
        page = browser.new_context(viewport={"width": 390, "height": 800}).new_page()
        page.set_default_timeout(120_000)
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(server.address)
        assert page.locator("tbody tr").count() == 3
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        page.fill("input[type=search]", "finished SEC")
        assert page.locator("tbody tr td.name").all_text_contents() == ["second"]
        page.fill("input[type=search]", "")
        assert page.locator("#compare").is_disabled()
        for name in ("first", "second"):
            page.check(f"[aria-label='Choose {name}']")
        page.click("#compare")
        page.wait_for_selector("#made")
        page.click("#made")
        page.wait_for_url("**/files/**/compare-*")
        page.go_back()
        page.click("td.name a:text('begun')")
        page.wait_for_selector("#left")
        assert "25%, about" in page.text_content("#left")
        assert page.locator(".answer").count() == 3
        page.click(".answer >> nth=0 >> summary")
        answer_more(begun, 5, "The newest of all.")
        page.wait_for_selector(".answer:has-text('The newest of all.')")
        assert page.locator(".answer").count() == 4
        assert page.locator(".answer details[open]").count() == 1
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        page.goto(f"{server.address}files/first/report.html")
        page.wait_for_selector(".plot svg")
        page.click("#theme")
    assert complaints == []


def test_names_and_texts_of_a_folder_stay_text(tmp_path: Path) -> None:
    record = run_record(model=ModelRecord(reference=HOSTILE, source="folder"))
    record = replace(with_session(record, command=[HOSTILE], finished=None), plan_description=HOSTILE)
    name = HOSTILE.replace("/", "")
    examples = [example_line(0, id=HOSTILE, query=HOSTILE, references=[HOSTILE])]
    write_run(tmp_path / name, lambda line, maxlen: HOSTILE, examples, record=record)
    dialogs: list[str] = []
    with chromium() as browser, served(tmp_path) as server:
        page = browser.new_context().new_page()
        page.set_default_timeout(120_000)
        page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
        page.on("console", lambda message: dialogs.append(message.text))
        page.goto(server.address)
        assert page.text_content("td.name") == name
        assert HOSTILE in page.text_content("tbody")
        page.click("td.name a")
        page.wait_for_selector(".answer")
        assert page.text_content(".answer .query") == HOSTILE
        assert page.text_content(".code code").count("onerror") == 1
        assert page.locator("img").count() == 0
    assert dialogs == []
