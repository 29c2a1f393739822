"""Choosing the tokens of a step reads from the device once for all rows, whatever the options."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from eval.config.generation import GenerationSettings
from eval.generation.greedy import _Batch
from tests.eval.generation.test_generate import MIXED, prompts_of_a_sweep, random_model, random_thinking, together
from tests.helpers.reads import Counting


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stop": ("no such text",)},
        {"repetition_penalty": 1.4, "no_repeat_ngram_size": 2, "min_new_tokens": 9},
        {"repetition_penalty": 1.4, "min_new_tokens": 9, "thinking": True},
    ],
    ids=str,
)
def test_a_step_reads_the_tokens_of_all_rows_at_once(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompts = random_model("llama", MIXED), prompts_of_a_sweep()[:4]
    if "thinking" in options:
        options = options | {"thinking": random_thinking(model, 8)}
    settings = replace(GenerationSettings(max_new_tokens=12), **options)
    step, scores, counted = _Batch.step, _Batch.scores, list[Counting]()

    def uncounted(batch: _Batch, tokens: Sequence[Sequence[int]]) -> Tensor:
        with _disable_current_modes():  # what the model reads is tested with its attention
            return scores(batch, tokens)

    def counting(batch: _Batch) -> int:
        with Counting() as counts:
            num_read = step(batch)
        if len(batch.rows) == len(prompts):
            counted.append(counts)
        return num_read

    monkeypatch.setattr(_Batch, "scores", uncounted)
    monkeypatch.setattr(_Batch, "step", counting)
    together(model, prompts, settings)
    assert len(counted) > 8
    for counts in counted:
        assert counts.reading == Counter(tolist=1)
        # Indices in a list are copied to the device, which waits for it too.
        assert not counts.operations["index_put_"]
