"""A real document of any length, for benchmarks."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from tasks import TASKS, LoadRequest


def long_text(tokenizer: PreTrainedTokenizerBase, num_tokens: int) -> Tensor:
    """Return (T,) tokens of ACL papers (package aclsum), one after the other until there are enough."""
    tokens: list[int] = []
    for example in TASKS["aclsum"].load(LoadRequest(split="test")).examples:
        tokens += tokenizer(example.context, add_special_tokens=False).input_ids
        if len(tokens) >= num_tokens:
            return torch.tensor(tokens[:num_tokens])
    raise ValueError(f"the papers have {len(tokens)} tokens together, {num_tokens} asked for")
