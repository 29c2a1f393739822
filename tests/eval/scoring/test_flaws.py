"""Flaws of answers are what a reader would call so, and change no score."""

from __future__ import annotations

from dataclasses import replace

import pytest

from eval.records.schema import Sample
from eval.scoring.examples import score_examples, summarize
from eval.scoring.flaws import flaws_of, with_flaws
from tests.helpers.run_folders import document_line, example_line, prediction_line, run_record, with_task

PROMPT = " ".join(f"word{index}" for index in range(400))
CHINESE = "".join(map(chr, range(0x4E00, 0x4E00 + 200)))
ABSTRACT = (
    "We measure how far attention has to reach before a summary of a long paper stops getting better, and find that a "
    "few layers with full attention do nearly as well as all of them, while the cache shrinks to a fraction."
)


@pytest.mark.parametrize(
    ("text", "flaws"),
    [
        (ABSTRACT, []),
        ("", ["empty"]),
        (" \n\t", ["empty"]),
        ("Bayesian inference with " * 12, ["loop"]),
        ("no " * 10, []),  # too short to be a loop
        (" ".join(PROMPT.split()[50:110]), ["copy"]),
        (" ".join(PROMPT.split()[50:70]), []),  # a short quotation may be the answer
        (" ".join(PROMPT.split()[50:80]) + " " + ABSTRACT, []),
        (" ".join(PROMPT.split()[50:110]).upper().replace(" ", "\n"), ["copy"]),
        ("河" * 60, ["loop"]),
        (CHINESE[20:80], ["copy"]),  # words have no spaces between them
        (CHINESE[20:60:2], []),
    ],
)
def test_a_flaw_is_what_a_reader_would_call_one(text: str, flaws: list[str]) -> None:
    assert flaws_of(text, f"{PROMPT} {' '.join(CHINESE)}") == flaws


def test_flaws_are_counted_by_length_and_change_no_score() -> None:
    record = run_record()
    document = "It was a long day on the river. " * 40
    examples = [example_line(0), example_line(1, references=["河流从山上流下来。"])]
    copied = "".join(document[:400])
    answers = {("test-0", 100): copied[:180], ("test-0", 200): copied, ("test-1", 100): "", ("test-1", 200): "A river."}
    predictions = [
        prediction_line(one, maxlen, answers[one.id, maxlen], len(document))
        for one in examples
        for maxlen in (100, 200)
    ]
    documents = [document_line("plos", one.document_id, document) for one in examples]
    made = score_examples(predictions, examples, documents, {"plos": "hf"}, "tiny")
    flawed = with_flaws(made.scored, record, examples, documents)
    assert [one.line.metrics for one in flawed] == [one.line.metrics for one in made.scored]
    found = {(one.line.id, one.line.maxlen): one.line.flaws for one in flawed if one.is_model}
    assert found == {
        ("test-0", 100): {"loop": 1, "copy": 1},
        ("test-0", 200): {"loop": 1, "copy": 1},
        ("test-1", 100): {"empty": 1},
        ("test-1", 200): {"unread": 1},
    }
    assert not any(one.line.flaws for one in flawed if not one.is_model)
    counts = {one.maxlen: one.flaws for one in summarize(flawed) if one.kind == "model" and one.subset == "all"}
    assert counts == {100: {"loop": 1, "copy": 1, "empty": 1}, 200: {"loop": 1, "copy": 1, "unread": 1}}


@pytest.mark.parametrize(("profile", "flaws"), [("hf", {"unread": 1}), ("unicode", None)])
def test_a_profile_that_reads_all_scripts_leaves_nothing_unread(profile: str, flaws: dict[str, int] | None) -> None:
    example, document = example_line(0, references=["河流从山上流下来。"]), "A short document about rivers. " * 30
    prediction = prediction_line(example, 100, "Nothing of it.", len(document))
    documents = [document_line("plos", example.document_id, document)]
    made = score_examples([prediction], [example], documents, {"plos": profile}, "tiny")
    assert with_flaws(made.scored, run_record(), [example], documents)[0].line.flaws == flaws


def test_a_copy_of_the_template_is_one() -> None:
    example, document = example_line(0), "A short document about rivers. " * 30
    asked = " ".join(f"order{index}" for index in range(40))
    record = run_record()
    (template,) = record.tasks["plos"].templates.values()
    prediction = prediction_line(example, 100, asked, len(document))
    documents = [document_line("plos", example.document_id, document)]
    made = score_examples([prediction], [example], documents, {"plos": "hf"}, "tiny")
    for changes, flaws in (({}, None), ({"system": asked}, {"copy": 1}), ({"text": asked}, {"copy": 1})):
        of_record = with_task(record, templates={"instruct": replace(template, **changes)})
        assert with_flaws(made.scored, of_record, [example], documents)[0].line.flaws == flaws


def test_each_sample_of_an_answer_counts() -> None:
    example, document = example_line(0), "A short document about rivers. " * 30
    sample = Sample(text="", num_generated_tokens=1, finish_reason="stop")
    prediction = prediction_line(example, 100, "", len(document), samples=[sample, sample, replace(sample, text="No.")])
    documents = [document_line("plos", example.document_id, document)]
    made = score_examples([prediction], [example], documents, {"plos": "hf"}, "tiny")
    flawed = with_flaws(made.scored, run_record(), [example], documents)
    assert flawed[0].line.flaws == {"empty": 2}
