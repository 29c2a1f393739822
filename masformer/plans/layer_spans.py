"""What the queries of one layer see: `LayerSpan` where its heads see alike, `HeadSpans` where they do not.

Source: `masformer.plans.spans` names the papers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

# The cache keeps a place for each from the first token on.
MAX_SINKS = 65_536
# A layer, and one of its key/value heads; None is the whole layer.
Item = tuple[int, int | None]


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
class HeadSpans:
    """What the key/value heads of one layer see, each on its own; query heads follow the one that they share.

    Attributes:
        heads: One span a key/value head; not all of them alike (`layer_of_heads`).

    Raises:
        PlanError: All heads see the same.
    """

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
        runs: dict[LayerSpan, list[tuple[int, int]]] = {}
        for head, span in enumerate(self.heads):
            own = runs.setdefault(span, [])
            if own and own[-1][1] == head:
                own[-1] = (own[-1][0], head + 1)
            else:
                own.append((head, head + 1))
        return {span: tuple(own) for span, own in runs.items()}

    def __str__(self) -> str:
        named = {span: [(head, None) for run in runs for head in range(*run)] for span, runs in self.groups.items()}
        return ", ".join(f"head{'s' * (len(heads) > 1)} {ranges_of(heads)} {span}" for span, heads in named.items())

    def to_json(self) -> dict[str, list[dict[str, int]]]:
        """Return the JSON form: under `heads`, one object a head."""
        return {"heads": [span.to_json() for span in self.heads]}


def layer_of_heads(heads: Sequence[LayerSpan]) -> LayerSpan | HeadSpans:
    """Return what a layer sees whose key/value heads see these: one `LayerSpan` where all see the same."""
    return heads[0] if len(set(heads)) == 1 else HeadSpans(tuple(heads))


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
