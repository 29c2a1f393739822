"""Which layer sees how far: `LayerSpan` for one layer, `SpanPlan` for a model.

A plan is data. It has a text form that a person can type,

    full                                     every layer sees everything
    local span=512 sinks=4                   no layer does
    middle:8 span=1024 sinks=4               8 full layers in the middle, the others local
    full@17,18,20,23 span=512 sinks=4        full layers named one by one (ranges too: 0-3,7)
    bottom:8 block=512 previous=1            block-sparse instead of a sliding window
    full@0; span=512@1-9; block=64@10,11     any mixture: clauses that name their layers

and a JSON form (`SpanPlan.to_json`) that is stored in a checkpoint's `config.json`. Numbers left out take their
defaults: a span of 1,024, 4 sinks, 1 previous block.

Source: the two sparse patterns and the bottom placement are those of MASFormer, arXiv 2310.12442, section 3; attention
sinks are those of StreamingLLM, arXiv 2309.17453, section 3.2.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

DEFAULT_SPAN = 1024
DEFAULT_SINKS = 4
DEFAULT_PREVIOUS = 1
# The cache keeps a place for each from the first token on.
MAX_SINKS = 65_536
_PLACEMENTS = "local, bottom:N, middle:N, top:N, every:N, full@LAYERS"


class PlanError(ValueError):
    """A span plan that cannot be read or does not fit the model."""


@dataclass(frozen=True, kw_only=True)
class LayerSpan:
    """What a query of one layer sees. Without `span` and `block`: every earlier key (full attention).

    Attributes:
        span: Sliding window: the number of keys seen, including the query's own position.
        block: Block-sparse attention: the block size. A query sees its own block up to itself and `previous` blocks
            before it.
        previous: Number of blocks before the query's own that stay visible.
        sinks: The first `sinks` keys of the sequence stay visible whatever the distance.

    Raises:
        PlanError: A number is out of range, or `span` and `block` are both given.
    """

    span: int | None = None
    block: int | None = None
    previous: int = 0
    sinks: int = 0

    def __post_init__(self) -> None:
        for name in ("span", "block", "previous", "sinks"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
                raise PlanError(f"{name}={value!r} is not a whole number")
        if self.span is not None and self.block is not None:
            raise PlanError(f"span={self.span} and block={self.block} exclude each other; keep one of them")
        for name, least in (("span", 1), ("block", 1), ("previous", 0), ("sinks", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise PlanError(f"{name}={value} must be at least {least}")
        if self.sinks > MAX_SINKS:
            raise PlanError(f"sinks={self.sinks} must be at most {MAX_SINKS}; for that many give a span")
        if self.previous and self.block is None:
            raise PlanError(f"previous={self.previous} needs block=N")
        if self.sinks and self.is_full:
            raise PlanError(f"sinks={self.sinks} without a span or a block changes nothing; leave it out")

    @property
    def is_full(self) -> bool:
        return self.span is None and self.block is None

    @property
    def num_recent(self) -> int | None:
        """Return the most trailing keys (own position included) a query can see; None when there is no limit."""
        if self.block is not None:
            return (self.previous + 1) * self.block
        return self.span

    def __str__(self) -> str:
        if self.is_full:
            return "full"
        if self.block is not None:
            return f"block={self.block} previous={self.previous} sinks={self.sinks}"
        return f"span={self.span} sinks={self.sinks}"

    def to_json(self) -> dict[str, int]:
        """Return the attributes that are set, by name; an empty dict is full attention."""
        return {
            name: value
            for name in ("span", "block", "previous", "sinks")
            if (value := getattr(self, name)) is not None and value != 0
        }


FULL = LayerSpan()


@dataclass(frozen=True)
class SpanPlan:
    """One `LayerSpan` a layer, the first layer first."""

    layers: tuple[LayerSpan, ...]

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, layer: int) -> LayerSpan:
        return self.layers[layer]

    def __iter__(self) -> Iterator[LayerSpan]:
        return iter(self.layers)

    @property
    def is_full(self) -> bool:
        return all(layer.is_full for layer in self.layers)

    @classmethod
    def full(cls, num_layers: int) -> SpanPlan:
        """Return the plan in which every layer sees everything."""
        return cls((FULL,) * num_layers)

    @classmethod
    def parse(cls, text: str, num_layers: int) -> SpanPlan:
        """Return the plan that the text form describes (see the module's docstring).

        Raises:
            PlanError: The text is malformed, naming the character, or names a layer that the model lacks.
        """
        return _Parser(text, num_layers).plan()

    @classmethod
    def from_json(cls, layers: Sequence[Mapping[str, Any]]) -> SpanPlan:
        """Return the plan from what `to_json` wrote.

        Raises:
            PlanError: Not a list of settings.
        """
        if not isinstance(layers, Sequence) or isinstance(layers, str) or not layers:
            raise PlanError(f"a stored plan is a list with one object a layer, got {layers!r}")
        spans = []
        for index, layer in enumerate(layers):
            if not isinstance(layer, Mapping):
                raise PlanError(f"layer {index} of the stored plan is {layer!r}; an object was expected")
            unknown = sorted(set(layer) - {"span", "block", "previous", "sinks"})
            if unknown:
                raise PlanError(f"layer {index} of the stored plan has unknown settings {', '.join(unknown)}")
            try:
                spans.append(LayerSpan(**layer))
            except PlanError as error:
                raise PlanError(f"layer {index} of the stored plan: {error}") from None
        return cls(tuple(spans))

    def to_json(self) -> list[dict[str, int]]:
        """Return the JSON form: one object a layer."""
        return [layer.to_json() for layer in self.layers]

    def __str__(self) -> str:
        """Return the canonical text form; `parse` of it gives this plan again."""
        kinds: dict[LayerSpan, list[int]] = {}
        for index, layer in enumerate(self.layers):
            kinds.setdefault(layer, []).append(index)
        full_layers = kinds.pop(FULL, [])
        if not kinds:
            return "full"
        if len(kinds) == 1:
            head = f"full@{_ranges(full_layers)}" if full_layers else "local"
            return f"{head} {next(iter(kinds))}"
        clauses = [f"full@{_ranges(full_layers)}"] if full_layers else []
        return "; ".join(clauses + [f"{layer}@{_ranges(indices)}" for layer, indices in kinds.items()])

    def check_fits(self, num_layers: int, model: str) -> None:
        """Check the length.

        Raises:
            PlanError: The model has another number of layers.
        """
        if len(self) != num_layers:
            raise PlanError(f"span plan has {len(self)} layers, {model} has {num_layers}; give one entry a layer")


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[0-9]{1,9}", text) is not None


def _ranges(indices: Sequence[int]) -> str:
    """Return `0-3,7` for [0, 1, 2, 3, 7]; a run of two stays a pair."""
    parts: list[str] = []
    start = 0
    for stop in range(1, len(indices) + 1):
        if stop == len(indices) or indices[stop] != indices[stop - 1] + 1:
            run = indices[start:stop]
            parts.append(f"{run[0]}-{run[-1]}" if len(run) > 2 else ",".join(map(str, run)))
            start = stop
    return ",".join(parts)


class _Parser:
    """Reads one text form. Every error names the character at which it stopped."""

    def __init__(self, text: str, num_layers: int) -> None:
        self.text = text
        self.num_layers = num_layers

    def fail(self, at: int, what: str) -> NoReturn:
        raise PlanError(f"plan '{self.text}', character {at + 1}: {what}")

    def plan(self) -> SpanPlan:
        if not self.text.strip():
            self.fail(0, "the plan is empty; write 'full', or for example 'middle:8 span=1024 sinks=4'")
        clauses = [(match.start(), match.group()) for match in re.finditer(r"[^;]+", self.text)]
        if len(clauses) == 1:
            return self._placed(clauses[0])
        return self._mixture(clauses)

    def _placed(self, clause: tuple[int, str]) -> SpanPlan:
        """A placement of the full layers, then the numbers of all others."""
        words = self._words(clause)
        at, head = words[0]
        if head.partition("=")[0] in ("span", "block", "previous", "sinks"):
            if "@" in self.text:
                return self._mixture([clause])
            self.fail(
                at, f"'{head}' needs a placement before it: local, bottom:N, middle:N, top:N, every:N, full@LAYERS"
            )
        full_layers = self._placement(at, head)
        if len(full_layers) == self.num_layers:
            if len(words) > 1:
                self.fail(words[1][0], f"'{words[1][1]}' has no layer to apply to, every layer is full")
            return SpanPlan.full(self.num_layers)
        local = self._numbers(words[1:])
        return SpanPlan(tuple(FULL if i in full_layers else local for i in range(self.num_layers)))

    def _placement(self, at: int, word: str) -> set[int]:
        count = self.num_layers
        if word == "full":
            return set(range(count))
        if word == "local":
            return set()
        if word.startswith("full@"):
            return set(self._layers(at + 5, word[5:]))
        name, colon, number = word.partition(":")
        if name not in ("bottom", "middle", "top", "every"):
            self.fail(
                at, f"'{word}' is no placement; known: full, local, bottom:N, middle:N, top:N, every:N, full@LAYERS"
            )
        if not colon or not _is_number(number) or int(number) < 1:
            self.fail(at + len(name) + len(colon), f"{name} needs a positive number, as in '{name}:8'")
        n = int(number)
        if n > count:
            self.fail(at + len(name) + 1, f"{n} layers asked for, the model has {count}")
        if name == "bottom":
            return set(range(n))
        if name == "top":
            return set(range(count - n, count))
        if name == "middle":
            start = (count - n) // 2
            return set(range(start, start + n))
        # The last layer of each group of n, as Gemma 3 places its full layers.
        return set(range(n - 1, count, n))

    def _mixture(self, clauses: list[tuple[int, str]]) -> SpanPlan:
        """Clauses that each name their layers and together name every layer once."""
        spans: dict[int, LayerSpan] = {}
        for clause in clauses:
            start, text = clause
            at_sign = text.find("@")
            if at_sign < 0:
                self.fail(start, f"'{text.strip()}' names no layers; in a plan with ';' every clause ends in @LAYERS")
            words = self._words((start, text[:at_sign]))
            if words[0][1] == "full":
                if len(words) > 1:
                    self.fail(words[1][0], f"'{words[1][1]}' does not go with 'full'")
                span = FULL
            else:
                span = self._numbers(words)
            for layer in self._layers(start + at_sign + 1, text[at_sign + 1 :].rstrip()):
                if layer in spans:
                    self.fail(start + at_sign + 1, f"layer {layer} is named twice")
                spans[layer] = span
        missing = [layer for layer in range(self.num_layers) if layer not in spans]
        if missing:
            self.fail(len(self.text), f"no clause names layers {_ranges(missing)}")
        return SpanPlan(tuple(spans[layer] for layer in range(self.num_layers)))

    def _words(self, clause: tuple[int, str]) -> list[tuple[int, str]]:
        start, text = clause
        words = [(start + match.start(), match.group()) for match in re.finditer(r"\S+", text)]
        if not words:
            self.fail(start, "a setting is missing here")
        return words

    def _layers(self, at: int, text: str) -> list[int]:
        layers: list[int] = []
        for part in text.split(","):
            match = re.fullmatch(r"([0-9]{1,9})(?:-([0-9]{1,9}))?", part)
            if match is None:
                self.fail(at, f"'{part}' is no layer; write numbers and ranges, as in '0-3,7'")
            first, last = int(match[1]), int(match[2] or match[1])
            if last < first:
                self.fail(at, f"'{part}' runs backwards")
            if last >= self.num_layers:
                self.fail(at, f"layer {last} does not exist, the model has layers 0 to {self.num_layers - 1}")
            layers.extend(range(first, last + 1))
            at += len(part) + 1
        return layers

    def _numbers(self, words: list[tuple[int, str]]) -> LayerSpan:
        numbers: dict[str, int] = {}
        places: dict[str, int] = {}
        for at, word in words:
            name, equals, value = word.partition("=")
            if not equals or name not in ("span", "block", "previous", "sinks"):
                self.fail(at, f"'{word}' is no setting; known: span=N, block=N, previous=N, sinks=N")
            if name in numbers:
                self.fail(at, f"{name} is given twice")
            if not _is_number(value):
                self.fail(at + len(name) + 1, f"{name} needs a whole number of at most 9 digits, got '{value[:20]}'")
            numbers[name], places[name] = int(value), at
        if "block" in numbers:
            numbers.setdefault("previous", DEFAULT_PREVIOUS)
        else:
            numbers.setdefault("span", DEFAULT_SPAN)
        numbers.setdefault("sinks", DEFAULT_SINKS)
        try:
            return LayerSpan(**numbers)
        except PlanError as error:
            self.fail(min(places.values(), default=0), str(error))
