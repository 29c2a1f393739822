"""A decoding step on CUDA as one graph: what Python and its launches take for each token is spent once for many.

| step | how |
| --- | --- |
| first | as always, on a pinned cache (`SpanCache.pin`): makes whatever is made once |
| second | as always, but nothing may wait for the device |
| third | recorded, which does nothing yet, and replayed |
| fourth | replayed, and taken again as always |
| others | replayed |

What a model computes in Python from the length of the text would be the same at each replay, so the fourth step
compares scores bit by bit. A model that waits, or whose scores differ, goes on without a graph, and is not tried again
under this plan. Of a model that has passed, the second step of a batch is recorded already.

Shapes: R rows, T tokens, V tokens that the model knows.

Source: CUDA graphs as torch 2.13 has them in `torch.cuda.graph`. An error while it records leaves torch's allocator
unable to free memory, hence the second step.
"""

from __future__ import annotations

from typing import Any, Self
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import PreTrainedModel

from masformer import tuning
from masformer.attention.cache import SpanCache
from masformer.attention.layers import Place
from masformer.errors import SpanError, is_out_of_memory

# Steps below which recording one costs more than replaying it saves.
_LEAST_STEPS = 16
# Whether the replayed step of a model equals the step, by plan and whether rows are padded, where that is known.
_EQUALS: WeakKeyDictionary[PreTrainedModel, dict[Any, bool]] = WeakKeyDictionary()


def is_on_one_gpu(model: PreTrainedModel) -> bool:
    """Return whether all parameters of a model are on one CUDA device."""
    return model.device.type == "cuda" and len({parameter.device for parameter in model.parameters()}) == 1


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
        self.num_steps = 0
        self.graph: torch.cuda.CUDAGraph | None = None
        self._case = cache.plan, mask is None

    @classmethod
    def of(
        cls, model: PreTrainedModel, cache: SpanCache, positions: Tensor, mask: Tensor | None, room: int
    ) -> Self | None:
        """Return the steps of a model on one CUDA device; None where they cannot be a graph, or are too few."""
        if not is_on_one_gpu(model):
            return None
        places = None
        if room >= _LEAST_STEPS and _EQUALS.get(model, {}).get((cache.plan, mask is None), True):
            places = cache.pin()
        tuning.note("decoding step", "launches" if places is None else "graph")
        return None if places is None else cls(model, cache, places, positions.clone(), mask, room)

    @property
    def equals(self) -> bool | None:
        """Return whether a replayed step equals the step; None before that is known."""
        return _EQUALS.get(self.model, {}).get(self._case)

    def __call__(self, ids: Tensor) -> Tensor:
        """Return the (R, 1, V) scores after (R, 1) tokens, which the cache takes in.

        Raises:
            SpanError: The room is used up.
        """
        if self.cache.get_seq_length() == self.last:
            raise SpanError(f"the room of a joined cache is used up after {self.last} tokens")
        self.ids.copy_(ids)
        self.num_steps += 1
        if self.equals is not False and self.num_steps == 2 + (self.equals is None):
            self._record()
        is_unknown = self.equals is None
        if self.graph is not None:
            return self._compared(self.graph) if is_unknown and self.num_steps == 4 else self._replay(self.graph)
        return self._rehearsed() if is_unknown and self.num_steps == 2 else self._pass()

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

    def _rehearsed(self) -> Tensor:
        """Take a step in which waiting for the device is an error, which must not come up while one is recorded."""
        back = self._state()
        mode = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("error")
        try:
            return self._pass()
        except RuntimeError:
            self._settle(is_equal=False)
        finally:
            torch.cuda.set_sync_debug_mode(mode)
        self._restore(back)
        return self._pass()

    def _record(self) -> None:
        """Record a pass, which does nothing yet."""
        counts, graph = self.cache.counts, torch.cuda.CUDAGraph()
        try:
            # After an error the inner one would stay on its own stream.
            with (
                torch.cuda.stream(torch.cuda.current_stream(self.ids.device)),
                torch.cuda.graph(graph, capture_error_mode="thread_local"),
            ):
                self.scores = self._pass()
            self.graph = graph
        except RuntimeError as error:
            if is_out_of_memory(error):  # another batch may have room
                self.num_steps = _LEAST_STEPS
            else:
                self._settle(is_equal=False)
        self.cache.counts = counts

    def _replay(self, graph: torch.cuda.CUDAGraph) -> Tensor:
        graph.replay()
        self.cache.counts = [count + 1 for count in self.cache.counts]
        return self.scores

    def _compared(self, graph: torch.cuda.CUDAGraph) -> Tensor:
        """Replay a step and take it again as always; the scores of both must be the same."""
        back = self._state()
        replayed = self._replay(graph).clone()
        self._restore(back)
        scores = self._pass()
        self._settle(is_equal=torch.equal(replayed, scores))
        return scores

    def _settle(self, *, is_equal: bool) -> None:
        _EQUALS.setdefault(self.model, {})[self._case] = is_equal
        if not is_equal:
            self.graph = None
            tuning.note("decoding step", "launches")

    def _state(self) -> tuple[list[int], list[Tensor]]:
        """Return the counts in Python and the numbers on the device that a step changes; keys are written anew."""
        return self.cache.counts, [number.clone() for number in self._numbers]

    def _restore(self, state: tuple[list[int], list[Tensor]]) -> None:
        self.cache.counts, numbers = state[0], state[1]
        for number, old in zip(self._numbers, numbers, strict=True):
            number.copy_(old)

    @property
    def _numbers(self) -> list[Tensor]:
        return [self.positions, *(place.slot for place in self.places)]
