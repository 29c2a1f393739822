"""What is to be predicted, in which groups, and what that will cost, before any weights load.

    documents = documents_of(...)                     # examples that share a context, with all their prompts
    plan = plan_work(documents, needs, grouping, {})  # of `groups`: prompts that share a prefix tree and its batches

Groups follow from the run's settings, data and `Grouping`, and not from the journal of an interrupted session, so that
a group that was interrupted is computed again as it would have been.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from typing import Any

import torch
from tqdm import tqdm
from transformers import AutoModelForCausalLM, PreTrainedConfig

from eval.config.run import RunConfig
from eval.generation.decode import GenerationSettings
from eval.generation.prompt_tree import PromptTree
from eval.prompting.prompts import Prompt, PromptBuilder, fit
from eval.records.journal import Key, fingerprint
from masformer import FULL, SpanPlan
from masformer.attention.joined import TAIL_TOKENS, can_join
from masformer.attention.prefill import frequency_class
from masformer.checkpoints.open import Checkpoint
from masformer.plans.cost import attention_flops, cache_bytes
from tasks import Example, LoadedExamples

# Where processes share the work, each gets at least as many groups, so that none idles long at the end.
_GROUPS_A_SHARE = 2
# Operations of a decoded token take so many times as long as those of a prefilled one: products of a few rows are bound
# by reading weights and keys. From benchmarks/sweep.py: 16 rows, full plan, fp32.
DECODING = 5


@dataclass(frozen=True, kw_only=True)
class Request:
    """One prediction that is asked for."""

    key: Key
    prompt: Prompt
    fingerprint: str
    document: Document


@dataclass(frozen=True, kw_only=True)
class Document:
    """Examples of a task that share a context, and how they are asked about.

    Attributes:
        task: Its name.
        examples: With the same context.
        builders: By template.
        lengths: Ascending.
        policy: Of truncation.
        settings: Of generation.
        pins: By template and length, a digest of all settings that could change a prediction.
    """

    task: str
    examples: tuple[Example, ...]
    builders: Mapping[str, PromptBuilder]
    lengths: tuple[int, ...]
    policy: str
    settings: GenerationSettings
    pins: Mapping[tuple[str, int], str]

    def requests(self) -> Iterator[Request]:
        """Return what is asked for: each example under each template at each length.

        Raises:
            UserError: A query or an instruction leaves no room.
        """
        # The context's tokens are the same under all templates.
        context = next(iter(self.builders.values())).parts(self.examples[0]).context
        for template, builder in self.builders.items():
            for example in self.examples:
                content = fingerprint(example.context, example.query)
                for maxlen in self.lengths:
                    parts = builder.fixed_parts(example.query, context)
                    yield Request(
                        key=(self.task, template, example.id, maxlen),
                        prompt=fit(parts, maxlen, self.settings.max_new_tokens, self.policy),
                        fingerprint=fingerprint(self.pins[template, maxlen], content),
                        document=self,
                    )

    def spans_shown(self, prompt: Prompt) -> list[list[int]]:
        """Return the characters of the context that a prompt shows, as starts and ends."""
        context = self.examples[0].context
        if not prompt.num_context_dropped:
            return [[0, len(context)]]
        return next(iter(self.builders.values())).spans_of(context, prompt.context_ranges)


@dataclass(frozen=True, kw_only=True)
class Unit:
    """The prompts of a document whose rotary frequencies agree, and what they need.

    Attributes:
        document: Theirs.
        frequencies: What `frequency_class` says about each.
        keys: Of the predictions.
        num_rows: Distinct prompts.
        asked: Tokens of all prompts but the last of each.
        prefilled: Tokens of their tree.
        prefill_cost: Floating point operations of the prefill.
        decode_cost: Of decoding, in operations of a prefill that take as long.
        num_bytes: Of keys and values, all at once.
    """

    document: Document
    frequencies: int
    keys: tuple[Key, ...]
    num_rows: int
    asked: int
    prefilled: int
    prefill_cost: float
    decode_cost: float
    num_bytes: int

    @property
    def cost(self) -> float:
        return self.prefill_cost + self.decode_cost


@dataclass(frozen=True, kw_only=True)
class Grouping:
    """What groups depend on beyond the prompts; kept in `run.json`, so that a resumed run forms the same.

    Attributes:
        num_shares: Processes among which the work is handed out.
        batch_size: Rows that decode together at most, beams included.
        memory_budget: Bytes for keys and values.
    """

    num_shares: int
    batch_size: int
    memory_budget: int


@dataclass(frozen=True, kw_only=True)
class Group:
    """Units whose prompts share one tree.

    Attributes:
        index: In the order of the data.
        units: Of one task and one kind of rotary frequencies.
        num_rows: Prompts that decode together at most.
    """

    index: int
    units: tuple[Unit, ...]
    num_rows: int

    @cached_property
    def cost(self) -> float:
        return sum(unit.cost for unit in self.units)

    @property
    def settings(self) -> GenerationSettings:
        return self.units[0].document.settings

    @property
    def keys(self) -> list[Key]:
        return [key for unit in self.units for key in unit.keys]

    def requests(self) -> list[Request]:
        """Return what is asked for, prompts included."""
        wanted = set(self.keys)
        return [request for unit in self.units for request in unit.document.requests() if request.key in wanted]


@dataclass(kw_only=True)
class WorkPlan:
    """All that a run is to predict.

    Attributes:
        groups: Of what no finished session has predicted, in the order of the data.
        fingerprints: Of each prediction, finished or not.
        sizes: Tokens of each prediction's prompt, and how many of its context are kept and dropped.
    """

    groups: list[Group] = field(default_factory=list)
    fingerprints: dict[Key, str] = field(default_factory=dict)
    sizes: dict[Key, tuple[int, int, int]] = field(default_factory=dict)


class Needs:
    """What tokens cost a model: operations and bytes.

    Args:
        config: Of the model.
        plan: None for a model that masformer does not convert, which is counted as full.
        bytes_per_value: Of keys and values.
        trust_remote_code: Run code that comes with the checkpoint.
    """

    def __init__(
        self, config: PreTrainedConfig, plan: SpanPlan | None, bytes_per_value: int, *, trust_remote_code: bool = False
    ) -> None:
        self.config = config
        # Other caches are copied where they fork or grow.
        self.is_converted = plan is not None and can_join(config)
        text = config.get_text_config(decoder=True)
        self.plan = plan or SpanPlan((FULL,) * int(text.num_hidden_layers))
        self.a_token = cache_bytes(config, SpanPlan((FULL,)), 1, bytes_per_value)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
        outer = {id(layer.weight) for layer in (model.get_input_embeddings(), model.get_output_embeddings()) if layer}
        self.body: int = sum(x.numel() for x in model.parameters() if x.ndim > 1 and id(x) not in outer)
        self.head = int(text.hidden_size) * int(text.vocab_size)
        self.num_weights: int = sum(x.numel() for x in model.parameters())

    def prefill(self, start: int, stop: int) -> int:
        """Return the operations of the tokens from `start` to before `stop`."""
        return 2 * self.body * (stop - start) + self._attention(start, stop)

    def decode(self, start: int, num_new: int) -> int:
        """Return the operations of `num_new` tokens after `start` others."""
        return 2 * (self.body + self.head) * num_new + self._attention(start, start + num_new)

    def _attention(self, start: int, stop: int) -> int:
        return attention_flops(self.config, self.plan, stop) - attention_flops(self.config, self.plan, start)

    def tree_bytes(self, tree: PromptTree, num_new: int, beams: int) -> int:
        """Return the bytes of keys and values when all prompts of a tree decode at once."""
        nodes = [node.stop for node in tree]
        rows = [end.stop for end in tree.ends]
        tokens = tree.num_tokens if self.is_converted else sum(nodes) + max(rows)
        ends = [len(end.tokens) for end in tree.ends]
        tail = max((length for length in ends if length <= TAIL_TOKENS), default=0) if self.is_converted else 0
        kept = Fraction(0)
        for span, share in self.plan.shares.items():
            if span.is_full:
                kept += share * (tokens + beams * (tail + num_new) * len(rows))
            else:
                # Rows that decode together copy what they have kept.
                of_rows = sum(span.num_kept(stop + num_new) for stop in rows)
                kept += share * (sum(span.num_kept(stop) for stop in nodes) + beams * of_rows)
        return int(kept * self.a_token)


def documents_of(
    config: RunConfig,
    loaded: Mapping[str, LoadedExamples],
    record: Mapping[str, Any],
    checkpoint: Checkpoint,
) -> list[Document]:
    """Return the examples of each task by context, in the order in which contexts first appear.

    Args:
        config: Of the run.
        loaded: Examples by task.
        record: `run.json`, whose templates and lengths include those that the folder has already.
        checkpoint: Of the model.
    """
    documents = []
    for name, of_task in loaded.items():
        about = record["tasks"][name]
        templates, lengths = about["templates"], tuple(about["maxlen"])
        # Threads move near ties at most, and the folder refuses another number of them.
        identity = {key: value for key, value in record["identity"].items() if key != "threads"}
        apart = ("templates", "maxlen", "limit", "rows", "description", "licence", "profile", "scores_first_line")
        common = fingerprint(identity, name, {key: value for key, value in about.items() if key not in apart})
        builders = {
            template: PromptBuilder(checkpoint.tokenizer, config.tasks[name].templates[template])
            for template in templates
        }
        pins = {
            (template, maxlen): fingerprint(common, template, templates[template], maxlen)
            for template in templates
            for maxlen in lengths
        }
        by_context: dict[str, list[Example]] = defaultdict(list)
        for example in of_task.examples:
            by_context[example.context].append(example)
        documents += [
            Document(
                task=name,
                examples=tuple(examples),
                builders=builders,
                lengths=lengths,
                policy=config.truncation,
                settings=config.generation(about["max_new_tokens"]),
                pins=pins,
            )
            for examples in by_context.values()
        ]
    return documents


def check_prompts(documents: Sequence[Document]) -> None:
    """Check that every query and instruction fits at the smallest length, before anything long is tokenized."""
    for document in documents:
        for builder in document.builders.values():
            for example in document.examples:
                parts = builder.fixed_parts(example.query)
                fit(parts, document.lengths[0], document.settings.max_new_tokens, "head")


def plan_work(
    documents: Sequence[Document],
    needs: Needs,
    grouping: Grouping,
    finished: Mapping[Key, Mapping[str, Any]],
    part: tuple[int, int] | None = None,
    *,
    is_silent: bool,
) -> WorkPlan:
    """Return what is to be done; every context is tokenized once for it, and once more at its turn.

    Args:
        documents: All of the run.
        needs: What tokens cost.
        grouping: What groups are formed by.
        finished: Lines of predictions that are in no group: those of sessions that came to their end. So a resumed run
            forms the groups of the one that was interrupted, and what is added later forms groups of its own.
        part: Number, from 1 on, and count of independent jobs; None is all.
        is_silent: Show no progress.
    """
    plan = WorkPlan()
    units = []
    for document in tqdm(documents, desc="tokenizing", delay=2, leave=False, disable=is_silent):
        units += _measure(document, needs, plan, finished)
    if part is not None:
        units = deal(units, part[0] - 1, part[1])
    plan.groups = form_groups(units, grouping)
    return plan


def _measure(document: Document, needs: Needs, plan: WorkPlan, finished: Mapping[Key, Mapping[str, Any]]) -> list[Unit]:
    """Return the units of a document, and enter its predictions into the plan."""
    by_class: dict[int, list[Request]] = defaultdict(list)
    for request in document.requests():
        prompt = request.prompt
        plan.fingerprints[request.key] = request.fingerprint
        plan.sizes[request.key] = len(prompt.token_ids), prompt.num_context_kept, prompt.num_context_dropped
        if finished.get(request.key, {}).get("fingerprint") != request.fingerprint:
            by_class[frequency_class(needs.config, len(prompt.token_ids))].append(request)
    units = []
    num_new, beams = document.settings.max_new_tokens, document.settings.num_beams
    for frequencies, requests in by_class.items():
        prompts = list(dict.fromkeys(request.prompt.token_ids for request in requests))
        tree = PromptTree(prompts)
        units.append(
            Unit(
                document=document,
                frequencies=frequencies,
                keys=tuple(request.key for request in requests),
                num_rows=len(prompts),
                asked=sum(len(request.prompt.token_ids) - 1 for request in requests),
                prefilled=tree.num_tokens,
                prefill_cost=sum(needs.prefill(node.start, node.stop) for node in tree),
                decode_cost=DECODING * beams * sum(needs.decode(len(prompt), num_new) for prompt in prompts),
                num_bytes=needs.tree_bytes(tree, num_new, beams),
            )
        )
    return units


def form_groups(units: Sequence[Unit], grouping: Grouping) -> list[Group]:
    """Return groups of units in order, each as large as rows, memory, and an even share of the work allow."""
    kinds: dict[tuple[str, int], list[Unit]] = defaultdict(list)
    for unit in units:
        kinds[unit.document.task, unit.frequencies].append(unit)
    total = sum(unit.cost for unit in units)
    gathered: list[list[Unit]] = []
    for members in kinds.values():
        cost, before, last = sum(unit.cost for unit in members), 0.0, -1
        least = math.ceil(grouping.num_shares * _GROUPS_A_SHARE * cost / total) if grouping.num_shares > 1 else 1
        group: list[Unit] = []
        for unit in members:
            # An even share, to which a unit belongs by its middle.
            share = int(least * (before + unit.cost / 2) / cost)
            before += unit.cost
            is_full = (
                _num_rows([*group, unit]) > grouping.batch_size
                or sum(member.num_bytes for member in (*group, unit)) > grouping.memory_budget
            )
            if share != last or is_full:
                group = []
                gathered.append(group)
            last = share
            group.append(unit)
    return [
        Group(index=index, units=tuple(group), num_rows=_rows_at_once(group, grouping))
        for index, group in enumerate(gathered)
    ]


def _num_rows(units: Iterable[Unit]) -> int:
    return sum(unit.num_rows * unit.document.settings.num_beams for unit in units)


def _rows_at_once(units: Sequence[Unit], grouping: Grouping) -> int:
    """Return how many prompts of a group decode together: as many as rows and memory allow, in even batches."""
    beams, num_prompts = units[0].document.settings.num_beams, sum(unit.num_rows for unit in units)
    num_bytes = sum(unit.num_bytes for unit in units)
    most = max(1, min(grouping.batch_size // beams, int(num_prompts * grouping.memory_budget / max(num_bytes, 1))))
    return math.ceil(num_prompts / math.ceil(num_prompts / most))


def deal(units: Sequence[Unit], part: int, num_parts: int) -> list[Unit]:
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
