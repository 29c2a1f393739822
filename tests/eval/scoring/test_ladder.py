"""The context ladder on planted models, whose tokens are lost at a known rung, and on runs without answers."""

from __future__ import annotations

import json
import random
import string
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from eval.ladder import main
from eval.leaderboard import main as leaderboard
from eval.records.journal import append_lines
from eval.records.run_folder import RunFolder
from eval.records.schema import ExampleRecord, LadderRecord, MetricLine, MetricRecord, ValueRecord
from eval.records.typed import from_json
from eval.reporting.ladder_page import ladder_table, where_lost, write_ladder
from eval.score import main as score
from eval.scoring.ladder import LIKELIHOOD_READS, likelihood_item, unanswered_lines
from eval.scoring.metric_files import open_metric_file
from eval.scoring.scored_run import read_scored
from eval.scoring.shared_metrics import shared_metrics
from tests.helpers.run_folders import example_line, run_record, with_task, write_run

pytestmark = pytest.mark.usefixtures("no_plots")

# Sentences of 49 characters, of which the small window shows ten and the large one twenty.
SMALL, LARGE = 245, 490
NUM_DOCUMENTS = 10
EARLY, LATE = 3, 15  # the sentences that references are made of
Losses = Callable[[int, int], float]


def sentences_of(index: int, count: int = 20) -> list[str]:
    """Return sentences of eight words that no other document has."""
    draw = random.Random(index)
    words = ("".join(draw.choices(string.ascii_lowercase, k=5)) for _ in range(8 * count))
    return [" ".join(next(words) for _ in range(8)).capitalize() + "." for _ in range(count)]


def examples(**changes: Any) -> list[ExampleRecord]:
    found = []
    for index in range(NUM_DOCUMENTS):
        sentences = sentences_of(index)
        references = [f"{sentences[EARLY]} {sentences[LATE]}"]
        # As sorted names, so that the document of an example is that of its number.
        found.append(example_line(index, document_id=f"doc-{index:02}", references=references, **changes))
    return found


def documents() -> dict[str, str]:
    return {f"doc-{index:02}": " ".join(sentences_of(index)) for index in range(NUM_DOCUMENTS)}


def write_likelihoods(folder: RunFolder, loss: Losses, examples: list[ExampleRecord]) -> None:
    value = ValueRecord(label="NLL", title="NLL", low=0.0, high=None, better="lower", is_share=False)
    about = MetricRecord(
        name="likelihood",
        version=1,
        provenance={},
        needs=["references"],
        reads=sorted(LIKELIHOOD_READS),
        values={"nll": value},
    )
    with open_metric_file(folder.path, about) as (journal, _):
        append_lines(
            journal,
            [
                MetricLine(
                    fingerprint=likelihood_item(one.references, f"{one.id}-{maxlen}").fingerprint,
                    task=one.task,
                    template="instruct",
                    id=one.id,
                    maxlen=maxlen,
                    system="tiny",
                    values={"nll": loss(index, maxlen)},
                )
                for index, one in enumerate(examples)
                for maxlen in (SMALL, LARGE)
            ],
        )


def climb(
    path: Path, answer: Callable[[int, bool], str], loss: Losses, some: list[ExampleRecord] | None = None
) -> dict[str, Any]:
    """Return `ladder.json` of a model, from what it answers for a document in the small and in the large window."""
    some = some or examples()
    numbers = {one.id: index for index, one in enumerate(some)}
    folder = write_run(
        path,
        lambda example, maxlen: answer(numbers[example.id], maxlen == LARGE),
        some,
        documents(),
        run_record(lengths=(SMALL, LARGE)),
    )
    assert score([str(path)]) == 0
    write_likelihoods(folder, loss, some)
    assert main([str(path), "--no-likelihood"]) == 0
    content: dict[str, Any] = json.loads((path / "ladder.json").read_text())
    return content


def reads(index: int, maxlen: int) -> float:
    return 3.0 + 0.05 * index - (maxlen == LARGE) * (1 + 0.01 * index)


def stays(index: int, maxlen: int) -> float:
    return 3.0 + 0.05 * index


def what_it_needs(index: int, is_large: bool) -> str:
    sentences = sentences_of(index)
    return f"{sentences[EARLY]} {sentences[LATE]}" if is_large else sentences[EARLY]


def same_for_all(index: int, is_large: bool) -> str:
    return sentences_of(1000 + index)[0]


def end_of_window(index: int, is_large: bool) -> str:
    return sentences_of(index)[19 if is_large else 9]


def by_heart(index: int, is_large: bool) -> str:
    return what_it_needs(index, True)


def the_late_one_alone(index: int, is_large: bool) -> str:
    return sentences_of(index)[LATE if is_large else EARLY]


@pytest.mark.parametrize(
    ("answer", "loss", "words"),
    [
        (what_it_needs, reads, "every rung gains, so nothing is lost (n = 10 documents)"),
        (same_for_all, stays, "lost between shown and used, as far as 10 documents tell."),
        (end_of_window, reads, "lost between used and said, as far as 10 documents tell"),
        (the_late_one_alone, reads, "lost between said and credited, as far as 10 documents tell"),
        (by_heart, stays, "lost between shown and used, as far as 10 documents tell; answers say most of it unseen"),
    ],
)
def test_a_planted_model_loses_its_tokens_where_it_was_planted(
    answer: Callable[[int, bool], str], loss: Losses, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ladder = climb(tmp_path / "run", answer, loss)
    assert words in ladder["words"]["plos/instruct"]
    # Of two sentences the small window has one, and another document's text has nothing of the other.
    rungs = {rung["rung"]: rung for rung in ladder["rungs"]}
    assert list(rungs) == ["shown", "used", "said", "credited"]
    assert rungs["shown"]["after"] == pytest.approx(1.0)
    assert rungs["shown"]["before"] == pytest.approx(2 / 3)
    assert words in " ".join(capsys.readouterr().out.split())
    for name in ("ladder.html", "plots/ladder.svg", "plots/ladder.png"):
        assert (tmp_path / "run" / name).stat().st_size > 1000


def test_each_rung_is_a_pair_of_values_of_each_document(tmp_path: Path) -> None:
    ladder = climb(tmp_path / "run", what_it_needs, reads)
    assert [line["id"] for line in ladder["lines"]] == [f"test-{index}" for index in range(NUM_DOCUMENTS)]
    for index, line in enumerate(ladder["lines"]):
        assert (line["smallest"], line["maxlen"], line["of"]) == (SMALL, LARGE, "oracle")
        assert line["used"] == [reads(index, SMALL), reads(index, LARGE)]
        assert line["said"] == [0.0, 1.0]
        assert line["credited"] == pytest.approx([2 / 3, 1.0])
    used = next(rung for rung in ladder["rungs"] if rung["rung"] == "used")
    assert used["difference"] == pytest.approx(1.045)
    assert (used["before"], used["after"]) == pytest.approx((3.225, 2.18))
    assert used["low"] < 1.045 < used["high"]
    said = next(rung for rung in ladder["rungs"] if rung["rung"] == "said")
    assert (said["before"], said["after"], said["of"]) == (0.0, 1.0, "sentences")


def test_gold_evidence_takes_the_place_of_the_oracle(tmp_path: Path) -> None:
    # The sentences 15 and 16: the small window shows neither.
    some = examples(evidence=[[49 * LATE, 49 * (LATE + 2) - 1]])
    ladder = climb(tmp_path / "run", what_it_needs, reads, some)
    assert {line["of"] for line in ladder["lines"]} == {"evidence"}
    assert [line["shown"] for line in ladder["lines"]] == [[0.0, 1.0]] * NUM_DOCUMENTS
    assert [line["said"] for line in ladder["lines"]] == [[0.0, 0.5]] * NUM_DOCUMENTS


KEY = "The committee closed the northern bridge for repairs until the spring of next year."


@pytest.mark.parametrize(
    ("answer", "share"),
    [
        ("Bridge.", 0.0),
        ("The committee.", 0.0),
        ("", 0.0),
        (KEY, 1.0),
        (f"Before all else, members spoke at length. {KEY} Nobody objected, and so on and so forth.", 1.0),
        ("Until next spring, repairs keep the bridge in the north closed, the committee says.", 1.0),
        ("The committee closed it. It is the northern bridge, for repairs.", 1.0),
        ("The members heard of a bridge, and then the spring of the year was their matter.", 0.0),
    ],
)
def test_an_answer_says_a_sentence_of_which_it_has_what_weighs_most(answer: str, share: float, tmp_path: Path) -> None:
    filler = [f"The members spoke of matter {index} for an hour, as the year before." for index in range(20)]
    shown = " ".join(filler)
    text = f"{shown} {KEY}"
    some = [example_line(0, document_id="doc", references=[KEY], evidence=[[len(shown) + 1, len(text)]])]
    lengths = (len(shown) // 2, len(text))
    write_run(tmp_path, lambda example, maxlen: answer, some, {"doc": text}, run_record(lengths=lengths))
    assert score([str(tmp_path)]) == 0
    assert main([str(tmp_path), "--no-likelihood"]) == 0
    [line] = json.loads((tmp_path / "ladder.json").read_text())["lines"]
    assert line["said"] == [share, share]


def test_what_is_said_is_what_is_scored_of_an_answer(tmp_path: Path) -> None:
    record = with_task(run_record(lengths=(SMALL, LARGE)), scores_first_line=True)
    numbers = {one.id: index for index, one in enumerate(examples())}

    def below_a_line(example: ExampleRecord, maxlen: int) -> str:
        return f"Here it comes:\n{what_it_needs(numbers[example.id], maxlen == LARGE)}"

    write_run(tmp_path, below_a_line, examples(), documents(), record)
    assert score([str(tmp_path)]) == 0
    assert main([str(tmp_path), "--no-likelihood"]) == 0
    lines = json.loads((tmp_path / "ladder.json").read_text())["lines"]
    assert [line["said"] for line in lines] == [[0.0, 0.0]] * NUM_DOCUMENTS


def test_short_answers_say_no_sentences(tmp_path: Path) -> None:
    record = run_record(lengths=(SMALL, LARGE), profile="f1")
    write_run(tmp_path, lambda example, maxlen: "x", examples(), documents(), record)
    assert score([str(tmp_path)]) == 0
    assert main([str(tmp_path), "--no-likelihood"]) == 0
    rungs = json.loads((tmp_path / "ladder.json").read_text())["rungs"]
    assert [rung["rung"] for rung in rungs] == ["shown", "credited"]


def test_likelihoods_of_other_rooms_are_of_other_tokens_and_not_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alike = run_record(lengths=(SMALL, LARGE))
    for name, record in {"a": alike, "b": alike, "c": with_task(alike, max_new_tokens=8)}.items():
        folder = write_run(tmp_path / name, lambda example, maxlen: "x", examples(), documents(), record)
        write_likelihoods(folder, reads, examples())
        assert score([str(tmp_path / name)]) == 0
    runs = {name: read_scored(tmp_path / name) for name in "abc"}
    assert not shared_metrics(runs["a"], runs["b"]).left_out
    shared = shared_metrics(runs["a"], runs["c"])
    assert not shared.metrics
    assert "provenance max_new_tokens plos is 16" in shared.left_out["likelihood"]
    capsys.readouterr()
    assert leaderboard([str(tmp_path), "--output", str(tmp_path / "board")]) == 0
    assert "likelihood of c is left out" in " ".join(capsys.readouterr().out.split())


def test_few_documents_settle_little_or_nothing_and_the_words_say_so(tmp_path: Path) -> None:
    ladder = climb(tmp_path / "run", what_it_needs, reads, examples()[:6])
    # Of a fall of the likelihood, which has no bound, fewer documents tell.
    assert ladder["words"]["plos/instruct"].endswith(
        "every other rung gains (n = 6 documents); left out for too few documents: shown (n = 6; 8 could), "
        "said (n = 6; 8 could), credited (n = 6; 8 could)."
    )
    ladder = climb(tmp_path / "fewer", what_it_needs, reads, examples()[:4])
    assert "nothing is settled with so few documents (n = 4 documents; 8 could)" in ladder["words"]["plos/instruct"]


def test_a_rung_of_too_few_documents_leaves_the_others_their_words(tmp_path: Path) -> None:
    content = climb(tmp_path / "run", end_of_window, stays)
    ladder = from_json(LadderRecord, content, "ladder.json")
    few = {"num_documents": 4, "needs_documents": 9, "p_corrected": None}
    rungs = [replace(one, **few) if one.rung == "said" else one for one in ladder.rungs]
    assert where_lost(rungs).endswith(
        "lost between shown and used, as far as 10 documents tell; left out for too few documents: said (n = 4; 9 "
        "could)."
    )
    assert ladder_table([replace(ladder.rungs[0], p_corrected=0.0001)])[1][6] == "<0.001"
    all_few = where_lost([replace(one, **few) for one in ladder.rungs])
    assert all_few.endswith("nothing is settled with so few documents (n = 4 documents; 9 could).")


def test_documents_that_the_smallest_length_shows_whole_are_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = {name: " ".join(text.split(" ")[:40]) for name, text in documents().items()}
    write_run(tmp_path, lambda example, maxlen: "x", examples(), whole, run_record(lengths=(SMALL, LARGE)))
    assert score([str(tmp_path)]) == 0
    capsys.readouterr()
    assert main([str(tmp_path), "--no-likelihood"]) == 0
    assert capsys.readouterr().out.startswith("no ladder: it takes two lengths")
    # What follows on it knows that the ladder was looked for; there is nothing to draw.
    ladder = json.loads((tmp_path / "ladder.json").read_text())
    assert (ladder["rungs"], ladder["lines"]) == ([], [])
    assert ladder["predictions"] == json.loads((tmp_path / "scores.json").read_text())["predictions"]
    assert not (tmp_path / "ladder.html").exists()
    assert not list(tmp_path.glob("plots/ladder*"))


def test_a_ladder_without_rungs_takes_the_place_of_one_with_some(tmp_path: Path) -> None:
    ladder = climb(tmp_path, what_it_needs, reads)
    assert (tmp_path / "ladder.html").is_file()
    record = from_json(LadderRecord, ladder, "ladder.json")
    write_ladder(RunFolder(tmp_path), replace(record, rungs=[], words={}, lines=[]))
    assert json.loads((tmp_path / "ladder.json").read_text())["rungs"] == []
    assert not (tmp_path / "ladder.html").exists()
    assert not list(tmp_path.glob("plots/ladder*"))


def test_a_run_that_is_not_scored_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path, lambda example, maxlen: "x", examples(), documents(), run_record(lengths=(SMALL, LARGE)))
    assert main([str(tmp_path), "--no-likelihood"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert f"run: python -m eval.score {tmp_path}" in line


def test_what_lacks_the_smallest_length_of_the_run_gains_over_no_other(tmp_path: Path) -> None:
    some, lengths = examples(), (SMALL, 300, LARGE)
    numbers = {one.id: index for index, one in enumerate(some)}
    write_run(
        tmp_path,
        lambda example, maxlen: what_it_needs(numbers[example.id], maxlen == LARGE),
        some,
        documents(),
        run_record(lengths=lengths),
    )
    # As a kill leaves it: two lengths of the last document are answered.
    file = tmp_path / "predictions.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(one for one in lines if (f'"{some[-1].id}"' not in one or f'"maxlen": {SMALL}' not in one)))
    assert len(file.read_text().splitlines()) == len(lines) - 1
    assert score([str(tmp_path)]) == 0
    assert main([str(tmp_path), "--no-likelihood"]) == 0
    ladder = json.loads((tmp_path / "ladder.json").read_text())
    assert {line["smallest"] for line in ladder["lines"]} == {SMALL}
    assert {rung["num_documents"] for rung in ladder["rungs"] if rung["rung"] == "credited"} == {NUM_DOCUMENTS - 1}
    assert "nothing is lost (n = 9 documents)" in ladder["words"]["plos/instruct"]
    # The same of likelihoods alone.
    values = {("plos", "instruct", one.id, maxlen): 900.0 / maxlen for one in some for maxlen in lengths}
    del values["plos", "instruct", some[-1].id, SMALL]
    found = unanswered_lines(some, values)
    assert {line.id for line in found} == {one.id for one in some[:-1]}
    assert {(line.smallest, line.maxlen) for line in found} == {(SMALL, 300), (SMALL, LARGE)}


def test_a_run_without_answers_has_the_rung_of_the_likelihood(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_run(
        tmp_path, lambda example, maxlen: "", examples(), documents(), run_record(lengths=(SMALL, LARGE))
    )
    (tmp_path / "predictions.jsonl").unlink()
    write_likelihoods(folder, reads, examples())
    assert main([str(tmp_path), "--no-likelihood"]) == 0
    printed = capsys.readouterr().out
    assert "The other rungs take answers" in printed
    ladder: Mapping[str, Any] = json.loads((tmp_path / "ladder.json").read_text())
    assert [rung["rung"] for rung in ladder["rungs"]] == ["used"]
    assert ladder["rungs"][0]["difference"] == pytest.approx(1.045)
    # Of answers nothing is known, so neither is whether they lose something.
    assert ladder["words"]["plos/instruct"].endswith("every rung that is known gains (n = 10 documents).")
