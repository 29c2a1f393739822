"""Examples -> token sequences -> rows -> batches of a training, in an order that follows from the seed alone.

Every process computes the whole order, so that all agree on it without talking, and a resumed run finds its place.

Shapes: B rows, T tokens.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from eval.errors import UserError
from eval.prompting.prompts import PromptBuilder, fit
from masformer.loss import IGNORED
from tasks import Example

# Rows that are open while documents are packed, and rows of like length that are put together, per row of a step.
_OPEN_ROWS = 8
_ROWS_TO_SORT = 16


@dataclass(frozen=True, kw_only=True)
class Piece:
    """One document, or a window of it, as tokens.

    Attributes:
        id: Name of the example.
        token_ids: Tokens that are read, and the last one that is predicted.
        first_target: Index of the first token that is predicted.
    """

    id: str
    token_ids: tuple[int, ...]
    first_target: int

    def __len__(self) -> int:
        # The last token is predicted and read by nobody.
        return len(self.token_ids) - 1

    @property
    def num_targets(self) -> int:
        return len(self.token_ids) - self.first_target

    def next_tokens(self) -> list[int]:
        """Return the token after each one that is read; IGNORED where it is no target."""
        return [IGNORED] * (self.first_target - 1) + list(self.token_ids[self.first_target :])


Row = tuple[Piece, ...]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What a forward pass takes: (B, T) tensors.

    Attributes:
        input_ids: Padded on the right, where no real token sees the padding.
        next_tokens: IGNORED where a token is no target.
        position_ids: Count from 0 in each packed document.
    """

    input_ids: Tensor
    next_tokens: Tensor
    position_ids: Tensor


def collate(rows: Sequence[Row]) -> Batch:
    """Return the batch of some rows."""
    length = max(sum(map(len, row)) for row in rows)
    input_ids, next_tokens, position_ids = [], [], []
    for row in rows:
        inputs = [token for piece in row for token in piece.token_ids[:-1]]
        targets = [token for piece in row for token in piece.next_tokens()]
        positions = [position for piece in row for position in range(len(piece))]
        rest = length - len(inputs)
        input_ids.append(inputs + [0] * rest)
        next_tokens.append(targets + [IGNORED] * rest)
        # As if the last document went on: one document fewer to keep apart.
        position_ids.append(positions + list(range(len(row[-1]), len(row[-1]) + rest)))
    return Batch(
        input_ids=torch.tensor(input_ids),
        next_tokens=torch.tensor(next_tokens),
        position_ids=torch.tensor(position_ids),
    )


def split_held_out(
    examples: Mapping[str, Sequence[Example]], share: float, seed: int
) -> tuple[dict[str, list[Example]], dict[str, list[Example]]]:
    """Return the examples of each task that are trained on, and those held out: whole documents, by their digest.

    A document is held out of all tasks or of none. At least one is when the share is not 0, and at least one is left.
    """
    documents = sorted(
        {example.document_id for of_task in examples.values() for example in of_task},
        key=lambda name: _digest(f"{seed} {name}"),
    )
    chosen = set(documents[: min(max(1, round(share * len(documents))), len(documents) - 1)] if share else [])
    trained, held = (
        {
            task: [example for example in of_task if (example.document_id in chosen) == is_held]
            for task, of_task in examples.items()
        }
        for is_held in (False, True)
    )
    return trained, held


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Pieces:
    """Examples of all tasks, and how each becomes pieces.

    Attributes:
        examples: Examples by task.
        builders: Prompts by task.
        objective: `target` or `lm`.
        maxlen: Most tokens of a piece.
        truncation: Part of the context that is kept, for `target`.
    """

    examples: Mapping[str, Sequence[Example]]
    builders: Mapping[str, PromptBuilder]
    objective: str
    maxlen: int
    truncation: str

    @cached_property
    def items(self) -> list[tuple[str, Example]]:
        """Return all (task, example) pairs, in the order of the sources; for `lm`, one a document."""
        pairs = [(task, example) for task, of_task in self.examples.items() for example in of_task]
        if self.objective != "lm":
            return pairs
        # Queries about one document, and tasks on the same papers, share its text.
        first: dict[str, tuple[str, Example]] = {}
        for task, example in pairs:
            first.setdefault(example.document_id, (task, example))
        return list(first.values())

    def __getitem__(self, index: int) -> tuple[Piece, ...]:
        """Return the pieces of one example.

        Raises:
            UserError: The target does not fit.
        """
        task, example = self.items[index]
        builder = self.builders[task]
        if self.objective == "lm":
            return windows(example.id, builder.document(example.context), self.maxlen)
        return (target_piece(builder, example, self.maxlen, self.truncation),)

    def check_targets(self) -> None:
        """Check that every target fits with its instruction, before weights load.

        Raises:
            UserError: One does not.
        """
        if self.objective == "target":
            for task, example in self.items:
                _check_target(self.builders[task], example, self.maxlen)


def _check_target(builder: PromptBuilder, example: Example, maxlen: int) -> tuple[int, ...]:
    answer = builder.answer(example.references[0])
    fixed = builder.fixed_parts(example.query)
    needed = len(fixed.prefix) + len(fixed.suffix) + len(answer)
    if needed > maxlen:
        raise UserError(
            f"the target of {example.id} does not fit: {len(answer)} tokens and {needed - len(answer)} of instruction "
            f"and template are more than maxlen {maxlen}; raise --maxlen to {needed} or more, or take the example out"
        )
    return answer


def target_piece(builder: PromptBuilder, example: Example, maxlen: int, truncation: str) -> Piece:
    """Return prompt and first reference as one piece; the context gives way to both.

    Raises:
        UserError: They do not fit even with an empty context.
    """
    answer = _check_target(builder, example, maxlen)
    prompt = fit(builder.parts(example), maxlen, len(answer), truncation).token_ids
    return Piece(id=example.id, token_ids=(*prompt, *answer), first_target=len(prompt))


def windows(example_id: str, token_ids: Sequence[int], maxlen: int) -> tuple[Piece, ...]:
    """Return consecutive windows of a document in which each token but the first is predicted once."""
    starts = range(0, max(len(token_ids) - 1, 0), maxlen - 1)
    return tuple(
        Piece(id=example_id, token_ids=tuple(token_ids[start : start + maxlen]), first_target=1) for start in starts
    )


def chosen_rows(pieces: Pieces, limit: int | None, seed: int) -> list[Row]:
    """Return the rows that an evaluation reads, each piece on its own: all, or a choice of all tasks and documents."""
    rows = list(in_order(pieces))
    if limit is None or len(rows) <= limit:
        return rows
    order = sorted(range(len(rows)), key=lambda index: _digest(f"{seed} {index} {rows[index][0].id}"))
    return [rows[index] for index in sorted(order[:limit])]


def in_order(pieces: Pieces) -> Iterator[Row]:
    """Yield each piece as a row of its own, in the order of the sources."""
    for index in range(len(pieces.items)):
        for piece in pieces[index]:
            yield (piece,)


def epoch_rows(pieces: Pieces, seed: int, epoch: int, step_rows: int, *, packing: bool) -> Iterator[Row]:
    """Yield the rows of one pass over the examples, tokenized as they are reached.

    Args:
        pieces: Pieces of all examples.
        seed: Seed of the order.
        epoch: Number of the pass, from 0.
        step_rows: Rows of one optimizer step; without packing they are of like length.
        packing: Put several pieces into one row, as long as they fit.
    """
    chance = random.Random(f"{seed} {epoch}")
    order = list(range(len(pieces.items)))
    chance.shuffle(order)
    found = (piece for index in order for piece in pieces[index])
    if packing:
        yield from _packed(found, pieces.maxlen)
        return
    yield from _grouped(found, step_rows, chance)


def _packed(pieces: Iterator[Piece], maxlen: int) -> Iterator[Row]:
    """Put each piece into the first open row with room; the fullest row makes way for a new one."""
    open_rows: list[list[Piece]] = []
    for piece in pieces:
        row = next((row for row in open_rows if sum(map(len, row)) + len(piece) <= maxlen - 1), None)
        if row is not None:
            row.append(piece)
            continue
        if len(open_rows) == _OPEN_ROWS:
            fullest = max(range(_OPEN_ROWS), key=lambda index: sum(map(len, open_rows[index])))
            yield tuple(open_rows.pop(fullest))
        open_rows.append([piece])
    yield from map(tuple, open_rows)


def _grouped(pieces: Iterator[Piece], step_rows: int, chance: random.Random) -> Iterator[Row]:
    """Sort some rows by length and hand out steps of neighbours, in random order."""
    ended = False
    while not ended:
        some = [(piece,) for _, piece in zip(range(_ROWS_TO_SORT * step_rows), pieces, strict=False)]
        ended = len(some) < _ROWS_TO_SORT * step_rows
        some.sort(key=lambda row: len(row[0]))
        steps = [some[first : first + step_rows] for first in range(0, len(some), step_rows)]
        # A last, smaller group stays last, or it would tear the others apart.
        whole = [step for step in steps if len(step) == step_rows]
        chance.shuffle(whole)
        for step in [*whole, *steps[len(whole) :]]:
            yield from step


def training_steps(pieces: Pieces, seed: int, step_rows: int, *, packing: bool) -> Iterator[list[Row]]:
    """Yield the rows of each optimizer step, without end; a pass goes over into the next within a step."""
    rows: list[Row] = []
    epoch = 0
    while True:
        for row in epoch_rows(pieces, seed, epoch, step_rows, packing=packing):
            rows.append(row)
            if len(rows) == step_rows:
                yield rows
                rows = []
        epoch += 1


def count_rows(pieces: Pieces, seed: int, step_rows: int, *, packing: bool) -> int:
    """Return the rows of the first pass, which tokenizes all examples."""
    return sum(1 for _ in epoch_rows(pieces, seed, 0, step_rows, packing=packing))
