"""A decoding step on CUDA as one graph: what Python and its launches take for each token is spent once for many.

The first step runs as always, on a pinned cache (`SpanCache.pin`), and makes whatever is made once; the second is
recorded, and replayed from then on. What a model computes in Python from the length of the text would be the same at
each replay, so the third step of each model is compared with the same step run as always, bit by bit, and a model that
fails there, or cannot be recorded, goes on without a graph.

Shapes: R rows, T tokens, V tokens that the model knows.

Source: CUDA graphs as torch 2.13 has them in `torch.cuda.graph`.
"""

from __future__ import annotations

from typing import Self
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import PreTrainedModel

from masformer.attention.cache import SpanCache
from masformer.attention.layers import Place
from masformer.errors import SpanError

# Whether the replayed step of a model equals the step; a model that has not come so far is not there.
_EQUALS: WeakKeyDictionary[PreTrainedModel, bool] = WeakKeyDictionary()


class StepGraph:
    """Steps of one token a row with a cache, whose scores the next step overwrites.

    Args:
        positions: (R, 1) of the next tokens.
        mask: (R, T) of all tokens that there is room for, zeros at left padding; None where no row has any.
        room: Tokens of each row that there is room for.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        cache: SpanCache,
        places: list[Place],
        positions: Tensor,
        mask: Tensor | None,
        room: int,
    ) -> None:
        self.model, self.cache, self.places = model, cache, places
        self.positions, self.mask = positions, mask
        self.ids = torch.zeros_like(positions)
        self.last = cache.get_seq_length() + room
        self.is_warm = False
        self.graph: torch.cuda.CUDAGraph | None = None

    @classmethod
    def of(
        cls, model: PreTrainedModel, cache: SpanCache, positions: Tensor, mask: Tensor | None, room: int
    ) -> Self | None:
        """Return the steps of a model on one CUDA device; None where they cannot be a graph."""
        is_alone = len({parameter.device for parameter in model.parameters()}) == 1
        if model.device.type != "cuda" or not is_alone or not _EQUALS.get(model, True):
            return None
        places = cache.pin()
        return None if places is None else cls(model, cache, places, positions.clone(), mask, room)

    def __call__(self, ids: Tensor) -> Tensor:
        """Return the (R, 1, V) scores after (R, 1) tokens, which the cache takes in.

        Raises:
            SpanError: The room is used up.
        """
        if self.cache.get_seq_length() == self.last:
            raise SpanError(f"the room of a joined cache is used up after {self.last} tokens")
        self.ids.copy_(ids)
        is_recorded = self.graph is not None
        if self.is_warm and not is_recorded and _EQUALS.get(self.model, True):
            self._record()
        self.is_warm = True
        if self.graph is None:
            return self._pass()
        is_due = is_recorded and self.model not in _EQUALS
        return self._compared(self.graph) if is_due else self._replay(self.graph)

    def _pass(self) -> Tensor:
        mask = None if self.mask is None else self.mask[:, : self.cache.get_seq_length() + 1]
        logits: Tensor = self.model(
            input_ids=self.ids,
            attention_mask=mask,
            position_ids=self.positions,
            past_key_values=self.cache,
            use_cache=True,
        ).logits
        for place in self.places:
            place.advance()
        self.positions.add_(1)
        return logits.float()

    def _record(self) -> None:
        """Record a pass, which does nothing yet."""
        counts, graph = self.cache.counts, torch.cuda.CUDAGraph()
        device = self.ids.device
        torch.cuda.synchronize(device)
        try:
            # `torch.cuda.graph` would stay on its stream after an error.
            with torch.cuda.stream(torch.cuda.Stream(device)):  # type: ignore[no-untyped-call]
                graph.capture_begin(capture_error_mode="thread_local")
                try:
                    self.scores = self._pass()
                finally:
                    graph.capture_end()
            self.graph = graph
        except RuntimeError:  # something waits for the device, or copies from the host
            _EQUALS[self.model] = False
        self.cache.counts = counts

    def _replay(self, graph: torch.cuda.CUDAGraph) -> Tensor:
        graph.replay()
        self.cache.counts = [count + 1 for count in self.cache.counts]
        return self.scores

    def _compared(self, graph: torch.cuda.CUDAGraph) -> Tensor:
        """Replay a step and take it again as always; the scores of both must be the same."""
        numbers = [self.positions, *(place.slot for place in self.places)]
        before, counts = [number.clone() for number in numbers], self.cache.counts
        replayed = self._replay(graph).clone()
        for number, old in zip(numbers, before, strict=True):
            number.copy_(old)
        self.cache.counts = counts
        scores = self._pass()
        _EQUALS[self.model] = torch.equal(replayed, scores)
        if not _EQUALS[self.model]:
            self.graph = None
        return scores
