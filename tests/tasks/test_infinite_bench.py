"""HELMET's settings of InfiniteBench: its prompts and its scores.

The texts and numbers are what data.py and utils.py of princeton-nlp/HELMET at 4526dfb make of these records, without
its filter by length. There 360 prompts of records made at random were equal too, and the scores of 2,900 answers, most
of them GPT-4's in results/ of OpenBMB/InfiniteBench.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eval.prompting.prompts import PromptBuilder
from eval.scoring.profiles import headline, score_prediction
from tasks import TASKS, DataError, LoadRequest
from tests.helpers.official_files import as_lines, sample_records, write_official
from tests.helpers.tiny_models import tiny_tokenizer

OPTIONS = "Options:\nA. the gate\nB. the bridge\nC. the mill\nD. the road"
STORY = "It rained for 2 days. The river rose, and the bridge was closed."
PROMPTS = {
    "qa": (
        "You are given a story and a question. Answer the question as concisely as you can, using a single phrase if "
        "possible.\n\nFor example:\n\n[story text]\nQuestion: What was closed?\nAnswer: the road\n\n[story text]\n"
        "Question: What was closed?\nAnswer: the gate\n\nNow, read the following story:\n\n"
        f"{STORY}\n\nQuestion: What was closed?"
    ),
    "choice": (
        "You are given a story and a question with multiple choices. Choose the best answer from the options provided. "
        "Only one of the following options is correct, output the answer using one single letter (A, B, C, or D). "
        f"Don't say anything else.\n\nFor example:\n\n[story text]\nQuestion: What was closed?\n{OPTIONS}\nAnswer: D"
        f"\n\n[story text]\nQuestion: What was closed?\n{OPTIONS}\nAnswer: A\n\nNow, read the following story:\n\n"
        f"{STORY}\n\nQuestion: What was closed?\n{OPTIONS}"
    ),
    "sum": (
        "You are given a book and you are tasked to summarize it. Write a summary of about 1000 to 1200 words. Only "
        "write about the plot and characters of the story. Do not discuss the themes or background of the book. Do not "
        "provide any analysis or commentary.\n\nFor example:\n\n[story text]\nSummary: the road\n\n[story text]\n"
        "Summary: the gate\n\nNow, read the following story:\n\n"
        f"{STORY}\n\nNow summarize the book."
    ),
}


@pytest.mark.parametrize("name", PROMPTS)
def test_prompts_are_those_of_its_own_code(name: str, tmp_path: Path) -> None:
    task = TASKS[f"helmet_infbench_{name}"]
    first, _, third, fourth = task.load(LoadRequest(split="test", data=write_official(task.name, tmp_path))).examples
    cue = "Summary:" if name == "sum" else "Answer:"
    for template, expected in (("helmet", PROMPTS[name]), ("helmet-plain", f"{PROMPTS[name]}\n\n{cue}")):
        tokenizer = tiny_tokenizer(chat=template == "helmet")
        builder = PromptBuilder(tokenizer, task.templates[template], shots=(fourth, third))
        builder.check()
        assert builder.text(first.query, first.context, is_turn=True) == expected
        assert not builder.shot_turns, "the prompt itself shows them"
        parts = builder.parts(first)
        read = tokenizer.decode(parts.prefix + parts.context + parts.suffix)
        assert read.count(expected) == 1
        assert tokenizer.decode(parts.context) == STORY, "the story alone is cut"
        without = PromptBuilder(tokenizer, task.templates[template]).text(first.query, first.context)
        assert "For example" not in without
        assert "{shots}" not in without


@pytest.mark.parametrize(
    ("profile", "references", "scores"),
    [
        (
            "helmet_qa",
            ["the closed bridges"],
            {
                "the bridge was closed": 4 / 7,
                "Yes.\nanswer: Answer: closing the bridge\nAnswer: x": 2 / 3,
                "bridge\n\nIt rained for days": 0.5,
                "": 0,
                "closed bridges": 0.8,
            },
        ),
        (
            "helmet_choice",
            ["A", "A. the mill"],
            {
                "a.": 1,
                "Answer: A\nQuestion": 1,
                "I do not know.\nAnswer: A.": 1,
                "It is a. The Mill, I think": 1,
                "the mill": 1,
                "B": 0,
                "A or B": 0,
                "": 1,  # the letter A is an article, and left out
            },
        ),
        ("helmet_choice", ["B", "B. the mill"], {"": 0, "b": 1, "A. the mill": 0}),
    ],
)
def test_scores_are_those_of_its_own_code(profile: str, references: list[str], scores: dict[str, float]) -> None:
    found = {text: score_prediction(profile, text, references)[headline(profile)] for text in scores}
    assert found == pytest.approx(scores, abs=1e-9)


def test_two_books_are_shown_and_not_scored(tmp_path: Path) -> None:
    task = TASKS["helmet_infbench_choice"]
    data = write_official(task.name, tmp_path)
    loaded = task.load(LoadRequest(split="test", data=data, shots=task.shots))
    assert len(loaded.shots) == len(loaded.examples) == 2
    assert not {one.id for one in loaded.shots} & {one.id for one in loaded.examples}
    assert loaded.provenance["num_in_shots"] == 2


def test_an_answer_that_is_no_option_is_told(tmp_path: Path) -> None:
    for change, count in (({"answer": ["the door"]}, 4), ({"options": ["the gate", "the bridge"]}, 2)):
        record = {**sample_records("helmet_infbench_choice")[0], **change}
        data = write_official("helmet_infbench_choice", tmp_path, as_lines([record]))
        with pytest.raises(DataError, match=rf"one of the four of 'options', which are {count}$"):
            TASKS["helmet_infbench_choice"].load(LoadRequest(split="test", data=data))
    record = {**sample_records("helmet_infbench_qa")[0], "answer": "the bridge"}
    (tmp_path / "longbook_qa_eng.jsonl").write_text(json.dumps(record))
    (example,) = TASKS["helmet_infbench_qa"].load(LoadRequest(split="test", data=tmp_path)).examples
    assert example.references == ("the bridge",)
