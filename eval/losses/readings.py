"""What is read to measure losses: a document in windows, or references after their prompts; needs no model.

Without a stride, windows follow each other, and most of what a short one loses against a long one it loses at its own
beginning. With a stride they overlap: after the first, the last `stride` tokens of each are scored, so that every token
but the document's first is scored once, with at least `maxlen - stride` tokens before it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from eval.errors import UserError
from eval.prompting.prompts import PromptBuilder, fit
from eval.records.schema import DocumentLoss, Key, PerplexityIdentity
from eval.reporting.perplexity_report import TEMPLATE
from masformer.errors import NumbersError
from tasks import Example

# Where the second bucket of positions begins; each later one is twice as long as the one before.
_FIRST_EDGE = 256


@dataclass(frozen=True, kw_only=True)
class Window:
    """A document to be read in windows of `maxlen` tokens, or references with a prompt in such a window."""

    task: str
    example: Example
    maxlen: int
    template: str = TEMPLATE

    @property
    def key(self) -> Key:
        return self.task, self.template, self.example.id, self.maxlen


@dataclass(frozen=True, kw_only=True)
class Part:
    """Tokens that the model sees together.

    Attributes:
        scored: The first of them whose loss counts.
        place: Where the loss of that one stands among those of the whole reading.
        where: What they are, for errors.
    """

    token_ids: Sequence[int]
    scored: int
    place: int
    where: str

    @property
    def is_scored(self) -> bool:
        return len(self.token_ids) > self.scored


@dataclass(frozen=True, kw_only=True)
class Reading:
    """All that is read for one line of the journal.

    Attributes:
        key: Key of the line.
        where: What is read, for errors.
        parts: What the model sees, each on its own.
        num_tokens: Tokens that may have a loss.
        num_dropped: Tokens that are not read.
    """

    key: Key
    where: str
    parts: Sequence[Part]
    num_tokens: int
    num_dropped: int

    @property
    def maxlen(self) -> int:
        return self.key[-1]


def read_document(window: Window, builder: PromptBuilder, record: PerplexityIdentity) -> Reading:
    """Return the windows of a document; `record` says how many of its tokens are read, and how."""
    whole, maxlen = builder.document(window.example.context), window.maxlen
    token_ids = whole[: record.tokens]
    where = f"document '{window.example.id}' of task '{window.task}'"
    parts = [
        Part(
            token_ids=token_ids[first : first + maxlen],
            scored=scored,
            place=first + scored,
            where=f"{where}, tokens {first} to {min(first + maxlen, len(token_ids)) - 1}",
        )
        for first, scored in windows_of(len(token_ids), maxlen, record.stride)
    ]
    return Reading(
        key=window.key,
        where=where,
        parts=parts,
        num_tokens=len(token_ids),
        num_dropped=len(whole) - len(token_ids),
    )


def read_references(window: Window, builder: PromptBuilder) -> Reading:
    """Return each reference of an example after the prompt that leaves room for it, as a run cuts it by default."""
    whole = builder.parts(window.example)
    parts: list[Part] = []
    place = most_dropped = 0
    for number, reference in enumerate(dict.fromkeys(window.example.references), start=1):
        answer = builder.answer(reference)
        prompt = fit(whole, window.maxlen, len(answer), "head")
        where = f"reference {number} of '{window.example.id}' of task '{window.task}'"
        ids = (*prompt.token_ids, *answer)
        parts.append(Part(token_ids=ids, scored=len(prompt.token_ids), place=place, where=where))
        place += len(answer)
        most_dropped = max(most_dropped, prompt.num_context_dropped)
    where = f"references of '{window.example.id}' of task '{window.task}'"
    return Reading(key=window.key, where=where, parts=parts, num_tokens=place, num_dropped=most_dropped)


def check_references(task: str, examples: Sequence[Example], builder: PromptBuilder, maxlen: int) -> None:
    """Raise `UserError` for a reference that does not fit with its prompt, even without a context."""
    for one in examples:
        fixed = builder.fixed_parts(one.query)
        needed = len(fixed.prefix) + len(fixed.suffix) + max(len(builder.answer(text)) for text in one.references)
        if needed > maxlen:
            raise UserError(
                f"maxlen {maxlen} is too small: a reference of '{one.id}' of task '{task}' and its prompt need "
                f"{needed} tokens even with an empty context; raise --maxlen"
            )


def windows_of(num_tokens: int, maxlen: int, stride: int | None) -> Iterator[tuple[int, int]]:
    """Yield the first token of each window of a document, and the first token within it that is scored."""
    if stride is None:
        yield from ((first, 1) for first in range(0, num_tokens, maxlen))
        return
    first, end = 0, 1
    while end < num_tokens:
        yield first, end - first
        end = min(first + maxlen, num_tokens)
        first += stride


def buckets_of(maxlen: int) -> list[tuple[int, int]]:
    """Return [start, stop) ranges of positions: 0 to 255, to 511, to 1,023, each as long as all before it."""
    edges = [0, _FIRST_EDGE]
    while edges[-1] < maxlen:
        edges.append(2 * edges[-1])
    return [(start, min(stop, maxlen)) for start, stop in pairwise(edges) if start < maxlen]


@dataclass(kw_only=True)
class Tally:
    """The losses of a reading, as its parts come in."""

    reading: Reading
    _sums: dict[tuple[int, int], list[float]] = field(default_factory=lambda: defaultdict(lambda: [0.0, 0]))
    _by_token: dict[int, float] = field(default_factory=dict)

    def add(self, part: Part, losses: Any, total: Callable[[Any], float]) -> None:
        """Add the losses of a part.

        Args:
            part: One of the reading's.
            losses: (T - scored,) negative log likelihoods in nats.
            total: Returns the sum of some of them, without loss of precision.
        """
        for start, stop in buckets_of(self.reading.maxlen):
            # The token at index i is predicted from i tokens before it.
            of_bucket = losses[max(start - part.scored, 0) : max(stop - part.scored, 0)]
            if len(of_bucket):
                self._sums[start, stop][0] += total(of_bucket)
                self._sums[start, stop][1] += len(of_bucket)
        values = losses if isinstance(losses, list) else losses.tolist()
        self._by_token |= {part.place + index: round(loss, 5) for index, loss in enumerate(values)}

    def line(self, record: PerplexityIdentity, **costs: Any) -> DocumentLoss:
        """Return the line of the journal.

        Args:
            record: How it was read.
            costs: Fields of costs.

        Raises:
            NumbersError: The perplexity is infinite.
        """
        task, template, example_id, maxlen = self.reading.key
        total, count = (sum(one[place] for one in self._sums.values()) for place in (0, 1))
        if count and not total / count < 700:  # or its exponential, which is what is reported, is infinite
            raise NumbersError(f"perplexities on {self.reading.where}, at length {maxlen}", record.dtype)
        by_token = [self._by_token.get(place) for place in range(self.reading.num_tokens)]
        return DocumentLoss(
            task=task,
            template=template,
            id=example_id,
            maxlen=maxlen,
            num_tokens=int(count),
            num_tokens_dropped=self.reading.num_dropped,
            negative_log_likelihood=total,
            buckets=[(*edges, loss, int(count)) for edges, (loss, count) in self._sums.items()],
            token_losses=by_token if record.token_losses else None,
            **costs,
        )
