"""Further metrics of a run folder: scored once, resumed after a kill, refused where they were made in another way."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from eval.compare import main as compare
from eval.errors import UserError
from eval.leaderboard import main as leaderboard
from eval.merge import main as merge
from eval.metrics.base import Item
from eval.metrics.diagnostics import Diagnostics
from eval.records.journal import line_of, parse_line
from eval.records.run_folder import RunFolder
from eval.records.schema import Prediction, Sample
from eval.score import main as score
from eval.scoring.floors import shuffled
from eval.scoring.metric_files import join_metric_files, read_metric_file, score_missing
from tests.helpers.run_folders import document, example_line, read_scores, run_record, with_task, write_run

pytestmark = pytest.mark.usefixtures("no_plots")

# Counts what it scores in a file beside it, so that a test sees what was scored again.
METRIC = """
import math
from pathlib import Path
from eval.metrics.base import Metric, Value

class Letters(Metric):
    name, version = "letters", 1
    needs = reads = frozenset({"references"})
    batch_size = 2
    values = {
        "share": Value(label="share", title="Share of letters", better="lower"),
        "letters": Value(label="letters", title="Letters", high=math.inf, better=None, is_share=False),
        "q": Value(label="q", title="Share of q"),
    }

    def provenance(self):
        return {"weights": "WEIGHTS"}

    def score(self, batch):
        with Path("scored.txt").open("a") as file:
            file.writelines(item.fingerprint + " " + repr(item.prediction) + "\\n" for item in batch)
        HOOK
        found = []
        for item in batch:
            text = item.prediction
            letters = sum(map(str.isalpha, text))
            found.append({
                "share": letters / len(text) if text else None,
                "letters": letters,
                "q": text.count("q") / letters if "q" in text else None,
            })
        return found
"""
NAME = "letters.py:Letters"
FILE = Path("metrics/letters@1.jsonl")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a run without scores, beside a metric in a file."""
    monkeypatch.chdir(tmp_path)
    write_metric()
    write_run(Path("run"), answer)
    return Path("run")


def answer(line: Any, maxlen: int) -> str:
    """Answer with words of the reference, more of them at the greater length; the last example with nothing."""
    words = line.references[0].split()
    return "" if line.id == "test-5" else " ".join(words[: len(words) if maxlen > 100 else 3])


def write_metric(weights: str = "a", hook: str = "pass", version: int = 1) -> None:
    text = METRIC.replace("WEIGHTS", weights).replace("HOOK", hook).replace('"letters", 1', f'"letters", {version}')
    Path("letters.py").write_text(text)


def scored() -> list[str]:
    """Return what was scored since this was asked last."""
    found = Path("scored.txt").read_text().splitlines() if Path("scored.txt").exists() else []
    Path("scored.txt").unlink(missing_ok=True)
    return found


def said(capsys: pytest.CaptureFixture[str]) -> str:
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error


def further(folder: Path, system: str, maxlen: int = 200) -> dict[str, Any]:
    [found] = [
        one for one in read_scores(folder).results if (one.system, one.maxlen, one.subset) == (system, maxlen, "all")
    ]
    return {} if found.further is None else found.further


def test_values_of_a_metric_stand_in_scores_and_reports(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert score([str(run), "--metrics", f"{NAME},diagnostics"]) == 0
    printed = capsys.readouterr().out
    scores = read_scores(run)
    assert scores.further is not None
    assert (scores.further["letters"].provenance["weights"], scores.further["letters"].num_absent) == ("a", 0)
    # By hand: the mean number of letters of the five answers and of nothing.
    texts = [answer(example_line(index), 200) for index in range(6)]
    letters = further(run, "tiny")["letters.letters"]
    assert letters.mean == pytest.approx(sum(sum(map(str.isalpha, text)) for text in texts) / 6)
    assert letters.low < letters.mean < letters.high
    share = further(run, "tiny")["letters.share"]
    assert share.num_examples == 5, "an answer without text has no share, and its share is not 0"
    assert share.low is None, "five documents have no interval"
    assert "letters.q" not in further(run, "tiny"), "nothing has a q"
    for page in (printed, (run / "report.md").read_text(), (run / "report.html").read_text()):
        for part in ("letters, version 1", "share ↓", "foreign reference", "diagnostics, version 1"):
            assert part in page
    assert f"{letters.mean:.2f}" in printed


def test_floors_and_ceilings_stand_beside_every_metric(run: Path) -> None:
    references = ["Alpha is one. Beta is two. Gamma is three.", "Another view of alpha."]
    examples = [example_line(index) for index in range(6)]
    examples[0] = replace(examples[0], references=references)
    shutil.rmtree(run)
    write_run(run, answer, examples)
    assert score([str(run), "--metrics", "diagnostics"]) == 0
    systems = {one.system for one in read_scores(run).results if one.further}
    assert systems == {
        *("tiny", "foreign_reference", "shuffled_reference", "reference", "matched_lead", "matched_oracle")
    }
    lines = [json.loads(line) for line in (run / "example_scores.jsonl").read_text().splitlines()]
    of_first = {
        line["system"]: line
        for line in lines
        if (line["id"], line["maxlen"]) == ("test-0", 200) and line.get("further")
    }
    assert of_first["reference"]["metrics"]["rouge1"] < 1, "the first reference is compared with the other one"
    by_id = {line["id"]: line for line in lines if (line["system"], line["maxlen"]) == ("reference", 200)}
    assert by_id["test-1"]["metrics"]["rouge1"] == 1, "a single reference stands beside itself"
    assert of_first["matched_lead"]["further"]["diagnostics.copied"] == 1
    assert of_first["reference"]["further"]["diagnostics.words"] == 9
    assert of_first["foreign_reference"]["further"]["diagnostics.words"] != 9
    before = (run / "example_scores.jsonl").read_bytes()
    assert score([str(run), "--metrics", "diagnostics"]) == 0
    assert (run / "example_scores.jsonl").read_bytes() == before, "nothing is left to chance"


def test_shuffled_sentences_are_the_same_in_another_order() -> None:
    text = "Alpha is one. Beta is two. Gamma is three."
    other = shuffled(text, "seed")
    assert other == shuffled(text, "seed")
    assert sorted(other.split("\n")) == ["Alpha is one.", "Beta is two.", "Gamma is three."]
    assert other.replace("\n", " ") != text
    assert shuffled("Only one.", "seed") == "Only one."
    assert shuffled("Twice. Twice.", "seed") == "Twice. Twice."


def test_what_was_scored_is_not_scored_again(run: Path) -> None:
    assert score([str(run), "--metrics", NAME]) == 0
    first = scored()
    assert len(first) == len(set(first)) > 20, "one text beside the same references is scored once"
    assert len(first) == (run / FILE).read_bytes().count(b"\n") - 1
    before = (run / FILE).read_bytes()
    assert score([str(run), "--metrics", NAME]) == 0
    assert score([str(run)]) == 0, "without its name it is shown as it is"
    assert scored() == []
    assert (run / FILE).read_bytes() == before
    assert further(run, "tiny")["letters.letters"].mean
    write_run(run, lambda line, maxlen: "Something new." if line.id == "test-1" else answer(line, maxlen))
    assert score([str(run)]) == 0
    assert read_scores(run).further["letters"].num_absent > 0, "its lead and oracle are of another length too"
    assert "texts are not scored yet" in (run / "report.md").read_text()
    assert scored() == []
    assert score([str(run), "--metrics", NAME]) == 0
    assert "'Something new.'" in "".join(scored())
    assert (run / FILE).read_bytes().startswith(before), "lines of texts that are gone stay"
    assert score([str(run), "--metrics", NAME, "--metrics-again"]) == 0
    assert "'Something new.'" in "".join(scored())
    assert not (run / FILE).read_bytes().startswith(before)


def test_a_kill_loses_nothing_but_the_batch_at_work(run: Path) -> None:
    assert score([str(run), "--metrics", NAME]) == 0
    whole, texts = (run / FILE).read_bytes(), scored()
    (run / FILE).unlink()
    write_metric(hook="import time; time.sleep(0.05)")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[3])}
    command = [sys.executable, "-m", "eval.score", str(run), "--metrics", NAME]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    wait_for(lambda: (run / FILE).exists() and (run / FILE).read_bytes().count(b"\n") > 4)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    kept = (run / FILE).read_bytes()
    assert kept.count(b"\n") < whole.count(b"\n")
    with (run / FILE).open("ab") as file:
        file.write(b'{"fingerprint": "torn')
    scored()
    assert score([str(run), "--metrics", NAME]) == 0
    assert (run / FILE).read_bytes().startswith(kept)
    there = {line for line in kept.split(b"\n") if b"fingerprint" in line}
    assert len(scored()) == len(texts) - len(there)

    def lines(content: bytes) -> list[Any]:
        found = [parse_line(line) for line in content.split(b"\n")[1:-1]]
        return sorted((line["fingerprint"], line["values"]["letters"]) for line in found if line)

    assert lines((run / FILE).read_bytes()) == lines(whole)


def wait_for(is_there: Any, seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not is_there():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        (b'"letters": 60.0', b'"letters": 61.0', "line {} was changed: it is no JSON object with a fitting checksum"),
        (b'"weights": "a"', b'"weights": "b"', "line 1 was changed"),
    ],
)
def test_a_changed_file_is_named_and_refused(
    before: bytes, after: bytes, reason: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert score([str(run), "--metrics", NAME]) == 0
    content = (run / FILE).read_bytes()
    assert before in content
    (run / FILE).write_bytes(content.replace(before, after, 1))
    number = content[: content.index(before)].count(b"\n") + 1
    for command in (["--metrics", NAME], []):
        capsys.readouterr()
        assert score([str(run), *command]) == 2
        assert f"{run / FILE}, {reason.format(number)}" in said(capsys)
    assert compare([str(run), str(run), "--maxlen-a", "100", "--maxlen-b", "200"]) == 2
    assert f"{run / FILE} was changed: it is not the file whose letters was scored; run: python -m eval.score" in said(
        capsys
    )
    assert score([str(run), "--metrics", NAME, "--metrics-again"]) == 0
    assert compare([str(run), str(run), "--maxlen-a", "100", "--maxlen-b", "200"]) == 0


def test_values_outside_their_range_are_refused_with_a_fitting_checksum(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert score([str(run), "--metrics", NAME]) == 0
    first, second, *rest = (run / FILE).read_bytes().split(b"\n")
    line = parse_line(second)
    assert line is not None
    line["values"]["share"] = 1.5
    (run / FILE).write_bytes(b"\n".join([first, line_of(line).rstrip(b"\n"), *rest]))
    capsys.readouterr()
    assert score([str(run)]) == 2
    assert "line 2: share is 1.5, and a number from 0 to 1" in said(capsys)


def test_other_weights_are_refused_and_named(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert score([str(run), "--metrics", NAME]) == 0
    write_metric(weights="b")
    capsys.readouterr()
    assert score([str(run), "--metrics", NAME]) == 2
    told = said(capsys)
    assert "letters@1.jsonl was made in another way: provenance source_sha256 is " in told
    assert "--metrics-again" in told
    write_metric(version=2)
    assert score([str(run), "--metrics", NAME]) == 0, "another version has a file of its own"
    assert sorted(file.name for file in (run / "metrics").iterdir()) == ["letters@1.jsonl", "letters@2.jsonl"]
    assert read_scores(run).further["letters"].version == 2
    shutil.copy(run / "metrics/letters@1.jsonl", run / "metrics/letters@3.jsonl")
    capsys.readouterr()
    assert score([str(run)]) == 2
    assert "letters@3.jsonl holds letters of version 1, whose file is letters@1.jsonl" in said(capsys)


def test_comparisons_test_further_metrics_made_in_the_same_way(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(Path("other"), lambda line, maxlen: answer(line, 100))
    for name in ("run", "other"):
        assert score([name, "--metrics", f"{NAME},diagnostics"]) == 0
    capsys.readouterr()
    assert compare(["run", "other", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    [letters] = [
        row
        for row in content["further"]
        if (row["metric"], row["maxlen_a"], row["subset"]) == ("letters.letters", 200, "all")
    ]
    texts = [[answer(example_line(index), maxlen) for maxlen in (200, 100)] for index in range(6)]
    counts = [[sum(map(str.isalpha, text)) for text in pair] for pair in texts]
    assert letters["difference"] == pytest.approx(sum(short - whole for whole, short in counts) / 6)
    assert (letters["p_value"], letters["non_inferior"]) == (pytest.approx(2 / 2**5), False)
    assert content["left_out"] == []
    assert compare(["run", "other", "--metric", "letters.share"]) == 0
    printed = capsys.readouterr().out
    assert "share ↓" in printed
    assert "RLsum" not in printed.partition("Examples that changed")[0].partition("B minus A")[2].partition("\n")[2]
    write_metric(weights="b")
    assert score(["other", "--metrics", NAME, "--metrics-again"]) == 0
    capsys.readouterr()
    assert compare(["run", "other"]) == 0, "what is left can be compared"
    printed = " ".join(capsys.readouterr().out.split())
    assert "Left out: letters was not made in the same way: provenance source_sha256 is" in printed
    assert "diagnostics" in printed
    assert compare(["run", "other", "--metric", "letters"]) == 2
    assert "letters was not made in the same way" in said(capsys)
    shutil.rmtree("other/metrics")
    assert score(["other"]) == 0
    capsys.readouterr()
    assert compare(["run", "other", "--metric", "letters"]) == 2
    assert "letters is not in other; score it with the --metrics that made it in the other run" in said(capsys)


def test_a_lower_value_is_better_where_the_metric_says_so(run: Path) -> None:
    write_run(run, lambda line, maxlen: "no digits" if maxlen > 100 else "1234567 many of them 1234567")
    assert score([str(run), "--metrics", NAME]) == 0
    rows = {(row.metric, row.subset): row for row in read_scores(run).further_comparisons or []}
    share = rows["letters.share", "always_truncated"]
    assert share.difference > 0
    assert (share.wins, share.losses) == (0, 4)
    assert share.value is not None
    assert share.value.better == "lower"


def test_leaderboards_show_what_most_runs_have_and_name_the_others(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("runs").mkdir()
    for index, name in enumerate("abc"):
        write_run(Path("runs") / name, answer)
        write_metric(weights="b" if index == 2 else "a")
        assert score([f"runs/{name}", "--metrics", NAME]) == 0
    assert leaderboard(["runs", "--output", "board"]) == 0
    content = json.loads(Path("board/leaderboard.json").read_text())
    [board] = content["boards"]
    assert board["further"].keys() == {"letters.share", "letters.letters"}
    assert {row["run"] for row in board["rows"] if row.get("further")} == {"a", "b"}
    [note] = [note for note in board["notes"] if "letters" in note]
    assert note.startswith("letters of c is left out, because it was made in another way: provenance source_sha256 is")
    assert "share ↓" in Path("board/leaderboard.md").read_text()
    assert "letters.share_mean" in Path("board/leaderboard.csv").read_text()


def test_a_folder_of_an_earlier_version_has_them_too(tmp_path: Path) -> None:
    shutil.copytree(Path(__file__).parents[2] / "golden/fca1ebb/run", tmp_path / "run")
    assert score([str(tmp_path / "run"), "--metrics", "diagnostics"]) == 0
    scores = read_scores(tmp_path / "run")
    assert scores.further is not None
    assert scores.further["diagnostics"].num_absent == 0
    assert {one.task for one in scores.results if one.kind == "model" and one.further} == {"reports", "questions"}


def test_samples_of_an_answer_count_in_the_mean(run: Path) -> None:
    write_run(run, answer)
    folder = RunFolder(run)
    lines = list(folder.read_journal(Prediction).lines.values())
    texts = ["ab", "abcd"]
    samples = [Sample(text=text, num_generated_tokens=2, finish_reason="stop") for text in texts]
    folder.write_lines("predictions.jsonl", [replace(line, text="ab", samples=samples) for line in lines])
    assert score([str(run), "--metrics", NAME]) == 0
    assert further(run, "tiny")["letters.letters"].mean == 3


def test_a_metric_sees_what_the_model_was_shown(run: Path) -> None:
    seen: list[Item] = []

    class Spy(Diagnostics):
        name = "spy"

        def score(self, batch: Sequence[Item]) -> Any:
            seen.extend(batch)
            return super().score(batch)

    from eval.metrics.open import BUILT_IN

    BUILT_IN["spy"] = lambda argument: Spy()
    try:
        record = with_task(run_record(lengths=(20, 30)), maxlen=[20, 30])
        write_run(run, answer, record=record, documents={f"doc-{i}": document(i, 20) for i in range(6)})
        assert score([str(run), "--metrics", "spy"]) == 0
    finally:
        del BUILT_IN["spy"]
    whole = document(0, 20)
    ours = {item.window: item for item in seen if item.document == whole and item.finish_reason}
    assert ours.keys() == {whole[:40], whole[:60]}
    assert ours[whole[:60]].shorter_window == whole[:40]
    assert ours[whole[:40]].shorter_window is None
    assert all(not item.references for item in seen), "it reads none"


def test_a_run_that_begins_anew_leaves_no_values(run: Path) -> None:
    assert score([str(run), "--metrics", NAME]) == 0
    RunFolder(run).clear()
    assert not (run / "metrics").exists()
    assert not (run / "run.json").exists()


def test_a_run_that_begins_anew_leaves_what_a_judge_was_paid_for(run: Path) -> None:
    assert score([str(run), "--metrics", NAME]) == 0
    kept = {name: run / "metrics" / name for name in ("gpt@home.replies.jsonl", "gpt@home.yaml", "notes.txt")}
    for name, file in kept.items():
        file.write_text(name)
    RunFolder(run).clear()
    assert {file.name for file in (run / "metrics").iterdir()} == kept.keys()
    assert all(file.read_text() == name for name, file in kept.items())
    write_run(run, answer)
    assert score([str(run), "--metrics", NAME]) == 0, "and they are taken for no values"
    assert read_scores(run).further.keys() == {"letters"}


# Floors and ceilings cost time


def test_floors_are_left_out_where_they_are_not_wanted(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert score([str(run), "--metrics", NAME, "--no-floors"]) == 0
    answers = {repr(answer(example_line(index), maxlen)) for index in range(6) for maxlen in (100, 200)}
    fingerprints, texts = zip(*(line.split(" ", 1) for line in scored()), strict=True)
    assert set(texts) == answers
    printed = capsys.readouterr().out
    assert "letters, version 1" in printed
    assert "foreign reference" not in printed
    assert "what no model wrote" not in printed
    assert "not scored yet" not in printed, "nobody wants them"
    assert {one.system for one in read_scores(run).results if one.further} == {"tiny"}
    assert score([str(run), "--metrics", "diagnostics"]) == 0, "another metric has them"
    assert "foreign reference" in capsys.readouterr().out
    assert score([str(run), "--metrics", NAME]) == 0
    floors = [line.partition(" ")[0] for line in scored()]
    assert len(floors) > 6
    assert not {*floors} & {*fingerprints}, "what is there is not scored again"
    assert further(run, "foreign_reference")["letters.letters"].mean > 0


def test_floors_that_some_texts_have_are_missed_in_others(run: Path) -> None:
    assert score([str(run), "--metrics", NAME]) == 0
    examples = [example_line(index) for index in range(7)]
    write_run(run, answer, examples)
    assert score([str(run), "--metrics", NAME, "--no-floors"]) == 0
    # Those of the new example, and another foreign reference of the one before it.
    assert read_scores(run).further["letters"].num_absent >= 3


# Parts of a run


def write_parts(*flags: Sequence[str]) -> list[str]:
    """Return folders of three examples each, scored with these flags."""
    # Those of the whole run.
    documents = {f"doc-{index}": document(index, 3 if index < 2 else 20) for index in range(6)}
    for part, given in enumerate(flags, start=1):
        examples = [example_line(index) for index in range(6)][3 * (part - 1) : 3 * part]
        write_run(Path(f"part-{part}"), answer, examples, documents)
        if given:
            assert score([f"part-{part}", *given]) == 0
    return [f"part-{part}" for part in range(1, len(flags) + 1)]


def test_values_of_parts_are_joined(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts = write_parts(["--metrics", f"{NAME},diagnostics"], ["--metrics", f"{NAME},diagnostics"])
    scored()
    assert merge([*parts, "--output", "whole"]) == 0
    assert "is left out" not in capsys.readouterr().out
    assert scored() == []
    assert score([str(run), "--metrics", f"{NAME},diagnostics"]) == 0
    assert further(Path("whole"), "tiny") == further(run, "tiny")
    scored()
    # Only the foreign references are others: their order is that of all examples.
    assert read_scores(Path("whole")).further["letters"].num_absent > 0
    assert score(["whole", "--metrics", NAME]) == 0
    assert len(scored()) <= 6
    assert read_scores(Path("whole")).further["letters"].num_absent == 0
    before = (Path("whole") / FILE).read_bytes()
    assert merge([*parts, "--output", "whole"]) == 0, "the same merge again"
    assert sorted((Path("whole") / FILE).read_bytes().splitlines()) == sorted(before.splitlines())


def test_values_of_the_whole_win_over_those_of_its_parts(run: Path) -> None:
    parts = [Path(part) for part in write_parts(["--metrics", NAME], ["--metrics", NAME])]
    assert score([str(run), "--metrics", NAME]) == 0
    first, *lines = [parse_line(line, needs_checksum=True) for line in (run / FILE).read_bytes().splitlines()]
    changed = next(line for line in lines if line and line["system"] == "tiny")
    changed["values"]["letters"] += 1.0
    (run / FILE).write_bytes(b"".join(line_of(line) for line in (first, *lines)))
    joined, left_out = join_metric_files(parts, run)
    [found] = [line for line in joined[FILE.name][1:] if line.fingerprint == changed["fingerprint"]]
    assert found.values == changed["values"]
    assert left_out == []


def test_values_that_a_part_lacks_or_made_in_another_way_are_named(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = write_parts(["--metrics", f"{NAME},diagnostics"], [])
    write_metric(weights="b")
    assert score([second, "--metrics", NAME]) == 0
    capsys.readouterr()
    assert merge([first, second, "--output", "whole"]) == 0
    told = [line for line in capsys.readouterr().out.splitlines() if "is left out" in line]
    assert [" ".join(line.split()) for line in told] == [
        "metrics diagnostics@1.jsonl is left out: part-2 has none; score whole with --metrics",
        'metrics letters@1.jsonl is left out, because it was made in another way: provenance source_sha256 is "'
        + told[1].partition('is "')[2],
    ]
    assert read_scores(Path("whole")).further is None
    assert not (Path("whole") / "metrics").exists()


def test_a_changed_file_of_a_part_is_refused_before_anything_is_written(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = write_parts(["--metrics", NAME], ["--metrics", NAME])
    file = Path("part-2") / FILE
    file.write_bytes(file.read_bytes().replace(b'"maxlen": 100', b'"maxlen": 101', 1))
    capsys.readouterr()
    assert merge([*parts, "--output", "whole"]) == 2
    assert "letters@1.jsonl, line" in capsys.readouterr().err
    assert not (Path("whole") / "predictions.jsonl").exists()


def test_a_page_for_others_shows_values_and_no_texts(run: Path) -> None:
    assert score([str(run), "--metrics", NAME, "--no-texts"]) == 0
    page = (run / "report.html").read_text()
    assert "letters, version 1" in page
    assert example_line(3).references[0][:30] not in page


def test_two_metrics_of_one_name_are_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("other.py").write_text(Path("letters.py").read_text())
    assert score([str(run), "--metrics", f"{NAME},other.py:Letters"]) == 2
    assert said(capsys).startswith("error: --metrics letters.py:Letters and other.py:Letters are both called letters; ")
    assert scored() == []


def test_a_metric_that_breaks_its_word_is_named(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_metric(hook="return [{'letters': 1.0}] * len(batch)")
    assert score([str(run), "--metrics", NAME]) == 2
    assert "metric letters gave letters where it has the values letters, q, share; mend the metric" in said(capsys)


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--metrics", "nothing"], "there is no metric 'nothing'"),
        (["--no-floors"], "--no-floors is for the metrics of --metrics; name them"),
        (["--metrics-again"], "--metrics-again forgets what the metrics of --metrics have scored; name them"),
    ],
)
def test_a_wrong_flag_is_one_line(flags: list[str], reason: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        status = score([str(run), *flags])
    except SystemExit as end:
        status = int(end.code or 0)
    assert status == 2
    assert reason in said(capsys)


class OfWindow(Diagnostics):
    needs = frozenset({"window"})


def test_an_item_without_what_a_metric_needs_is_left_out(tmp_path: Path) -> None:
    metric = OfWindow()
    items = [Item.of(metric, prediction="a", window=window) for window in ("", "a b")]
    line = type("Line", (), {"task": "t", "template": "x", "id": "i", "maxlen": 1, "system": "s"})
    score_missing(tmp_path, metric, [(line, item) for item in items])
    file = read_metric_file(tmp_path / "metrics/diagnostics@1.jsonl")
    assert file.values.keys() == {items[1].fingerprint}
    (tmp_path / "metrics/diagnostics@1.jsonl").write_bytes(b"")
    with pytest.raises(UserError, match="has no first line"):
        read_metric_file(tmp_path / "metrics/diagnostics@1.jsonl")
