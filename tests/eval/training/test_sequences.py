"""From examples to batches: what is predicted, what is packed, what is held out, and in which order."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from eval.errors import UserError
from eval.prompting.prompts import PromptBuilder
from eval.training.sequences import (
    Piece,
    Pieces,
    chosen_rows,
    collate,
    count_rows,
    epoch_rows,
    in_order,
    split_held_out,
    target_piece,
    training_steps,
    windows,
)
from masformer import SpanPlan, apply_plan
from masformer.loss import IGNORED, NextTokenLoss
from tasks import Example, Template
from tests.helpers.tiny_models import tiny_model, tiny_tokenizer

TEMPLATE = "Read {context} and sum up."


def example(number: int, words: int = 20, answer: str = "a short one") -> Example:
    text = " ".join(f"w{number}{i}" for i in range(words))
    return Example(id=f"e{number}", document_id=f"d{number}", context=text, references=(answer,))


def pieces_of(count: int, maxlen: int = 200, objective: str = "lm") -> Pieces:
    builder = PromptBuilder(tiny_tokenizer(), Template(text=TEMPLATE))
    examples = {"text": [example(number, 5 + 7 * number) for number in range(count)]}
    return Pieces(examples=examples, builders={"text": builder}, objective=objective, maxlen=maxlen, truncation="head")


def test_only_the_target_and_the_end_of_the_turn_are_predicted() -> None:
    tokenizer = tiny_tokenizer()
    piece = target_piece(PromptBuilder(tokenizer, Template(text=TEMPLATE)), example(1), 400, "head")
    predicted = [token for token in piece.next_tokens() if token != IGNORED]
    assert tokenizer.decode(predicted) == "a short one<|im_end|>"
    assert len(predicted) == piece.num_targets
    whole = tokenizer.decode(piece.token_ids)
    assert whole.endswith(" and sum up.<|im_end|>\n<|im_start|>assistant\na short one<|im_end|>")


def test_without_a_chat_template_a_target_ends_with_the_end_token() -> None:
    tokenizer = tiny_tokenizer(chat=False)
    builder = PromptBuilder(tokenizer, Template(text=TEMPLATE))
    assert tokenizer.decode(builder.answer(" x ")) == "x<|im_end|>"
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="has no end token"):
        PromptBuilder(tokenizer, Template(text=TEMPLATE)).answer("x")


def test_the_context_gives_way_to_the_target_and_a_target_that_cannot_fit_is_named() -> None:
    builder = PromptBuilder(tiny_tokenizer(), Template(text=TEMPLATE))
    long = example(1, 200, answer="z" * 50)
    piece = target_piece(builder, long, 150, "head")
    assert len(piece.token_ids) == 150
    assert piece.num_targets == 51
    with pytest.raises(UserError, match=r"the target of e1 does not fit: 51 tokens and \d+ of instruction"):
        target_piece(builder, long, 80, "head")


def test_windows_predict_every_token_but_the_first_once() -> None:
    ids = list(range(100, 125))
    parts = windows("e", ids, 7)
    assert [token for part in parts for token in part.next_tokens()] == ids[1:]
    assert all(len(part.token_ids) <= 7 for part in parts)
    assert windows("e", [5], 7) == ()


def test_a_batch_numbers_positions_anew_in_each_document_and_pads_on_the_right() -> None:
    first = Piece(id="a", token_ids=(5, 6, 7, 8), first_target=1)
    second = Piece(id="b", token_ids=(9, 10, 11), first_target=2)
    batch = collate([(first, second), (second,)])
    assert batch.input_ids.tolist() == [[5, 6, 7, 9, 10], [9, 10, 0, 0, 0]]
    assert batch.next_tokens.tolist() == [[6, 7, 8, IGNORED, 11], [IGNORED, 11, *[IGNORED] * 3]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1], [0, 1, 2, 3, 4]]


def test_packing_keeps_every_piece_whole_and_rows_within_maxlen() -> None:
    pieces = pieces_of(12)
    rows = list(epoch_rows(pieces, 3, 0, 2, packing=True))
    assert any(len(row) > 1 for row in rows)
    assert all(sum(map(len, row)) <= 199 for row in rows)
    found = sorted(piece.token_ids for row in rows for piece in row)
    assert found == sorted(piece.token_ids for (piece,) in in_order(pieces))
    assert len(rows) < len(found)


def test_grouped_rows_of_a_step_are_of_like_length() -> None:
    pieces = pieces_of(16, maxlen=1000)
    rows = list(epoch_rows(pieces, 3, 0, 4, packing=False))
    assert sorted(row[0].id for row in rows) == sorted(f"e{i}" for i in range(16))
    lengths = [len(row[0]) for row in rows]
    steps = [lengths[first : first + 4] for first in range(0, 16, 4)]
    ordered = sorted(lengths)
    assert sorted(map(sorted, steps)) == [ordered[first : first + 4] for first in range(0, 16, 4)]
    assert steps != sorted(steps)


@pytest.mark.parametrize("packing", [True, False])
def test_the_order_follows_from_the_seed_and_differs_between_passes(packing: bool) -> None:
    pieces = pieces_of(9)

    def ids(seed: int, count: int = 30) -> list[list[str]]:
        steps = itertools.islice(training_steps(pieces, seed, 2, packing=packing), count)
        return [[piece.id for row in rows for piece in row] for rows in steps]

    assert ids(1) == ids(1)
    assert ids(1) != ids(2)
    flat = [name for step in ids(1) for name in step]
    assert set(flat) == {f"e{i}" for i in range(9)}
    first, second = (list(epoch_rows(pieces, 1, epoch, 2, packing=packing)) for epoch in (0, 1))
    assert first != second
    assert count_rows(pieces, 1, 2, packing=packing) == len(first)


def test_whole_documents_are_held_out_and_the_choice_does_not_move() -> None:
    examples = [replace(example(i // 2), id=f"e{i}") for i in range(40)]
    trained, held = split_held_out({"t": examples}, 0.2, 0)
    assert len(held["t"]) == 8
    assert not {e.document_id for e in held["t"]} & {e.document_id for e in trained["t"]}
    assert split_held_out({"t": examples}, 0.2, 0)[1] == held
    assert split_held_out({"t": examples}, 0.2, 1)[1] != held
    assert split_held_out({"t": examples}, 0.0, 0)[1] == {"t": []}
    assert len(split_held_out({"t": examples[:2]}, 0.5, 0)[0]["t"]) == 2, "a single document is trained on"
    # What one task holds out, no other is trained on.
    trained, held = split_held_out({"t": examples, "u": examples[:10]}, 0.2, 0)
    kept_out = {e.document_id for of_task in held.values() for e in of_task}
    assert not kept_out & {e.document_id for of_task in trained.values() for e in of_task}


def test_a_limited_evaluation_chooses_among_all_documents() -> None:
    pieces = pieces_of(12, maxlen=60)
    rows = list(in_order(pieces))
    chosen = chosen_rows(pieces, 6, 0)
    assert len(chosen) == 6
    assert chosen == [row for row in rows if row in chosen]
    assert len({row[0].id for row in chosen}) >= 3
    assert chosen_rows(pieces, 6, 0) == chosen != chosen_rows(pieces, 6, 1)
    assert chosen_rows(pieces, None, 0) == rows


def test_texts_of_a_document_are_read_once_whatever_is_asked_about_it() -> None:
    examples = [replace(example(i // 3), id=f"e{i}") for i in range(9)]
    pieces = replace(pieces_of(0), examples={"t": examples, "u": examples[:3]})
    assert [found.id for _, found in pieces.items] == ["e0", "e3", "e6"]
    assert len(replace(pieces, objective="target").items) == 12


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gpt_neo", "gemma2"])
@pytest.mark.parametrize("plan", ["full", "local span=9 sinks=2", "every:2 block=8 previous=1 sinks=1"])
def test_packed_documents_have_the_loss_and_gradients_of_separate_ones(kind: str, plan: str) -> None:
    tokenizer = tiny_tokenizer()
    model = tiny_model(kind, vocab_size=len(tokenizer), initializer_range=0.2).double()
    apply_plan(model, SpanPlan.parse(plan, 3))
    wrapped = NextTokenLoss(model)
    rows = list(in_order(pieces_of(4)))
    packed = tuple(piece for row in rows for piece in row)

    def run(some: list[tuple[Piece, ...]]) -> tuple[float, dict[str, torch.Tensor]]:
        total = 0.0
        for row in some:
            batch = collate([row])
            loss = wrapped(batch.input_ids, batch.next_tokens, batch.position_ids)
            loss.backward()
            total += float(loss.detach())
        found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        model.zero_grad()
        return total, found

    alone, together = run(rows), run([packed])
    assert together[0] == pytest.approx(alone[0], rel=1e-6 if kind == "gemma2" else 1e-9)
    for name, gradient in alone[1].items():
        # Gemma's norms are computed in float32.
        rtol, atol = (1e-4, 1e-5) if kind == "gemma2" else (1e-7, 1e-9)
        torch.testing.assert_close(together[1][name], gradient, rtol=rtol, atol=atol, msg=name)
