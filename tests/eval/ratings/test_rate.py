"""The rating sheet: blinded, on this machine alone, saved at once, resumed, and read by `eval.meta`."""

from __future__ import annotations

import json
import re
import resource
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from eval.errors import UserError
from eval.rate import main as rate
from eval.ratings.judged import read_judgements
from eval.ratings.serve import RatingServer
from eval.ratings.sheet import Scale, Sheet, SheetFile, gather
from tests.helpers.browser import chromium, wait_until_drawn
from tests.helpers.run_folders import document, example_line, run_record, with_task, write_run

SCALES = [Scale(name="overall", low=1, high=5), Scale(name="clear <b>", low=0, high=1)]
# Names that must not be in the page.
SECRET = ("qwertz", "asdfgh")


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Two runs of one length on the same six examples; their answers to the first are the same."""
    folders = []
    for name in SECRET:
        folder = tmp_path / name
        folder.mkdir()
        examples = [replace(example_line(index), query=f"Why {index}?") for index in range(6)]
        tag = "<script>alert(1)</script> & first" if name == SECRET[0] else "second"
        write_run(
            folder,
            lambda line, maxlen, tag=tag: "same" if line.id == "test-0" else f"{line.id} says {tag}",
            examples,
            record=run_record(lengths=(100,)),
        )
        folders.append(folder)
    return folders


def test_people_rate_the_text_that_is_scored(tmp_path: Path) -> None:
    record = replace(with_task(run_record(), scores_first_line=True), think_end_token="</think>")
    write_run(tmp_path / "run", lambda line, maxlen: f"thought</think>\nYes {maxlen}\nQuestion: next", record=record)
    sheet = gather([tmp_path / "run"], SCALES, [], 1, 0)
    assert [one.prediction for one in sheet.answers] == ["Yes 100", "Yes 200"]


@contextmanager
def served(sheet: Sheet, path: Path, rater: str = "anna", **options: Any) -> Iterator[RatingServer]:
    server = RatingServer(sheet, SheetFile(path, sheet), rater, with_references=True, **options)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def post(server: RatingServer, content: Any, **headers: str) -> int:
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    request = urllib.request.Request(f"{server.address}rate", data, headers)
    try:
        with urllib.request.urlopen(request, timeout=20) as reply:
            return int(reply.status)
    except urllib.error.HTTPError as error:
        return error.code


def content_of(server: RatingServer) -> Any:
    with urllib.request.urlopen(server.address, timeout=20) as reply:
        page = reply.read().decode()
    found = re.search(r'<script type="application/json" id="sheet">(.*?)</script>', page, re.DOTALL)
    assert found
    return json.loads(found.group(1))


def card_with(content: Any, words: str) -> tuple[int, int]:
    """Return the place of the answer with these words."""
    places = [
        (screen, card)
        for screen, one in enumerate(content["screens"])
        for card, answer in enumerate(one["cards"])
        if words in answer["text"]
    ]
    assert len(places) == 1
    return places[0]


def test_the_page_names_no_system_and_shuffles_answers(runs: list[Path], tmp_path: Path) -> None:
    sheet = gather(runs, SCALES, [], 30, 0)
    with served(sheet, tmp_path / "r.jsonl") as server:
        with urllib.request.urlopen(server.address, timeout=20) as reply:
            page, policy = reply.read().decode(), reply.headers["Content-Security-Policy"]
        content = content_of(server)
    assert not any(name in page for name in (*SECRET, "maxlen", "tiny"))
    assert "default-src 'none'" in policy
    assert "connect-src 'self'" in policy
    orders = {tuple("first" in card["text"] for card in one["cards"]) for one in content["screens"]}
    assert orders == {(True, False), (False, True), (False,)}  # and one answer that both gave, once
    other = [[card[0].system for card in cards] for cards in sheet.cards("ben")]
    assert other != [[card[0].system for card in cards] for cards in sheet.cards("anna")]


def test_the_document_is_shown_as_far_as_any_answer_saw_it(tmp_path: Path) -> None:
    write_run(tmp_path / "run", lambda line, maxlen: f"at {maxlen}", record=run_record(lengths=(100, 200)))
    sheet = gather([tmp_path / "run"], SCALES, [], 30, 0)
    with served(sheet, tmp_path / "r.jsonl") as server:
        content = content_of(server)
    text = document(5, 20)
    screen = content["screens"][next(one.screen for one in sheet.answers if one.id == "plos/test-5")]
    first, last = content["windows"][screen["window"]]
    assert first == {"skipped": 0, "text": text[:400]}  # the longer window, for both
    assert last == {"skipped": len(text) - 400, "text": ""}
    assert "200" not in json.dumps({**content, "windows": [], "screens": [{**screen, "cards": []}]})


def test_ratings_are_saved_at_once_resumed_and_read_by_meta(runs: list[Path], tmp_path: Path) -> None:
    sheet, path = gather(runs, SCALES, [], 30, 0), tmp_path / "r.jsonl"
    with served(sheet, path) as server:
        content = content_of(server)
        for words, given in (("test-1 says second", 2), ("test-1 says second", 4), ("same", 5)):
            screen, card = card_with(content, words)
            assert post(server, {"screen": screen, "card": card, "ratings": {"overall": given}}) == 204
    size = path.stat().st_size
    again = gather(runs, SCALES, [], 30, 0)
    with served(again, path) as server:
        content = content_of(server)
    assert path.stat().st_size == size  # nothing but ratings is appended
    screen, card = card_with(content, "test-1 says second")
    assert content["screens"][screen]["cards"][card]["ratings"] == {"overall": 4}
    with served(again, path, "ben") as server:
        assert all(not card["ratings"] for one in content_of(server)["screens"] for card in one["cards"])
    found = {(one.id, one.system): one for one in read_judgements(path).answers}
    # The answer that both runs gave is rated for both.
    assert found.keys() == {("plos/test-1", SECRET[1]), ("plos/test-0", SECRET[0]), ("plos/test-0", SECRET[1])}
    one = found["plos/test-1", SECRET[1]]
    assert (one.ratings, one.length, one.document_id) == ({"overall": (4.0,)}, 100, "plos/doc-1")
    assert one.item.window == one.item.document == document(1, 3)
    assert one.item.references == tuple(example_line(1).references)


@pytest.mark.parametrize(
    "content",
    [
        {"screen": 99, "card": 0, "ratings": {}},
        {"screen": -1, "card": 0, "ratings": {}},
        {"screen": 0, "card": True, "ratings": {}},
        {"screen": 0, "card": 0, "ratings": {"overall": 6}},
        {"screen": 0, "card": 0, "ratings": {"overall": 2.5}},
        {"screen": 0, "card": 0, "ratings": {"other": 1}},
        {"screen": 0, "card": 0},
        [],
        b"no json",
        b"[" * 60_000,
    ],
)
def test_what_is_no_rating_is_refused_and_not_written(runs: list[Path], tmp_path: Path, content: Any) -> None:
    with served(gather(runs, SCALES, [], 30, 0), tmp_path / "r.jsonl") as server:
        before = (tmp_path / "r.jsonl").read_bytes()
        assert post(server, content) == 400
        assert (tmp_path / "r.jsonl").read_bytes() == before


def test_only_who_has_the_address_can_read_and_rate(runs: list[Path], tmp_path: Path) -> None:
    with served(gather(runs, SCALES, [], 30, 0), tmp_path / "r.jsonl") as server:
        rating = {"screen": 0, "card": 0, "ratings": {"overall": 1}}
        assert post(server, rating, Host="evil.example") == 404
        assert server.server_address[0] == "127.0.0.1"
        for path in ("/", "/rate", f"/{server.key}", f"/{server.key}/../x", "/" + "a" * len(server.key) + "/"):
            connection = HTTPConnection("127.0.0.1", server.server_port, timeout=20)
            connection.request("GET", path)
            assert connection.getresponse().status == 404
            connection.close()
        assert post(server, rating) == 204


def test_a_file_of_other_answers_is_refused(runs: list[Path], tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    SheetFile(path, gather(runs, SCALES, [], 30, 0))
    for other in (gather(runs, SCALES[:1], [], 30, 0), gather(runs, SCALES, [], 30, 1), gather(runs, SCALES, [], 3, 0)):
        with pytest.raises(UserError, match="other answers, scales or seed"):
            SheetFile(path, other)


def test_a_line_that_a_kill_tore_is_cut_and_the_others_count(runs: list[Path], tmp_path: Path) -> None:
    sheet, path = gather(runs, SCALES, [], 30, 0), tmp_path / "r.jsonl"
    first, second = sheet.answers[2:4]
    SheetFile(path, sheet).rate([first], "anna", {"overall": 4})
    whole = path.read_bytes()
    SheetFile(path, sheet).rate([second], "ännä", {"overall": 2})
    line = path.read_bytes()[len(whole) :]
    for end in (1, line.index("ä".encode()) + 1, len(line) - 2, len(line) - 1):
        path.write_bytes(whole + line[:end])
        if end < len(line) - 1:
            assert [one.ratings for one in read_judgements(path).answers] == [{"overall": (4.0,)}]
        file = SheetFile(path, sheet)
        assert file.ratings == {(first.key, "anna"): {"overall": 4}}
        assert path.read_bytes() == whole
        with path.open("ab") as stream:
            stream.write(line[:end])
        file.rate([second], "ännä", {"overall": 1})
        assert SheetFile(path, sheet).given([second], "ännä") == {"overall": 1}


def test_a_torn_last_line_of_another_file_is_not_cut(runs: list[Path], tmp_path: Path) -> None:
    path = tmp_path / "other.jsonl"
    path.write_text('{"a": 1}\n{"b": 2}')
    with pytest.raises(UserError, match="other answers, scales or seed"):
        SheetFile(path, gather(runs, SCALES, [], 30, 0))
    assert path.read_text() == '{"a": 1}\n{"b": 2}'


def test_what_a_full_disk_takes_a_part_of_is_not_counted_as_saved(runs: list[Path], tmp_path: Path) -> None:
    sheet, path = gather(runs, SCALES, [], 30, 0), tmp_path / "r.jsonl"
    file, answer = SheetFile(path, sheet), sheet.answers[0]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 20, limits[1]))
    try:
        with pytest.raises(UserError, match="cannot be written"):
            file.rate([answer], "anna", {"overall": 4})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert file.given([answer], "anna") == {}
    file.rate([answer], "anna", {"overall": 3})
    assert SheetFile(path, sheet).given([answer], "anna") == {"overall": 3}


def test_a_rating_that_is_not_known_to_be_on_the_disk_is_not_shown(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: int) -> None:
        raise OSError(5, "Input/output error")

    sheet = gather(runs, SCALES, [], 30, 0)
    file = SheetFile(tmp_path / "r.jsonl", sheet)
    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(UserError, match="Input/output error"):
        file.rate(sheet.answers[:1], "anna", {"overall": 4})
    assert file.given(sheet.answers[:1], "anna") == {}


def test_a_card_of_which_one_answer_was_saved_is_unrated(runs: list[Path], tmp_path: Path) -> None:
    sheet = gather(runs, SCALES, [], 30, 0)
    file = SheetFile(tmp_path / "r.jsonl", sheet)
    file.rate(sheet.answers[:1], "anna", {"overall": 4})
    assert file.given(sheet.answers[:2], "anna") == {}
    file.rate(sheet.answers[:2], "anna", {"overall": 4})
    assert file.given(sheet.answers[:2], "anna") == {"overall": 4}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"answer": "0-0", "rater": "anna", "ratings": 3}, "field 'ratings' is a number"),
        ({"answer": "0-0", "rater": "anna", "ratings": {"overall": "<b>"}}, "'overall' is rated '<b>'"),
        ({"answer": "0-0", "rater": "anna", "ratings": {"other": 1}}, "'other' is rated '1'"),
        ({"answer": "0-0", "ratings": {}}, "field 'rater' is missing"),
    ],
)
def test_a_line_that_is_no_rating_is_named(runs: list[Path], tmp_path: Path, line: Any, message: str) -> None:
    sheet, path = gather(runs, SCALES, [], 30, 0), tmp_path / "r.jsonl"
    SheetFile(path, sheet)
    number = len(path.read_text().splitlines()) + 1
    with path.open("a") as stream:
        stream.write(json.dumps(line) + "\n")
    with pytest.raises(UserError, match=rf"^r\.jsonl line {number}: ") as error:
        SheetFile(path, sheet)
    assert message in str(error.value)


@pytest.mark.parametrize("flag", ["--rater", "--scale"])
def test_a_name_that_is_no_text_is_refused_before_runs_are_read(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        rate(["none", flag, "ann\udce4"])
    assert end.value.code == 2
    assert f"{flag} 'ann\\udce4' is not valid UTF-8 text" in capsys.readouterr().err


def test_a_sheet_with_half_a_pair_of_surrogates_opens_again(runs: list[Path], tmp_path: Path) -> None:
    sheet, path = gather(runs, SCALES, [], 30, 0), tmp_path / "r.jsonl"
    texts = {name: f"{text} \ud83d \u00e4" for name, text in sheet.documents.items()}
    sheet = replace(sheet, documents=texts, answers=[replace(one, prediction="\udce4 b") for one in sheet.answers])
    SheetFile(path, sheet).rate(sheet.answers[:1], "anna", {"overall": 4})
    assert SheetFile(path, sheet).given(sheet.answers[:1], "anna") == {"overall": 4}
    lines = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    assert {line["document"] for line in lines if "document" in line} == set(texts.values())


def test_runs_on_other_data_or_with_one_answer_are_refused(runs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="an example has 1 answers, nothing to compare"):
        gather(runs[:1], SCALES, [], 30, 0)
    with pytest.raises(UserError, match="no run has an answer at 7 tokens"):
        gather(runs, SCALES, [7], 30, 0)
    with pytest.raises(UserError, match="given twice"):
        gather([runs[0], runs[0]], SCALES, [], 30, 0)
    write_run(tmp_path / "other", lambda line, maxlen: "x", record=run_record(lengths=(100,)))
    with pytest.raises(UserError, match=r"is not that of .*qwertz; give runs on the same data"):
        gather([runs[0], tmp_path / "other"], SCALES, [], 30, 0)


def test_a_sample_is_part_of_a_larger_one(runs: list[Path]) -> None:
    small, large = ({one.id for one in gather(runs, SCALES, [], size, 0).answers} for size in (2, 4))
    assert len(small) == 2
    assert small < large


@pytest.mark.parametrize("text", ["", ":1-5", "a:5-1", "a:1-10", "a:1", "a:x-y"])
def test_scales_are_named_and_of_digits(text: str, runs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert rate([str(runs[0]), "--scale", text]) == 2
    assert "give NAME, or NAME:LOW-HIGH with digits" in capsys.readouterr().err


def test_a_person_rates_with_keys_and_a_reload_goes_on(runs: list[Path], tmp_path: Path) -> None:
    sheet, path = gather(runs, SCALES, [], 30, 0), tmp_path / "r.jsonl"
    with chromium() as browser, served(sheet, path) as server:
        page = browser.new_context().new_page()
        complaints: list[str] = []
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        requests: list[str] = []
        page.on("request", lambda request: requests.append(request.url))
        page.goto(server.address)
        wait_until_drawn(page)
        num_cards = page.locator(".card").count()
        for _ in range(num_cards):  # overall, then clear, then the next answer
            page.keyboard.press("4")
            page.keyboard.press("9")  # beyond the scale: nothing happens
            page.keyboard.press("1")
        page.wait_for_function("() => document.querySelector('#saved').textContent === 'Saved'")
        assert page.locator(".card h2 small.done").count() == num_cards
        assert f"{num_cards} of 11 answers rated" in page.locator("#progress").text_content()
        page.keyboard.press("x")
        assert page.locator(".card h2 small.done").count() == num_cards - 1
        page.keyboard.press("0")
        page.keyboard.press("w")
        assert page.locator("details .document").is_visible()
        page.keyboard.press("n")
        assert "Document 2 of 6" in page.locator("#progress").text_content()
        assert page.locator("details .document").is_visible()  # stays open
        page.locator("input[type=radio]").nth(2).check()
        page.wait_for_function("() => document.querySelector('#saved').textContent === 'Saved'")
        page.reload()
        assert "Document 2 of 6" in page.locator("#progress").text_content()  # the first that is not rated
        assert page.locator("input[type=radio]:checked").get_attribute("value") == "3"
        page.keyboard.press("p")
        last = page.locator(".card").nth(num_cards - 1)
        assert [one.get_attribute("value") for one in last.locator("input:checked").all()] == ["4", "0"]
        assert complaints == []
        assert all(url.startswith((server.address, "data:")) for url in requests)
    saved = [json.loads(line) for line in path.read_text().splitlines()]
    assert {"overall": 4, "clear <b>": 0} in [line["ratings"] for line in saved if "ratings" in line]


def test_a_rating_that_cannot_be_saved_is_said_and_sent_again(runs: list[Path], tmp_path: Path) -> None:
    sheet, path = gather(runs, SCALES, [], 30, 0), tmp_path / "r.jsonl"
    with chromium() as browser, served(sheet, path) as server:
        page = browser.new_context().new_page()
        page.goto(server.address)
        wait_until_drawn(page)
        page.route("**/rate", lambda route: route.abort())
        page.keyboard.press("3")
        page.wait_for_selector("#saved.wrong")
        assert "Not saved" in page.locator("#saved").text_content()
        page.unroute("**/rate")
        page.wait_for_function("() => document.querySelector('#saved').textContent === 'Saved'", timeout=20_000)
    assert json.loads(path.read_text().splitlines()[-1])["ratings"] == {"overall": 3}


def test_the_page_says_that_all_is_saved_when_the_last_answer_is(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise UserError("the disk is full")

    sheet, path = gather(runs, SCALES[:1], [], 1, 0), tmp_path / "r.jsonl"
    with chromium() as browser, served(sheet, path) as server:
        page = browser.new_context().new_page()
        page.goto(server.address)
        wait_until_drawn(page)
        num_cards = page.locator(".card").count()
        assert num_cards == 2
        for _ in range(num_cards - 1):
            page.keyboard.press("4")
        page.wait_for_function("() => document.querySelector('#saved').textContent === 'Saved'")
        monkeypatch.setattr(server.file, "rate", fail)
        page.keyboard.press("3")
        page.wait_for_selector("#saved.wrong")
        assert page.locator(".card h2 small.done").count() == num_cards
        assert not page.locator(".finished").is_visible()
        monkeypatch.undo()
        page.wait_for_selector(".finished", timeout=20_000)
        assert page.locator("#saved").text_content() == "Saved"
        page.reload()
        assert page.locator(".finished").is_visible()
    assert json.loads(path.read_text().splitlines()[-1])["ratings"] == {"overall": 3}
