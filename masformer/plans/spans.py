"""Which layer sees how far: `LayerSpan` for one layer or head, `HeadSpans` for a layer of them, `SpanPlan` for a model.

A plan is data. It has a text form that a person can type,

    full                                     every layer sees everything
    local span=512 sinks=4                   no layer does
    middle:8 span=1024 sinks=4               8 full layers in the middle, the others local
    full@17,18,20,23 span=512 sinks=4        full layers named one by one (ranges too: 0-3,7)
    bottom:8 block=512 previous=1            block-sparse instead of a sliding window
    full@0; span=512@1-9; block=64@10,11     any mixture: clauses that name their layers
    full@17,18.0,20.2 span=512 sinks=4       one key/value head of a layer: here head 0 of 18 and head 2 of 20
    full@3 span=512 sinks=4; none@0-2,4-6    layers of a hybrid model that have no attention; may be left out

and a JSON form (`SpanPlan.to_json`) that is stored in a checkpoint's `config.json`. Numbers left out take their
defaults: a span of 1,024, 4 sinks, 1 previous block.

Source: the two sparse patterns and the bottom placement are those of MASFormer, arXiv 2310.12442, section 3; attention
sinks are those of StreamingLLM, arXiv 2309.17453, section 3.2; heads that see everything beside heads that see sinks
and a window are those of DuoAttention, arXiv 2410.10819, section 2.
"""

from __future__ import annotations

import reprlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from masformer.plans.layer_spans import (
    FULL,
    NO_ATTENTION,
    HeadSpans,
    LayerSpan,
    PlanError,
    layer_of_heads,
    number_names,
)
from masformer.plans.text import PlanParser, text_of

__all__ = ["FULL", "NO_ATTENTION", "HeadSpans", "LayerSpan", "PlanError", "SpanPlan", "layer_of_heads"]


# Of layers, and of heads of a layer: more than any model has.
_MOST_LAYERS = 10_000


@dataclass(frozen=True)
class SpanPlan:
    """One `LayerSpan` or `HeadSpans` a layer, the first layer first."""

    layers: tuple[LayerSpan | HeadSpans, ...]

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, layer: int) -> LayerSpan | HeadSpans:
        return self.layers[layer]

    def __iter__(self) -> Iterator[LayerSpan | HeadSpans]:
        return iter(self.layers)

    @property
    def is_full(self) -> bool:
        return all(layer.is_full or layer == NO_ATTENTION for layer in self.layers)

    @property
    def attending(self) -> tuple[int, ...]:
        """Return the layers that have attention."""
        return tuple(index for index, layer in enumerate(self.layers) if layer != NO_ATTENTION)

    def with_all(self, *spans: LayerSpan | HeadSpans) -> SpanPlan:
        """Return the plan that gives these spans in turn to the layers that have attention."""
        layers = list(self.layers)
        for count, index in enumerate(self.attending):
            layers[index] = spans[count % len(spans)]
        return SpanPlan(tuple(layers))

    @property
    def num_heads(self) -> int | None:
        """Return the key/value heads of the layers that have spans by head; None where no layer has."""
        return next((len(layer.heads) for layer in self.layers if isinstance(layer, HeadSpans)), None)

    @classmethod
    def full(cls, num_layers: int, without: Collection[int] = ()) -> SpanPlan:
        """Return the plan in which every layer sees everything but those without attention."""
        return cls(tuple(NO_ATTENTION if layer in without else FULL for layer in range(num_layers)))

    @classmethod
    def parse(
        cls, text: str, num_layers: int, num_heads: int | None = None, without: Collection[int] | None = None
    ) -> SpanPlan:
        """Return the plan that a text describes.

        Args:
            num_heads: Key/value heads of a layer; without them there may be no spans of heads.
            without: Layers without attention; None leaves it to the text to name them.

        Raises:
            PlanError: The text is malformed, naming the character, or names a layer or a head that the model lacks.
        """
        return cls(tuple(PlanParser(text, num_layers, num_heads, without).layers()))

    @classmethod
    def from_json(cls, layers: Sequence[Mapping[str, Any]]) -> SpanPlan:
        """Return the plan that `to_json` wrote. Raises `PlanError` for anything else."""
        if not isinstance(layers, Sequence) or isinstance(layers, str) or not 0 < len(layers) <= _MOST_LAYERS:
            raise PlanError(
                f"a stored plan is a list with one object a layer, at most {_MOST_LAYERS}, got {reprlib.repr(layers)}"
            )
        return cls(tuple(_stored_layer(layer, index) for index, layer in enumerate(layers)))

    def to_json(self) -> list[dict[str, Any]]:
        """Return the JSON form: one object a layer."""
        return [layer.to_json() for layer in self.layers]

    def __str__(self) -> str:
        """Return the canonical text form; `parse` of it gives this plan again."""
        return text_of(self.layers)

    def check_fits(self, num_layers: int, model: str, num_heads: int | None = None) -> None:
        """Raise `PlanError` for another number of layers, or of key/value heads that have spans of their own."""
        if len(self) != num_layers:
            raise PlanError(f"span plan has {len(self)} layers, {model} has {num_layers}; give one entry a layer")
        for index, layer in enumerate(self.layers):
            if isinstance(layer, HeadSpans) and num_heads is not None and len(layer.heads) != num_heads:
                raise PlanError(
                    f"span plan has {len(layer.heads)} key/value heads in layer {index}, {model} has {num_heads}; give "
                    "one entry a head"
                )


def _stored_layer(layer: Any, index: int) -> LayerSpan | HeadSpans:
    where = f"layer {index} of the stored plan"
    if not isinstance(layer, Mapping) or "heads" not in layer:
        return _stored_span(layer, where)
    heads = layer["heads"]
    if (
        len(layer) > 1
        or not isinstance(heads, Sequence)
        or isinstance(heads, str)
        or not 0 < len(heads) <= _MOST_LAYERS
    ):
        raise PlanError(f"{where} is {reprlib.repr(layer)}; 'heads' stands alone, and is a list with one object a head")
    return layer_of_heads([_stored_span(span, f"head {head} of {where}") for head, span in enumerate(heads)])


def _stored_span(stored: Any, where: str) -> LayerSpan:
    if not isinstance(stored, Mapping):
        raise PlanError(f"{where} is {reprlib.repr(stored)}; an object was expected")
    if stored == NO_ATTENTION.to_json():
        return NO_ATTENTION
    unknown = sorted(map(str, set(stored) - {*number_names()}))
    if unknown:
        raise PlanError(f"{where} has unknown settings {', '.join(unknown)[:80]}")
    try:
        return LayerSpan(**stored)
    except PlanError as error:
        raise PlanError(f"{where}: {error}") from None
