"""Baselines stand beside predictions; results count documents; lengths are compared on the same examples."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import eval.scoring
from eval.records.schema import Cost, Estimate
from eval.records.typed import to_json
from eval.reporting.columns import verdict
from eval.scoring.baselines import CommonAnswers
from eval.scoring.claims import compare_paired
from eval.scoring.comparisons import compare_settings
from eval.scoring.examples import Scored, cost, score_examples, summarize
from eval.scoring.profiles import PROFILES, headline, metric_columns
from tests.helpers.run_folders import LENGTHS, document, document_line, example_line, prediction_line, sentence

TEXT = document(3, 20)
REFERENCE = sentence(5)


MATCHED = ("matched_lead", "matched_tail", "matched_oracle")


def scored(
    answers: dict[str, dict[int, str]], profile: str = "hf", documents: dict[str, str] | None = None, **changes: Any
) -> Sequence[Scored]:
    """Return the scores of answers by document and maxlen, each about a document of its own."""
    texts = documents or dict.fromkeys(answers, TEXT)
    examples = [
        example_line(index, id=name, document_id=name, references=[REFERENCE], **changes)
        for index, name in enumerate(answers)
    ]
    lines = [
        prediction_line(example, maxlen, text, len(texts[example.id]))
        for example in examples
        for maxlen, text in answers[example.id].items()
    ]
    held = [document_line("plos", name, text) for name, text in texts.items()]
    return score_examples(lines, examples, held, {"plos": profile}, "tiny").scored


def test_each_prediction_is_followed_by_what_needs_no_model() -> None:
    found = scored({"a": {100: REFERENCE, 200: ""}}, query="what do its authors say?")
    assert [(one.line.maxlen, one.line.system, one.is_model) for one in found] == [
        (maxlen, system, system == "tiny")
        for maxlen in (100, 200)
        for system in ("tiny", "lead", "tail", "query_echo", "visible_oracle", *MATCHED)
    ]
    assert found[0].line.metrics == dict.fromkeys(("rouge1", "rouge2", "rougeL", "rougeLsum"), 1.0)
    assert found[8].line.metrics == dict.fromkeys(("rouge1", "rouge2", "rougeL", "rougeLsum"), 0.0)
    assert [one.num_words for one in found[8:] if one.line.system in (*MATCHED, "tiny")] == [0, 0, 0, 0]
    for oracle in (found[4], found[12]):
        assert all(end <= 2 * oracle.line.maxlen for _, end in oracle.line.sentences)
        assert oracle.line.sentences


def test_the_lead_is_scored_as_its_words_would_be() -> None:
    lead = next(one for one in scored({"a": {100: ""}}) if one.line.system == "lead")
    words = " ".join(TEXT[:200].split()[: len(REFERENCE.split())])
    (same, *_) = scored({"a": {100: words}})
    assert lead.line.metrics == same.line.metrics


def test_one_result_a_length_and_system_with_counts_of_examples_and_documents() -> None:
    examples = [
        example_line(i, id=name, document_id=of, references=["aa bb"])
        for i, (name, of) in enumerate((("x", "d1"), ("y", "d1"), ("z", "d2")))
    ]
    lines = [
        prediction_line(example, maxlen, "aa bb" if maxlen == 200 else "", 900)
        for example in examples
        for maxlen in (100, 200)
    ]
    documents = [document_line("plos", name, "aa bb. " * 120) for name in ("d1", "d2")]
    results = summarize(score_examples(lines, examples, documents, {"plos": "hf"}, "tiny").scored)
    assert [(one.maxlen, one.system) for one in results] == [
        (maxlen, system) for maxlen in (100, 200) for system in ("tiny", "lead", "tail", "visible_oracle", *MATCHED)
    ]
    short, long = (one for one in results if one.kind == "model")
    assert (short.num_examples, short.num_documents, short.num_truncated) == (3, 2, 3)
    assert short.metrics["rouge1"].mean == 0
    assert long.metrics["rouge1"] == Estimate(mean=1, low=None, high=None)  # two documents
    assert (long.task, long.template, long.profile, long.subset) == ("plos", "instruct", "hf", "all")
    assert long.evidence_visible is None
    assert all(one.cost is None for one in results if one.kind == "yardstick")
    json.dumps(to_json(results), allow_nan=False)


def test_documents_that_every_length_cuts_are_a_subset_of_their_own() -> None:
    short, long = sentence(1), TEXT
    answers = {name: {100: REFERENCE, 200: ""} for name in "abc"}
    results = summarize(scored(answers, documents={"a": short, "b": long, "c": long}))
    subsets = {(one.subset, one.maxlen): one.num_examples for one in results if one.kind == "model"}
    assert subsets == {("all", 100): 3, ("all", 200): 3, ("always_truncated", 100): 2, ("always_truncated", 200): 2}
    for documents in ({"a": short, "b": short, "c": short}, {"a": long, "b": long, "c": long}):
        assert {one.subset for one in summarize(scored(answers, documents=documents))} == {"all"}


def test_the_share_of_gold_evidence_that_was_shown() -> None:
    results = summarize(scored({"a": {100: "", 200: ""}}, evidence=[[150, 250]]))
    shares = {one.maxlen: one.evidence_visible for one in results if one.kind == "model"}
    assert {maxlen: (share.mean, share.num_examples) for maxlen, share in shares.items()} == {
        100: (0.5, 1),
        200: (1.0, 1),
    }


def test_the_headline_of_scrolls_is_the_geometric_mean_of_corpus_means() -> None:
    assert metric_columns("scrolls")["geometric"] == ("rouge1", "rouge2", "rougeL")
    assert (headline("scrolls"), headline("hf"), headline("longbench")) == ("geometric", "rougeLsum", "rougeL")
    found = scored({name: {100: f"{REFERENCE} {TEXT[: 40 * i]}"} for i, name in enumerate("abcdef")}, "scrolls")
    (result,) = (one for one in summarize(found) if one.kind == "model")
    means = [result.metrics[metric].mean for metric in ("rouge1", "rouge2", "rougeL")]
    assert result.metrics["geometric"].mean == pytest.approx(np.prod(means) ** (1 / 3))
    assert 0 < result.metrics["geometric"].low < result.metrics["geometric"].high


def test_lengths_are_compared_with_the_one_before_and_the_ends_with_each_other() -> None:
    texts = {100: "nothing of it", 150: REFERENCE, 200: f"{REFERENCE} and more"}
    found = scored(dict.fromkeys("abcdefgh", texts))
    rows = compare_settings(found)
    assert [(row.first.maxlen, row.second.maxlen) for row in rows] == [(100, 150), (150, 200), (100, 200)]
    model = {
        maxlen: [one.line.metrics["rougeLsum"] for one in found if one.is_model and one.line.maxlen == maxlen]
        for maxlen in texts
    }
    expected = compare_paired(model[100], model[150], list("abcdefgh"))
    assert (rows[0].difference, rows[0].p_value, rows[0].wins) == (
        expected.difference,
        expected.p_value,
        expected.wins,
    )
    assert all(row.p_corrected >= row.p_value for row in rows)
    # All examples gain alike, so that eight documents settle it; the loss afterwards is beyond the margin.
    assert rows[0].p_corrected < 0.05
    assert (rows[0].non_inferior, rows[1].non_inferior) == (True, False)
    # The rows are of the same documents, so that three tests cost what one does.
    assert rows[0].p_corrected == pytest.approx(rows[0].p_value)


def test_templates_are_compared_at_each_length() -> None:
    example = example_line(0, references=[REFERENCE])
    lines = [
        prediction_line(example, maxlen, REFERENCE, len(TEXT), template=template)
        for template in ("instruct", "abstract")
        for maxlen in (100, 200)
    ]
    documents = [document_line("plos", "doc-0", TEXT)]
    rows = compare_settings(score_examples(lines, [example], documents, {"plos": "hf"}, "tiny").scored)
    assert [tuple((end.template, end.maxlen) for end in (row.first, row.second)) for row in rows] == [
        (("instruct", 100), ("instruct", 200)),
        (("abstract", 100), ("abstract", 200)),
        (("instruct", 100), ("abstract", 100)),
        (("instruct", 200), ("abstract", 200)),
    ]
    assert all(row.p_value is None and row.low is None for row in rows)  # one document


def test_costs_are_sums_over_sums_and_missing_stays_missing() -> None:
    example = example_line(0)
    lines = [
        prediction_line(example, 100, "", 900, prefill_seconds=1.0, peak_bytes=5, cache_bytes=7, attention_flops=11),
        prediction_line(example, 100, "", 900, prompt_tokens=500, peak_bytes=None, cache_bytes=7, attention_flops=11),
    ]
    assert cost(lines) == Cost(
        prefill_tokens_per_second=200.0,
        decode_tokens_per_second=10.0,
        seconds=3.0,
        peak_memory_bytes=5,
        cache_bytes=7,
        attention_flops=11.0,
    )
    assert cost([replace(lines[0], attention_flops=None)]).attention_flops is None


def test_what_one_prediction_does_not_tell_no_mean_and_no_rate_claims() -> None:
    known = prediction_line(example_line(0), 100, "", 900)
    nothing = dict.fromkeys(
        ("seconds", "prefill_seconds", "decode_seconds", "cache_bytes", "peak_bytes", "attention_flops")
    )
    unknown = replace(known, **nothing)
    assert set(vars(cost([unknown])).values()) == {None}
    assert cost([known, unknown]) == Cost(
        prefill_tokens_per_second=None,
        decode_tokens_per_second=None,
        seconds=None,
        peak_memory_bytes=known.peak_bytes,
        cache_bytes=known.cache_bytes,
        attention_flops=None,
    )


def test_what_servers_tell_is_weighed_by_what_it_is_about() -> None:
    line = prediction_line(example_line(0), 100, "", 900, first_token_seconds=1.0, token_seconds=0.1, cached_tokens=0)
    longer = replace(line, num_generated_tokens=28, first_token_seconds=3.0, token_seconds=0.3, cached_tokens=90)
    found = cost([line, longer])
    assert (found.first_token_seconds, found.cached_share) == (2.0, 90 / 200)
    assert found.token_seconds == pytest.approx((9 * 0.1 + 27 * 0.3) / 36)
    # As the server counts, where it counts.
    assert cost([replace(longer, reported_prompt_tokens=120)]).cached_share == 90 / 120
    assert cost([line]).cached_share == 0
    # An answer of one token has no further one; of others nothing is made up.
    assert cost([line, replace(longer, num_generated_tokens=1, token_seconds=None)]).token_seconds == 0.1
    unknown = cost([line, replace(longer, token_seconds=None, first_token_seconds=None, cached_tokens=None)])
    assert (unknown.token_seconds, unknown.first_token_seconds, unknown.cached_share) == (None, None, None)


def test_scoring_imports_no_torch() -> None:
    rooms = [file.stem for file in Path(eval.scoring.__path__[0]).glob("[a-z]*.py")]
    code = (
        f"import sys, {', '.join(f'eval.scoring.{room}' for room in rooms)}; "
        "print([name for name in ('torch', 'transformers', 'eval.reporting', 'eval.config') if name in sys.modules])"
    )
    root = Path(__file__).parents[3]
    printed = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True).stdout
    assert len(rooms) > 10
    assert printed.strip() == "[]"


def two_tasks(answer: str, first_line_tasks: tuple[str, ...] = ()) -> Sequence[Scored]:
    """Return the scores of a task of summaries whose documents fit, and one of answers about long ones."""
    examples = [example_line(index, document_id=f"p{index}", references=[REFERENCE]) for index in range(2)]
    examples += [
        example_line(index, task="qasper", id=f"q{index}", document_id=f"q{index}", references=[text], query="What?")
        for index, text in enumerate(("Yes", "No", "yes."))
    ]
    texts = {"plos": sentence(1), "qasper": f"Yes. {TEXT}"}
    lines = [prediction_line(line, maxlen, answer, len(texts[line.task])) for line in examples for maxlen in LENGTHS]
    documents = [document_line(line.task, line.document_id, texts[line.task]) for line in examples]
    profiles = {"plos": "hf", "qasper": "f1"}
    return score_examples(lines, examples, documents, profiles, "tiny", first_line_tasks).scored


def test_each_task_is_scored_under_its_own_profile() -> None:
    found = two_tasks("yes")
    results = [one for one in summarize(found) if one.kind == "model" and one.maxlen == 200]
    assert [(one.task, one.profile, list(one.metrics)) for one in results] == [
        ("plos", "hf", ["rouge1", "rouge2", "rougeL", "rougeLsum"]),
        ("qasper", "f1", ["f1", "exact_match"]),
    ]
    assert results[1].metrics["exact_match"].mean == pytest.approx(2 / 3)
    rows = compare_settings(found)
    assert [(row.task, row.metric) for row in rows] == [("plos", "rougeLsum"), ("qasper", "f1")]


def test_the_first_line_of_an_answer_is_scored_where_the_benchmark_does_so() -> None:
    answer = "\nyes\nand a long explanation"
    for tasks, expected in (((), 0), (("qasper",), 2 / 3)):
        results = summarize(two_tasks(answer, tasks))
        (model, *_) = (one for one in results if one.kind == "model" and one.task == "qasper")
        assert model.metrics["exact_match"].mean == pytest.approx(expected)


def test_beside_answers_stands_the_most_common_one() -> None:
    found = two_tasks("no")
    systems = {(one.line.task, one.line.system) for one in found if not one.is_model}
    assert systems == {
        *(("plos", name) for name in ("lead", "tail", "visible_oracle", *MATCHED)),
        *(("qasper", name) for name in ("lead", "tail", "query_echo", "visible_oracle", *MATCHED[:2], "common_answer")),
    }
    common = [one.line.metrics["exact_match"] for one in found if one.line.system == "common_answer"]
    assert common == [1, 1, 0, 0, 1, 1]  # at two lengths
    choices = scored({"a": {100: REFERENCE, 200: ""}}, "exact_match")
    assert [one.line.system for one in choices] == ["tiny", "common_answer"] * 2


def test_a_task_that_is_cut_throughout_has_no_second_table() -> None:
    """Beside a task that is cut in part, or not at all, its own examples are all there is."""
    found = [
        *two_tasks("yes"),
        *scored({name: {100: "", 200: ""} for name in "ab"}, documents={"a": TEXT, "b": "Short."}),
    ]
    cut = [one for one in summarize(found) if one.subset == "always_truncated" and one.kind == "model"]
    assert {one.task for one in summarize(two_tasks("yes")) if one.subset != "all"} == set()
    assert {(one.task, one.num_examples) for one in cut} == {("plos", 1)}
    assert {row.task for row in compare_settings(found) if row.subset == "always_truncated"} == {"plos"}


@pytest.mark.parametrize("counts", [(6, 6), (6, 5), (4, 4, 4), (2, 2, 1, 1)])
def test_the_common_answer_is_right_as_often_as_a_constant_one(counts: tuple[int, ...]) -> None:
    references = [[name] for name, count in zip("wxyz", counts, strict=False) for _ in range(count)]
    found = CommonAnswers(references)
    assert sum(found.beside(one) == one[0] for one in references) == max(counts)


def test_an_answer_of_one_example_alone_is_not_common() -> None:
    # Where all answers differ, none is worth anything: each would otherwise be right about itself.
    alone = CommonAnswers([["Oslo"], ["Rome"], ["Bern"]])
    assert [alone.beside([answer]) for answer in ("Oslo", "Rome", "Bern")] == ["Rome", "Oslo", "Oslo"]
    some = CommonAnswers([["Oslo", "Christiania"], ["oslo!"], ["Rome"], ["The Rome"], ["Rome"]])
    assert [some.beside(own) for own in (["Oslo"], ["Rome"])] == ["Rome", "Rome"]
    assert CommonAnswers([["Oslo"]]).beside(["Oslo"]) == ""
    # In the words of the profile: a Chinese full stop parts answers under `f1` and none under `f1_unicode`.
    words = PROFILES["f1_unicode"].words
    chinese = CommonAnswers([["河流"], ["河流。"], ["山"], ["山"], ["海"]], words)
    assert (chinese.of_all, chinese.beside(["河流。"])) == ("河流", "河流")


def test_documents_that_fit_both_lengths_are_left_out_of_their_comparison() -> None:
    cut = {name: {100: REFERENCE, 200: f"{REFERENCE} and more"} for name in "abcdefg"}
    whole = {name: {100: REFERENCE, 200: REFERENCE} for name in "hijklmnop"}
    (alone,) = compare_settings(scored(cut))
    found = scored(cut | whole)
    fitting = [
        replace(one, line=replace(one.line, is_truncated=False)) if one.line.id in whole else one for one in found
    ]
    rows = [row for row in compare_settings(fitting) if row.subset == "all"]
    assert [(row.num_same_prompts, row.num_documents) for row in rows] == [(9, 7)]
    assert (rows[0].difference, rows[0].low, rows[0].p_value) == (alone.difference, alone.low, alone.p_value)
    # Where every document fits, there is nothing to compare.
    (nothing,) = compare_settings([one for one in fitting if one.line.id in whole])
    assert (nothing.num_same_prompts, nothing.num_examples, nothing.low, nothing.p_value) == (9, 0, None, None)
    assert verdict(nothing) == "same prompts"


def test_clusters_are_resampled_in_the_place_of_their_documents() -> None:
    answers = {f"d{index}": {100: " ".join(REFERENCE.split()[: 2 + index // 2])} for index in range(12)}
    found = scored(answers)
    by_document, by_cluster = (
        [replace(one, line=replace(one.line, cluster_id=cluster(one.line.id))) for one in found]
        for cluster in (lambda name: None, lambda name: f"book {int(name[1:]) // 2}")
    )
    plain, clustered = (
        next(one for one in summarize(some) if one.kind == "model").metrics["rouge1"]
        for some in (by_document, by_cluster)
    )
    assert plain.mean == clustered.mean
    # Two chapters that score alike are one piece of evidence, not two.
    assert clustered.high - clustered.low > 1.3 * (plain.high - plain.low)
