"""Pairs that an encoder's attention is said to have are those through which a token reaches an output."""

from __future__ import annotations

import itertools

import pytest

from eval.generation.encoder_cost import _in_blocks, encoder_pairs
from eval.generation.encoder_decoder import encode
from tests.helpers.tiny_models import framing_tokenizer, tiny_encoder_decoder


@pytest.mark.parametrize("case", ["bart", "led", "longt5-local", "pegasus_x"])
def test_pairs_of_attention_are_those_that_reach_an_output(case: str) -> None:
    """A token that is changed changes the outputs of those that see it, and its own, in the first layer."""
    layers = {"num_layers": 1} if case.startswith("longt5") else {"encoder_layers": 1}
    windows = {"attention_window": [8]} if case == "led" else {}
    model = tiny_encoder_decoder(case, **layers, **windows).double()
    for count in (5, 16, 37):
        ids = framing_tokenizer()("x" * (count - 2)).input_ids
        assert len(ids) == count
        before, reached = encode(model, ids), 0
        for at in range(count):
            after = encode(model, [*ids[:at], 7, *ids[at + 1 :]])
            reached += int((after != before).any(dim=-1).sum())
        of_globals = count * 4 + 4 * (count + 4) if case == "pegasus_x" else 0
        assert encoder_pairs(model.config, count) == reached + of_globals


def test_blocks_that_begin_earlier_have_pairs_of_their_own() -> None:
    for num_tokens, shift in itertools.product((1, 3, 4, 8, 13), (0, 4)):
        blocks = [(at + shift) // 8 for at in range(num_tokens)]
        assert _in_blocks(num_tokens, 8, shift) == sum(one == other for one in blocks for other in blocks)
