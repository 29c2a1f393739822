"""Windows from the command line to the contrasts, by engines that are known to read in one way."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from eval.export import main as export
from eval.generation.windows import DocumentEvidence
from eval.leaderboard import main as leaderboard
from eval.records.run_folder import RunFolder
from eval.records.schema import ExampleScore
from eval.run import main
from eval.score import main as score
from eval.scoring.baselines import PreparedDocument, visible_oracles
from tasks import Example
from tests.helpers.run_folders import read_scores, without_checksums
from tests.helpers.tiny_models import save_tiny_checkpoint

pytestmark = pytest.mark.usefixtures("no_plots")

ALL = "head,evidence,evidence_first,without_evidence,oracle,foreign"
NUM_MEETINGS = 8
FOUND = "The committee closed bridge {} for repairs until next spring"


def meeting(index: int, at: int, *, is_marked: bool = True) -> dict[str, Any]:
    """Return a meeting of twenty turns in QMSum's format, the answer in the turn `at`."""
    turns = [
        {"speaker": f"S{turn}", "content": f"Filler {index} number {turn} says nothing at all."} for turn in range(20)
    ]
    turns[at]["content"] = f"{FOUND.format(index)}."
    # The oracle takes no sentence that is longer than the reference.
    query: dict[str, Any] = {"query": "What was closed?", "answer": f"{FOUND.format(index)}, as the members heard"}
    if is_marked:
        return {
            "meeting_transcripts": turns,
            "general_query_list": [],
            "specific_query_list": [{**query, "relevant_text_span": [[str(at), str(at)]]}],
        }
    return {"meeting_transcripts": turns, "general_query_list": [query], "specific_query_list": []}


def write(file: Path, meetings: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(one) + "\n" for one in meetings))
    return file


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Return meetings whose evidence stands in the twelfth of twenty turns."""
    return write(tmp_path / "val.jsonl", [meeting(index, 11) for index in range(NUM_MEETINGS)])


def command(data: Path, folder: Path, windows: str = ALL, engine: str = "mock", maxlen: str = "60 240") -> list[str]:
    text = f"--engine {engine} --task qmsum --data {data} --split validation --max-new-tokens 12 --maxlen {maxlen}"
    return [*text.split(), "--window", windows, "--output", str(folder), "--template", "context_first"]


def lines(folder: Path) -> dict[tuple[str, str, int], dict[str, Any]]:
    found = map(json.loads, without_checksums((folder / "predictions.jsonl").read_text()).splitlines())
    return {(one["template"].removeprefix("context_first"), one["id"], one["maxlen"]): one for one in found}


def document_ids(folder: Path) -> dict[str, str]:
    return {one.id: one.document_id for one in RunFolder(folder).read_examples()}


def documents(folder: Path) -> dict[str, str]:
    return {one.document_id: one.text for one in RunFolder(folder).read_documents()}


def test_each_window_shows_what_its_name_says(data: Path, tmp_path: Path) -> None:
    assert main(command(data, tmp_path / "run")) == 0
    found, texts = lines(tmp_path / "run"), documents(tmp_path / "run")
    assert len(found) == NUM_MEETINGS * 6 * 2
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert {name: one.get("window") for name, one in run["tasks"]["qmsum"]["templates"].items()} == {
        "context_first": None,
        **{f"context_first@{window}": window for window in ALL.split(",")[1:]},
    }
    for name, document in document_ids(tmp_path / "run").items():
        text = texts[document]
        sentence = next(line for line in text.split("\n") if "closed bridge" in line)

        def shown(window: str, maxlen: int, name: str = name, document: str = document) -> str:
            about = found[f"@{window}", name, maxlen]["window"]
            whole = texts[about.get("document_id", document)]
            return "".join(whole[start:stop] for start, stop in about["spans"])

        for maxlen in (60, 240):
            [[start, stop]] = found["", name, maxlen]["context_spans"]
            of_head = text[start:stop]
            assert "window" not in found["", name, maxlen]
            assert shown("evidence", maxlen).strip() == sentence
            assert found["@evidence", name, maxlen]["window"]["source"] == "gold"
            assert shown("evidence_first", maxlen).lstrip().startswith(sentence)
            assert shown("evidence_first", maxlen).count("closed bridge") == 1
            assert "closed bridge" not in shown("without_evidence", maxlen)
            for window in ("evidence_first", "without_evidence", "foreign"):
                kept = found[f"@{window}", name, maxlen]["context_tokens_kept"]
                of_window = found["", name, maxlen]["context_tokens_kept"]
                # The document without its evidence is shorter, where all of it fits.
                assert kept == (of_window - len(sentence.split()) if window[0] == "w" and maxlen == 240 else of_window)
            assert (sentence in of_head) == (maxlen == 240) == (sentence in shown("oracle", maxlen))
            assert found["@foreign", name, maxlen]["context_spans"] == []
            assert found["@foreign", name, maxlen]["window"]["document_id"] != document
            assert "Filler" in shown("foreign", maxlen)


def test_contrasts_tell_a_model_that_reads_the_beginning_alone(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The engine answers with the first words that it is shown.
    assert main(command(data, tmp_path / "run")) == 0
    printed = capsys.readouterr().out
    found = {(one.contrast, one.first.maxlen): one for one in read_scores(tmp_path / "run").windows or []}
    assert set(found) == {
        *(("not_in_window", maxlen) for maxlen in (60, 240)),
        *(("document", maxlen) for maxlen in (60, 240)),
        # At 60 tokens no evidence is shown, but sentences that the oracle picks of these.
        *(("not_used", maxlen) for maxlen in (60, 240)),
        ("position", 240),
    }
    assert (found["not_used", 60].num_gold, found["not_used", 60].num_oracle) == (0, NUM_MEETINGS)
    for name in ("not_in_window", "not_used", "position"):
        one = found[name, 240]
        assert (one.num_examples, one.num_gold, one.num_oracle, one.num_left_out) == (NUM_MEETINGS, 8, 0, 0)
        assert one.difference > 0.5
        assert one.p_corrected is not None
        assert one.p_corrected < 0.05
    assert abs(found["document", 240].difference) < 0.1
    assert "In the window and not used: the evidence alone at 240 tokens is better than the window" in (
        " ".join(printed.split())
    )
    assert "Position: the evidence in front at 240 tokens is better than the evidence in its place" in (
        " ".join(printed.split())
    )
    report = (tmp_path / "run" / "report.md").read_text()
    assert "### Windows: qmsum" in report
    assert "| in the window and not used, 240 |" in report
    page = (tmp_path / "run" / "report.html").read_text()
    assert "In the window and not used: the evidence alone at 240 tokens" in page
    # The other windows have no finding of their own.
    assert "context_first@evidence-finding" not in report
    assert printed.count("used up their room") == 1


def test_a_model_that_ignores_its_context_loses_nothing_by_any_window(data: Path, tmp_path: Path) -> None:
    answers = tmp_path / "answers.jsonl"
    assert main(command(data, tmp_path / "first", "head")) == 0
    names = document_ids(tmp_path / "first")
    answers.write_text("".join(json.dumps({"id": name, "text": "Bridge"}) + "\n" for name in names))
    assert main([*command(data, tmp_path / "run"), "--answers", str(answers)]) == 0
    found = read_scores(tmp_path / "run").windows or []
    assert len(found) == 7
    assert {one.difference for one in found} == {0.0}
    assert not any(one.p_value is not None and one.p_value < 1 for one in found)


def test_leads_begin_with_what_a_window_shows_first(data: Path, tmp_path: Path) -> None:
    assert main(command(data, tmp_path / "run", maxlen="240")) == 0
    found, systems = {}, {}
    for one in RunFolder(tmp_path / "run").read_lines(ExampleScore, "example_scores.jsonl"):
        window = one.template.removeprefix("context_first")
        systems.setdefault(window, set()).add(one.system)
        found[window, one.system] = one.metrics["rouge1"]
    # The evidence has the words of the reference, and stands in the twelfth turn.
    assert found["@evidence_first", "lead"] > found["", "lead"] + 0.5
    assert systems["@evidence_first"] == systems["@evidence"] == systems[""] - {"foreign_oracle"}
    assert systems["@foreign"] == {"query_echo", "mock"}


def test_the_oracle_of_a_window_is_no_evidence_that_the_window_lacks(data: Path, tmp_path: Path) -> None:
    assert main(command(data, tmp_path / "run", "without_evidence,oracle,head")) == 0
    assert {one.contrast for one in read_scores(tmp_path / "run").windows or []} == {"not_used"}


def test_windows_change_no_prediction_and_no_comparison_of_head(data: Path, tmp_path: Path) -> None:
    assert main(command(data, tmp_path / "alone", "head")) == 0
    assert main(command(data, tmp_path / "all")) == 0
    alone, both = (lines(tmp_path / name) for name in ("alone", "all"))
    assert alone == {key: line for key, line in both.items() if not key[0]}
    one, other = (read_scores(tmp_path / name) for name in ("alone", "all"))
    assert one.windows is None
    assert one.comparisons == [row for row in other.comparisons if "@" not in row.first.template]
    assert one.results == [row for row in other.results if "@" not in row.template]
    assert "window" not in json.loads((tmp_path / "alone" / "run.json").read_text())["config"]


def test_windows_are_added_to_a_folder_and_scored_again(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert main(command(data, folder, "head")) == 0
    assert main(command(data, folder, "evidence,foreign")) == 0
    assert {window for window, _, _ in lines(folder)} == {"", "@evidence", "@foreign"}
    before = read_scores(folder)
    assert {one.contrast for one in before.windows or []} == {"not_used", "document"}
    assert score([str(folder)]) == 0
    assert read_scores(folder) == before
    # The engine copies what it is shown, which is another document under `foreign`.
    assert score([str(folder), "--metrics", "diagnostics"]) == 0
    models = [one for one in read_scores(folder).results if one.kind == "model"]
    copied = {(one.template, one.maxlen): (one.further or {})["diagnostics.copied"].mean for one in models}
    assert len(copied) == 6
    assert set(copied.values()) == {1.0}


def test_a_leaderboard_ranks_no_window_that_shows_evidence(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(data, tmp_path / "runs" / "both", "head,evidence", maxlen="60")) == 0
    assert main(command(data, tmp_path / "runs" / "alone", "evidence", maxlen="60")) == 0
    capsys.readouterr()
    assert leaderboard([str(tmp_path / "runs"), "--output", str(tmp_path / "board")]) == 0
    board = json.loads((tmp_path / "board" / "leaderboard.json").read_text())
    assert [(row["run"], row["template"]) for row in board["boards"][0]["rows"]] == [("both", "context_first")]
    assert "through other windows than head" in json.dumps(board["left_out"])


def test_the_oracle_names_evidence_where_the_data_do_not(tmp_path: Path) -> None:
    meetings = [meeting(index, 3, is_marked=index > 0) for index in range(3)]
    data = write(tmp_path / "val.jsonl", meetings)
    assert main(command(data, tmp_path / "run", "head,evidence")) == 0
    found = {name: one["window"] for (window, name, _), one in lines(tmp_path / "run").items() if window}
    assert sorted(one["source"] for one in found.values()) == ["gold", "gold", "oracle"]
    texts, examples = documents(tmp_path / "run"), document_ids(tmp_path / "run")
    for name, one in found.items():
        document = texts[examples[name]]
        [[start, stop]] = one["evidence"]
        assert "closed bridge" in document[start:stop]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--window", "heads"], "--window is heads; give one or more of head, evidence"),
        (["--window", ","], "--window is empty"),
        (["--truncation", "tail"], "--truncation tail"),
        (["--limit", "1", "--window", "foreign"], "none beside 'validation-meeting-0'"),
    ],
)
def test_what_a_window_cannot_show_is_an_error_of_one_line(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], said: str
) -> None:
    assert main([*command(data, tmp_path / "run", "evidence"), *more]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_choices_without_marked_evidence_have_no_windows_of_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"context": f"Report {index}. Nothing else.", "target": "A", "query": "Which?"} for index in range(3)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = f"--engine mock --task custom --data {tmp_path / 'data.jsonl'} --maxlen 40 --max-new-tokens 4"
    arguments = [*text.split(), "--metrics", "longbench_choice", "--output", str(tmp_path / "run")]
    assert main([*arguments, "--query-field", "query", "--window", "evidence"]) == 2
    assert "3 of 3 examples mark no evidence, and metrics 'longbench_choice' have no oracle" in capsys.readouterr().err
    assert main([*arguments, "--query-field", "query", "--window", "foreign"]) == 0


def test_needles_move_as_other_evidence_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "--engine mock --task needle_single --maxlen 300 --limit 3 --max-new-tokens 12"
    arguments = [*text.split(), "--output", str(tmp_path / "run"), "--window"]
    assert main([*arguments, "evidence,oracle"]) == 2
    assert "metrics 'found_all' have no oracle to find any; leave oracle out" in capsys.readouterr().err
    assert main([*arguments, "head,evidence,evidence_first,without_evidence"]) == 0
    texts = documents(tmp_path / "run")
    for (window, name, _), one in lines(tmp_path / "run").items():
        if window:
            document = texts[document_ids(tmp_path / "run")[name]]
            [[start, stop]] = one["window"]["evidence"]
            shown = "".join(document[first:last] for first, last in one["window"]["spans"])
            assert (document[start:stop] in shown) == (window != "@without_evidence")
            assert shown.lstrip().startswith(document[start:stop]) or window == "@without_evidence"


def test_depths_of_needles_are_of_head_alone(tmp_path: Path) -> None:
    text = "--engine mock --task needle_single --maxlen 300 --limit 3 --max-new-tokens 12 --output"
    for windows in ("head", "head,evidence_first"):
        assert main([*text.split(), str(tmp_path / windows), "--window", windows]) == 0
    alone, both = (read_scores(tmp_path / windows).depths for windows in ("head", "head,evidence_first"))
    assert alone
    assert alone == both


def test_what_windows_are_made_of_is_found_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def counted(*given: Any) -> Any:
        asked.append(given[1])
        return visible_oracles(*given)

    monkeypatch.setattr("eval.generation.windows.visible_oracles", counted)
    example = Example(
        id="a", document_id="d", context="It rained. Bridges closed. Snow fell.", references=("Bridges closed",)
    )
    about = DocumentEvidence(example.context, "hf")
    for shown in ([(0, 30)], [(0, 10), (10, 30)], [(0, 12)], [(0, 30)]):
        about.oracle(example, shown)
    assert [about.of(example).source for _ in range(2)] == ["oracle", "oracle"]
    assert len(asked) == 3
    about.forget_document()
    assert about.oracle(example, [(0, 30)]) == ((11, 26),)
    assert not any(isinstance(one, PreparedDocument) for one in vars(about).values())


def test_exports_tell_what_a_window_shows(data: Path, tmp_path: Path) -> None:
    assert main(command(data, tmp_path / "run", "head,evidence_first,foreign", maxlen="60")) == 0
    found = lines(tmp_path / "run")
    for kind in ("dataset", "inspect"):
        assert export([str(tmp_path / "run"), "--to", kind, "--output", str(tmp_path / kind)]) == 0
    samples = pq.read_table(tmp_path / "dataset" / "samples.parquet").to_pylist()
    rows = {(one["template"], one["id"]): one for one in samples}
    logs = {}
    for file in (tmp_path / "inspect").iterdir():
        with zipfile.ZipFile(file) as archive:
            samples = [json.loads(archive.read(name)) for name in archive.namelist() if name.startswith("samples/")]
        template = json.loads(zipfile.ZipFile(file).read("header.json"))["eval"]["task_args"]["template"]
        logs |= {(template, one["metadata"]["id"]): one["metadata"] for one in samples}
    for (window, name, _), line in found.items():
        about = line.get("window", {})
        expected = about.get("spans", line["context_spans"])
        for of_export in (rows, logs):
            one = of_export[f"context_first{window}", name]
            assert one["shown_spans"] == expected != []
            assert (one["shown_document_id"] == one["document_id"]) == (window != "@foreign")


def test_prompts_through_windows_are_answered_as_in_runs_of_their_own(data: Path, tmp_path: Path) -> None:
    model = save_tiny_checkpoint(tmp_path / "model")
    write(data, [meeting(index, 3) for index in range(2)])
    local = f"local --model {model} --threads 1 --dtype float64"
    assert main(command(data, tmp_path / "all", engine=local, maxlen="400 1500")) == 0
    together = lines(tmp_path / "all")
    for window in ("head", "evidence_first", "oracle", "foreign"):
        assert main(command(data, tmp_path / window, window, local, "400 1500")) == 0
        alone = lines(tmp_path / window)
        assert {key: (one["text"], one["fingerprint"]) for key, one in alone.items()} == {
            key: (one["text"], one["fingerprint"]) for key, one in together.items() if key in alone
        }
    # Queries come after the document, so the beginning of `head` is shared with the window without the evidence.
    assert sum(one["prefilled_tokens"] for one in together.values()) < sum(
        one["prompt_tokens"] for one in together.values()
    )
