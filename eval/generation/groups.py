"""Which prompts share a prefix tree and decode together, and what that costs, before any weights load.

    units = measure(requests, size)          # prompts of one document: tokens, operations, bytes
    groups = form_groups(units, grouping)    # units that share a tree and its batches

Groups follow from the run's settings, data and `Grouping`, and not from the journal of an interrupted session. So a
group that was interrupted is computed again as it would have been.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

from tqdm import tqdm
from transformers import PreTrainedConfig

from eval.config.generation import GenerationSettings
from eval.generation.prompt_tree import Node, PromptTree
from eval.generation.requests import PromptSource, Request, Requests
from eval.records.schema import Grouping, Key
from eval.runtime.speed import count_weights
from masformer import SpanPlan, full_plan
from masformer.attention.cache import can_join
from masformer.attention.full import TAIL_TOKENS
from masformer.attention.prefill import frequency_class
from masformer.plans.cost import PlanCost
from masformer.plans.shapes import state_bytes

# Where processes share the work, each gets at least as many groups, so that none idles long at the end.
_GROUPS_A_SHARE = 2
# Rows of a group, in rows that decode together, at most: as long as some wait, they take the places of greedy ones that
# have ended. An interrupted group of these is decoded again. Processes get as many groups before groups grow, so that
# all end at about the same time.
_ROWS_A_PLACE, _GROUPS_BEFORE = 4, 8
# Operations of a decoded token take so many times as long as those of a prefilled one: products of a few rows are bound
# by reading weights and keys. From benchmarks/sweep.py: 16 rows, full plan, fp32.
DECODING = 5


@dataclass(frozen=True, kw_only=True)
class DocumentPrompts:
    """The prompts of a document that may share a group, and what they cost.

    Attributes:
        kind: What `Size.kind` says about each: rotary frequencies that agree, or encoders' inputs of like lengths.
        sizes: Tokens of each prompt, and how many of its context are kept and dropped.
        num_rows: Distinct prompts.
        requested: Tokens of all prompts but the last of each.
        prefilled: Tokens of their prefix tree.
        prefill_cost: Floating point operations of the prefill.
        decode_cost: The time of decoding, in operations of a prefill that takes as long.
        num_bytes: Keys and values, all at once.
    """

    source: PromptSource
    kind: int
    sizes: dict[Key, tuple[int, int, int]]
    num_rows: int
    requested: int
    prefilled: int
    prefill_cost: float
    decode_cost: float
    num_bytes: int

    @property
    def keys(self) -> list[Key]:
        return list(self.sizes)

    @property
    def cost(self) -> float:
        return self.prefill_cost + self.decode_cost


@dataclass(frozen=True, kw_only=True)
class Group:
    """Documents whose prompts share one tree.

    Attributes:
        index: Place in the order of the data.
        units: Documents of one task and one kind.
        num_rows: Most prompts that decode together.
        memory_budget: Bytes for keys and values; less may decode together for it.
    """

    index: int
    units: tuple[DocumentPrompts, ...]
    num_rows: int
    memory_budget: int

    @cached_property
    def cost(self) -> float:
        return sum(unit.cost for unit in self.units)

    @property
    def settings(self) -> GenerationSettings:
        return self.units[0].source.settings

    @property
    def keys(self) -> list[Key]:
        return [key for unit in self.units for key in unit.keys]

    def requests(self) -> list[Request]:
        """Return the requests, prompts included."""
        wanted = set(self.keys)
        return [request for unit in self.units for request in unit.source.requests() if request.key in wanted]


class Size(ABC):
    """What tokens cost a model: operations and bytes.

    Attributes:
        config: Config of the model.
        num_weights: Numbers in its weights.
    """

    config: PreTrainedConfig
    num_weights: int

    @abstractmethod
    def kind(self, num_tokens: int) -> int:
        """Return a number that is the same for prompts that may share a group."""

    @abstractmethod
    def tree(self, prompts: Sequence[Sequence[int]]) -> PromptTree:
        """Return what prompts share."""

    @abstractmethod
    def prefill(self, start: int, stop: int) -> int:
        """Return the operations of the tokens from `start` to before `stop`."""

    @abstractmethod
    def decode(self, start: int, num_new: int) -> int:
        """Return the operations of `num_new` tokens after `start` others."""

    @abstractmethod
    def num_bytes(self, ends: Sequence[Node], num_new: int, copies: int) -> int:
        """Return the bytes that prompts of a tree need to decode at once, as so many rows each; by their ends."""


class ModelSize(Size):
    """What tokens cost a decoder.

    Args:
        config: Config of the model.
        plan: Spans; None for a model that masformer does not convert, which is counted as full.
        bytes_per_value: Bytes of a key or value.
        trust_remote_code: Run code that comes with the checkpoint.
    """

    def __init__(
        self, config: PreTrainedConfig, plan: SpanPlan | None, bytes_per_value: int, *, trust_remote_code: bool = False
    ) -> None:
        self.config = config
        # Other caches are copied where they fork or grow.
        self.is_converted = plan is not None and can_join(config)
        self.plan = plan or full_plan(config)
        self.cost = PlanCost(config, self.plan)
        self.bytes_per_value = bytes_per_value
        count = count_weights(config, trust_remote_code=trust_remote_code)
        self.body, self.head, self.num_weights = count.body, count.head, count.all

    def kind(self, num_tokens: int) -> int:
        return frequency_class(self.config, num_tokens)

    def tree(self, prompts: Sequence[Sequence[int]]) -> PromptTree:
        return PromptTree(prompts)

    def prefill(self, start: int, stop: int) -> int:
        return 2 * self.body * (stop - start) + self._attention(start, stop)

    def decode(self, start: int, num_new: int) -> int:
        return 2 * (self.body + self.head) * num_new + self._attention(start, start + num_new)

    def _attention(self, start: int, stop: int) -> int:
        return self.cost.attention_flops(stop) - self.cost.attention_flops(start)

    def num_bytes(self, ends: Sequence[Node], num_new: int, copies: int) -> int:
        edges = {node for end in ends for node in end.path}
        nodes, rows = [node.stop for node in edges], [end.stop for end in ends]
        tokens = sum(len(node.tokens) for node in edges) if self.is_converted else sum(nodes) + max(rows)
        own = [len(end.tokens) for end in ends if len(end.tokens) <= TAIL_TOKENS]
        tail = max(own, default=0) if self.is_converted else 0
        kept = Fraction(0)
        for span, values in self.cost.values.items():
            if span.is_full:
                kept += values * (tokens + copies * (tail + num_new) * len(rows))
            else:
                # Rows that decode together copy what they have kept.
                of_rows = sum(span.num_kept(stop + num_new) for stop in rows)
                kept += values * (sum(span.num_kept(stop) for stop in nodes) + copies * of_rows)
        states = state_bytes(self.config, self.bytes_per_value) * (len(nodes) + copies * len(rows))
        return int(kept * self.bytes_per_value) + states


def measure(requests: Requests, size: Size, *, is_silent: bool) -> list[DocumentPrompts]:
    """Return the prompts of each document that no finished session has answered, with their cost.

    Every context is tokenized once for this, and once more when it is answered. What was finished takes part in no
    group: a resumed run forms the groups of the interrupted one, and additions form groups of their own.

    Args:
        requests: All of the run.
        size: What tokens cost.
        is_silent: Show no progress.
    """
    units = []
    for source in tqdm(requests.sources, desc="tokenizing", delay=2, leave=False, disable=is_silent or None):
        by_kind: dict[int, list[Request]] = defaultdict(list)
        if all(map(requests.is_finished, source.fingerprints)):
            continue
        for request in source.requests():
            if not requests.is_finished(request.key):
                by_kind[size.kind(len(request.prompt.token_ids))].append(request)
        units += [_measure(source, kind, asked, size) for kind, asked in by_kind.items()]
    return units


def _measure(source: PromptSource, kind: int, requests: Sequence[Request], size: Size) -> DocumentPrompts:
    num_new, rows = source.settings.room, source.settings.num_rows
    prompts = list(dict.fromkeys(request.prompt.token_ids for request in requests))
    tree = size.tree(prompts)
    return DocumentPrompts(
        source=source,
        kind=kind,
        sizes={
            request.key: (
                len(request.prompt.token_ids),
                request.prompt.num_context_kept,
                request.prompt.num_context_dropped,
            )
            for request in requests
        },
        num_rows=len(prompts),
        requested=sum(len(request.prompt.token_ids) - 1 for request in requests),
        prefilled=tree.num_tokens,
        prefill_cost=sum(size.prefill(node.start, node.stop) for node in tree),
        decode_cost=DECODING * rows * sum(size.decode(len(prompt), num_new) for prompt in prompts),
        num_bytes=size.num_bytes(tree.ends, num_new, rows),
    )


def form_groups(units: Sequence[DocumentPrompts], grouping: Grouping) -> list[Group]:
    """Return groups of units in order, each as large as rows and an even share of the work allow."""
    kinds: dict[tuple[str, int], list[DocumentPrompts]] = defaultdict(list)
    for unit in units:
        kinds[unit.source.task, unit.kind].append(unit)
    total, most = sum(unit.cost for unit in units), _most_rows(units, grouping)
    gathered: list[list[DocumentPrompts]] = []
    for members in kinds.values():
        cost, before, last = sum(unit.cost for unit in members), 0.0, -1
        least = math.ceil(grouping.num_shares * _GROUPS_A_SHARE * cost / total) if grouping.num_shares > 1 else 1
        group: list[DocumentPrompts] = []
        for unit in members:
            # An even share, to which a unit belongs by its middle.
            share = int(least * (before + unit.cost / 2) / cost)
            before += unit.cost
            if share != last or _num_rows([*group, unit]) > most:
                group = []
                gathered.append(group)
            last = share
            group.append(unit)
    return [
        Group(
            index=index,
            units=tuple(group),
            num_rows=max(1, grouping.batch_size // group[0].source.settings.num_rows),
            memory_budget=grouping.memory_budget,
        )
        for index, group in enumerate(gathered)
    ]


def _most_rows(units: Sequence[DocumentPrompts], grouping: Grouping) -> int:
    """Return how many rows a group has at most."""
    if grouping.num_shares == 1:
        return _ROWS_A_PLACE * grouping.batch_size
    even = _num_rows(units) // (grouping.num_shares * _GROUPS_BEFORE * grouping.batch_size)
    return min(max(even, 1), _ROWS_A_PLACE) * grouping.batch_size


def _num_rows(units: Iterable[DocumentPrompts]) -> int:
    return sum(unit.num_rows * unit.source.settings.num_rows for unit in units)


def deal(units: Sequence[DocumentPrompts], part: int, num_parts: int) -> list[DocumentPrompts]:
    """Return the units of one of several independent parts, in order: the largest first go to whoever has least.

    That depends on no machine, so that parts on different ones make a whole.
    """
    loads = [0.0] * num_parts
    mine = []
    for index in sorted(range(len(units)), key=lambda index: (-units[index].cost, index)):
        receiver = loads.index(min(loads))
        loads[receiver] += units[index].cost
        if receiver == part:
            mine.append(index)
    return [units[index] for index in sorted(mine)]
