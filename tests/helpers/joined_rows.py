"""Prompts that share beginnings, and the batch of rows that decodes them together."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from masformer import SpanCache, SpanPlan, prefill
from masformer.attention.cache import join
from masformer.step_graph import StepGraph
from tests.helpers.tiny_models import VOCAB

Steps = TypeVar("Steps", bound=StepGraph)


def tokens(seed: int, count: int) -> list[int]:
    return torch.randint(3, VOCAB, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def tree(model: PreTrainedModel, plan: SpanPlan, ends: tuple[int, ...]) -> tuple[list[list[int]], list[SpanCache]]:
    """Return prompts that share beginnings, and a cache of each: all tokens but the last."""
    stem, branch = tokens(0, 41), tokens(1, 30)
    trunk = SpanCache(plan)
    prefill(model, torch.tensor([stem], device=model.device), trunk)
    twig = trunk.fork()
    prefill(model, torch.tensor([branch], device=model.device), twig)
    prompts, caches = [], []
    for row, count in enumerate(ends):
        first, cache = (stem, trunk.fork()) if row % 3 == 0 else (stem + branch, twig.fork())
        prompts.append(first + tokens(2 + row, count))
        prefill(model, torch.tensor([prompts[-1][len(first) : -1]], device=model.device), cache)
        caches.append(cache)
    return prompts, caches


def pinned_rows(
    model: PreTrainedModel, plan: SpanPlan, ends: tuple[int, ...], room: int, kind: type[Steps]
) -> tuple[list[list[int]], Steps]:
    """Return the prompts of rows and their steps, which begin with the last token of each prompt."""
    prompts, caches = tree(model, plan, ends)
    cache, longest = join(caches, room), max(map(len, prompts))
    places = cache.pin()
    assert places is not None
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * (len(row) + room) for row in prompts])
    positions = torch.tensor([[len(row) - 1] for row in prompts])
    return prompts, kind(model, cache, places, positions, mask if len(prompts) > 1 else None, room)


class Batch:
    """Rows that decode together, given a token each at each step."""

    def __init__(self, model: PreTrainedModel, prompts: list[list[int]], caches: list[SpanCache], room: int) -> None:
        self.model, self.cache = model, join(caches, room)
        longest = max(map(len, prompts))
        numbers = [
            [[0] * (longest - len(row)) + [1] * len(row) for row in prompts],
            [[len(row) - 1] for row in prompts],
            [row[-1:] for row in prompts],
        ]
        self.mask, self.positions, self.ids = (torch.tensor(each, device=model.device) for each in numbers)

    def step(self, ids: Tensor) -> Tensor:
        """Return the logits of the last tokens, and add one to each row."""
        more = {"attention_mask": self.mask, "position_ids": self.positions, "past_key_values": self.cache}
        logits: Tensor = self.model(self.ids, **more).logits[:, 0]
        self.ids = ids
        self.mask = torch.cat([self.mask, torch.ones_like(ids)], dim=1)
        self.positions = self.positions + 1
        return logits

    def select(self, rows: list[int]) -> None:
        self.cache.batch_select_indices(torch.tensor(rows))
        self.ids, self.mask, self.positions = self.ids[rows], self.mask[rows], self.positions[rows]
