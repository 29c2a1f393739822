"""A run that stops once it has shown something: when it does, what it leaves, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from eval.compare import main as compare
from eval.config.run import RunConfig
from eval.config.until import Until, parse_until
from eval.generation.backend import output_of
from eval.leaderboard import main as leaderboard
from eval.records.read_run import describe_absent, open_run
from eval.run import main
from eval.scoring.anytime import anytime_interval, as_good, differs
from eval.scoring.scored_run import read_scored
from tasks.readers.sampling import place_of
from tests.helpers.forks import run_ranks
from tests.helpers.official_files import as_lines, write_official
from tests.helpers.run_folders import WORDS, without_checksums
from tests.helpers.tiny_models import save_tiny_checkpoint

pytestmark = pytest.mark.usefixtures("no_plots")

NUM_DOCUMENTS = 40
DIFFERS = "rougeLsum: 80 differs from 40"


def text(seed: int, num_words: int) -> str:
    return " ".join(WORDS[(seed * 7 + index * (seed + 3)) % len(WORDS)] for index in range(num_words))


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    """Return a command without its output; each document is a report of its own."""
    rows = [{"context": f"Report {i}. {text(i, 150)}", "target": text(i + 90, 12)} for i in range(NUM_DOCUMENTS)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = f"--engine mock --task custom --data {tmp_path / 'data.jsonl'} --max-new-tokens 20 --no-texts"
    return [*command.split(), "--maxlen", "40", "80"]


def answers(file: Path, num_words: Callable[[int, int], int]) -> list[str]:
    """Return the options of answers that hold so many words of the reference, by document and length."""
    lines = [
        {
            "id": f"test-{index}",
            "maxlen": maxlen,
            "text": " ".join([*text(index + 90, 12).split()[: num_words(index, maxlen)], "no", "more"]),
        }
        for index in range(NUM_DOCUMENTS)
        for maxlen in (40, 80)
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return ["--answers", str(file)]


@pytest.fixture
def better(arguments: list[str], tmp_path: Path) -> list[str]:
    """Return a command whose answers are better at the greater length in four of five documents; 16 show it."""
    return [*arguments, *answers(tmp_path / "better", lambda i, n: 6 + (n == 80) * (1 if i % 5 else -1))]


@pytest.fixture
def alike(arguments: list[str], tmp_path: Path) -> list[str]:
    """Return a command whose answers are now better and now worse at the greater length."""
    return [*arguments, *answers(tmp_path / "alike", lambda i, n: 6 + (n == 80) * (1 if i % 2 else -1))]


def record_of(folder: Path) -> Any:
    return json.loads((folder / "run.json").read_text())


def answered(folder: Path) -> list[str]:
    """Return the documents of predictions, each once."""
    lines = without_checksums((folder / "predictions.jsonl").read_text()).splitlines()
    return list(dict.fromkeys(json.loads(line)["id"] for line in lines))


def in_order(seed: int = 0) -> list[str]:
    return sorted((f"test-{index}" for index in range(NUM_DOCUMENTS)), key=lambda name: place_of(name, seed))


def run(arguments: Sequence[str], folder: Path, until: str | None = DIFFERS, status: int = 0) -> Any:
    """Run, and return what `run.json` has of `--until`."""
    asked = [] if until is None else ["--until", until]
    assert main([*arguments, "--output", str(folder), *asked]) == status
    return record_of(folder).get("until")


def error_of(arguments: Sequence[str], folder: Path, until: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Return the one line on standard error of a run that is refused, and that writes nothing."""
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    capsys.readouterr()
    assert main([*arguments, "--output", str(folder), "--until", until]) == 2
    assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return line


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            "rougeLsum: 8192 differs from 1024 | as good, margin 0.02 | 1.5h",
            Until(metric="rougeLsum", subject="8192", beside="1024", differs=True, margin=0.02, seconds=5400),
        ),
        ("f1:this differs  from runs/a-b", Until(metric="f1", beside="runs/a-b", differs=True)),
        ("30min|f1: this is as good as ./x,margin 0.1", Until(metric="f1", beside="./x", margin=0.1, seconds=1800)),
        ("f1: 8 as good as 4 | differs", Until(metric="f1", subject="8", beside="4", margin=0.01, differs=True)),
        ("90 s", Until(seconds=90)),
    ],
)
def test_what_until_may_say(words: str, expected: Until) -> None:
    assert parse_until(words) == expected
    assert expected.folder == (None if expected.beside in ("this", "1024", "4") else expected.beside)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("soon", "'soon' is no end of a run; write for example 'rougeLsum: 8192 differs from 1024 |"),
        ("as good", "'as good' is no end of a run"),
        (f"{DIFFERS} | 2h | 3h", "has two times; give one"),
        ("0h", "'0h' is no time; give one above 0, such as 30min"),
        (f"{DIFFERS} | 0.0 s", "'0.0 s' is no time"),
        ("9" * 400 + "h", "is no time; give one above 0"),
        (f"rougeL: {'9' * 5000} differs from 40", "is not a whole number"),
        (f"rougeL: 80 differs from {2**31}", "2147483648 must be at most 2147483647"),
        (f"{DIFFERS} | as good | as good, margin 0.1", "has 'as good' twice; give one"),
        (f"{DIFFERS} | differs", "has 'differs' twice"),
        (f"{DIFFERS} | rouge1: 80 differs from 40", "'rouge1: 80 differs from 40' is a second comparison"),
        (f"{DIFFERS}, margin 0.1", "has a margin, which is of 'as good'"),
        (f"{DIFFERS} | as good, margin x", "margin 'x' is not a number"),
        (f"{DIFFERS} | as good, margin 1", "margin 1 must be above 0 and below 1"),
        (f"{DIFFERS} | as good, margin 0", "margin 0 must be above 0"),
        ("rougeL: 80 differs from 80", "'80' stands beside itself"),
        ("rougeL: 080 differs from 80", "'80' stands beside itself"),
        ("rougeL: a differs from b", "names two folders; one side is this run"),
        ("rougeL: 80 differs from 90", "about 90 tokens, which --maxlen does not have"),
        ("rougeL: this differs from 40", "'this' is a run of one length, and --maxlen has 2"),
        ("rougeL: 80 differs from none", "names 'none', where no run is"),
        (
            "bleu: 80 differs from 40",
            "'bleu' is no metric of profile 'hf', by which answers are scored as they come; ",
        ),
        ("embed.cosine: 80 differs from 40", "known: rouge1, rouge2, rougeL, rougeLsum"),
        ("geometric: 80 differs from 40 --profile scrolls", "joins means over all documents, and no single document"),
        (f"{DIFFERS} --shard 1/2", "--until looks at all documents of a run, and --shard 1/2 has some"),
        (f"{DIFFERS} --template instruct,document", "compares answers of one template, and --template names instruct"),
    ],
)
def test_what_cannot_end_a_run_is_one_line_before_anything_is_written(
    words: str, message: str, arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    until, *more = words.split(" --")
    given = [word for option in more for word in f"--{option}".split()]
    assert message in error_of([*arguments, *given], tmp_path / "run", until, capsys)
    assert not (tmp_path / "run").exists()


def test_a_run_stops_once_a_difference_is_shown_and_says_what_holds(
    better: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    until = run(better, folder, f"{DIFFERS} | as good, margin 0.05 | 2h")
    count = until["num_answered"]
    assert (until["stopped"], count, until["num_compared"], until["num_all"]) == ("differs", 16, 16, NUM_DOCUMENTS)
    assert sorted(answered(folder)) == sorted(in_order()[:count])
    # The same from the scores that are written at the end.
    lines = read_scored(folder).lines
    scores = {n: lines["custom", "instruct", n] for n in (40, 80)}
    gains = [
        scores[80][name].metrics["rougeLsum"] - scores[40][name].metrics["rougeLsum"] for name in in_order()[:count]
    ]
    assert until["e_differs"] == pytest.approx(differs(gains))
    assert until["e_as_good"] == pytest.approx(as_good(gains, 0.05))
    assert (until["low"], until["high"]) == pytest.approx(anytime_interval(gains))
    assert until["difference"] == pytest.approx(sum(gains) / count)
    # At the look before, less was shown.
    assert differs(gains[:8]) < 20 <= differs(gains)
    said = " ".join(capsys.readouterr().out.split())
    told = f"80 tokens differ from 40 tokens, for the better: RLsum {100 * until['difference']:+.1f} ["
    assert told in said
    assert f"n = {count} of {NUM_DOCUMENTS} documents. The run stopped there (--until)." in said
    assert "intervals, p values and verdicts of tables are those of a number of documents that was fixed" in said
    left = 2 * (NUM_DOCUMENTS - count)
    assert f"Left out: {left} predictions about documents that --until did not come to." in said
    assert told in (folder / "report.md").read_text()
    assert told.partition(":")[0] in (folder / "report.html").read_text()
    assert leaderboard([str(folder)]) == 2
    assert "stopped by --until" in capsys.readouterr().err


def test_the_same_command_on_a_run_that_has_stopped_answers_nothing(better: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    first = run(better, folder)
    before = record_of(folder), (folder / "predictions.jsonl").read_bytes()
    assert run(better, folder) == first
    assert (record_of(folder), (folder / "predictions.jsonl").read_bytes()) == before
    # Without the option, the rest is answered, and what was shown when it stopped stays.
    assert run(better, folder, until=None) == first
    assert len(answered(folder)) == NUM_DOCUMENTS


@pytest.mark.parametrize("num_written", [0, 21])
def test_a_killed_run_comes_to_the_same_end(
    num_written: int, better: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = run(better, tmp_path / "whole", "rouge2: 80 differs from 40")
    count = 0

    def interrupted(*given: Any) -> None:
        nonlocal count
        count += 1
        if count > num_written:
            raise KeyboardInterrupt
        written(*given)

    from eval.runtime import jobs

    written = jobs.append_line
    monkeypatch.setattr("eval.runtime.jobs.append_line", interrupted)
    killed = run(better, tmp_path / "run", "rouge2: 80 differs from 40", status=130)
    monkeypatch.undo()
    monkeypatch.setattr("eval.reporting.run_report.save_charts", lambda folder, specs, own: [])
    assert killed["stopped"] is None
    assert killed["num_answered"] == 8 * (num_written // 16)
    resumed = run(better, tmp_path / "run", "rouge2: 80 differs from 40")
    own = {"seconds": 0, "recorded": ""}
    assert resumed | own == undisturbed | own
    assert (tmp_path / "run" / "predictions.jsonl").read_bytes() == (
        tmp_path / "whole" / "predictions.jsonl"
    ).read_bytes()
    scores = [(tmp_path / name / "scores.json").read_bytes() for name in ("run", "whole")]
    assert scores[0] == scores[1]


def test_a_run_that_shows_nothing_answers_all_documents(
    alike: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    until = run(alike, tmp_path / "run", f"{DIFFERS} | as good, margin 0.01")
    assert until["stopped"] == "all documents"
    assert until["num_answered"] == len(answered(tmp_path / "run")) == NUM_DOCUMENTS
    assert until["e_differs"] < 20
    said = " ".join(capsys.readouterr().out.split())
    assert "after 8 of 40 documents: RLsum " in said
    assert "80 tokens are not shown to differ from or to be as good as 40 tokens, within the margin of 1: RLsum" in said


def test_time_ends_a_run_and_more_time_goes_on(better: list[str], tmp_path: Path) -> None:
    folder, until = tmp_path / "run", "rouge2: 80 differs from 40"
    first = run(better, folder, f"{until} | 0.0001 s")
    assert (first["stopped"], first["num_answered"]) == ("time", 8)
    again = run(better, folder, f"{until} | 0.0001 s")
    assert again == first
    more = run(better, folder, f"{until} | 1h")
    assert more["stopped"] == "differs"
    assert more["seconds"] > first["seconds"]
    assert more["recorded"] == first["recorded"]
    alone = run(better, tmp_path / "alone", "0.0001 s")
    assert (alone["stopped"], alone["num_answered"], alone["e_differs"]) == ("time", 8, None)


def test_another_run_may_stand_beside_this_one(
    arguments: list[str], better: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other, same = tmp_path / "other", [*better, "--maxlen", "80"]
    run(better, other, until=None)
    until = run(same, tmp_path / "run", f"rougeLsum: this differs from {other} | as good, margin 0.1")
    assert until["stopped"] == "as good"
    assert (until["difference"], until["subject"]) == (0, "this")
    assert until["e_as_good"] >= 40
    assert "This run is as good as" in " ".join(capsys.readouterr().out.split()).replace("this run is", "This run is")
    # Its lengths are compared with the same of the other one.
    worse = [*arguments, *answers(tmp_path / "worse", lambda index, maxlen: 4)]
    until = run(worse, tmp_path / "worse-run", f"rougeLsum: {other} differs from 80")
    assert until["stopped"] == "differs"
    assert until["difference"] > 0.2


def test_another_run_that_cannot_stand_beside_this_one_is_refused(
    better: list[str], arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other, folder = tmp_path / "other", tmp_path / "run"
    until = f"rougeLsum: 80 differs from {other}"
    run([*better, "--sample", "30"], other, until=None)
    assert "lacks 10 of the 40 examples, 'test-" in error_of(better, folder, until, capsys)
    drawn = [*better, "--sample", "30"]
    assert "other has no answers of custom, instruct at 60" in error_of(
        [*drawn, "--maxlen", "60"], folder, f"rougeLsum: 60 differs from {other}", capsys
    )
    assert "was scored under profile hf and this run will be under scrolls" in error_of(
        [*drawn, "--profile", "scrolls"], folder, until, capsys
    )
    rows = (tmp_path / "data.jsonl").read_text().replace("the model reads", "a model reads")
    (tmp_path / "changed.jsonl").write_text(rows)
    changed = [word.replace("data.jsonl", "changed.jsonl") for word in drawn]
    assert "has another document, query or reference in" in error_of(changed, folder, until, capsys)
    assert not folder.exists()
    assert run(drawn, folder, f"{until} | 0.0001s")["stopped"] == "time"
    # Other answers in the other folder are another comparison.
    worse = answers(tmp_path / "worse", lambda index, maxlen: 4)
    run([*arguments, "--sample", "30", *worse, "--overwrite"], other, until=None)
    assert "are others than when this run began" in error_of(drawn, folder, until, capsys)


def test_what_is_compared_is_fixed_before_the_first_answer(
    better: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, folder = tmp_path / "plain", tmp_path / "run"
    assert run(better, plain, until=None) is None
    assert "until" not in record_of(plain)["config"]
    assert "has answers already, which --until did not ask for" in error_of(better, plain, DIFFERS, capsys)
    run(better, folder, f"{DIFFERS} | 0.0001s")
    for other in ("rouge1: 80 differs from 40", f"{DIFFERS} | as good", "rougeLsum: 40 differs from 80", "2h"):
        assert "the folder's answers were looked at for 'rougeLsum: 80 differs" in error_of(
            better, folder, other, capsys
        )
    assert "fixed before the first answer" in error_of([*better, "--sample-seed", "1"], folder, DIFFERS, capsys)
    assert run([*better, "--overwrite"], folder, "rouge1: 80 differs from 40")["metric"] == "rouge1"


def test_more_documents_go_on_only_behind_those_answered(
    better: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, until = tmp_path / "run", "rouge2: 80 differs from 40"
    first = run([*better, "--sample", "8"], folder, until)
    assert (first["stopped"], first["num_answered"], first["num_all"]) == ("all documents", 8, 8)
    more = run([*better, "--sample", "40"], folder, until)
    assert (more["stopped"], more["num_all"]) == ("differs", 40)
    assert sorted(answered(folder)) == sorted(in_order()[: more["num_answered"]])
    limited = tmp_path / "limited"
    run([*better, "--limit", "10"], limited, until)
    assert "has answered others than the first of these" in error_of(better, limited, until, capsys)


def test_the_rest_of_a_stopped_run_is_not_said_to_be_left_out_by_until(better: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run(better, folder)
    _, record = open_run(folder)
    assert describe_absent(record, 3) == "Left out: 3 predictions about documents that --until did not come to."
    # A session without the option, which was interrupted.
    later = replace(record, config={**record.config, "until": None})
    assert describe_absent(later, 3) == "Not there yet: 3 predictions of a run that was interrupted."
    assert record_of(folder)["config"]["until"] == DIFFERS
    run(better, folder, until=None)
    assert "until" not in record_of(folder)["config"]


def test_until_is_in_no_name_of_a_folder(arguments: list[str]) -> None:
    commands = [arguments, [*arguments, "--until", DIFFERS], [*arguments, "--until", "2h"]]
    assert len({output_of(RunConfig.from_command_line(command)) for command in commands}) == 1


def test_clusters_are_answered_and_counted_whole(arguments: list[str], tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (tmp_path / "data.jsonl").read_text().splitlines()]
    lines = [json.dumps(row | {"book": f"book-{index % 10}"}) + "\n" for index, row in enumerate(rows)]
    (tmp_path / "data.jsonl").write_text("".join(lines))
    steady = answers(tmp_path / "steady", lambda index, maxlen: 6 + (maxlen == 80) * 3)
    until = run([*arguments, *steady, "--cluster-field", "book"], tmp_path / "run")
    assert (until["stopped"], until["num_all"], until["num_answered"], until["num_compared"]) == ("differs", 10, 8, 8)
    short = run([*arguments, *steady, "--cluster-field", "book"], tmp_path / "short", f"{DIFFERS} | 0.0001s")
    assert short["num_answered"] == 2  # of four documents each, which fill a group
    books = {int(name.removeprefix("test-")) % 10 for name in answered(tmp_path / "short")}
    assert len(answered(tmp_path / "short")) == 4 * len(books) == 8
    assert books == set(sorted(range(10), key=lambda book: place_of(f"book-{book}", 0))[:2])


def test_a_larger_sample_may_add_documents_to_clusters_that_were_answered(
    alike: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [json.loads(line) for line in (tmp_path / "data.jsonl").read_text().splitlines()]
    lines = [json.dumps(row | {"book": f"book-{index % 10}"}) + "\n" for index, row in enumerate(rows)]
    (tmp_path / "data.jsonl").write_text("".join(lines))
    clustered = [*alike, "--cluster-field", "book"]
    # Fewer documents had not come to all clusters, and the others stand between those that were answered.
    run([*clustered, "--sample", "8"], tmp_path / "few")
    assert "has answered others than the first of these" in error_of(clustered, tmp_path / "few", DIFFERS, capsys)
    folder = tmp_path / "many"
    first = run([*clustered, "--sample", "30"], folder)
    assert (first["num_answered"], len(answered(folder))) == (10, 30)
    more = run(clustered, folder)
    assert (more["num_answered"], len(answered(folder)), more["order"]) == (10, 40, first["order"])


def test_one_text_under_two_ids_counts_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"article_id": f"paper-{name}-{index}", "article_text": [text(index, 150)], "abstract_text": [f"Rain {index}."]}
        for index in range(6)
        for name in ("a", "b")
    ]
    data = write_official("arxiv", tmp_path, as_lines(rows))
    command = f"--task arxiv --data {data} --engine mock --max-new-tokens 20 --maxlen 40 80"
    until = run(command.split(), tmp_path / "run")
    assert (until["num_all"], until["num_answered"], until["num_compared"]) == (6, 6, 6)
    assert "left out" not in capsys.readouterr().out.partition("are not shown to differ")[2]


def test_a_task_with_classes_can_stop(tmp_path: Path) -> None:
    data, answers = write_official("longbench_e_trec", tmp_path), tmp_path / "answers.jsonl"
    texts = ("Place", "Place to stay", "Date")
    lines = [json.dumps({"id": f"{index:048x}", "text": text}) + "\n" for index, text in enumerate(texts)]
    answers.write_text("".join(lines))
    command = ["--task", "longbench_e_trec", "--data", str(data), "--engine", "mock", "--answers", str(answers)]
    until = run([*command, "--maxlen", "300", "600"], tmp_path / "run", "accuracy: 600 differs from 300")
    assert (until["stopped"], until["num_answered"]) == ("all documents", 3)


def test_documents_that_both_lengths_show_alike_count_for_nothing(arguments: list[str], tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (tmp_path / "data.jsonl").read_text().splitlines()]
    lines = [
        json.dumps(row | {"context": f"Report {i}. " + text(i, 2 if i % 2 else 150)}) + "\n"
        for i, row in enumerate(rows)
    ]
    (tmp_path / "data.jsonl").write_text("".join(lines))
    until = run([*arguments, "--max-new-tokens", "4"], tmp_path / "run")
    assert until["num_answered"] == NUM_DOCUMENTS
    assert until["num_compared"] == NUM_DOCUMENTS // 2


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_checkpoint(tmp_path_factory.mktemp("model"))


def of_model(arguments: Sequence[str], model: Path) -> list[str]:
    """Return a command with a tiny model in place of the table of answers."""
    own = f"--model {model} --dtype float64 --threads 1 --maxlen 300 600 --max-new-tokens 6"
    return [*arguments[2:], *own.split()]


def test_a_model_is_loaded_once_and_answers_as_in_a_plain_run(
    arguments: list[str], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from eval.runtime.model import OpenedModel

    num_loads, load = 0, OpenedModel.load

    def counted(self: OpenedModel, *given: Any) -> Any:
        nonlocal num_loads
        num_loads += 1
        return load(self, *given)

    monkeypatch.setattr(OpenedModel, "load", counted)
    command = of_model(arguments, model)
    until = run(command, tmp_path / "run", "rouge1: 600 differs from 300")
    assert num_loads == 1
    assert until["stopped"] in ("differs", "all documents")
    assert until["num_answered"] > 8
    run(command, tmp_path / "plain", until=None)
    texts = [
        {
            (line["id"], line["maxlen"]): line["text"]
            for line in map(json.loads, without_checksums((folder / "predictions.jsonl").read_text()).splitlines())
        }
        for folder in (tmp_path / "run", tmp_path / "plain")
    ]
    assert texts[0].items() <= texts[1].items()
    assert not (tmp_path / "run" / "journal").exists()


def test_two_processes_stop_together(arguments: list[str], model: Path, tmp_path: Path) -> None:
    command = [*of_model(arguments, model), "--batch-size", "4"]
    asked = ["--until", "rouge1: 600 differs from 300 | 0.0001s"]
    two = run_ranks("eval.run", [*command, "--output", str(tmp_path / "two"), *asked])
    assert two.returncode == 0, two.stderr
    until = record_of(tmp_path / "two")["until"]
    assert until["stopped"] == "time"
    assert until["num_answered"] == 16  # a group fills the batches of both
    assert sorted(answered(tmp_path / "two")) == sorted(in_order()[:16])
    # One process goes on where two stopped.
    until = run(command, tmp_path / "two", f"rouge1: 600 differs from 300 | {until['seconds'] + 0.001:.4f}s")
    assert until["num_answered"] == len(answered(tmp_path / "two")) == 32


def test_a_stopped_run_is_compared_on_what_it_answered(
    better: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    until = run(better, tmp_path / "run")
    run([*better, "--sample", str(until["num_answered"])], tmp_path / "other", until=None)
    capsys.readouterr()
    assert compare([str(tmp_path / "run"), str(tmp_path / "other")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"{tmp_path / 'run'}: The run looked at its scores and could stop (--until)" in said
    assert f"{tmp_path / 'other'}: The run" not in said
