"""What the queries of one layer see: a `LayerSpan` where its heads see alike, `HeadSpans` where they do not.

A new pattern is a class here and an entry of `PATTERNS`: numbers, the rule `sees`, and, where the rule allows it, which
keys a cache may drop. Its text form, JSON form, attention, cache and cost follow from these. Until `attention/tiles.py`
knows it, attention builds masks from `sees`; until it has a closed form, its pairs are counted.

Source: `masformer.plans.spans` names the papers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar

from masformer.errors import OneLineError

if TYPE_CHECKING:
    from torch import Tensor

# The cache keeps a place for each from the first token on.
MAX_SINKS = 65_536
# What the text form can write; positions stay far from overflow.
MAX_NUMBER = 999_999_999
# A layer, and one of its key/value heads; None is the whole layer.
Item = tuple[int, int | None]
# Queries whose pairs are counted at once.
_COUNTED_ROWS = 1024


class PlanError(OneLineError):
    """A span plan that cannot be read or does not fit the model."""


def _defaults_of(kind: type[LayerSpan]) -> dict[str, int | None]:
    """Return the default of each number of a pattern; None where there is none."""
    return {number.name: None if number.default is MISSING else number.default for number in fields(kind)}  # type: ignore[arg-type]


class LayerSpan:
    """What a query of one layer sees; its numbers choose the pattern.

        LayerSpan()                          Full
        LayerSpan(span=512, sinks=4)         Window
        LayerSpan(block=64, previous=1)      Blocks

    A number without a default is at least 1, any other at least 0. A pattern without such a number reads as None or 0.

    Raises:
        PlanError: A number is out of range, or does not go with the others.
    """

    span: int | None = None
    block: int | None = None
    previous: int = 0
    # The first `sinks` keys of the sequence stay visible whatever the distance.
    sinks: int = 0
    # What the text form takes for numbers left out.
    typed: ClassVar[Mapping[str, int]] = {}
    # A cache that keeps the sinks and `num_recent` keys holds nothing that the newest query does not see.
    keeps_only_seen: ClassVar[bool] = False

    def __new__(cls, **numbers: int | None) -> LayerSpan:
        return object.__new__(_pattern_of(numbers) if cls is LayerSpan else cls)

    def __init__(self, **numbers: int | None) -> None:
        defaults = _defaults_of(type(self))
        for name, default in defaults.items():
            value, least = numbers.get(name, default), 1 if default is None else 0
            if not isinstance(value, int) or isinstance(value, bool):
                raise PlanError(f"{name}={value!r} is not a whole number")
            if value < least:
                raise PlanError(f"{name}={value} must be at least {least}")
            if value > MAX_NUMBER:
                raise PlanError(f"{name} must be at most {MAX_NUMBER}; leave it out for full attention")
            object.__setattr__(self, name, value)
        for name in numbers.keys() - defaults.keys():
            if (value := numbers[name]) or isinstance(value, bool):
                keys = [f"{key}=N" for key, kind in PATTERNS.items() if name in _defaults_of(kind)]
                raise PlanError(f"{name}={value} needs {' or '.join(keys) or 'another pattern'}, else leave it out")
        if self.sinks > MAX_SINKS:
            raise PlanError(f"sinks={self.sinks} must be at most {MAX_SINKS}; for that many give a span")

    def sees(self, query: Tensor, key: Tensor) -> Tensor:
        """Return bools, True where a query at a position sees a key at another that is not later; broadcast."""
        raise NotImplementedError

    @property
    def is_full(self) -> bool:
        return False

    @property
    def num_recent(self) -> int | None:
        """Return the most trailing keys (own position included) a query can see; None when there is no limit."""
        return None

    @property
    def num_causal(self) -> int | None:
        """Return how many of the first queries see everything before them; None when all do."""
        return 0

    def num_kept(self, num_tokens: int) -> int:
        """Return the number of keys that a cache keeps after so many tokens."""
        return num_tokens if self.num_recent is None else min(num_tokens, self.sinks + self.num_recent)

    def num_pairs(self, num_tokens: int) -> int:
        """Return the number of (query, key) pairs that `num_tokens` tokens see in one head."""
        # Counted for a length of few, because costs are wanted at many.
        return int(_counted_pairs(self, max(_COUNTED_ROWS, 1 << num_tokens.bit_length()))[num_tokens])

    def __str__(self) -> str:
        return " ".join(f"{name}={value}" for name, value in vars(self).items())

    def to_json(self) -> dict[str, int]:
        """Return the numbers that are set, by name; an empty dict is full attention."""
        return {name: value for name, value in vars(self).items() if value}


@dataclass(frozen=True, init=False)
class Full(LayerSpan):
    """A query sees every earlier key."""

    keeps_only_seen = True

    def sees(self, query: Tensor, key: Tensor) -> Tensor:
        return key <= query

    @property
    def is_full(self) -> bool:
        return True

    @property
    def num_causal(self) -> int | None:
        return None

    def num_pairs(self, num_tokens: int) -> int:
        return _triangle(num_tokens)

    def __str__(self) -> str:
        return "full"


@dataclass(frozen=True, init=False)
class Window(LayerSpan):
    """A query sees its last `span` keys, its own included, and the sinks."""

    span: int = field()
    sinks: int = 0
    typed: ClassVar = {"span": 1024, "sinks": 4}
    keeps_only_seen = True

    def sees(self, query: Tensor, key: Tensor) -> Tensor:
        return (query - key < self.span) | (key < self.sinks)

    @property
    def num_recent(self) -> int | None:
        return self.span

    @property
    def num_causal(self) -> int | None:
        return self.span + self.sinks

    def num_pairs(self, num_tokens: int) -> int:
        beyond = max(num_tokens - self.span, 0)
        pairs = _triangle(num_tokens - beyond) + beyond * self.span
        return pairs + _triangle(min(self.sinks, beyond)) + max(beyond - self.sinks, 0) * self.sinks


@dataclass(frozen=True, init=False)
class Blocks(LayerSpan):
    """A query sees its own block of `block` keys up to itself, `previous` blocks before it, and the sinks."""

    block: int = field()
    previous: int = 0
    sinks: int = 0
    typed: ClassVar = {"previous": 1, "sinks": 4}

    def sees(self, query: Tensor, key: Tensor) -> Tensor:
        return (key // self.block >= query // self.block - self.previous) | (key < self.sinks)

    @property
    def num_recent(self) -> int | None:
        return (self.previous + 1) * self.block

    @property
    def num_causal(self) -> int | None:
        return (self.sinks // self.block + self.previous + 1) * self.block

    def num_pairs(self, num_tokens: int) -> int:
        pairs = 0
        for start in range(0, num_tokens, self.block):
            queries = min(self.block, num_tokens - start)
            first = max(start - self.previous * self.block, 0)
            # Sinks are extra once the visible blocks have left them behind.
            pairs += _triangle(queries) + queries * (start - first + min(first, self.sinks))
        return pairs


@dataclass(frozen=True, init=False)
class NoAttention(LayerSpan):
    """The layer has no queries: it carries states from token to token, or works on each token alone."""

    keeps_only_seen = True

    def sees(self, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & False

    @property
    def num_recent(self) -> int | None:
        return 0

    def num_pairs(self, num_tokens: int) -> int:
        return 0

    def __str__(self) -> str:
        return "none"

    def to_json(self) -> dict[str, int]:
        return {"attention": 0}


# The number that names a pattern -> its class.
PATTERNS: dict[str, type[LayerSpan]] = {"span": Window, "block": Blocks}
FULL: LayerSpan = Full()
NO_ATTENTION: LayerSpan = NoAttention()


def number_names() -> list[str]:
    """Return the names of all numbers, those that name a pattern first."""
    return list(dict.fromkeys([*PATTERNS, *(name for kind in PATTERNS.values() for name in _defaults_of(kind))]))


def _pattern_of(numbers: Mapping[str, int | None]) -> type[LayerSpan]:
    keys = [key for key in PATTERNS if numbers.get(key) is not None]
    if len(keys) > 1:
        given = " and ".join(f"{key}={numbers[key]}" for key in keys)
        raise PlanError(f"{given} exclude each other; keep one of them")
    return PATTERNS[keys[0]] if keys else Full


@lru_cache(maxsize=16)
def _counted_pairs(span: LayerSpan, most_tokens: int) -> Tensor:
    """Return (most_tokens + 1,) how many pairs the first tokens see, from none of them to all."""
    import torch  # here alone: plans are read and checked without it

    positions, counts = torch.arange(most_tokens), torch.zeros(most_tokens + 1, dtype=torch.long)
    for first in range(0, most_tokens, _COUNTED_ROWS):
        query, key = positions[first : first + _COUNTED_ROWS, None], positions[: first + _COUNTED_ROWS]
        counts[first + 1 : first + 1 + len(query)] = (span.sees(query, key) & (key <= query)).sum(dim=1)
    return counts.cumsum(0)


def _triangle(n: int) -> int:
    return n * (n + 1) // 2


@dataclass(frozen=True)
class HeadSpans:
    """What each key/value head of one layer sees, not all alike; query heads follow the one that they share."""

    heads: tuple[LayerSpan, ...]

    def __post_init__(self) -> None:
        if len(set(self.heads)) < 2:
            what = f"all {len(self.heads)} heads have '{self.heads[0]}'" if self.heads else "there are no heads"
            raise PlanError(f"spans of heads differ, but {what}; give the layer one LayerSpan")

    @property
    def is_full(self) -> bool:
        return False

    @cached_property
    def groups(self) -> dict[LayerSpan, tuple[tuple[int, int], ...]]:
        """Return the heads of each span, as runs [first, stop) of heads that stand side by side."""
        heads: dict[LayerSpan, list[int]] = {}
        for head, span in enumerate(self.heads):
            heads.setdefault(span, []).append(head)
        return {span: tuple(stretches(own)) for span, own in heads.items()}

    def __str__(self) -> str:
        named = {span: [(head, None) for run in runs for head in range(*run)] for span, runs in self.groups.items()}
        return ", ".join(f"head{'s' * (len(heads) > 1)} {ranges_of(heads)} {span}" for span, heads in named.items())

    def to_json(self) -> dict[str, list[dict[str, int]]]:
        """Return the JSON form: under `heads`, one object a head."""
        return {"heads": [span.to_json() for span in self.heads]}


def layer_of_heads(heads: Sequence[LayerSpan]) -> LayerSpan | HeadSpans:
    """Return what a layer sees whose key/value heads see these: one `LayerSpan` where all see the same."""
    return heads[0] if len(set(heads)) == 1 else HeadSpans(tuple(heads))


def stretches(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """Return [first, stop) of each stretch of consecutive numbers."""
    starts = [0, *(at for at, (a, b) in enumerate(pairwise(numbers), start=1) if b != a + 1), len(numbers)]
    return [(numbers[a], numbers[b - 1] + 1) for a, b in pairwise(starts) if a < b]


def resized(span: LayerSpan | HeadSpans, size: int) -> LayerSpan | HeadSpans:
    """Return a window or a chunk of another size, without sinks and blocks before it; full attention as it is."""
    if span.is_full:
        return span
    return LayerSpan(span=size) if isinstance(span, Window) else LayerSpan(block=size, previous=0)


def ranges_of(items: Sequence[Item]) -> str:
    """Return `0-3,7,8.1` for layers 0 to 3, layer 7, and head 1 of layer 8; a run of two layers stays a pair."""
    parts: list[str] = []
    start = 0
    for stop in range(1, len(items) + 1):
        (before, head), after = items[stop - 1], items[stop] if stop < len(items) else None
        if head is None and after == (before + 1, None):
            continue
        run = [str(layer) if head is None else f"{layer}.{head}" for layer, head in items[start:stop]]
        parts.append(f"{run[0]}-{run[-1]}" if len(run) > 2 else ",".join(run))
        start = stop
    return ",".join(parts)
