"""HELMET's tasks make the prompts and give the scores of its own code.

`helmet.json` holds what data.py and model_utils.py of princeton-nlp/HELMET at 4526dfb make of the same records (see
`tests.helpers.helmet_cases`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from eval.prompting.prompts import PromptBuilder, fit
from eval.scoring.profiles import score_prediction
from tasks import TASKS, DataError, Example, LoadRequest, Task
from tests.helpers.helmet_cases import (
    METRICS,
    NUM_RECORDS,
    NUM_SHOTS,
    PROMPT_TOKENS,
    answers,
    records,
    word_tokenizer,
)
from tests.helpers.longbench_cases import summary
from tests.helpers.official_files import as_lines, sample_records, write_official

TABLE: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("helmet.json").read_text())


def task_of(name: str) -> Task:
    return TASKS[f"helmet_{name.removesuffix('_eng')}"]


def load(name: str, folder: Path) -> tuple[tuple[Example, ...], Iterator[tuple[Example, ...]]]:
    """Return the examples, and the shots of each: those that HELMET draws where nothing is shuffled."""
    for file, made in records(name).items():
        (folder / f"{file}.jsonl").write_bytes(as_lines(made))
    task = task_of(name)
    if "infbench" in name:
        loaded = task.load(LoadRequest(split=task.default_split, data=folder)).examples
        return loaded, ((*loaded[:at], *loaded[at + 1 :])[:NUM_SHOTS] for at in range(len(loaded)))
    found = task.load(LoadRequest(split=task.default_split, data=folder, shots=NUM_SHOTS))
    return found.examples, (found.shots for _ in found.examples)


@pytest.mark.parametrize("name", TABLE)
def test_prompts_are_those_of_its_own_code(name: str, tmp_path: Path) -> None:
    task, table = task_of(name), TABLE[name]
    examples, shots = load(name, tmp_path)
    assert len(examples) == NUM_RECORDS
    assert task.max_new_tokens == table["room"]
    assert {task.templates[kind].aside for kind in ("helmet", "helmet-plain")} == {table["aside"] + 1}
    drawn = list(shots)
    for kind in ("helmet", "helmet-plain", "trimmed"):
        tokenizer = word_tokenizer(chat=kind != "helmet-plain", trims=kind == "trimmed")
        template = task.templates["helmet-plain" if kind == "helmet-plain" else "helmet"]
        builders = {key: PromptBuilder(tokenizer, template, shots=key) for key in dict.fromkeys(drawn)}
        made = [
            fit(builders[key].parts(example), PROMPT_TOKENS + table["room"], table["room"], "head")
            for example, key in zip(examples, drawn, strict=True)
        ]
        texts = [tokenizer.decode(prompt.token_ids) for prompt in made]
        num_noted = sum(f"{template.note}\n\n" in text for text in texts)
        # Options of shots and questions take more than is left free, and HELMET then cuts the note too.
        assert (num_noted == 0) if "choice" in name else (0.4 * NUM_RECORDS < num_noted < NUM_RECORDS)
        assert 0.4 * NUM_RECORDS < sum(prompt.num_context_dropped > 0 for prompt in made) < NUM_RECORDS
        assert summary(texts, [0.0] * NUM_RECORDS)["prompts"] == table[kind], kind


@pytest.mark.parametrize("name", METRICS)
def test_scores_are_those_of_its_own_code(name: str, tmp_path: Path) -> None:
    examples, _ = load(name, tmp_path)
    profile = task_of(name).profile
    scores = [
        score_prediction(profile, text, example.references)
        for text, example in zip(answers(name), examples, strict=True)
    ]
    for metric in METRICS[name]:
        found = summary([], [one[metric] for one in scores])
        assert [found["score"], found["weighted"]] == pytest.approx(TABLE[name][metric], abs=1e-9)
        assert 0.05 < found["score"] < 0.95


def test_a_document_that_is_cut_says_so_to_engines_that_take_no_tokens(tmp_path: Path) -> None:
    task = TASKS["helmet_narrativeqa"]
    tokenizer = word_tokenizer()
    builder = PromptBuilder(tokenizer, task.templates["helmet"])
    long = Example(id="a", document_id="a", context="river " * 500, query="who?", references=("ran",))
    short = Example(id="b", document_id="b", context="river " * 30, query="who?", references=("ran",))
    for maxlen in (400, 500, 700):
        parts = builder.parts(long)
        prompt = fit(parts, maxlen, 20, "head")
        num_around = len(parts.prefix) + len(parts.suffix)
        assert prompt.num_context_kept + len(prompt.note) == min(maxlen - 20 - 201, maxlen - 20 - num_around)
        shown = "river " * 500
        text = builder.text("who?", shown[: 6 * prompt.num_context_kept - 1] + builder.note_text(prompt))
        assert text == tokenizer.decode(prompt.token_ids)
    assert fit(builder.parts(long), 500, 20, "tail").note == (), "its end is there"
    assert fit(builder.parts(short), 500, 20, "head").note == ()
    assert fit(builder.parts(long), 250, 20, "head").num_context_kept > 0, "too short to leave 201 tokens free"
    plain = PromptBuilder(tokenizer, TASKS["plos"].templates["instruct"])
    assert fit(plain.parts(long), 400, 20, "head").note == ()


def test_records_that_cannot_be_used_are_told(tmp_path: Path) -> None:
    for name, change, reason in (
        ("narrativeqa", {"answers": []}, "field 'answers' is empty"),
        ("narrativeqa", {"question": {"text": " "}}, ", question: field 'text' is empty"),
        ("narrativeqa", {"document": {"text": "a"}}, ", document: field 'id' is missing or empty"),
        ("multi_lexsum", {"sources": ["", " "]}, "field 'sources' has no text"),
        ("multi_lexsum", {"summary/short": 3}, "field 'summary/short' is a number"),
    ):
        task = f"helmet_{name}"
        data = write_official(task, tmp_path, as_lines([{**sample_records(task)[0], **change}]))
        with pytest.raises(DataError, match=f"line 1.*{reason}"):
            TASKS[task].load(LoadRequest(split=TASKS[task].default_split, data=data))
    with pytest.raises(DataError, match=r"allenai/multi_lexsum on the hub is a program .* give --data JSON lines"):
        TASKS["helmet_multi_lexsum"].load(LoadRequest(split="validation"))


def test_the_lines_of_the_documentation_write_multi_lexsum_from_the_files_of_its_release(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (Path(__file__).parents[2] / "docs" / "tasks.md").read_text()
    (lines,) = [one for one in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "case_documents" in one]
    monkeypatch.chdir(tmp_path)
    Path("sources.json").write_text(json.dumps({f"D-{at}": {"doc_text": f"ORDER {at}. ☔"} for at in range(3)}))
    case = {"case_id": "XX-1", "case_documents": ["D-2", "D-0"], "summary/long": "Long.", "summary/short": "It rained."}
    shots = [{**case, "case_id": f"XX-{at}", "case_documents": [f"D-{at}"]} for at in range(2)]
    Path("train.json").write_bytes(as_lines(shots))
    Path("dev.json").write_bytes(as_lines([case, {**case, "case_id": "XX-2", "summary/short": None}]))
    exec(compile(lines, "docs/tasks.md", "exec"), {})
    loaded = TASKS["helmet_multi_lexsum"].load(LoadRequest(split="validation", data=Path("lexsum"), shots=2))
    assert [example.id for example in loaded.examples] == ["XX-1"]
    assert loaded.examples[0].context == "ORDER 2. ☔\n\nORDER 0. ☔"
    assert loaded.examples[0].references == ("It rained.",)
    assert [shot.id for shot in loaded.shots] == ["XX-0", "XX-1"]


def test_cases_without_a_short_summary_are_left_out_and_two_others_are_shown(tmp_path: Path) -> None:
    made = [dict(record) for record in sample_records("helmet_multi_lexsum")]
    made[1]["summary/short"] = None
    data = write_official("helmet_multi_lexsum", tmp_path, as_lines(made))
    loaded = TASKS["helmet_multi_lexsum"].load(LoadRequest(split="validation", data=data, shots=2))
    assert (len(loaded.examples), len(loaded.shots)) == (1, 2)
    assert loaded.provenance["num_skipped"] == 1
    assert loaded.examples[0].context.count("\n\n") == 1, "documents of a case are paragraphs of one text"
