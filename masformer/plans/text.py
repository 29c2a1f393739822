"""The text form of a plan, read and written; `masformer.plans.spans` describes it."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import NoReturn

from masformer.plans.layer_spans import (
    FULL,
    NO_ATTENTION,
    PATTERNS,
    HeadSpans,
    Item,
    LayerSpan,
    PlanError,
    Window,
    layer_of_heads,
    number_names,
    ranges_of,
)

_NO_LAYER = "no layer has attention that could have a span"
_NUMBER = re.compile(r"[0-9]{1,9}")


def text_of(layers: Sequence[LayerSpan | HeadSpans]) -> str:
    """Return the canonical text form."""
    kinds: dict[LayerSpan, list[Item]] = {}
    for index, layer in enumerate(layers):
        if isinstance(layer, HeadSpans):
            for head, span in enumerate(layer.heads):
                kinds.setdefault(span, []).append((index, head))
        else:
            kinds.setdefault(layer, []).append((index, None))
    full_layers, without = kinds.pop(FULL, []), kinds.pop(NO_ATTENTION, [])
    if not kinds:
        clauses = ["full"] if full_layers else []
    elif len(kinds) == 1:
        start = f"full@{ranges_of(full_layers)}" if full_layers else "local"
        clauses = [f"{start} {next(iter(kinds))}"]
    else:
        clauses = [f"full@{ranges_of(full_layers)}"] if full_layers else []
        clauses += [f"{layer}@{ranges_of(items)}" for layer, items in kinds.items()]
    if without:
        clauses.append(f"{NO_ATTENTION}@{ranges_of(without)}")
    return "; ".join(clauses)


def check_form(text: str) -> None:
    """Raise `PlanError` for a text that is a plan of no model; layers and heads of a model are not looked at."""
    PlanParser(text, None, None, None).layers()


class PlanParser:
    """Reads one text form. Every error names the character at which it stopped.

    Without the number of layers, only the form is checked, and there are no layers.
    """

    def __init__(
        self, text: str, num_layers: int | None, num_heads: int | None, without: Collection[int] | None
    ) -> None:
        self.text = text
        self.is_form, self.num_layers = num_layers is None, num_layers or 0
        self.num_heads = num_heads
        self.without = without
        self.attending = [layer for layer in range(self.num_layers) if layer not in (without or ())]

    def fail(self, at: int, what: str) -> NoReturn:
        raise PlanError(f"plan '{self.text}', character {at + 1}: {what}")

    def _check_full(self, words: Sequence[tuple[int, str]]) -> None:
        if len(words) > 1:
            self.fail(words[1][0], f"'{words[1][1]}' has no layer to apply to, every layer is full")

    def layers(self) -> list[LayerSpan | HeadSpans]:
        clauses, named = self._clauses()
        if named:
            self._note_without(named)
        if not clauses or not (self.attending or self.is_form):
            self.fail(0, _NO_LAYER)
        if len(clauses) == 1:
            return self._placed(clauses[0])
        return self._mixture(clauses)

    def _clauses(self) -> tuple[list[tuple[int, str]], list[tuple[int, str]]]:
        """Return the clauses, each with its place, and apart those that name layers without attention."""
        if not self.text.strip():
            self.fail(0, "the plan is empty; write 'full', or for example 'middle:8 span=1024 sinks=4'")
        clauses = [(match.start(), match.group()) for match in re.finditer(r"[^;]+", self.text)]
        named = [clause for clause in clauses if clause[1].lstrip().startswith(f"{NO_ATTENTION}@")]
        return [clause for clause in clauses if clause not in named], named

    def _note_without(self, clauses: list[tuple[int, str]]) -> None:
        """Take the layers without attention from the clauses that name them."""
        at, text = clauses[0]
        at += text.index("@") + 1
        if len(clauses) > 1:
            self.fail(clauses[1][0], f"'{NO_ATTENTION}' is given twice")
        known, self.attending = self.without, list(range(self.num_layers))
        named = {layer for layer, _ in self._items(at, text[text.index("@") + 1 :].rstrip())}
        if known is not None and named != set(known):
            has = (
                f"those of the model are {ranges_of([(layer, None) for layer in sorted(known)])}"
                if known
                else "all have"
            )
            self.fail(at, f"these are not the layers without attention: {has}; leave the clause out")
        self.without = named
        self.attending = [layer for layer in range(self.num_layers) if layer not in named]

    def _placed(self, clause: tuple[int, str]) -> list[LayerSpan | HeadSpans]:
        """A placement of the full layers, then the numbers of all others."""
        words = self._words(clause)
        at, head = words[0]
        if self._begins_with_number(words):
            return self._mixture([clause])
        if head.startswith("full@"):
            full = {cell for item in self._items(at + 5, head[5:]) for cell in self._cells(item)}
        else:
            full = {cell for layer in self._placement(at, head) for cell in self._cells((layer, None))}
        every = [cell for layer in self.attending for cell in self._cells((layer, None))]
        if head == "full" or (every and len(full) == len(every)):
            self._check_full(words)
            return self._layers_of(dict.fromkeys(every, FULL))
        local = self._numbers(words[1:])
        return self._layers_of({cell: FULL if cell in full else local for cell in every})

    def _begins_with_number(self, words: list[tuple[int, str]]) -> bool:
        """Return whether a clause that stands alone is one of a mixture, `span=512@0-3`."""
        at, head = words[0]
        if head.partition("=")[0] not in number_names():
            return False
        if "@" not in self.text:
            self.fail(
                at, f"'{head}' needs a placement before it: local, bottom:N, middle:N, top:N, every:N, full@LAYERS"
            )
        return True

    def _cells(self, item: Item) -> list[tuple[int, int]]:
        """Return the heads that an item names, one a layer where their number is not known."""
        layer, head = item
        return [(layer, head)] if head is not None else [(layer, each) for each in range(self.num_heads or 1)]

    def _layers_of(self, spans: Mapping[tuple[int, int], LayerSpan]) -> list[LayerSpan | HeadSpans]:
        layers: list[LayerSpan | HeadSpans] = [NO_ATTENTION] * self.num_layers
        for layer in self.attending:
            layers[layer] = layer_of_heads([spans[cell] for cell in self._cells((layer, None))])
        return layers

    def _placement(self, at: int, word: str) -> set[int]:
        count = len(self.attending)
        if word == "full":
            return set(self.attending)
        if word == "local":
            return set()
        name, colon, number = word.partition(":")
        if name not in ("bottom", "middle", "top", "every"):
            self.fail(
                at, f"'{word}' is no placement; known: full, local, bottom:N, middle:N, top:N, every:N, full@LAYERS"
            )
        if not colon or not _NUMBER.fullmatch(number) or int(number) < 1:
            self.fail(at + len(name) + len(colon), f"{name} needs a positive number, as in '{name}:8'")
        n = int(number)
        if self.is_form:
            return set()
        if n > count:
            which = " with attention" if count < self.num_layers else ""
            self.fail(at + len(name) + 1, f"{n} layers asked for, the model has {count}{which}")
        start = (count - n) // 2
        placed = {
            "bottom": range(n),
            "middle": range(start, start + n),
            "top": range(count - n, count),
            # The last layer of each group of n, as Gemma 3 places its full layers.
            "every": range(n - 1, count, n),
        }
        return {self.attending[place] for place in placed[name]}

    def _mixture(self, clauses: list[tuple[int, str]]) -> list[LayerSpan | HeadSpans]:
        """Clauses that each name their layers and together name every layer once."""
        spans: dict[tuple[int, int], LayerSpan] = {}
        for clause in clauses:
            span, at, named = self._span_and_items(clause)
            for item in self._items(at, named):
                cells = self._cells(item)
                if not spans.keys().isdisjoint(cells):
                    what = f"layer {item[0]}" if item[1] is None else f"head {item[1]} of layer {item[0]}"
                    self.fail(at, f"{what} is named twice")
                spans |= dict.fromkeys(cells, span)
        missing: list[Item] = []
        for layer in self.attending:
            cells = self._cells((layer, None))
            left = [cell for cell in cells if cell not in spans]
            missing += [(layer, None)] if len(left) == len(cells) else left
        if missing:
            self.fail(len(self.text), f"no clause names layers {ranges_of(missing)}")
        return self._layers_of(spans)

    def _span_and_items(self, clause: tuple[int, str]) -> tuple[LayerSpan, int, str]:
        """Return the span of a clause that names its layers, and the text that names them, with its place."""
        start, text = clause
        at_sign = text.find("@")
        if at_sign < 0:
            self.fail(start, f"'{text.strip()}' names no layers; in a plan with ';' every clause ends in @LAYERS")
        words = self._words((start, text[:at_sign]))
        if words[0][1] != "full":
            span = self._numbers(words)
        elif len(words) > 1:
            self.fail(words[1][0], f"'{words[1][1]}' does not go with 'full'")
        else:
            span = FULL
        return span, start + at_sign + 1, text[at_sign + 1 :].rstrip()

    def _words(self, clause: tuple[int, str]) -> list[tuple[int, str]]:
        start, text = clause
        words = [(start + match.start(), match.group()) for match in re.finditer(r"\S+", text)]
        if not words:
            self.fail(start, "a setting is missing here")
        return words

    def _items(self, at: int, text: str) -> list[Item]:
        items: list[Item] = []
        for start, part, first, last, head in self._parts(at, text):
            if self.is_form:
                continue
            if last >= self.num_layers:
                self.fail(start, f"layer {last} does not exist, the model has layers 0 to {self.num_layers - 1}")
            attending = [layer for layer in range(first, last + 1) if layer in self.attending]
            if not attending:
                self.fail(start, f"'{part}' has no attention in this model; name layers that have")
            if head is None:
                items.extend((layer, None) for layer in attending)
            else:
                items.append((first, self._head(start, part, head)))
        return items

    def _parts(self, at: int, text: str) -> list[tuple[int, str, int, int, int | None]]:
        """Return what is between commas, each with its place, and its first layer, last layer and head."""
        parts: list[tuple[int, str, int, int, int | None]] = []
        for part in text.split(","):
            match = re.fullmatch(r"([0-9]{1,9})(?:-([0-9]{1,9})|\.([0-9]{1,9}))?", part)
            if match is None:
                self.fail(at, f"'{part}' is no layer; write numbers and ranges, as in '0-3,7', or '7.1' for one head")
            first, last, head = int(match[1]), int(match[2] or match[1]), match[3]
            if last < first:
                self.fail(at, f"'{part}' runs backwards")
            parts.append((at, part, first, last, None if head is None else int(head)))
            at += len(part) + 1
        return parts

    def _head(self, at: int, part: str, head: int) -> int:
        if self.num_heads is None:
            self.fail(at, f"'{part}' names a head, and how many key/value heads there are is not known here")
        if head >= self.num_heads:
            self.fail(
                at + part.index(".") + 1,
                f"head {head} does not exist, the model has key/value heads 0 to {self.num_heads - 1}",
            )
        return head

    def _numbers(self, words: list[tuple[int, str]]) -> LayerSpan:
        numbers: dict[str, int] = {}
        places: dict[str, int] = {}
        known = number_names()
        for at, word in words:
            name, equals, value = word.partition("=")
            if not equals or name not in known:
                self.fail(at, f"'{word}' is no setting; known: {', '.join(f'{each}=N' for each in known)}")
            if name in numbers:
                self.fail(at, f"{name} is given twice")
            if not _NUMBER.fullmatch(value):
                self.fail(at + len(name) + 1, f"{name} needs a whole number of at most 9 digits, got '{value[:20]}'")
            numbers[name], places[name] = int(value), at
        pattern = next((PATTERNS[name] for name in numbers if name in PATTERNS), Window)
        try:
            return LayerSpan(**{**pattern.typed, **numbers})
        except PlanError as error:
            self.fail(min(places.values(), default=0), str(error))
