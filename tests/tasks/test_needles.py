"""Needles: where they are hidden, what is asked, and how a context grows with the length that is asked for."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from tasks import NEEDLES, TASKS, DataError, Example, LoadedExamples, LoadRequest
from tasks.needles import DEPTHS, NUM_EXAMPLES

MADE = [name for name in NEEDLES if name != "needle_qa"]


def load(name: str, data: Path | None = None, *, limit: int | None = None, longest: int = 8192) -> LoadedExamples:
    return TASKS[name].load(LoadRequest(split="test", data=data, limit=limit, longest=longest))


def hidden(example: Example) -> list[str]:
    return [example.context[start:stop] for start, stop in example.kept or ()]


def questions(folder: Path, count: int) -> Path:
    rows = [
        {
            "question": f"Who built tower {i}?",
            "answers": [f"mason {i}"],
            "context": f"Tower {i} was built by mason {i}.",
        }
        for i in range(count)
    ]
    file = folder / "questions.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.mark.parametrize("name", ["needle_single", "needle_multikey", "needle_multivalue", "needle_multiquery"])
def test_every_number_that_is_asked_for_stands_once_in_a_needle_of_its_own(name: str) -> None:
    for example in load(name, limit=10).examples:
        assert example.evidence is not None
        for (start, stop), answer in zip(example.evidence, example.references, strict=True):
            assert example.context[start:stop].endswith(f" is {answer}.")
            assert example.context.count(answer) == 1
        assert len(set(example.references)) == {"needle_single": 1, "needle_multikey": 1}.get(name, 4)
        assert len(hidden(example)) == {"needle_single": 1}.get(name, 4)
        assert set(example.evidence) <= set(example.kept or ())
        assert example.query is not None
        for text in hidden(example) if name == "needle_multiquery" else []:
            assert text.removeprefix("The number of ").partition(" is ")[0] in example.query


def test_the_needle_stands_at_each_depth_in_turn_and_the_stratum_says_so() -> None:
    examples = load("needle_single").examples
    assert len(examples) == NUM_EXAMPLES
    for index, example in enumerate(examples):
        depth = DEPTHS[index % len(DEPTHS)]
        assert example.evidence is not None
        [(start, stop)] = example.evidence
        assert start / (len(example.context) - (stop - start)) == pytest.approx(depth, abs=0.01)
        assert example.stratum == f"depth {100 * depth:.0f}%"
    assert len({example.context for example in examples}) == NUM_EXAMPLES


def test_the_variables_that_are_asked_for_are_those_of_one_chain() -> None:
    for example in load("needle_variables", limit=5).examples:
        values: dict[str, str] = {}
        for text in hidden(example):  # in the order of the text, so that each value is known when it is passed on
            name, value = text.removeprefix("VAR ").rstrip(".").split(" = ")
            values[name] = values.get(value, value)
        assert example.query is not None
        asked = example.query.rstrip("?").split()[-1]
        assert {name for name, value in values.items() if value == asked} == set(example.references)
        assert len(values) == 2 * len(example.references) == 10


def test_the_ten_words_that_are_asked_for_are_the_most_frequent_in_each_part_of_the_list(tmp_path: Path) -> None:
    file = tmp_path / "words.txt"
    file.write_text("\n".join(f"word {i}" for i in range(20)))
    for data in (None, file):
        example = load("needle_words", data, limit=1).examples[0]
        entries = example.context.split("\n")
        for part in (entries[:450], entries[1000:1450], entries):
            counts = Counter(part).most_common()
            assert {name for name, _ in counts[:10]} == set(example.references)
            assert counts[9][1] >= 2 * counts[10][1]
    file.write_text("one\ntwo\none\n")
    with pytest.raises(DataError, match=r"words\.txt has 2 different lines; give --data 20 words or more"):
        load("needle_words", file)


@pytest.mark.parametrize("name", MADE)
def test_a_context_is_made_for_the_longest_prompt_and_is_the_same_for_shorter_ones(name: str) -> None:
    short, same, long = (load(name, limit=2, longest=longest) for longest in (1024, 8192, 9000))
    assert short.examples == same.examples
    assert len(long.examples[0].context) > 1.9 * len(same.examples[0].context) > 1.7 * 6 * 8192
    assert short.provenance["characters"] == 6 * 8192
    assert long.provenance["characters"] == 6 * 16384


def test_needles_are_hidden_in_a_users_own_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Snow fell.  The lake froze!\n\nWho skated?")
    (tmp_path / "b.txt").write_text("Nobody.")
    example = load("needle_single", tmp_path, limit=1).examples[0]
    (needle,) = hidden(example)
    rest = example.context.replace(needle, "")
    for text in ("Who skated? Nobody. Snow fell. The lake", "lake froze! Who skated? Nobody."):
        assert rest.count(text) > 100
    assert rest.count("The lake froze!") > 100
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty holds no text; give --data a text file"):
        load("needle_single", tmp_path / "empty")


def test_a_question_stands_among_the_documents_of_others(tmp_path: Path) -> None:
    examples = load("needle_qa", questions(tmp_path, 40)).examples
    assert len(examples) == 40
    for index, example in enumerate(examples):
        assert hidden(example) == [f"Tower {index} was built by mason {index}."]
        paragraphs = example.context.split("\n\n")
        assert sorted(paragraphs) == sorted(f"Tower {i} was built by mason {i}." for i in range(40))
        assert paragraphs.index(hidden(example)[0]) == round(39 * DEPTHS[index % len(DEPTHS)])


def test_questions_that_cannot_be_used_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="needle_qa has no questions of its own; give --data a file with question"):
        load("needle_qa")
    file = questions(tmp_path, 2)
    file.write_text(file.read_text() + '{"question": "Why?", "context": "It rained."}\n')
    with pytest.raises(DataError, match=r"questions\.jsonl line 3: field 'answers' is missing"):
        load("needle_qa", file)
    request = LoadRequest(split="test", data=file, on_bad_row="skip")
    loaded = TASKS["needle_qa"].load(request)
    assert len(loaded.examples) == 2
    assert loaded.provenance["num_bad"] == 1
