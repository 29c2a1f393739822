"""`eval.score RUN --metrics judge:FILE.yaml`: a judge's values are a run's as those of other metrics are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from eval.compare import main as compare
from eval.meta import main as meta
from eval.score import main
from tests.eval.judging.conftest import Write, prompt_of
from tests.helpers.engine_faults import Fault, openai_error
from tests.helpers.engine_standin import EngineStandIn
from tests.helpers.run_folders import read_scores, sentence, write_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Return a run whose answers at 200 tokens are its references, and say half of them at 100."""

    def answer(example: Any, maxlen: int) -> str:
        reference = str(example.references[0])
        return reference if maxlen == 200 else reference[: reference.index(".") + 1]

    return write_run(tmp_path / "run", answer).path


def means(run: Path, name: str) -> dict[tuple[str, int], float | None]:
    """Return the mean of a value by system and length."""
    return {
        (one.kind if one.kind == "model" else one.system, one.maxlen): one.further[name].mean
        for one in read_scores(run).results
        if one.subset == "all" and one.further and name in one.further
    }


def test_values_stand_in_scores_with_floor_and_ceiling_and_are_not_asked_for_again(
    run: Path, write: Write, server: EngineStandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [str(run), "--metrics", f"judge:{write(prices={'prompt': 1, 'completion': 1})}"]
    assert main(command) == 0
    recall = means(run, "judge:judge.recall")
    assert (recall["model", 100], recall["model", 200]) == (0.5, 1.0)
    assert recall["reference", 200] == 1.0
    assert recall["foreign_reference", 200] < 1.0  # type: ignore[operator]
    assert means(run, "judge:judge.price")["model", 200] > 0  # type: ignore[operator]
    assert "key points" in (run / "report.md").read_text()
    asked = len(server.asked)
    assert main(command) == 0
    assert main([*command, "--metrics-again"]) == 0
    assert len(server.asked) == asked


def test_sentences_of_documents_are_judged_with_permission_alone(
    tmp_path: Path, write: Write, server: EngineStandIn
) -> None:
    run = write_run(tmp_path / "run", lambda example, maxlen: "All of it in words of its own.").path
    # Lead and oracle stand beside the model, and are cut out of documents.
    cut = [sentence(index * 31).capitalize() for index in range(6)]
    command = [str(run), "--metrics", f"judge:{write()}"]

    def sent() -> list[str]:
        return [text for text in map(prompt_of, server.asked) if any(one in text for one in cut)]

    assert main(command) == 0
    assert server.asked
    assert sent() == []
    assert ("matched_lead", 200) not in means(run, "judge:judge.recall")
    assert main([*command, "--judge-may-see-documents", "--metrics-again"]) == 0
    assert sent() != []


def test_settings_that_the_server_refuses_are_an_error_though_others_were_answered(
    run: Path, write: Write, server: EngineStandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(run), "--metrics", f"judge:{write()}"]) == 0
    capsys.readouterr()
    server.fail(Fault(status=400, body=openai_error("temperature is too high", "invalid_request_error")))
    assert main([str(run), "--metrics", f"judge:{write(temperature=1.7)}", "--metrics-again"]) == 2
    assert "temperature is too high" in capsys.readouterr().err


def test_lengths_and_runs_are_compared_by_a_judge(
    run: Path, write: Write, server: EngineStandIn, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_run(tmp_path / "other", lambda example, maxlen: sentence(3)).path
    for folder in (run, other):
        assert main([str(folder), "--metrics", f"judge:{write()}"]) == 0
    capsys.readouterr()
    assert compare([str(other), str(run), "--metric", "judge:judge.recall", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["further"]
    assert {row["maxlen_a"]: row["difference"] for row in rows}[200] > 0.5
    # Another model is another metric.
    server.models = ("tiny-instruct", "other")
    assert main([str(other), "--metrics", f"judge:{write(model='other')}"]) == 2
    assert 'model is "tiny-instruct" there and "other" now' in capsys.readouterr().err
    assert main([str(other), "--metrics", f"judge:{write(model='other')}", "--metrics-again"]) == 0
    assert compare([str(other), str(run), "--metric", "judge:judge.recall"]) == 2
    assert "judge:judge" in capsys.readouterr().err


def test_windows_are_sent_where_that_is_allowed(
    run: Path, write: Write, server: EngineStandIn, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.txt").write_text("Is {prediction} true of <window>{window}</window>?")
    server.says = lambda call: json.dumps({"true": len(prompt_of(call)) / 10_000})
    file = write("rubric", prompt="mine.txt", values={"true": {"low": 0, "high": 1}})
    assert main([str(run), "--metrics", f"judge:{file}"]) == 2
    assert "--judge-may-see-documents" in capsys.readouterr().err
    assert server.calls == []
    assert main([str(run), "--metrics", f"judge:{file}", "--judge-may-see-documents"]) == 0
    found = means(run, "judge:judge.true")
    assert found["model", 200] > found["model", 100]  # type: ignore[operator]


def test_a_judge_that_is_no_file_is_named(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run), "--metrics", "judge:nowhere.yaml"]) == 2
    assert "judge nowhere.yaml cannot be read" in capsys.readouterr().err
    assert main([str(run), "--metrics", "jugde:x.yaml"]) == 2
    assert "judge" in capsys.readouterr().err


def test_a_judge_is_correlated_with_people(
    write: Write, server: EngineStandIn, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reference = " ".join(sentence(number) for number in range(12))
    rows = ["document_id,system,prediction,references,rating:overall"]
    for number in range(12):
        said = " ".join(sentence(one) for one in range(number + 1))
        rows.append(f'd{number},s,"{said}","{reference}",{number}')
    file = tmp_path / "labels.csv"
    file.write_text("\n".join(rows) + "\n")
    assert meta(["--data", str(file), "--metrics", f"judge:{write()}", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["agreements"]
    (recall,) = (one["pooled"] for one in found if one["value"] == "recall")
    assert recall["r"] > 0.9
