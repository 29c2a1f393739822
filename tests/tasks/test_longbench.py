"""The template `longbench` makes LongBench's own prompts, and its profiles give LongBench's own scores.

`longbench.json` holds what LongBench's code at 2e00731 makes of the same records (see `tests.helpers.longbench_cases`).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from eval.metrics.answers import first_line
from eval.prompting.prompts import PromptBuilder, fit
from eval.scoring.profiles import headline, score_prediction
from tasks import LONGBENCH, TASKS, LoadedExamples, LoadRequest
from tasks.longbench import PUBLISHED
from tests.helpers.longbench_cases import MAX_LENGTH, NUM_RECORDS, predictions, records, summary
from tests.helpers.tiny_models import tiny_tokenizer

TABLE: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("longbench.json").read_text())


def load(name: str, folder: Path) -> LoadedExamples:
    file = folder / f"{name}.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records(name)))
    return TASKS[f"longbench_{name}"].load(LoadRequest(split="test", data=file))


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
    texts = [first_line(text) if task.scores_first_line else text for text in predictions(name)]
    metric = headline(task.profile)
    scores = [
        score_prediction(task.profile, text, example.references)[metric]
        for text, example in zip(texts, loaded.examples, strict=True)
    ]
    ours, theirs = summary(prompts, scores), dict(TABLE[name])
    published = theirs.pop("published")
    assert ours["prompts"] == theirs["prompts"]
    assert ours["score"] == pytest.approx(theirs["score"], abs=1e-9)
    assert ours["weighted"] == pytest.approx(theirs["weighted"], abs=1e-7)
    assert 100 * ours["score"] == pytest.approx(published, abs=0.00501), "LongBench rounds to two decimals"


def test_the_table_has_every_set_and_no_set_scores_nothing_or_all() -> None:
    assert [f"longbench_{name}" for name in TABLE] == list(LONGBENCH)
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
