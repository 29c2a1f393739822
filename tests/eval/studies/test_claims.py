"""Claims of a study: checked before anything runs, registered before the first part, and judged by the folders."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from eval import run, study
from eval.errors import UserError
from eval.records.run_folder import RunFolder
from eval.records.schema import ClaimsRecord, DocumentLoss, ExampleRecord, RegisteredClaim, StudyClaim
from eval.records.typed import from_json
from eval.score import main as score
from eval.scoring.claims import compare_table, p_of_loss
from eval.scoring.exchanges import Pair
from eval.scoring.significance import detectable_ratio, p_of_ratio, ratios_of_perplexities
from eval.studies import launch
from eval.studies.claims import say_claim
from eval.studies.claims_section import EXPLORATORY
from eval.studies.folder import StudyFolder, open_study_folder
from eval.studies.judging import gather, holm, judge
from eval.studies.parts import PERPLEXITY, RUN, read_study
from eval.studies.registry import register, registered, updated
from tests.helpers.measured import measured
from tests.helpers.run_folders import document, example_line, write_run

Content = dict[str, Any]
Answer = Callable[[ExampleRecord, int], str]

NUM_DOCUMENTS = 24
LENGTHS = [100, 200]

pytestmark = pytest.mark.usefixtures("no_plots")


def claim(name: str = "one", **changes: Any) -> Content:
    return {
        "name": name,
        "part": "local",
        "against": "full",
        "metric": "rougeLsum",
        "direction": "better",
        "maxlen": 200,
    } | changes


def content(*claims: Content) -> Content:
    return {
        "title": "What spans cost",
        "defaults": {
            RUN: {"task": "plos", "maxlen": LENGTHS},
            PERPLEXITY: {"task": "plos", "maxlen": [4096, 8192], "stride": 512},
        },
        "parts": [
            *({"name": name, "script": RUN} for name in ("full", "local", "like")),
            *({"name": name, "script": PERPLEXITY} for name in ("losses", "losses-local")),
            {"name": "train", "script": "eval/finetune.py", "settings": {"task": "aclsum", "maxlen": 100}},
        ],
        "sections": [{"kind": "rouge", "title": "Scores", "parts": ["full", "local"], "reference": "full"}],
        "claims": list(claims),
    }


def write(tmp_path: Path, *claims: Content, **changes: Any) -> Path:
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(content(*claims) | changes, sort_keys=False))
    return file


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"direction": "good"}, "direction is 'good'; known: better, worse, as good, differs"),
        ({"direction": "as good"}, "margin is None; 'as good' has one"),
        ({"margin": 0.01}, "margin is 0.01; 'as good' has one, 0.01 for example, and nothing else has"),
        ({"direction": "as good", "margin": 1.5}, "margin is 1.5; it is a fraction, above 0 and below 1"),
        (
            {"part": "train"},
            "'train' is no part with answers or perplexities; those that have: full, local, like, losses",
        ),
        ({"against": "other"}, "'other' is no part with answers"),
        ({"against": "local"}, "it compares 'local' with itself; name another part, or another length"),
        ({"against": 200}, "it compares 'local' with itself"),
        ({"against": 300}, "maxlen of 'local' does not have 300; it has: 100, 200"),
        ({"against": "9" * 5000}, "against: '999"),
        ({"against": "0"}, "against: 0 must be at least 1"),
        ({"direction": "as good", "margin": 1}, "margin is 1; it is a fraction, above 0 and below 1"),
        ({"direction": "as good", "margin": True}, "margin is True; a number was expected"),
        ({"maxlen": 1024}, "maxlen of 'local' does not have 1024"),
        ({"metric": "f1"}, "'local' has no metric 'f1'; it has: rouge1, rouge2, rougeL, rougeLsum"),
        ({"metric": "perplexity"}, "'local' has no metric 'perplexity'"),
        ({"part": "losses", "maxlen": 8192, "metric": "perplexity"}, "maxlen of 'full' does not have 8192"),
        ({"task": "qmsum"}, "'local' has no task 'qmsum'; it has: plos"),
        ({"maxlen": "long"}, "maxlen is 'long'; a whole number was expected"),
        ({"name": " "}, "claim 2: name is empty; write a text"),
        ({"name": "two"}, "two claims are called 'two'"),
        ({"metrics": "rougeL"}, "unknown key 'metrics'"),
    ],
)
def test_a_claim_about_what_parts_will_not_have_is_told_in_one_line(
    changes: Content, said: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as error:
        read_study(write(tmp_path, claim("two"), claim(**changes)))
    assert said in str(error.value)
    assert "\n" not in str(error.value)


UNTIL = "rougeLsum: 200 differs from 100"
LOSSES: Content = {"part": "losses", "metric": "perplexity", "maxlen": 8192}


@pytest.mark.parametrize(
    ("settings", "changes", "said"),
    [
        ({"full": {"until": UNTIL}}, {}, f"'full' ends as soon as its answers show enough (until: {UNTIL})"),
        ({"local": {"until": UNTIL}}, {"against": 100}, "'local' ends as soon as its answers show enough"),
        ({"local": {"task": "plos,aclsum"}}, {"against": 100}, "'local' has several tasks (plos, aclsum); name one"),
        ({"full": {"task": "plos,aclsum"}}, {}, "'full' has several tasks (plos, aclsum); name one as task"),
        (
            {"local": {"template": "instruct,abstract"}},
            {"against": 100},
            "'local' has several templates (instruct, abstract); name one as template of the claim",
        ),
        (
            {"local": {"window": "head,oracle"}},
            {"against": 100},
            "'local' has several templates (head, oracle); name one",
        ),
        (
            {"local": {"template": "instruct", "window": "head,oracle"}},
            {"against": 100, "template": "instruct@evidence"},
            "'local' has no template 'instruct@evidence'; it has: instruct, instruct@oracle",
        ),
        (
            {"losses": {"stride": None}},
            LOSSES | {"against": 4096},
            "'losses' predicts other tokens at each length, whose perplexities do not compare; give it a stride",
        ),
        ({"losses": {"task": "plos,aclsum"}}, LOSSES | {"against": 4096}, "'losses' has several tasks (plos, aclsum)"),
    ],
)
def test_a_claim_that_can_never_be_judged_is_refused(
    settings: dict[str, Content], changes: Content, said: str, tmp_path: Path
) -> None:
    parts = [one | {"settings": settings.get(one["name"], {}) or one.get("settings", {})} for one in content()["parts"]]
    with pytest.raises(UserError) as error:
        read_study(write(tmp_path, claim(**changes), parts=parts))
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_claim_that_can_be_judged_is_read(tmp_path: Path) -> None:
    settings: dict[str, Content] = {
        "full": {"until": "2h", "task": "plos,aclsum"},
        "local": {"task": "plos,aclsum", "template": "instruct,abstract", "window": "head,oracle"},
        "losses": {"task": "plos,aclsum", "stride": None},
        "losses-local": {"task": "plos,aclsum", "stride": None, "of": "references"},
    }
    parts = [one | {"settings": settings.get(one["name"], {}) or one.get("settings", {})} for one in content()["parts"]]
    claims = [
        claim("of a task", part="full", against=100, task="plos"),
        claim("of a window", against=100, task="plos", template="instruct@oracle"),
        claim("pooled", **LOSSES | {"part": "losses", "against": "losses-local"}),
        claim("references", **LOSSES | {"part": "losses-local", "against": 4096, "task": "plos"}),
    ]
    assert len(read_study(write(tmp_path, *claims, parts=parts)).claims) == 4


def test_claims_are_said_in_words(tmp_path: Path) -> None:
    claims = read_study(
        write(
            tmp_path,
            claim("a", direction="as good", margin=0.01, text="As the paper has it."),
            claim("b", against=100, direction="differs"),
            claim("c", part="losses-local", against="losses", metric="perplexity", direction="as good", margin=0.03)
            | {"maxlen": 8192},
        )
    ).claims
    assert list(map(say_claim, claims)) == [
        "`local` at 200 tokens is as good as `full` in RLsum, margin 1. As the paper has it.",
        "`local` at 200 tokens differs from itself at 100 in RLsum.",
        "`losses-local` at 8,192 tokens is as good as `losses` in perplexity, margin 3%.",
    ]


def made(name: str = "one", **changes: Any) -> StudyClaim:
    return StudyClaim(**{**claim(name), "direction": "better"} | changes)


def wordings(entries: Sequence[RegisteredClaim]) -> list[tuple[str, str, list[str], str | None]]:
    return [(one.claim.name, one.recorded, one.begun, one.withdrawn) for one in entries]


def test_every_wording_is_kept_once_a_part_has_begun() -> None:
    was = {"local": "0"}
    first, second, other, third = (
        (one, was) for one in (made("first"), made("second"), made("second", direction="worse"), made("third"))
    )
    drafts = updated([], [(made("draft"), was), (first[0], {"local": "draft"})], [], "t0")
    before = updated(drafts, [first, second], [], "t1")
    assert wordings(before) == [("first", "t1", [], None), ("second", "t1", [], None)], "nothing had begun at t0"
    assert updated(before, [first, second], ["full"], "t2") == before
    changed = updated(before, [first, other, third], ["full"], "t3")
    assert wordings(changed) == [
        ("first", "t1", [], None),
        ("second", "t1", [], "t3"),
        ("second", "t3", ["full"], None),
        ("third", "t3", ["full"], None),
    ]
    removed = updated(changed, [(first[0], {"local": "1"})], ["full", "local"], "t4")
    assert [one.withdrawn for one in removed] == [None, "t3", "t4", "t4"]
    assert removed[0].settings == was, "what was registered stays, though the settings are others"
    # The old words again are words of now.
    again = updated(removed, [first, second], ["full"], "t5")
    assert wordings(again)[-1] == ("second", "t5", ["full"], None)


def share(quality: float) -> Answer:
    """Answer with a part of the reference, a word more or less from document to document."""

    def answer(example: ExampleRecord, maxlen: int) -> str:
        words = example.references[0].split()
        index = int(example.id.rpartition("-")[2])
        return " ".join(words[: round(quality * len(words)) - (index + maxlen // 100) % 2])

    return answer


@pytest.fixture
def answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that writes parts with answers, as if they had been run."""
    monkeypatch.setattr("eval.reporting.score_run.write_page", lambda *_, **__: None)
    examples = [example_line(index) for index in range(NUM_DOCUMENTS)]
    documents = {f"doc-{index}": document(index, 20) for index in range(NUM_DOCUMENTS)}

    def write_part(folder: StudyFolder, name: str, answer: Answer) -> None:
        write_run(folder.path / name, answer, examples, documents)
        assert score([str(folder.path / name)]) == 0
        folder.note_done(folder.study.parts[name])

    return write_part


def table(report: str) -> dict[str, dict[str, str]]:
    """Return the rows of the claims' table, by name."""
    lines = [line for line in report.partition("## Claims")[2].splitlines() if line.startswith("|")]
    header, _, *rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    named = [dict(zip(header, row, strict=False)) for row in rows if len(row) == len(header)]
    return {row["claim"]: row for row in named}


def test_claims_about_answers_are_judged_by_name(tmp_path: Path, answered: Callable[..., None]) -> None:
    claims = [
        claim("better", part="full", against="local"),
        claim("not better", part="local", against="full"),
        claim("worse"),
        claim("differs", direction="differs"),
        claim("lost", direction="as good", margin=0.05),
        claim("as good", part="like", against="full", direction="as good", margin=0.3),
        claim("too narrow", part="like", against="full", direction="as good", margin=0.01),
        claim("no gain", part="full", against=100),
        claim("missing", part="absent", against="full"),
    ]
    claims[2]["direction"] = "worse"
    extra = [*content()["parts"], {"name": "absent", "script": RUN}]
    file, output = write(tmp_path, *claims, parts=extra), tmp_path / "out"
    output.mkdir()
    folder = open_study_folder(read_study(file), output)
    register(folder)
    parts = {"full": share(1.0), "local": share(0.4), "like": lambda one, maxlen: share(1.0)(one, maxlen + 100)}
    for name, answer in parts.items():
        answered(folder, name, answer)
    assert study.main([str(file), "--output", str(output), "--report"]) == 0
    report = (output / "report.md").read_text()
    rows = table(report)
    assert {name: row["verdict"] for name, row in rows.items()} == {
        "better": "shown",
        "not better": "refuted",
        "worse": "shown",
        "differs": "shown",
        "lost": "refuted",
        "as good": "shown",
        "too narrow": "not shown",
        "no gain": "not shown",
        "missing": "cannot be judged yet",
    }
    assert rows["missing"]["found"] == "missing: `absent` (not begun)"
    assert (rows["missing"]["p"], rows["missing"]["corrected"]) == ("-", "-")
    assert all(", before any part" in row["registered"] for row in rows.values())
    assert "Of 9 claims, 9 stood here in these words before any part began" in report
    assert report.count(EXPLORATORY) == 1
    # Corrected over all claims, the one that cannot be judged too.
    found = judge(folder, [one.claim for one in registered(folder)])
    smallest = min(min(one.evidence.p_shown, one.evidence.p_refuted) for one in found)
    assert min(one.p_corrected for one in found) == pytest.approx(9 * smallest)


def test_claims_about_perplexity_are_judged_by_ratios(tmp_path: Path) -> None:
    gains = [0.03 + 0.002 * (index % 5) for index in range(NUM_DOCUMENTS)]  # half of the tokens have them
    claims = [
        claim("within 3%", direction="as good", margin=0.03),
        claim("within 0.5%", direction="as good", margin=0.005),
        claim("worse", direction="worse"),
        claim("better"),
        claim("one length", against=4096, direction="better"),
    ]
    claims = [one | {"part": "losses-local", "metric": "perplexity", "maxlen": 8192} for one in claims]
    for one in claims[:4]:
        one["against"] = "losses"
    output = tmp_path / "out"
    folder = open_study_folder(read_study(write(tmp_path, *claims)), output)
    for name, some in {"losses": [0.0] * NUM_DOCUMENTS, "losses-local": gains}.items():
        measured(output / name, some, 100)
        (output / name / "examples.jsonl").touch()
        folder.note_done(folder.study.parts[name])
    found = dict(zip((one["name"] for one in claims), judge(folder, folder.study.claims), strict=True))
    assert {name: one.verdict for name, one in found.items()} == {
        "within 3%": "shown",
        "within 0.5%": "refuted",
        "worse": "shown",
        "better": "refuted",
        "one length": "cannot be judged yet",
    }
    assert found["worse"].evidence.found.startswith("ratio 1.0")
    assert f"n = {NUM_DOCUMENTS} documents" in found["worse"].evidence.found
    assert found["one length"].evidence.found == "0 documents are shared, and 6 are the least"
    # Both lengths are paired where the same tokens were predicted, and refused where not.
    lines = folder.path / "losses-local" / "predictions.jsonl"
    there = [DocumentLoss(**one) for one in map(json.loads, lines.read_text().splitlines()) if one.pop("crc32", True)]
    shorter = [
        replace(one, maxlen=4096, buckets=[(0, 4096, one.negative_log_likelihood * (1.05 + index % 3 / 99), 6144)])
        for index, one in enumerate(there)
    ]
    part = RunFolder(lines.parent)
    part.write_lines("predictions.jsonl", [*there, *shorter])
    assert judge(folder, folder.study.claims)[-1].verdict == "shown"
    part.write_lines("predictions.jsonl", [*there, *(replace(one, num_tokens=6100) for one in shorter)])
    assert "measure with --stride" in gather(folder, folder.study.claims[-1]).found


@pytest.mark.parametrize("kind", ["scores", "answers"])
def test_p_values_of_as_good_are_those_of_the_table(kind: str) -> None:
    rng = np.random.default_rng(0)
    verdicts = set()
    for _ in range(40):
        loss = rng.uniform(-0.05, 0.15)
        if kind == "answers":
            first = (rng.random(80) < 0.5).astype(float)
            second = np.where(rng.random(80) < abs(loss), float(loss < 0), first)
        else:
            first = 0.3 + 0.05 * rng.standard_normal(80)
            second = first - loss + 0.05 * rng.standard_normal(80)
        pair = Pair(first=first, second=second.clip(0, 1), documents=range(80))
        [row] = compare_table([pair], 0.1, num_resamples=99, num_exchanges=99)
        assert row.claim_low is not None
        assert (p_of_loss(pair, 0.1) < 0.025) == (row.claim_low > -0.1)
        verdicts.add(row.claim_low > -0.1)
    assert verdicts == {True, False}
    assert p_of_loss(Pair(first=[0.3] * 9, second=[0.3] * 9, documents=range(9))) == 1.0
    assert p_of_loss(Pair(first=[0.3, 0.4], second=[0.4, 0.6], documents="ab")) == 1.0


def test_documents_that_all_lose_everything_have_a_p_value() -> None:
    # Two questions a document, all right and then all wrong, so that no document lies apart from the added one.
    pair = Pair(first=[1.0] * 12, second=[0.0] * 12, documents=[*range(6), *range(6)])
    assert p_of_loss(pair, 0.1) == 1.0
    assert p_of_loss(Pair(first=[0.005] * 6, second=[0.0] * 6, documents=range(6)), 0.01) == 0.0


def test_p_values_of_ratios_are_those_of_their_intervals() -> None:
    rng = np.random.default_rng(0)
    verdicts = set()
    for _ in range(40):
        gains = 0.02 + 0.02 * rng.standard_normal(20)
        losses = {name: (2000.0, 2000 + 1000 * gain, 1000) for name, gain in enumerate(gains)}
        [ratio] = ratios_of_perplexities([losses], num_resamples=399)
        assert ratio.low is not None
        p_value = p_of_ratio(losses, 1.01, num_resamples=399)
        assert p_value is not None
        if abs(p_value - 0.05) > 0.01:  # a quantile of few resamples lies between two of them
            assert (p_value < 0.05) == (not ratio.low <= 1.01 <= (ratio.high or 0))
        verdicts.add(p_value < 0.05)
    assert verdicts == {True, False}
    assert p_of_ratio(dict.fromkeys(range(9), (1.0, 2.0, 10))) is None
    assert p_of_ratio({name: (1.0, 2.0 + name, 10) for name in range(5)}) is None


def test_p_values_are_corrected_by_holm() -> None:
    assert holm([0.01, 0.04, 0.03, 1.0]) == pytest.approx([0.04, 0.09, 0.09, 1.0])
    assert holm([]) == []


def write_report_of(file: Path, output: Path) -> str:
    assert study.main([str(file), "--output", str(output), "--report"]) == 0
    return (output / "report.md").read_text()


def test_claims_of_a_study_that_has_run_cannot_be_changed_unseen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"context": f"River {index} rose. " + "Nothing else was seen. " * 20, "target": "It rose."}
        for index in range(8)
    ]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"task": "custom", "engine": "mock", "data": str(tmp_path / "data.jsonl"), "max_new_tokens": 8}
    output = tmp_path / "out"
    at_launch: list[int] = []

    def launch_here(words: Sequence[str], log: Path) -> int:
        at_launch.append(len(json.loads((output / "claims.json").read_text())["claims"]))
        return run.main(list(words[1:]))

    monkeypatch.setattr(launch, "launch", launch_here)
    parts = [{"name": name, "script": RUN, "settings": {"seed": seed}} for seed, name in enumerate(("full", "local"))]
    whole = {"defaults": {RUN: {**settings, "maxlen": [40, 80]}}, "parts": parts}
    whole["sections"] = content()["sections"]

    def study_of(*claims: Content) -> str:
        assert study.main([str(write(tmp_path, *claims, **whole)), "--output", str(output)]) == 0
        return (output / "report.md").read_text()

    names = ("kept", "changed", "removed")
    kept, changed, removed = (claim(name, part="full", against=40, maxlen=80) for name in names)
    report = study_of(kept, changed, removed)
    assert at_launch == [3, 3], "claims are on the disk before the first part begins"
    assert "claims: 3 in" in capsys.readouterr().out
    assert "Of 3 claims, 3 stood here in these words" in report
    assert {row["verdict"] for row in table(report).values()} == {"not shown"}
    first = (output / "claims.json").read_text()
    assert study_of(kept, changed, removed) == report
    assert (output / "claims.json").read_text() == first
    report = study_of(kept, changed | {"direction": "differs"}, claim("added", maxlen=80))
    assert "not as before the first part began: changed, removed, added" in capsys.readouterr().out
    rows_now = table(report)
    assert {name: row["registered"].split()[0] for name, row in rows_now.items() if name != "kept"} == {
        "changed": "changed",
        "removed": "removed",
        "added": "added",
    }
    assert rows_now["added"]["registered"].endswith("after 2 parts had begun")
    assert "Of 4 claims, 1 stood here in these words" in report
    assert "`full` at 80 tokens is better than itself at 40 in RLsum." in report.partition("changed, from ")[2]
    record = from_json(ClaimsRecord, json.loads((output / "claims.json").read_text()), "claims.json")
    assert [one.claim.name for one in record.claims] == ["kept", "changed", "removed", "changed", "added"]
    # What was said before counts too: each of the five wordings, of which two are shown no more.
    assert "corrected: for the 5 wordings of claims that were ever registered" in report
    whole["defaults"][RUN]["limit"] = 7
    report = write_report_of(write(tmp_path, kept, **whole), output)
    day = record.claims[0].recorded[:10]
    assert f"kept: the study has other settings now than on {day}: full." in report
    del whole["defaults"][RUN]["limit"]
    # What is edited by hand is refused, and nothing is run or lost.
    (output / "claims.json").write_text(first.replace('"better"', '"worse"', 1))
    capsys.readouterr()
    assert study.main([str(tmp_path / "study.yaml"), "--output", str(output)]) == 2
    assert "claim 'kept' is not the one that was registered; restore the file" in capsys.readouterr().err
    (output / "claims.json").write_text("{")
    assert study.main([str(tmp_path / "study.yaml"), "--output", str(output), "--report"]) == 2
    assert "claims.json cannot be read" in capsys.readouterr().err
    # Without the file, claims are of now.
    (output / "claims.json").unlink()
    assert "Of 3 claims, 0 stood here in these words" in study_of(kept, changed, removed)


def test_former_wordings_count_in_the_correction(tmp_path: Path, answered: Callable[..., None]) -> None:
    output = tmp_path / "out"
    output.mkdir()
    former = [claim(f"former {number}", part="like", against="full") for number in range(3)]
    kept = claim("kept", part="full", against="local")
    file = write(tmp_path, kept, *former)
    folder = open_study_folder(read_study(file), output)
    register(folder)

    def worse_on_six(one: ExampleRecord, maxlen: int) -> str:
        """Answer as `share(1.0)`, but worse to six documents, so that p is about 2 / 2^6."""
        return share(0.8 if int(one.id.rpartition("-")[2]) < 6 else 1.0)(one, maxlen)

    for name, answer in {"full": share(1.0), "local": worse_on_six, "like": share(1.0)}.items():
        answered(folder, name, answer)
    before = table(write_report_of(file, output))["kept"]["corrected"]
    # Without them in the file, and without the part that they are about.
    parts = [one for one in content()["parts"] if one["name"] != "like"]
    rows = table(write_report_of(write(tmp_path, kept, parts=parts), output))
    assert rows["kept"]["corrected"] == before
    assert float(before) == pytest.approx(4 * float(rows["kept"]["p"]), abs=3e-3)
    assert rows["former 0"]["registered"].startswith("removed")
    assert rows["former 0"]["verdict"] == "cannot be judged yet"
    # Another wording of a claim does not take the place of the first in the correction.
    rewritten = [kept, *(one | {"metric": "rougeL"} for one in former)]
    assert float(table(write_report_of(write(tmp_path, *rewritten), output))["kept"]["corrected"]) == pytest.approx(
        7 * float(rows["kept"]["p"]), abs=5e-3
    )


def test_parts_under_other_names_do_not_make_the_register_anew(tmp_path: Path, answered: Callable[..., None]) -> None:
    output = tmp_path / "out"
    output.mkdir()
    folder = open_study_folder(read_study(write(tmp_path, claim("first"))), output)
    register(folder)
    for name in ("full", "local"):
        answered(folder, name, share(0.5))
    parts = json.loads(json.dumps(content()["parts"]).replace('"full"', '"full-2"').replace('"local"', '"local-2"'))
    others = {"parts": parts, "sections": []}
    renamed = claim("first", part="local-2", against="full-2", direction="worse")
    folder = open_study_folder(read_study(write(tmp_path, renamed, **others)), output)
    first, second = register(folder)
    assert (first.claim.direction, first.begun) == ("better", [])
    assert first.withdrawn is not None
    assert (second.claim.direction, second.begun, second.withdrawn) == ("worse", ["full", "local"], None)
    # Nor does what is removed: `study.json` and the register know it, each by itself.
    for name in ("full", "local"):
        shutil.rmtree(output / name)
    assert registered(open_study_folder(folder.study, output)) == [first, second]
    (output / "study.json").unlink()
    assert registered(open_study_folder(folder.study, output)) == [first, second]


def test_what_is_detectable_is_so_beside_all_claims(tmp_path: Path, answered: Callable[..., None]) -> None:
    output = tmp_path / "out"
    output.mkdir()
    one = claim("one", part="local", against="full")
    folder = open_study_folder(read_study(write(tmp_path, one)), output)
    for name, quality in {"full": 1.0, "local": 0.9}.items():
        answered(folder, name, share(quality))
    [about] = folder.study.claims

    def least(num_claims: int) -> str:
        found = gather(folder, about, num_claims).found
        return found.partition(f"n = {NUM_DOCUMENTS} documents, ")[2]

    sizes = [float(least(count).removeprefix("detectable ")) for count in (1, 2, 20)]
    assert sizes[0] < sizes[1] < sizes[2]
    # With 24 documents exchanges have p values down to 2 / 2^24.
    assert least(10**6) == f"nothing can be shown with {NUM_DOCUMENTS} documents: takes 26"


def test_the_detectable_ratio_is_shown_at_its_level_four_times_in_five() -> None:
    rng = np.random.default_rng(0)
    noise = 0.02 * rng.standard_normal(24)
    losses = {name: (2000.0, 2000 + 1000 * gain, 1000) for name, gain in enumerate(noise)}
    [ratio] = ratios_of_perplexities([losses])
    sizes = [detectable_ratio(losses, 0.05 / count) for count in (1, 2, 20)]
    assert ratio.detectable is not None
    assert sizes[0] == pytest.approx(ratio.detectable)
    assert 1 < (sizes[0] or 0) < (sizes[1] or 0) < (sizes[2] or 0)
    # Beside 20 claims, a ratio of this size has a p below 0.05 / 20 in four of five studies.
    shown = 0
    for _ in range(100):
        gains = math.log(sizes[2] or 1) + noise.std(ddof=1) * rng.standard_normal(24)
        drawn = {name: (2000.0, 2000 + 1000 * gain, 1000) for name, gain in enumerate(gains)}
        shown += (p_of_ratio(drawn) or 1.0) < 0.05 / 20
    assert 65 <= shown <= 95
    assert detectable_ratio(losses, 1 / 5000) is None


def test_a_study_without_claims_says_nothing_of_them(tmp_path: Path) -> None:
    folder = open_study_folder(read_study(write(tmp_path)), tmp_path / "out")
    assert register(folder) == []
    assert not (tmp_path / "out").exists()
