"""The template `longbench` makes LongBench's own prompts, and its profiles give LongBench's own scores.

`longbench.json` holds what LongBench's code at 2e00731 makes of the same records (see `tests.helpers.longbench_cases`).
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from eval.metrics.answers import first_line
from eval.prompting.prompts import PromptBuilder, fit
from eval.scoring.profiles import headline, score_prediction
from tasks import LONGBENCH, LONGBENCH_E, TASKS, DataError, LoadedExamples, LoadRequest
from tasks.longbench import PUBLISHED
from tests.helpers.longbench_cases import MAX_LENGTH, NUM_RECORDS, predictions, records, summary
from tests.helpers.tiny_models import tiny_tokenizer

TABLE: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("longbench.json").read_text())


def load(name: str, folder: Path, *, is_even: bool = False) -> LoadedExamples:
    file = folder / f"{name}{'_e' * is_even}.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records(name)))
    return TASKS[f"longbench_{'e_' * is_even}{name}"].load(LoadRequest(split="test", data=folder))


def scores_of(name: str, loaded: LoadedExamples) -> list[float]:
    task = TASKS[f"longbench_{name}"]
    texts = [first_line(text) if task.scores_first_line else text for text in predictions(name)]
    return [
        score_prediction(task.profile, text, example.references, example.classes)[headline(task.profile)]
        for text, example in zip(texts, loaded.examples, strict=True)
    ]


@pytest.mark.parametrize("name", PUBLISHED)
def test_prompts_and_scores_are_those_of_its_own_code(name: str, tmp_path: Path) -> None:
    task, loaded = TASKS[f"longbench_{name}"], load(name, tmp_path)
    builder = PromptBuilder(tiny_tokenizer(chat=False), task.templates["longbench"])
    prompts, num_cut = [], 0
    for example in loaded.examples:
        prompt = fit(builder.parts(example), MAX_LENGTH + 16, 16, "head")
        num_cut += prompt.num_context_dropped > 0
        prompts.append(builder.tokenizer.decode(prompt.token_ids, skip_special_tokens=True))
    assert NUM_RECORDS / 20 < num_cut < NUM_RECORDS
    ours, theirs = summary(prompts, scores_of(name, loaded)), dict(TABLE[name])
    published, _ = theirs.pop("published"), theirs.pop("by_length")
    assert ours["prompts"] == theirs["prompts"]
    assert ours["score"] == pytest.approx(theirs["score"], abs=1e-9)
    assert ours["weighted"] == pytest.approx(theirs["weighted"], abs=1e-7)
    assert 100 * ours["score"] == pytest.approx(published, abs=0.00501), "LongBench rounds to two decimals"


@pytest.mark.parametrize("task", LONGBENCH_E)
def test_the_three_lengths_of_longbench_e_have_the_scores_of_its_own_code(task: str, tmp_path: Path) -> None:
    name = task.removeprefix("longbench_e_")
    loaded = load(name, tmp_path, is_even=True)
    by_length: dict[str, list[float]] = {}
    for example, score in zip(loaded.examples, scores_of(name, loaded), strict=True):
        (group,) = example.groups
        by_length.setdefault(group, []).append(score)
    assert {group: pytest.approx(100 * fmean(of_group), abs=0.00501) for group, of_group in by_length.items()} == TABLE[
        name
    ]["by_length"]
    assert TASKS[task].templates == TASKS[f"longbench_{name}"].templates


def test_a_record_of_longbench_e_without_its_length_and_a_class_without_the_others_are_told(tmp_path: Path) -> None:
    for name, task, change, reason in (
        (
            "hotpotqa_e",
            "longbench_e_hotpotqa",
            {"length": None},
            "field 'length' is null; expected the number of words",
        ),
        ("trec", "longbench_trec", {"all_classes": None}, "field 'all_classes' is null; expected a list of texts"),
    ):
        record = {**records(name.removesuffix("_e"))[0], **change}
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(record))
        with pytest.raises(DataError, match=f"^{name}.jsonl line 1: .*{reason}"):
            TASKS[task].load(LoadRequest(split="test", data=tmp_path))


def test_the_table_has_every_set_and_no_set_scores_nothing_or_all() -> None:
    others = {"longbench_lsht", "longbench_passage_retrieval_zh"}
    assert {f"longbench_{name}" for name in TABLE} == {*LONGBENCH, *others}
    assert all(0.05 < line["score"] < 0.95 for line in TABLE.values())


def test_a_prompt_with_a_chat_template_is_cut_where_one_without_is(tmp_path: Path) -> None:
    task, loaded = TASKS["longbench_hotpotqa"], load("hotpotqa", tmp_path)
    plain, chat = (
        PromptBuilder(tiny_tokenizer(chat=has_chat), task.templates["longbench"]) for has_chat in (False, True)
    )
    for example in loaded.examples[:20]:
        one, other = plain.parts(example), chat.parts(example)
        assert not one.prefix
        assert not one.suffix
        bare, marked = fit(one, 900, 16, "head"), fit(other, 900 + len(other.prefix + other.suffix), 16, "head")
        text = marked.token_ids[len(other.prefix) : len(marked.token_ids) - len(other.suffix)]
        num_first = len(one.whole or ()) - len(other.whole or ())  # what begins a plain text is part of its first half
        assert bare.token_ids[num_first:442] == text[: 442 - num_first]
        assert bare.token_ids[442:] == text[442:]


def test_what_stands_at_the_ends_of_texts_is_kept(tmp_path: Path) -> None:
    given = records("lcc")
    for record, example in zip(given, load("lcc", tmp_path).examples, strict=True):
        assert example.context == record["context"]
        assert example.references == tuple(dict.fromkeys(record["answers"]))
    assert any(record["context"].endswith("\n") for record in given)
