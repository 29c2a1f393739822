"""Prompts that begin alike share the prefill of what they share.

The token sequences of prompts form a prefix tree. Each edge goes through the model once, in chunks; where the tree
branches, the cache is forked. With head truncation the prompt at 2,048 tokens begins like that at 8,192, and with the
context before the query all queries about a meeting begin with the meeting.

    tree = PromptTree(prompts)
    tree.num_tokens                     # to prefill, of sum(len(prompt) - 1 for prompt in prompts) asked for
    filled = TreeCaches(model, tree, leaves)
    cache = filled.take(leaf)           # holds all tokens of the prompt but its last few

The last token of a prompt is left to decoding, so that what is shared ends before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from masformer.attention.prefill import fork, new_cache, prefill
from masformer.tuning import now

Tokens = NDArray[np.int32]
# Tokens at the end of prompts that go through the model with those of the whole batch.
_SHORT_TOKENS = 64


@dataclass(eq=False, kw_only=True)
class Node:
    """The end of an edge.

    Attributes:
        start: Tokens on the way to this edge.
        tokens: Token ids of the edge.
        parent: None for an edge that begins a prompt.
        children: Edges that go on from here.
        leaves: Prompts of which only the last token is missing here.
    """

    start: int
    tokens: Tokens
    parent: Node | None
    children: list[Node] = field(default_factory=list)
    leaves: list[int] = field(default_factory=list)

    @property
    def stop(self) -> int:
        """Return the tokens on the way to the end of this edge."""
        return self.start + len(self.tokens)

    @property
    def path(self) -> list[Node]:
        """Return the edges from the first on to this one."""
        return [*(self.parent.path if self.parent else []), self]


class PromptTree:
    """The prefix tree of some prompts.

    Args:
        prompts: Token ids of each, two at least. The same tree comes of the same prompts in the same order.

    Attributes:
        roots: The edges that begin prompts.
        ends: For each prompt, the node where its last token follows.
    """

    def __init__(self, prompts: Sequence[Sequence[int]]) -> None:
        self.roots: list[Node] = []
        self.ends: list[Node] = []
        for index, prompt in enumerate(prompts):
            assert len(prompt) > 1
            self._insert(index, np.asarray(prompt[:-1], dtype=np.int32))
        # Splitting an edge moves the end of prompts that are in already.
        self.ends = [node for _, node in sorted((leaf, node) for node in self for leaf in node.leaves)]

    def _insert(self, index: int, tokens: Tokens) -> None:
        parent: Node | None = None
        siblings, start = self.roots, 0
        while True:
            rest = tokens[start:]
            near = next((node for node in siblings if len(rest) and node.tokens[0] == rest[0]), None)
            if near is None:
                break
            shared = _num_shared(near.tokens, rest)
            if shared < len(near.tokens):
                _split(near, shared)
            parent, siblings, start = near, near.children, near.stop
        if start == len(tokens):
            assert parent is not None
            parent.leaves.append(index)
        else:
            siblings.append(Node(start=start, tokens=tokens[start:], parent=parent, leaves=[index]))

    def __iter__(self) -> Iterator[Node]:
        """Return all nodes, depth first."""
        ahead = self.roots[::-1]
        while ahead:
            node = ahead.pop()
            yield node
            ahead += node.children[::-1]

    @property
    def num_tokens(self) -> int:
        """Return the tokens of all edges: what is prefilled."""
        return sum(len(node.tokens) for node in self)

    @property
    def order(self) -> list[int]:
        """Return the prompts depth first, so that those that share an edge stand side by side."""
        return [leaf for node in self for leaf in node.leaves]


def _num_own(end: Node, leaf: int) -> int:
    """Return how many of a prompt's tokens may be left out of its end: those that nobody shares, and not all of it."""
    is_own = end.leaves == [leaf] and not end.children
    return len(end.tokens) - (end.parent is None) if is_own else 0


def _num_shared(first: Tokens, second: Tokens) -> int:
    length = min(len(first), len(second))
    differing = np.flatnonzero(first[:length] != second[:length])
    return int(differing[0]) if len(differing) else length


def _split(node: Node, at: int) -> None:
    """Let an edge end after `at` tokens, and another go on from there."""
    rest = Node(start=node.start + at, tokens=node.tokens[at:], parent=node, children=node.children, leaves=node.leaves)
    for child in rest.children:
        child.parent = rest
    node.tokens, node.children, node.leaves = node.tokens[:at], [rest], []


class TreeCaches:
    """The caches of a tree's prompts, filled as they are asked for; an edge is kept as long as a prompt needs it.

    Args:
        model: With its frequencies fixed, where they depend on the length.
        tree: All prompts that share it, answered ones included, so that edges stay the same.
        wanted: The prompts that will be asked for.
        filled: Called with each edge that has gone through the model.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tree: PromptTree,
        wanted: Iterable[int],
        filled: Callable[[Node], None] = lambda node: None,
    ) -> None:
        self.model = model
        self.filled = filled
        self.tree = tree
        self.wanted = set(wanted)
        self._filled: dict[Node, Cache] = {}
        self._seconds: dict[Node, float] = {}
        # Tokens that went through the model for each prompt: an edge counts for the prompt that first needed it.
        self.num_prefilled: dict[int, int] = {}
        # The last tokens of each prompt that `decode` lets go through the model with those of the whole batch: as many
        # of each, by the tree alone.
        self.num_left = min(_SHORT_TOKENS, *(_num_own(end, leaf) for leaf, end in enumerate(tree.ends)))

    def take(self, leaf: int) -> Cache:
        """Return a cache for one prompt that holds all its tokens but the last few, as many of each prompt."""
        end = self.tree.ends[leaf]
        for node in end.path:
            if node not in self._filled:
                self._fill(node, leaf)
        return fork(self._filled[end], end.stop)

    def _fill(self, node: Node, leaf: int) -> None:
        before = None if node.parent is None else self._filled[node.parent]
        cache = new_cache(self.model, node.stop) if before is None else fork(before, node.stop)
        start = now(self.model.device)
        # Where something is left out, each prompt has an end of its own.
        num_filled = len(node.tokens) - (self.num_left if node is self.tree.ends[leaf] else 0)
        tokens = torch.from_numpy(node.tokens[:num_filled].astype(np.int64)).to(self.model.device)
        prefill(self.model, tokens[None], cache)
        self._filled[node], self._seconds[node] = cache, now(self.model.device) - start
        self.num_prefilled[leaf] = self.num_prefilled.get(leaf, 0) + len(node.tokens)
        self.filled(node)

    def seconds(self, leaf: int) -> float:
        """Return the seconds that all edges of a prompt took: what they would have taken alone."""
        return sum(self._seconds[node] for node in self.tree.ends[leaf].path)

    def release(self, leaves: Iterable[int] | None = None) -> None:
        """Let go of edges that only these prompts have needed; None lets go of all, to be filled anew."""
        if leaves is None:
            self._filled.clear()
            return
        self.wanted -= set(leaves)
        needed = {node for leaf in self.wanted for node in self.tree.ends[leaf].path}
        self._filled = {node: cache for node, cache in self._filled.items() if node in needed}
