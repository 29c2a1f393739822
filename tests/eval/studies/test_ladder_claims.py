"""Claims about the rungs of a context ladder: of a length beside the smallest, and of two parts."""

from __future__ import annotations

import gzip
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval import study
from eval.errors import UserError
from eval.records.disk import write_whole
from eval.records.journal import fingerprint
from eval.records.run_folder import RunFolder
from eval.records.schema import ExampleScore, LadderLine, LadderRecord, RunRecord, Scores
from eval.records.typed import from_json, to_json
from eval.reporting.ladder_page import ladder_table, where_lost
from eval.scoring.ladder import ladder_rungs
from eval.scoring.significance import mean_interval
from eval.studies.claims import say_claim
from eval.studies.folder import DONE, LADDER, PARTLY, StudyFolder, open_study_folder
from eval.studies.judging import gather, judge
from eval.studies.ladders import write_ladders
from eval.studies.parts import Section, read_study
from eval.studies.records import check_target, copy_records, without_paths
from eval.studies.section import Draft
from tests.eval.studies.test_claims import LENGTHS, Content, answered, claim, content, share, write

__all__ = ["answered"]

NUM_DOCUMENTS = 24

pytestmark = pytest.mark.usefixtures("no_plots")


def with_ladders(*claims: Content) -> list[Content]:
    """Return the parts of a study, of which two have a ladder."""
    return [one | ({"ladder": True} if one["name"] in ("full", "local") else {}) for one in content(*claims)["parts"]]


def write_ladder(folder: Path, used: float, credited: float, seed: int) -> None:
    """Write a ladder whose gains from 100 to 200 tokens have these means."""
    rng = np.random.default_rng(seed)
    lines = []
    for index in range(NUM_DOCUMENTS):
        loss, score = 3 + index / 50, 0.3 + index / 200
        noise = 0.01 * rng.standard_normal(2)
        lines.append(
            LadderLine(
                task="plos",
                template="instruct",
                id=f"doc-{index}",
                document_id=f"doc-{index}",
                smallest=100,
                maxlen=200,
                of="oracle",
                shown=[0.4, 0.5],
                used=[loss, loss - used + noise[0]],
                said=None,
                credited=[score, score + credited + noise[1]],
            )
        )
    rungs = ladder_rungs(lines, {"plos": "hf"})
    assert len(ladder_table(rungs)) > 1
    predictions = json.loads((folder / "scores.json").read_text())["predictions"]
    record = LadderRecord(
        ladder_version=1,
        model="m",
        plan="full",
        rungs=rungs,
        words={"plos/instruct": where_lost(rungs)},
        lines=lines,
        predictions=predictions,
    )
    RunFolder(folder).write_json(LADDER, record)


def folder_of(tmp_path: Path, *claims: Content) -> StudyFolder:
    output = tmp_path / "out"
    output.mkdir(exist_ok=True)
    return open_study_folder(read_study(write(tmp_path, *claims, parts=with_ladders())), output)


def test_claims_about_rungs_are_judged(tmp_path: Path, answered: Any) -> None:
    used, credited = {"metric": "ladder.used"}, {"metric": "ladder.credited"}
    claims = {
        "shown": claim("used", part="full", against=100, direction="better", **used),
        "refuted": claim("not used", part="full", against=100, direction="worse", **used),
        "shown ": claim("mixed loses", part="local", against="full", direction="worse", **used),
        "shown    ": claim("mixed is less likely", part="local", against="full", metric="ladder.nll")
        | {"direction": "worse", "maxlen": 200},
        # A gain of a tenth of a point, in both directions of the pair.
        "shown  ": claim("no gain", part="full", against=200, direction="as good", margin=0.2, **credited)
        | {"maxlen": 100},
        "refuted ": claim("no large gain", part="local", against=200, direction="as good", margin=0.005, **credited)
        | {"maxlen": 100},
        "cannot be judged yet": claim("said", part="full", against=100, metric="ladder.said"),
    }
    folder = folder_of(tmp_path, *claims.values())
    for name, gains in {"full": (0.2, 0.001), "local": (0.05, 0.09)}.items():
        answered(folder, name, share(0.5))
        assert not folder.is_complete(folder.study.parts[name])
        write_ladder(folder.path / name, *gains, seed=len(name))
        folder.note_done(folder.study.parts[name])
    found = judge(folder, folder.study.claims)
    assert [one.verdict for one in found] == [name.strip() for name in claims]
    assert found[0].evidence.found.startswith("+0.20 [+0.")
    assert "nats a token, n = 24 documents" in found[0].evidence.found
    assert found[2].evidence.found.startswith("-0.1")
    assert found[6].evidence.found == "0 examples have this rung, of fewer than 6 documents"


def test_a_section_of_ladders_has_each_rung_and_a_picture(tmp_path: Path, answered: Any) -> None:
    folder = folder_of(tmp_path)
    for name in ("full", "local"):
        answered(folder, name, share(0.5))
    write_ladder(folder.path / "full", 0.2, -0.02, seed=0)
    section = Section(number=4, kind="ladder", title="Lost", parts=("full", "local"))
    draft = Draft(section=section, folders={name: folder.path / name for name in section.parts}, records={})
    write_ladders(draft)
    assert draft.blocks[0].startswith("`full`, plos, instruct. From 100 to 200 tokens the window shows")
    assert "lost between used and credited" in draft.blocks[0]
    assert draft.blocks[1] == "`local` has no ladder of its present answers."
    header, row = ([cell.strip() for cell in line.strip("|").split("|")] for line in draft.blocks[3].splitlines()[::2])
    cells = dict(zip(header, row, strict=True))
    assert (cells["part"], cells["maxlen"], cells["documents"], cells["said, %"]) == ("full", "200", "24", "-")
    assert cells["used, nats a token"].startswith("+0.")
    assert [name for name, cell in cells.items() if cell.endswith("\\*")] == [
        "shown, points or %",
        "used, nats a token",
    ]
    assert list(draft.charts) == ["ladder-4-lost-full-plos-instruct"]


def test_a_ladder_of_other_answers_is_made_again(tmp_path: Path, answered: Any) -> None:
    folder = folder_of(tmp_path, claim("used", part="full", against=100, metric="ladder.used"))
    full = folder.study.parts["full"]
    answered(folder, "full", share(0.5))
    write_ladder(folder.path / "full", 0.2, 0.1, seed=0)
    folder.note_done(full)
    assert judge(folder, folder.study.claims)[0].verdict == "shown"
    # The run has grown or was answered anew, and was scored.
    answered(folder, "full", share(0.4))
    assert folder.state(full) == PARTLY
    assert not folder.is_complete(full)
    assert judge(folder, folder.study.claims)[0].evidence.found == "missing: `full` (partly)"
    # As the rungs of a part that the study has without a ladder by now.
    plain = folder_of(tmp_path)
    plain.study = read_study(write(tmp_path, parts=content()["parts"]))
    plain.ended["full"] = replace(plain.ended["full"], digest=plain.study.digest("full"))
    found = gather(plain, folder.study.claims[0])
    assert not found.is_known
    assert f"run: python -m eval.ladder {folder.path / 'full'}" in found.found
    write_ladder(folder.path / "full", 0.2, 0.1, seed=0)
    assert folder.state(full) == DONE
    # Of a version that did not say of which predictions it is.
    ladder = json.loads((folder.path / "full" / LADDER).read_text())
    ladder.pop("predictions")
    (folder.path / "full" / LADDER).write_text(json.dumps(ladder))
    assert not folder.is_complete(full)


def test_the_ladder_is_started_as_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from eval.studies import launch

    started: list[list[str]] = []

    class Started(Exception):
        pass

    def start(words: list[str], **_: Any) -> None:
        started.append(words)
        raise Started

    monkeypatch.setattr("eval.studies.launch.subprocess.Popen", start)
    for script in ("eval/ladder.py", "eval/run.py"):
        with pytest.raises(Started):
            launch.launch([script, "folder"], tmp_path / "log")
    ladder, run = started
    assert ladder == [sys.executable, str(launch.ROOT / "eval/ladder.py"), "folder"]
    assert "launch" in run


def test_a_rung_needs_a_ladder_and_a_ladder_answers(tmp_path: Path) -> None:
    about = claim(part="like", against="full", metric="ladder.used")
    with pytest.raises(UserError, match=r"'like' has no metric 'ladder.used'; it has: rouge1"):
        folder_of(tmp_path, about)
    parts = [*content()["parts"], {"name": "p", "script": "eval/perplexity.py", "ladder": True}]
    with pytest.raises(UserError, match=r"part 'p': a ladder is of answers, which eval/perplexity.py does not make"):
        read_study(write(tmp_path, parts=parts))
    parts[-1] = {"name": "p", "script": "eval/run.py", "ladder": 1}
    with pytest.raises(UserError, match="ladder is 1; a yes or no was expected"):
        read_study(write(tmp_path, parts=parts))


@pytest.mark.parametrize(
    ("settings", "is_given"),
    [
        ({}, True),
        ({"likelihood": False}, False),
        ({"generate": False}, False),
        ({"max_thinking_tokens": 9}, False),
        ({"engine": "mock", "model": None}, False),
    ],
    ids=str,
)
def test_parts_with_a_ladder_measure_while_they_answer(
    settings: dict[str, Any], is_given: bool, tmp_path: Path
) -> None:
    parts = with_ladders()
    for part in parts:
        if part["name"] == "full":
            part["settings"] = part.get("settings", {}) | settings
    found = read_study(write(tmp_path, parts=parts)).parts["full"]
    assert ("--likelihood" in found.command(tmp_path)) is is_given
    assert "--likelihood" not in found.arguments, "settings that a part was made by stay the same"


@pytest.mark.parametrize(
    ("settings", "changes", "said"),
    [
        ({}, {"part": "local", "against": "full", "maxlen": 100}, "'local' has no rung at 100, its smallest length"),
        (
            {"maxlen": [50, 100, 200]},
            {"part": "full", "against": 100},
            "'full' has a ladder of gains over 50 tokens, and none of 200 over 100; let one of them be 50",
        ),
        (
            {"task": "plos,qasper"},
            {"part": "full", "against": 100},
            "'full' has tasks of several profiles (plos: hf, qasper: ",
        ),
    ],
)
def test_a_rung_that_no_ladder_has_is_refused(settings: Content, changes: Content, said: str, tmp_path: Path) -> None:
    parts = [one | ({"settings": settings} if one["name"] == "full" else {}) for one in with_ladders()]
    about = claim(metric="ladder.used", **changes)
    with pytest.raises(UserError) as error:
        read_study(write(tmp_path, about, parts=parts))
    assert said in str(error.value)
    named = {"task": "plos"} if "task" in settings else {"against": settings.get("maxlen", LENGTHS)[0], "maxlen": 200}
    assert read_study(write(tmp_path, about | {"part": "full"} | named, parts=parts)).claims


def test_a_margin_of_nats_is_said_in_nats(tmp_path: Path) -> None:
    about = {"part": "full", "against": 100, "direction": "as good", "margin": 0.02}
    claims = folder_of(
        tmp_path, *(claim(rung, **about, metric=f"ladder.{rung}") for rung in ("used", "nll", "score"))
    ).study.claims
    assert [say_claim(one).partition("margin ")[2] for one in claims] == [
        "0.02 nats a token.",
        "0.02 nats a token.",
        "2.",
    ]


def test_a_rung_is_said_in_words_and_changes_what_makes_a_part(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, claim(part="full", against=100, metric="ladder.used"))
    assert say_claim(folder.study.claims[0]) == "`full` at 200 tokens is better than itself at 100 in ladder.used."
    full = folder.study.parts["full"]
    assert full.then(Path("out")) == ["eval/ladder.py", "out/full"]
    assert folder.study.parts["like"].then(Path("out")) == []
    plain = read_study(write(tmp_path, parts=content()["parts"]))
    assert plain.digest("full") != folder.study.digest("full")
    assert plain.digest("like") == folder.study.digest("like")


def test_the_ladder_follows_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from eval.studies import launch

    folder = folder_of(tmp_path)
    full = folder.study.parts["full"]
    command = f"python -m eval.ladder {folder.path / 'full'}"
    assert full.shells(folder.path)[1:] == [command]
    assert launch.list_parts(folder, [full]).endswith(f"\n  {command}")
    calls: list[list[str]] = []

    def done(words: list[str], log: Path) -> int:
        calls.append(words)
        return 1 if words[0] == "eval/ladder.py" else 0

    monkeypatch.setattr(launch, "launch", done)
    assert launch.run_parts(folder, [full]) == ["full"]
    assert f"full: {command}" in capsys.readouterr().out
    assert [words[0] for words in calls] == ["eval/run.py", "eval/ladder.py"]
    assert "--likelihood" in calls[0]


def test_records_hold_what_parts_measured_and_no_texts(
    tmp_path: Path, answered: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder_of(tmp_path, claim(part="full", against=100, metric="ladder.used"))
    answered(folder, "like", share(0.5))
    file, target = tmp_path / "study.yaml", tmp_path / "records"
    command = [str(file), "--output", str(folder.path), "--records", str(target)]
    assert study.main([*command, "--report"]) == 0
    names = {str(path.relative_to(target)) for path in target.rglob("*") if path.is_file()}
    assert {"report.md", "study.json", "like/run.json", "like/scores.json", "like/example_scores.jsonl.gz"} <= names
    assert {"gallery/leaderboard.md", "gallery/leaderboard.csv"} <= names
    assert not any(name.startswith(("full", "local")) for name in names), "they are not done"
    answers = [json.loads(line)["text"] for line in (folder.path / "like/predictions.jsonl").read_text().splitlines()]
    lines = gzip.decompress((target / "like/example_scores.jsonl.gz").read_bytes()).decode()
    assert lines == (folder.path / "like/example_scores.jsonl").read_text()
    published = [one.read_text() for one in target.rglob("*") if one.suffix in (".json", ".md")]
    assert not any(answer in text for text in [*published, lines] for answer in answers if len(answer) > 20)
    # While the study runs, each part is copied as it ends.
    (target / "like/scores.json").unlink()
    monkeypatch.setattr("eval.studies.launch.launch", lambda *_: 1)
    with pytest.raises(SystemExit, match="part\\(s\\) not done: full, local"):
        study.main(command)
    assert (target / "like/scores.json").is_file()
    assert study.main([*command, "--list"]) == 2


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("notes.txt", "is a file; give a folder"),
        ("out", "is within the study's folder"),
        ("out/records", "is within the study's folder"),
        ("paper", "holds other files than copies"),
        ("other", "holds other files than copies"),
    ],
)
@pytest.mark.parametrize("flags", [(), ("--report",)])
def test_records_take_the_place_of_nothing_else(
    where: str,
    said: str,
    flags: tuple[str, ...],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = folder_of(tmp_path)
    (folder.path / "study.json").write_text('{"title": "x", "file": "study.yaml", "parts": {}}')
    monkeypatch.setattr("eval.studies.launch.launch", lambda *_: pytest.fail("a part began"))
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "paper" / "plots").mkdir(parents=True)
    (tmp_path / "paper" / "plots" / "mine.svg").write_text("<svg/>")
    (tmp_path / "other").mkdir()
    for name in ("study.json", "report.md", ".lock"):  # a folder that another study works in
        (tmp_path / "other" / name).write_text("its own")
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    arguments = [str(tmp_path / "study.yaml"), "--output", str(folder.path), "--records", str(tmp_path / where)]
    assert study.main([*arguments, *flags]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: --records {tmp_path / where} {said}")
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before


def test_records_whose_copy_was_killed_are_copied_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, target = folder_of(tmp_path), tmp_path / "records"
    written: list[str] = []
    (folder.path / "full").mkdir()
    for name in ("study.json", "full/run.json", "full/scores.json"):
        (folder.path / name).write_text("{}")
    monkeypatch.setattr(StudyFolder, "state", lambda *_: DONE)

    def write_two(path: Path, name: str, content: bytes) -> Path:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(name)
        return write_whole(path, name, content)

    monkeypatch.setattr("eval.studies.records.write_whole", write_two)
    with pytest.raises(KeyboardInterrupt):
        copy_records(folder, [folder.study.parts["full"]], target)
    check_target(target, folder.path)
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / ".study.json.0123456789abcdef.partial").write_text("{")
    check_target(tmp_path / "begun", folder.path)


def test_records_hold_no_reference_no_bad_row_and_no_path_of_the_machine(tmp_path: Path, answered: Any) -> None:
    folder = folder_of(tmp_path)
    answered(folder, "like", share(0.5))
    part, data = folder.path / "like", tmp_path / "private" / "rows.jsonl"
    record, scores = (json.loads((part / name).read_text()) for name in ("run.json", "scores.json"))
    record["tasks"]["plos"]["rows"] |= {"num_bad": 1, "bad": ["row 3: 'A secret row' has no target"]}
    record["sessions"][-1]["command"] = ["eval/run.py", "--data", str(data), f"--answers={data}", "--output", str(part)]
    record["config"] |= {"plan": str(folder.path / "heads" / "plan.json"), "data": str(data)}
    scores["yardsticks"]["plos"]["common_answer"] = "A secret reference"
    (part / "run.json").write_text(json.dumps(record))
    (part / "scores.json").write_text(json.dumps(scores))
    target = tmp_path / "records"
    assert (
        study.main([str(tmp_path / "study.yaml"), "--output", str(folder.path), "--records", str(target), "--report"])
        == 0
    )
    files = {str(one.relative_to(target)): one for one in target.rglob("*") if one.suffix in (".json", ".md", ".gz")}
    assert {"report.md", "study.json", "like/run.json", "like/scores.json"} <= files.keys()
    for name, file in files.items():
        text = (gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()).decode()
        assert str(tmp_path) not in text, name
        assert "secret" not in text, name
    copied = from_json(RunRecord, json.loads(files["like/run.json"].read_text()), "run.json")
    assert copied.sessions[-1].command == [
        "eval/run.py",
        "--data",
        "rows.jsonl",
        "--answers=rows.jsonl",
        "--output",
        "like",
    ]
    assert (copied.config["plan"], copied.config["data"]) == ("heads/plan.json", "rows.jsonl")
    assert copied.tasks["plos"].rows["num_bad"] == 1
    # All else is as it was.
    scores["yardsticks"]["plos"]["common_answer"] = None
    assert json.loads(files["like/scores.json"].read_text()) == scores
    assert "--output ." in files["report.md"].read_text()


def test_scores_and_rungs_follow_from_the_records(tmp_path: Path, answered: Any) -> None:
    folder, target = folder_of(tmp_path), tmp_path / "records"
    answered(folder, "full", share(0.5))
    write_ladder(folder.path / "full", 0.2, 0.1, seed=0)
    folder.note_done(folder.study.parts["full"])
    (target / "plots").mkdir(parents=True)
    (target / "plots" / "rouge-9-of-a-former-report.svg").write_text("<svg/>")
    copy_records(folder, [folder.study.parts["full"]], target)
    assert [*target.glob("plots/*")], "the report that links to it is there"
    (folder.path / "report.md").write_text("# A report without pictures")
    copy_records(folder, [], target)
    assert not [*target.glob("plots/*")], "pictures go with their report"
    scores = from_json(Scores, json.loads((target / "full/scores.json").read_text()), "scores.json")
    text = gzip.decompress((target / "full/example_scores.jsonl.gz").read_bytes()).decode()
    packed = [one for one in map(json.loads, text.splitlines()) if one.pop("crc32", True)]
    lines = [from_json(ExampleScore, one, "example_scores.jsonl") for one in packed]
    assert scores.example_scores == fingerprint(to_json(lines))
    [result] = [one for one in scores.results if one.kind == "model" and one.maxlen == 200 and one.subset == "all"]
    of_model = [one for one in lines if one.is_model and one.maxlen == 200]
    again = mean_interval([one.metrics["rougeLsum"] for one in of_model], [one.unit for one in of_model])
    assert again == result.metrics["rougeLsum"]
    ladder = from_json(LadderRecord, json.loads((target / "full" / LADDER).read_text()), LADDER)
    assert ladder_rungs(ladder.lines, scores.profiles) == ladder.rungs


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("/home/me/my study", "."),
        ("/home/me/my study/full/plan.json", "full/plan.json"),
        (
            "python -m eval.study --output '/home/me/my study' /home/me/s.yaml",
            "python -m eval.study --output '.' s.yaml",
        ),
        ("error: /home/me/my study/full: broken", "error: full: broken"),
        ("/mnt/data/", "data"),
        ("configs/study/a.yaml and/or ![x](plots/a.svg)", "configs/study/a.yaml and/or ![x](plots/a.svg)"),
        ("http://host:80/v1/models </think> 1/4", "http://host:80/v1/models </think> 1/4"),
    ],
)
def test_paths_are_those_of_the_study(text: str, said: str) -> None:
    assert without_paths(text, Path("/home/me/my study")) == said
